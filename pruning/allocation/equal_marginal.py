"""Paying a target down where it costs least, until the next parameter costs the same everywhere.

EfficientLLM (arXiv 2502.06663) over curves of cost, which are first made convex: a dear step before
cheap ones is taken with them or not at all.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

from pruning.allocation.accounts import Account
from pruning.allocation.per_layer import widths_in_order
from pruning.allocation.same_width import SharedAccount, removed_together
from pruning.recipe_parts.method import Axis


def convex_marginals(costs: Sequence[float], sizes: Sequence[int]) -> list[float]:
    """Cost per parameter of each step of the greatest convex curve below the given one.

    Pool adjacent violators: steps that get cheaper as they go share their mean.
    """
    pools: list[tuple[float, int, int]] = []  # Cost, size, number of steps.
    for cost, size in zip(costs, sizes, strict=True):
        pool = (cost, size, 1)
        while pools and pools[-1][0] / pools[-1][1] >= pool[0] / pool[1]:
            before = pools.pop()
            pool = (before[0] + pool[0], before[1] + pool[1], before[2] + pool[2])
        pools.append(pool)
    return [cost / size for cost, size, num_steps in pools for _ in range(num_steps)]


def cheapest_widths(accounts: list[Account], excess: int) -> dict[tuple[int, Axis], int]:
    """The width of each account after at least `excess` parameters are gone at the least cost."""
    return widths_in_order(accounts, excess, _marginals)


def cheapest_same_widths(shared: list[SharedAccount], excess: int) -> dict[Axis, int] | None:
    """The widths, common to all layers, that remove enough at the least cost; None if none do."""
    return min(
        _sufficient({}, shared, excess), key=lambda widths: _cost(shared, widths), default=None
    )


def _sufficient(
    chosen: dict[Axis, int], shared: list[SharedAccount], excess: int
) -> Iterator[dict[Axis, int]]:
    """Every choice of widths for the coarser axes, the finest as wide as the target allows."""
    part = shared[len(chosen)]
    trials = ({**chosen, part.axis: width} for width in part.options())
    if part is shared[-1]:
        enough = (trial for trial in trials if removed_together(shared, trial) >= excess)
        yield from (trial for trial in [next(enough, None)] if trial is not None)
        return
    for trial in trials:
        yield from _sufficient(trial, shared, excess)


def _marginals(account: Account) -> tuple[float, ...]:
    bounds = (account.width, *account.steps)
    sizes = [(before - after) * account.group_cost for before, after in pairwise(bounds)]
    costs = [
        account.density(before, after) * size
        for (before, after), size in zip(pairwise(bounds), sizes, strict=True)
    ]
    return tuple(convex_marginals(costs, sizes))


def _cost(shared: list[SharedAccount], widths: dict[Axis, int]) -> float:
    return sum(
        sum(account.importances[: account.width - widths[part.axis]])
        for part in shared
        for account in part.accounts
    )
