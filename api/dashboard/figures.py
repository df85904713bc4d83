"""Geometry of the drawings, as plain numbers for the templates. Pure.

The server draws everything once as SVG, so that a page without JavaScript shows the same curves.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

WIDTH, HEIGHT = 600, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 10, 26
_LOG_RATIO = 8.0
"""Curves spanning more than this are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Series:
    """A curve over training tokens."""

    tokens: list[float]
    values: list[float]

    def __bool__(self) -> bool:
        return bool(self.tokens)


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A drawn curve: SVG path data and where its axes' labels stand."""

    path: str
    dots: list[tuple[float, float]]
    cuts: list[float]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    base: float | None
    logarithmic: bool


def is_logarithmic(values: Sequence[float]) -> bool:
    """Whether a curve spans too much for a linear axis."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > _LOG_RATIO


def draw(
    series: Series,
    cuts: Sequence[float],
    *,
    max_tokens: float,
    dots: bool = False,
    base: float | None = None,
) -> Plot:
    """Lay a curve, the marks of the cuts and the base model's value into `WIDTH` x `HEIGHT`."""
    logarithmic = is_logarithmic(series.values)
    low, high = _bounds(series.values, logarithmic)
    span = max(max_tokens, 1.0)

    def x(tokens: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * tokens / span, 1)

    def y(value: float) -> float:
        place = math.log(value) if logarithmic else value
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - (place - low) / (high - low)), 1)

    points = [(x(t), y(v)) for t, v in zip(series.tokens, series.values, strict=True)]
    return Plot(
        path="M" + "L".join(f"{a},{b}" for a, b in points) if points else "",
        dots=points if dots else [],
        cuts=[x(cut) for cut in cuts],
        x_ticks=[Tick(x(at), _short(at)) for at in nice_steps(0, span, 5)],
        y_ticks=[Tick(y(at), f"{at:g}") for at in _y_steps(low, high, logarithmic)],
        base=y(base) if base is not None and series else None,
        logarithmic=logarithmic,
    )


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
        if tokens >= scale:
            return f"{tokens / scale:g}{unit}"
    return f"{tokens:g}"


@dataclass(frozen=True)
class Sparkline:
    """A curve the size of a word."""

    path: str
    end: tuple[float, float]
    label: str


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
    )


@dataclass(frozen=True)
class Cell:
    """One layer after one increment."""

    x: float
    y: float
    opacity: float
    label: str


@dataclass(frozen=True)
class Heatmap:
    """Widths of one axis: layers across, increments down."""

    title: str
    cells: list[Cell]
    row_labels: list[Tick]
    column_labels: list[Tick]
    cell_width: float
    cell_height: float
    height: float
    floor: float


HEAT_WIDTH, HEAT_LEFT, HEAT_ROW, HEAT_FOOT = 1100, 60, 20, 20


def heatmap(
    title: str, unit: str, increments: Sequence[int], widths: Sequence[Sequence[int]]
) -> Heatmap | None:
    """The share of each layer's base width that is left; None before anything is known."""
    if not widths or not widths[0]:
        return None
    base = widths[0]
    num_layers = len(base)
    shares = [[w / b if b else 1.0 for w, b in zip(row, base, strict=True)] for row in widths]
    least = min(min(row) for row in shares)
    floor = min(math.floor(least * 10) / 10, 0.9)
    across = (HEAT_WIDTH - HEAT_LEFT) / num_layers
    cells = [
        Cell(
            x=round(HEAT_LEFT + layer * across, 2),
            y=row * HEAT_ROW,
            opacity=round(0.12 + 0.88 * (share - floor) / (1 - floor), 3),
            label=f"layer {layer}, {_row_name(increments[row])}: "
            f"{widths[row][layer]} of {base[layer]} {unit} ({100 * share:.0f} %)",
        )
        for row, line in enumerate(shares)
        for layer, share in enumerate(line)
    ]
    every = max(1, math.ceil(num_layers / 16))
    return Heatmap(
        title=title,
        cells=cells,
        row_labels=[
            Tick(row * HEAT_ROW + 14, _row_name(idx)) for row, idx in enumerate(increments)
        ],
        column_labels=[
            Tick(round(HEAT_LEFT + (layer + 0.5) * across, 1), str(layer))
            for layer in range(0, num_layers, every)
        ],
        cell_width=round(max(across - 2, 1), 2),
        cell_height=HEAT_ROW - 2,
        height=len(widths) * HEAT_ROW + HEAT_FOOT,
        floor=floor,
    )


def _row_name(increment: int) -> str:
    return "base" if increment == 0 else f"cut {increment}"
