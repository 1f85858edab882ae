"""Numbers as people read them."""

from __future__ import annotations

import math

MISSING = "–"


def number(value: object, digits: int = 4) -> str:
    """Return a number with ``digits`` significant digits; a dash for None and NaN; any other value as text."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return MISSING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == 0 or (float(value).is_integer() and abs(value) < 1e6):
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


def big_number(value: float | None) -> str:
    """Return a count with a thin space between thousands; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}".replace(",", "\u202f")


def duration(seconds: float | None) -> str:
    """Return seconds in one or two units, such as ``2 h 05 min``; a dash for None."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    return f"{minutes // 60}\u00a0h {minutes % 60:02d}\u00a0min"


def memory(size: float | None) -> str:
    """Return bytes as MB or GB; a dash for None."""
    if size is None:
        return MISSING
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
