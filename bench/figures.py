"""A measured number beside its bar."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number beside its bar, both in the same unit; smaller is better."""

    what: str
    bar: float
    figure: float
    unit: str

    @property
    def met(self) -> bool:
        return self.figure <= self.bar

    def line(self) -> str:
        verdict = "met" if self.met else "MISSED"
        return f"{self.what:66} {self.bar:9.3f} {self.figure:9.3f} {self.unit:9} {verdict}"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]
