"""Geometry of the drawings, as plain numbers for the templates. Pure.

The server draws everything once as SVG, so that a page without JavaScript shows the same curves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 10, 26
_LOG_RATIO = 4.0
"""Curves spanning more than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Series:
    """A curve over training tokens; `shade` picks its colour."""

    tokens: list[float]
    values: list[float]
    label: str = ""
    shade: int = 0

    def __bool__(self) -> bool:
        return bool(self.tokens)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Line:
    """A drawn curve: SVG path data, and its points where they are marked."""

    path: str
    dots: list[tuple[float, float]]
    shade: int


@dataclass(frozen=True)
class Plot:
    """Drawn curves, and where their axes' labels stand."""

    lines: list[Line]
    cuts: list[float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    level: float | None
    logarithmic: bool


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a curve spans too much for a linear axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO


def draw(
    curves: Sequence[Series],
    cuts: Sequence[float],
    *,
    max_tokens: float,
    dots: bool = False,
    level: float | None = None,
    stepped: bool = False,
) -> Plot:
    """Lay curves, the marks of the cuts and a level line into `WIDTH` x `HEIGHT`."""
    values = [value for curve in curves for value in curve.values]
    logarithmic = is_logarithmic(values)
    low, high = _bounds(values, logarithmic)
    span = max(max_tokens, 1.0)

    def x(tokens: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * tokens / span, 1)

    def y(value: float) -> float:
        place = math.log(value) if logarithmic else value
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (place - low) / (high - low)), 1)

    def line(curve: Series) -> Line:
        points = [(x(t), y(v)) for t, v in zip(curve.tokens, curve.values, strict=True)]
        return Line(_path(points, stepped), points if dots else [], curve.shade)

    place = y(level) if level is not None and values and (level > 0 or not logarithmic) else None
    return Plot(
        lines=[line(curve) for curve in curves if curve],
        cuts=[x(cut) for cut in cuts],
        x_ticks=[Tick(x(at), _short(at)) for at in nice_steps(0, span, 5)],
        y_ticks=[Tick(y(at), _short(at)) for at in _y_steps(low, high, logarithmic)],
        level=place if place is not None and TOP <= place <= HEIGHT - BOTTOM else None,
        logarithmic=logarithmic,
    )


def _path(points: Sequence[tuple[float, float]], stepped: bool) -> str:
    if not points:
        return ""
    (x, y), *others = points
    if stepped:
        return f"M{x},{y}" + "".join(f"H{a}V{b}" for a, b in others)
    return f"M{x},{y}" + "".join(f"L{a},{b}" for a, b in others)


def _bounds(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    if logarithmic:
        low, high = math.log(low), math.log(high)
    margin = (high - low) * 0.06 or 0.5
    return low - margin, high + margin


def _y_steps(low: float, high: float, logarithmic: bool) -> list[float]:
    if not logarithmic:
        return nice_steps(low, high, 4)
    least, most = math.exp(low), math.exp(high)
    candidates = [m * 10.0**e for e in range(-6, 13) for m in (1, 2, 5)]
    found = [value for value in candidates if least <= value <= most]
    return found if len(found) <= 6 else [v for v in found if math.log10(v).is_integer()]


def nice_steps(low: float, high: float, count: int) -> list[float]:
    """Round numbers between two bounds, about `count` of them."""
    rough = (high - low) / max(count, 1)
    if rough <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough)
    first = math.ceil(low / step)
    return [round(i * step, 10) for i in range(first, math.floor(high / step) + 1)]


def _short(tokens: float) -> str:
    for scale, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(tokens) >= scale:
            return f"{tokens / scale:g}{unit}"
    return f"{tokens:g}"


@dataclass(frozen=True)
class Sparkline:
    """A curve the size of a word."""

    path: str
    end: tuple[float, float]
    label: str
    last: float


SPARK_WIDTH, SPARK_HEIGHT = 96, 22


def sparkline(values: Sequence[float]) -> Sparkline:
    """Two values or more, evenly spaced, on an axis of their own."""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    across = (SPARK_WIDTH - 8) / (len(values) - 1)
    points = [
        (round(3 + i * across, 1), round(3 + (SPARK_HEIGHT - 6) * (high - value) / span, 1))
        for i, value in enumerate(values)
    ]
    return Sparkline(
        path="M" + "L".join(f"{x},{y}" for x, y in points),
        end=points[-1],
        label=f"from {values[0]:.2f} to {values[-1]:.2f}",
        last=values[-1],
    )


@dataclass(frozen=True)
class Heatmap:
    """Widths of one axis, increments down and layers across; the first row is the base model."""

    title: str
    unit: str
    rows: list[str]
    widths: list[list[int]]

    @property
    def floor(self) -> float:
        """The share of the base width that is drawn palest."""
        return min(math.floor(min(map(min, self._shares)) * 10) / 10, 0.9)

    @property
    def _shares(self) -> list[list[float]]:
        base = self.widths[0]
        return [
            [w / b if b else 1.0 for w, b in zip(row, base, strict=True)] for row in self.widths
        ]

    @property
    def height(self) -> int:
        """Of the drawing, at `HEAT_WIDTH`."""
        return len(self.rows) * HEAT_ROW

    @property
    def row_labels(self) -> list[Tick]:
        """The increments."""
        return [Tick(row * HEAT_ROW + 14, name) for row, name in enumerate(self.rows)]

    @property
    def shades(self) -> list[tuple[float, str]]:
        """One path for all cells of about one share, with its opacity."""
        across = (HEAT_WIDTH - HEAT_LEFT) / len(self.widths[0])
        cell = f"h{max(across - 2, 1):.1f}v{HEAT_ROW - 2}h-{max(across - 2, 1):.1f}z"
        paths: dict[float, list[str]] = {}
        for row, line in enumerate(self._shares):
            for layer, share in enumerate(line):
                place = (share - self.floor) / (1 - self.floor)
                opacity = round(0.12 + 0.88 * round(place * 20) / 20, 2)
                x = HEAT_LEFT + layer * across
                paths.setdefault(opacity, []).append(f"M{x:.1f},{row * HEAT_ROW}{cell}")
        return [(opacity, "".join(cells)) for opacity, cells in sorted(paths.items())]


HEAT_WIDTH, HEAT_LEFT, HEAT_ROW = 1100, 60, 20


def heatmap(
    title: str, unit: str, increments: Sequence[int], widths: Sequence[Sequence[int]]
) -> Heatmap | None:
    """The widths of all layers after each increment; None before anything is known."""
    if not widths or not widths[0]:
        return None
    return Heatmap(title, unit, [_row_name(i) for i in increments], [list(row) for row in widths])


def _row_name(increment: int) -> str:
    return "base" if increment == 0 else f"cut {increment}"
