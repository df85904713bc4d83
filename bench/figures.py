"""A measured number beside its bar."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number beside its bar, both in the same unit; smaller is better by default."""

    what: str
    bar: float
    figure: float
    unit: str = ""
    at_least: bool = False

    @property
    def met(self) -> bool:
        return self.figure >= self.bar if self.at_least else self.figure <= self.bar

    def line(self) -> str:
        sign, verdict = "≥" if self.at_least else "≤", "met" if self.met else "MISSED"
        numbers = f"{self.figure:10.5g}  bar {sign} {self.bar:<8g}"
        return f"{self.what:66} {numbers} {self.unit:9} {verdict}"

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "met": self.met}


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
