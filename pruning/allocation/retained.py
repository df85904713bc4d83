"""The same share of importance kept everywhere: every layer and axis as narrow as that allows.

SliceGPT's variance threshold (arXiv 2401.15024, appendix) for any axis and importance: the smallest
width whose groups hold that share of the whole. The target decides what share it is.
"""

import math
from itertools import accumulate

from pruning.allocation.accounts import Account
from pruning.allocation.per_layer import widths_in_order
from pruning.recipe_parts.method import Axis


def retaining_widths(accounts: list[Account], excess: int) -> dict[tuple[int, Axis], int]:
    """The width of each account after at least `excess` parameters are gone."""
    return widths_in_order(accounts, excess, _lost_shares)


def _lost_shares(account: Account) -> tuple[float, ...]:
    """What share of an account's importance is gone after each of its steps."""
    lost = [0.0, *accumulate(account.importances)]
    # What may not go at all has infinite importance; groups of none are the first to go.
    whole = sum(filter(math.isfinite, account.importances)) or 1.0
    return tuple(lost[account.width - width] / whole for width in account.steps)
