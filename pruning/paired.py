"""Two models on the same rows: by how much one is better, and whether that could be chance.

Outcomes of rows travel beside a number as text (`encode_rows`): compressed, a right or wrong
answer costs a bit or so. Torch-free, so that the API compares what the runs stored.
"""

import base64
import math
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

_NORMAL_95 = 1.959963984540054


@dataclass(frozen=True, kw_only=True)
class PairedComparison:
    """The mean difference of the rows' outcomes, second minus first, and what it may be by chance.

    `mcnemar` is the exact test on rows where only one is right; `paired_normal` the normal
    approximation for outcomes that are not just right or wrong.
    """

    num_rows: int
    difference: float
    stderr: float
    low: float
    high: float
    p_value: float
    num_greater: int
    num_less: int
    test: Literal["mcnemar", "paired_normal"]


def encode_rows(outcomes: Iterable[float]) -> str:
    """One float32 a row, as text."""
    packed = array("f", outcomes)
    if sys.byteorder == "big":
        packed.byteswap()
    return base64.b64encode(zlib.compress(packed.tobytes(), 9)).decode()


def decode_rows(text: str) -> list[float]:
    """What `encode_rows` was given, in float32.

    Raises:
        ValueError: the text is something else.
    """
    packed = array("f")
    try:
        packed.frombytes(zlib.decompress(base64.b64decode(text, validate=True)))
    except zlib.error as error:
        raise ValueError(f"not encoded rows: {error}") from error
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()


def compare_rows(first: Sequence[float], second: Sequence[float]) -> PairedComparison | None:
    """The second against the first, row by row; None where the rows cannot be the same."""
    if len(first) != len(second) or len(first) < 2:
        return None
    differences = [b - a for a, b in zip(first, second, strict=True)]
    num_rows = len(differences)
    mean = math.fsum(differences) / num_rows
    variance = math.fsum((d - mean) ** 2 for d in differences) / (num_rows - 1)
    stderr = math.sqrt(variance / num_rows)
    greater, less = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    binary = {*first, *second} <= {0.0, 1.0}
    return PairedComparison(
        num_rows=num_rows,
        difference=mean,
        stderr=stderr,
        low=mean - _NORMAL_95 * stderr,
        high=mean + _NORMAL_95 * stderr,
        p_value=_mcnemar(greater, less) if binary else _two_sided(mean, stderr),
        num_greater=greater,
        num_less=less,
        test="mcnemar" if binary else "paired_normal",
    )


def _mcnemar(greater: int, less: int) -> float:
    """Exact: rows on which the two differ fall on either side like a fair coin (McNemar 1947)."""
    total = greater + less
    if total == 0:
        return 1.0
    log_half = total * math.log(2)
    tail = math.fsum(
        math.exp(
            math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) - log_half
        )
        for k in range(min(greater, less) + 1)
    )
    return min(1.0, 2 * tail)


def _two_sided(mean: float, stderr: float) -> float:
    if stderr == 0:
        return 1.0 if mean == 0 else 0.0
    return math.erfc(abs(mean) / stderr / math.sqrt(2))
