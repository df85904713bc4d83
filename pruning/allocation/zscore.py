"""FLAP's global ranking (arXiv 2312.11983): groups of all layers and axes by how far they stand out
within their own layer and axis, each removed at its real cost."""

from collections.abc import Mapping
from itertools import pairwise
from statistics import fmean, pstdev

from pruning.allocation.accounts import Account
from pruning.allocation.per_layer import widths_in_order
from pruning.recipe_parts.method import Axis
from pruning.scores import Scores

Widths = Mapping[tuple[int, Axis], int]


def zscores(values: tuple[float, ...], deviation: float | None) -> list[float]:
    """Values as deviations from their mean; `deviation` is one such, by default their own."""
    mean = fmean(values)
    unit = pstdev(values) if deviation is None else deviation
    # Groups that are all alike do not stand out.
    return [(value - mean) / unit if unit > 0 else 0.0 for value in values]


def standout_widths(
    accounts: list[Account], scores: Scores, excess: int
) -> dict[tuple[int, Axis], int]:
    """The width of each account after the groups that stand out least are gone."""

    def marginals_of(account: Account) -> tuple[float, ...]:
        return _marginals(account, scores.layers[account.layer].deviations.get(account.axis))

    return widths_in_order(accounts, excess, marginals_of)


def axis_rates(accounts: list[Account], widths: Widths) -> list[float]:
    """The share that the axis of each account lost over all layers, for layers of one width."""
    lost: dict[Axis, int] = {}
    whole: dict[Axis, int] = {}
    for account in accounts:
        cost = account.cost_to(widths[account.layer, account.axis])
        lost[account.axis] = lost.get(account.axis, 0) + cost
        whole[account.axis] = whole.get(account.axis, 0) + account.num_parameters
    return [lost[account.axis] / whole[account.axis] for account in accounts]


def _marginals(account: Account, deviation: float | None) -> tuple[float, ...]:
    """Mean z-score of the groups that go with each step."""
    # One importance of `query_head` sums those of a head in each KV group.
    heads = len(account.kept[0])
    standing = zscores(tuple(value / heads for value in account.importances), deviation)
    bounds = (account.width, *account.steps)
    return tuple(
        fmean(standing[account.width - before : account.width - after])
        for before, after in pairwise(bounds)
    )
