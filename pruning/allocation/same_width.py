"""Paying a target down with the same widths in every layer, so that a stock model comes out."""

from dataclasses import dataclass
from statistics import fmean

from pruning.allocation.accounts import Account, num_removed
from pruning.errors import InvalidPlan
from pruning.recipe_parts.method import Axis


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

    The coarser axes come as close as they can to their share (their allotment, plus what they owe
    over all layers); the finest one closes the gap with the least overshoot.
    """
    sparsity = excess / sum(account.allotment for account in shared)
    wanted = {part.axis: owed[part.axis] + sparsity * part.allotment for part in shared}
    return _complete({}, shared, excess, wanted)


def _complete(
    chosen: dict[Axis, int],
    shared: list[SharedAccount],
    excess: int,
    wanted: dict[Axis, float],
) -> dict[Axis, int] | None:
    """`chosen` with widths of the axes still to choose, the coarsest first."""
    part = shared[len(chosen)]
    if part is shared[-1]:
        trials = ({**chosen, part.axis: width} for width in part.options())
        return next((trial for trial in trials if removed_together(shared, trial) >= excess), None)

    def preference(width: int) -> tuple[bool, float]:
        # What removes more than asked for leaves the finer axes nothing to close the gap with.
        too_much = removed_together(shared, {**chosen, part.axis: width}) > excess
        return too_much, abs(part.cost_to(width) - wanted[part.axis])

    for width in sorted(part.options(), key=preference):
        found = _complete({**chosen, part.axis: width}, shared, excess, wanted)
        if found is not None:
            return found
    return None


def removed_together(shared: list[SharedAccount], widths: dict[Axis, int]) -> int:
    """Parameters that go with the axes at `widths`, in all layers."""
    accounts = [account for part in shared if part.axis in widths for account in part.accounts]
    return num_removed(accounts, {(a.layer, a.axis): widths[a.axis] for a in accounts})
