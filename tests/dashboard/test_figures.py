"""Geometry and units: numbers in, numbers out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.dashboard.figures import HEIGHT, WIDTH, Series, draw, heatmap, nice_steps
from api.dashboard.units import count, duration, size

finite = st.floats(1e-3, 1e9)


@given(values=st.lists(finite, max_size=40), cuts=st.lists(st.floats(0, 40), max_size=4))
def test_every_point_lies_inside_the_box(values: list[float], cuts: list[float]) -> None:
    series = Series([float(i) for i in range(len(values))], values)
    plot = draw([series], cuts, max_tokens=40, dots=True)
    dots = [dot for line in plot.lines for dot in line.dots]
    assert len(dots) == len(values)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in dots)
    assert all(0 <= tick.at <= HEIGHT for tick in plot.y_ticks)


@given(low=st.floats(-1e6, 1e6), span=st.floats(1e-3, 1e6))
def test_axis_labels_are_few_and_within_bounds(low: float, span: float) -> None:
    steps = nice_steps(low, low + span, 5)
    assert len(steps) <= 7
    slack = span * 1e-6 + 1e-6
    assert all(low - slack <= step <= low + span + slack for step in steps)


def test_a_heatmap_shows_more_ink_where_more_is_left() -> None:
    drawn = heatmap("widths", "channels", [0, 1], [[100, 100, 100], [100, 75, 50]])
    assert drawn is not None
    assert drawn.rows == ["base", "cut 1"]
    assert drawn.floor == 0.5
    cells = {opacity: path.count("M") for opacity, path in drawn.shades}
    assert cells == {0.12: 1, 0.56: 1, 1.0: 4}


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (count(134_515_008), "134.5 M"),
        (count(110_000_000), "110 M"),
        (count(None), "\N{EN DASH}"),
        (size(999), "999 B"),
        (size(269_060_552), "269.1 MB"),
        (duration(59), "59 s"),
        (duration(5400), "1 h 30 min"),
    ],
)
def test_numbers_are_written_as_people_read_them(shown: str, text: str) -> None:
    assert shown == text
