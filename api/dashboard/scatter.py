"""Points in a plane, as plain numbers for the templates. Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from api.dashboard.figures import Tick, nice_steps

WIDTH, HEIGHT = 720, 380
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 14, 44
_LOG_RATIO = 4.0
_LEAST_APART = 16.0


@dataclass(frozen=True)
class Spot:
    """A point: what it stands for, and where a click on it leads.

    Its `kind` becomes "best" on the plane where no other beats it, unless it has one of its own.
    """

    x: float
    y: float
    label: str
    href: str | None
    kind: str = "beaten"


@dataclass(frozen=True)
class Scatter:
    """Points laid into `WIDTH` x `HEIGHT`, and the line through those no other beats."""

    spots: list[Spot]
    marks: list[Tick]
    line: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    x_title: str
    y_title: str


def scatter(
    spots: Sequence[Spot],
    *,
    x_title: str,
    y_title: str,
    more_x_is_better: bool,
    marks: Sequence[tuple[float, str]] = (),
) -> Scatter | None:
    """Lay out points of which a smaller y is better; None without any.

    `marks` are places on the x axis to name; those beyond the points are left out.
    """
    if not spots:
        return None
    across = _Axis.of([spot.x for spot in spots], LEFT, WIDTH - RIGHT)
    down = _Axis.of([spot.y for spot in spots], HEIGHT - BOTTOM, TOP)
    unbeaten = _unbeaten(spots, more_x_is_better)
    laid = [_lay(spot, across, down, unbeaten) for spot in spots]
    corners = [(across.at(x), down.at(y)) for x, y in unbeaten]
    return Scatter(
        spots=sorted(laid, key=lambda spot: spot.kind == "best"),
        marks=_together([Tick(across.at(x), words) for x, words in marks]),
        line="M" + "L".join(f"{x},{y}" for x, y in corners) if len(corners) > 1 else "",
        x_ticks=across.ticks(),
        y_ticks=down.ticks(),
        x_title=x_title,
        y_title=y_title,
    )


def _together(marks: Sequence[Tick]) -> list[Tick]:
    """Marks that lie within the drawing; those too close to be read apart share a place."""
    kept: list[Tick] = []
    for mark in sorted(marks, key=lambda mark: mark.at):
        if not LEFT <= mark.at <= WIDTH - RIGHT:
            continue
        if kept and mark.at - kept[-1].at < _LEAST_APART:
            mark = Tick(kept[-1].at, f"{kept[-1].label}, {mark.label}")
            kept.pop()
        kept.append(mark)
    return kept


def _lay(
    spot: Spot, across: "_Axis", down: "_Axis", unbeaten: Sequence[tuple[float, float]]
) -> Spot:
    best = spot.kind == "beaten" and (spot.x, spot.y) in unbeaten
    kind = "best" if best else spot.kind
    return Spot(across.at(spot.x), down.at(spot.y), spot.label, spot.href, kind)


def _unbeaten(spots: Sequence[Spot], more_x_is_better: bool) -> list[tuple[float, float]]:
    sign = -1 if more_x_is_better else 1
    ordered = sorted(((spot.x, spot.y) for spot in spots), key=lambda p: (sign * p[0], p[1]))
    best, kept = math.inf, []
    for x, y in ordered:
        if y < best:
            best = y
            kept.append((x, y))
    return kept


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float) -> "_Axis":
        low, high = min(values), max(values)
        logarithmic = low > 0 and high / low > _LOG_RATIO
        if logarithmic:
            low, high = math.log(low), math.log(high)
        margin = (high - low) * 0.08 or abs(high) * 0.05 or 1.0
        return cls(low - margin, high + margin, start, end, logarithmic)

    def at(self, value: float) -> float:
        place = math.log(value) if self.logarithmic else value
        share = (place - self.low) / (self.high - self.low)
        return round(self.start + (self.end - self.start) * share, 1)

    def ticks(self) -> list[Tick]:
        if not self.logarithmic:
            steps = nice_steps(self.low, self.high, 5)
        else:
            low, high = math.exp(self.low), math.exp(self.high)
            decades = [m * 10.0**e for e in range(-6, 16) for m in (1, 2, 5)]
            steps = [value for value in decades if low <= value <= high]
        return [Tick(self.at(step), _short(step)) for step in steps]


def _short(value: float) -> str:
    for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"
