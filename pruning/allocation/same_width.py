"""Paying a target down with the same widths in every layer, so that a stock model comes out."""

from dataclasses import dataclass
from statistics import fmean

from pruning.allocation.accounts import Account
from pruning.errors import InvalidPlan
from pruning.recipe import Axis


@dataclass(frozen=True)
class SharedAccount:
    """One axis over all layers, which are alike."""

    axis: Axis
    accounts: tuple[Account, ...]
    rate: float

    @property
    def allotment(self) -> float:
        """Parameters that fall to this axis for each unit of mean sparsity."""
        return self.rate * sum(account.num_parameters for account in self.accounts)

    def options(self) -> tuple[int, ...]:
        """Widths it may have, descending; today's first unless serving forbids it."""
        account = self.accounts[0]
        return account.steps if account.due else (account.width, *account.steps)

    def cost_to(self, width: int) -> int:
        return sum(account.cost_to(width) for account in self.accounts)

    def widest(self, excess: int) -> int | None:
        """The largest width that removes at least `excess` parameters."""
        return next((width for width in self.options() if self.cost_to(width) >= excess), None)


def share(accounts: list[Account], rates: list[float], num_layers: int) -> list[SharedAccount]:
    """The accounts of each axis as one, at their mean rate, the coarsest steps first.

    Raises:
        InvalidPlan: layers differ in width, or some are protected.
    """
    axes: dict[Axis, list[Account]] = {}
    axis_rates: dict[Axis, list[float]] = {}
    for account, rate in zip(accounts, rates, strict=True):
        axes.setdefault(account.axis, []).append(account)
        axis_rates.setdefault(account.axis, []).append(rate)
    for axis, alike in axes.items():
        widths = sorted({account.width for account in alike})
        if len(widths) > 1 or len(alike) < num_layers:
            raise InvalidPlan(
                f"layout 'uniform' needs layers that are alike and none protected; {axis} has "
                f"{len(alike)} of {num_layers} layers, with widths {widths[:8]}",
                param="allocation.layout",
            )
    shared = [
        SharedAccount(axis, tuple(alike), fmean(axis_rates[axis])) for axis, alike in axes.items()
    ]
    return sorted(shared, key=lambda account: -account.accounts[0].first_cost)


def same_widths(
    shared: list[SharedAccount], *, excess: int, owed: dict[Axis, float]
) -> dict[Axis, int] | None:
    """Widths that together remove at least `excess` parameters, or None if none do.

    The coarsest axis comes as close as it can to its share (its allotment, plus what it owes over
    all layers); the finer one closes the gap with the least overshoot.
    """
    coarse, *finer = shared
    sparsity = excess / sum(account.allotment for account in shared)
    wanted = owed[coarse.axis] + sparsity * coarse.allotment
    for width in sorted(coarse.options(), key=lambda width: abs(coarse.cost_to(width) - wanted)):
        left = excess - coarse.cost_to(width)
        widths = {account.axis: account.widest(left) for account in finer}
        if all(found is not None for found in widths.values()) and (finer or left <= 0):
            return {coarse.axis: width, **{a: w for a, w in widths.items() if w is not None}}
    return None
