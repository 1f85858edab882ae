"""Numbers as people read them."""

from __future__ import annotations

import math
from collections.abc import Mapping

MISSING = "–"
RATES_TITLE = "learning rates, from range tests and scales"
"""How the rates that :func:`rates_text` returns are called."""


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
    """Return a count with a comma between thousands; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def rates_text(rates: Mapping[str, float]) -> str:
    """Return the learning rates of a run, such as ``inner_lr 0.0012, outer_lr 3.1e-05``."""
    return ", ".join(f"{name} {number(rate, 3)}" for name, rate in rates.items())


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
    """Return bytes in MiB or GiB with three digits, such as ``477 MiB``; a dash for None and NaN."""
    if size is None or math.isnan(size):
        return MISSING
    if size < 999.5 * 2**20:
        return f"{size / 2**20:.3g} MiB"
    amount = size / 2**30
    return f"{amount:.3g} GiB" if amount < 999.5 else f"{amount:.0f} GiB"


def is_size(name: str) -> bool:
    """Return whether a metric is a number of bytes."""
    return name.endswith("_bytes")


def metric_text(name: str, value: object, digits: int = 4) -> str:
    """Return a metric's value: bytes as :func:`memory` writes them, anything else as :func:`number` does.

    Args:
        name: the metric. See :func:`is_size`.
        value: its value, or None.
        digits: significant digits of a number.
    """
    if is_size(name) and isinstance(value, int | float) and not isinstance(value, bool):
        return memory(float(value))
    return number(value, digits)
