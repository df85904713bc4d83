"""Numbers and times in the units people read. Pure."""

from datetime import datetime

ABSENT = "\N{EN DASH}"
"""What stands where a number is not known."""

_COUNT_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_BYTE_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def count(value: float | None) -> str:
    """`134515008` as `134.5 M`."""
    return ABSENT if value is None else _scaled(value, _COUNT_UNITS)


def size(value: float | None) -> str:
    """Bytes, as `269.1 MB`."""
    if value is None:
        return ABSENT
    return f"{value:.0f} B" if value < 1000 else _scaled(value, _BYTE_UNITS)


def _scaled(value: float, units: tuple[tuple[float, str], ...]) -> str:
    for scale, unit in units:
        if abs(value) >= scale:
            shown = value / scale
            digits = 1 if shown >= 100 else 2
            return f"{shown:.{digits}f}".rstrip("0").rstrip(".") + f" {unit}"
    return f"{value:.0f}"


def exact(value: int | None) -> str:
    """Every digit, in groups of three."""
    return ABSENT if value is None else f"{value:,}"


def decimal(value: float | None, digits: int = 2) -> str:
    """A plain number; more digits where it is small."""
    if value is None:
        return ABSENT
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.{digits}f}"


def figure(value: float | None) -> str:
    """A measured number with about four digits."""
    if value is None:
        return ABSENT
    digits = next((n for least, n in ((1000, 0), (100, 1), (10, 2)) if abs(value) >= least), 3)
    return f"{value:,.{digits}f}"


def percent(share: float | None, digits: int = 0) -> str:
    """`0.183` as `18 %`."""
    return ABSENT if share is None else f"{100 * share:.{digits}f} %"


def duration(seconds: float | None) -> str:
    """`5400` as `1 h 30 min`."""
    if seconds is None:
        return ABSENT
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest and minutes < 10 else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def moment(at: datetime | None) -> str:
    """Date and time in UTC, to the second."""
    return ABSENT if at is None else f"{at:%Y-%m-%d %H:%M:%S} UTC"


def clock(at: datetime) -> str:
    """The time of day in UTC."""
    return f"{at:%H:%M:%S}"
