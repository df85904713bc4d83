"""Sequences of tokens packed into rows in which a beginning that several share stands once.

In lexicographic order each sequence adds to the one before it what the two do not share: a row is
the depth-first walk of a tree, and a token sees what stands before it and has it in its subtree.
Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """Some sequences as one row of T tokens.

    `positions` are the places of the tokens in their own sequences, `ends` where the subtree of
    each ends in the row, `places` where the tokens of each sequence, by its index, stand.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    places: dict[int, list[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def branches(self) -> bool:
        """Whether some token must not see all that stands before it."""
        return any(end != len(self) for end in self.ends)


def pack(sequences: Sequence[Ids], *, share: bool, max_tokens: int, free_keys: int) -> list[Row]:
    """Rows of at most `max_tokens`, or of one sequence, that hold each sequence; longest first.

    A longer row costs every token of it more attention: sequences share a row where that costs
    less than reading their beginning again, when attending to `free_keys` tokens costs as much as
    all other work on one. Without `share` only what is the beginning of another shares its row.
    """

    def costs(length: int) -> float:
        return length + length * length / free_keys

    rows: list[Row] = []
    path: list[int] = []
    before: Ids = ()
    for index in sorted(range(len(sequences)), key=sequences.__getitem__):
        ids = sequences[index]
        common = _num_common(before, ids)
        have = len(rows[-1]) if rows else 0
        longer = have + len(ids) - common
        cheaper = costs(longer) < costs(have) + costs(len(ids))
        allowed = bool(rows) and (share or common == len(before))
        if not (allowed and cheaper and longer <= max(max_tokens, have)):
            rows.append(Row())
            common, path = 0, []
        path = _append(rows[-1], path[:common], path[common:], ids[common:])
        rows[-1].places[index] = path
        before = ids
    for row in rows:
        row.ends[:] = [len(row) if end < 0 else end for end in row.ends]
    return sorted(rows, key=len, reverse=True)


def _append(row: Row, shared: list[int], left: list[int], ids: Ids) -> list[int]:
    """Leave a branch, add another behind what they share, and give its whole path."""
    for place in left:
        row.ends[place] = len(row)
    start = len(row)
    row.ids.extend(ids)
    row.positions.extend(range(len(shared), len(shared) + len(ids)))
    row.ends.extend([-1] * len(ids))
    return [*shared, *range(start, len(row))]


def _num_common(first: Ids, second: Ids) -> int:
    """How many tokens two sequences begin with alike."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
