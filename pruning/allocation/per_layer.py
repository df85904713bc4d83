"""Paying a target down one step of one account at a time: layers get widths of their own."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace

from pruning.allocation.accounts import Account
from pruning.recipe_parts.method import Axis


@dataclass
class Ledger:
    """An account while it is being paid down; `rate` is its sparsity relative to the others."""

    account: Account
    rate: float
    debt: float
    num_steps_taken: int = 0
    partner: "Ledger | None" = None
    """The ledger of the layer's KV groups, or of their query heads, whose parameters it shares."""
    marginals: tuple[float, ...] = ()
    """Cost per parameter of each step, where that alone decides when it comes due."""

    @property
    def width(self) -> int:
        taken = self.num_steps_taken
        return self.account.steps[taken - 1] if taken else self.account.width

    @property
    def next_width(self) -> int | None:
        steps = self.account.steps
        return steps[self.num_steps_taken] if self.num_steps_taken < len(steps) else None

    @property
    def may_return(self) -> bool:
        """Whether its last step was taken for the target's sake alone."""
        return self.num_steps_taken > self.account.due

    @property
    def removed(self) -> int:
        return self.account.cost_to(self.width)

    @property
    def allotment(self) -> float:
        """Parameters that fall to this account for each unit of mean sparsity."""
        return self.rate * self.account.num_parameters

    def next_cost(self) -> int:
        assert self.next_width is not None
        return (self.width - self.next_width) * self.group_cost

    @property
    def group_cost(self) -> int:
        """Parameters that one group holds beside what its partner has lost by now."""
        if self.partner is None:
            return self.account.group_cost
        lost = self.partner.account.width - self.partner.width
        return self.account.group_cost - lost * self.account.shared_cost

    def turn(self) -> tuple[float, float, int, str]:
        """Sort key of the next step: the mean sparsity at which it comes due, then its loss."""
        assert self.next_width is not None
        if self.marginals:
            marginal = self.marginals[self.num_steps_taken]
            return (marginal, 0.0, self.account.layer, self.account.axis)
        density = self.account.density(self.width, self.next_width)
        owed = self.account.cost_to(self.next_width) - self.debt
        sparsity = owed / self.allotment if self.allotment > 0 else float("inf")
        return (sparsity, density, self.account.layer, self.account.axis)


def open_ledgers(
    accounts: list[Account], rates: list[float], owed: dict[tuple[int, Axis], float]
) -> list[Ledger]:
    """One ledger per account, partners joined."""
    ledgers = {
        (account.layer, account.axis): Ledger(account, rate, owed[account.layer, account.axis])
        for account, rate in zip(accounts, rates, strict=True)
    }
    for (layer, axis), ledger in ledgers.items():
        if axis == "query_head" and (layer, "kv_group") in ledgers:
            ledger.partner = ledgers[layer, "kv_group"]
            ledger.partner.partner = ledger
    return list(ledgers.values())


def pay_down(ledgers: list[Ledger], excess: int) -> None:
    """Take steps in the order they come due until `excess` parameters are gone.

    A layer at its minimum drops out and the others go on, which spreads its surplus over them. A
    step too coarse for what remains is passed over while a finer one exists, so the overshoot stays
    below the finest step left at the end.
    """
    for ledger in ledgers:
        if ledger.account.due:
            excess -= _take(ledger)
    queue = [(ledger.turn(), ledger) for ledger in ledgers if ledger.next_width is not None]
    heapq.heapify(queue)
    too_coarse: list[Ledger] = []
    while excess > 0 and queue:
        _, ledger = heapq.heappop(queue)
        if ledger.next_cost() > excess:
            too_coarse.append(ledger)
            continue
        excess -= _take(ledger)
        if ledger.next_width is not None:
            heapq.heappush(queue, (ledger.turn(), ledger))
    if excess > 0:
        last = min(too_coarse, key=lambda ledger: (ledger.next_cost(), ledger.turn()))
        _give_back(ledgers, _take(last) - excess)


def widths_in_order(
    accounts: list[Account], excess: int, marginals_of: Callable[[Account], tuple[float, ...]]
) -> dict[tuple[int, Axis], int]:
    """The width of each account after at least `excess` parameters are gone.

    `marginals_of` an account says when each of its steps is due: the least of all comes first.
    """
    keys = [(account.layer, account.axis) for account in accounts]
    ledgers = open_ledgers(accounts, [1.0] * len(accounts), dict.fromkeys(keys, 0.0))
    for ledger in ledgers:
        ledger.marginals = marginals_of(ledger.account)
    pay_down(ledgers, excess)
    return {key: ledger.width for key, ledger in zip(keys, ledgers, strict=True)}


def settle(ledgers: list[Ledger]) -> list[float]:
    """What each account owes afterwards.

    The mean sparsity is the one whose allotments, over accounts that can still lose, sum to what
    those lost: debts move between layers and increments, their total does not grow. An account at
    its minimum owes nothing more.
    """
    able = [ledger for ledger in ledgers if ledger.next_width is not None]
    allotted = sum(ledger.allotment for ledger in able)
    sparsity = sum(ledger.removed for ledger in able) / allotted if allotted > 0 else 0.0
    return [
        ledger.debt + sparsity * ledger.allotment - ledger.removed
        if ledger.next_width is not None
        else 0.0
        for ledger in ledgers
    ]


def _give_back(ledgers: list[Ledger], overshoot: int) -> None:
    """Undo finer steps that a last coarse one made needless, those that came due latest first."""
    while True:
        able = [ledger for ledger in ledgers if ledger.may_return]
        needless = [ledger for ledger in able if _undo_cost(ledger) <= overshoot]
        if not needless:
            return
        latest = max(needless, key=_last_turn)
        overshoot -= _undo_cost(latest)
        latest.num_steps_taken -= 1


def _undo_cost(ledger: Ledger) -> int:
    return replace(ledger, num_steps_taken=ledger.num_steps_taken - 1).next_cost()


def _last_turn(ledger: Ledger) -> tuple[float, float, int, str]:
    return replace(ledger, num_steps_taken=ledger.num_steps_taken - 1).turn()


def _take(ledger: Ledger) -> int:
    cost = ledger.next_cost()
    ledger.num_steps_taken += 1
    return cost
