"""How numbers are written on the page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

# A no-break space: a number is not torn from its unit at the end of a line.
NBSP = "\u00a0"
MINUS = "\u2212"
ABSENT = "\u2013"


def finite(value: Any) -> bool:
    """Whether `value` is a number that can be shown or compared."""
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def percent(rate: Any, unit: bool = True) -> str:
    """A rate as a percentage; a decimal only where rounding would make it look like none or all."""
    if not finite(rate):
        return ABSENT
    value = 100 * float(rate)
    near_edge = 0 < value < 1 or 99 < value < 100
    text = f"{value:.1f}" if near_edge else f"{value:.0f}"
    return f"{text}{NBSP}%" if unit else text


def share(value: Any, unit: bool = True) -> str:
    """A signed share of a whole, which may lie below 0 or above 1; a decimal below a tenth."""
    if not finite(value):
        return ABSENT
    number = 100 * float(value)
    text = decimal(number, 1 if abs(number) < 9.95 else 0)
    return f"{text}{NBSP}%" if unit else text


def share_span(low: Any, high: Any) -> str:
    """The bounds of an interval of a signed share."""
    if not (finite(low) and finite(high)):
        return ABSENT
    return f"{share(low, unit=False)} to {share(high)}"


def share_words(value: Any, low: Any, high: Any) -> str:
    """A signed share with its interval, where it has one: "84 % (95 % interval 80 to 88 %)"."""
    interval = share_span(low, high)
    return share(value) if interval == ABSENT else f"{share(value)} (95{NBSP}% interval {interval})"


def counted(n: int, name: str) -> str:
    """A count with its noun: "1 gate", "2 gates"."""
    return f"{whole(n)} {name}{'' if n == 1 else 's'}"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them: "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def decimal(value: Any, digits: int = 2) -> str:
    """A number with a true minus sign, never "-0.00"."""
    if not finite(value):
        return ABSENT
    text = f"{float(value):.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", MINUS)


def span(low: Any, high: Any, digits: int = 2) -> str:
    """The bounds of an interval of plain numbers."""
    if not (finite(low) and finite(high)):
        return ABSENT
    return f"{decimal(low, digits)} to {decimal(high, digits)}"


def rate_span(low: Any, high: Any) -> str:
    """The bounds of an interval of a rate."""
    if not (finite(low) and finite(high)):
        return ABSENT
    return f"{percent(low, unit=False)} to {percent(high)}"


def rate_words(row: Mapping[str, Any]) -> str:
    """A rate as words with its count and interval: "93 % (56 of 60; 95 % interval 84 to 97 %)"."""
    count = f"{whole(row['refused'])} of {whole(row['n'])}"
    interval = f"95{NBSP}% interval {rate_span(row['low'], row['high'])}"
    return f"{percent(row['rate'])} ({count}; {interval})"


def corrected(row: Mapping[str, Any]) -> str:
    """The rate corrected for its judge with its interval; the sign of absence where there is none."""
    if not finite(row.get("corrected")):
        return ABSENT
    interval = rate_span(row.get("corrected_low"), row.get("corrected_high"))
    return f"{percent(row['corrected'])} ({interval})"


def whole(value: Any) -> str:
    """A count with thin spaces between the thousands."""
    return f"{int(value):,}".replace(",", "\u202f") if finite(value) else ABSENT


def large(value: Any) -> str:
    """A count of work, rounded: "1.3 million"."""
    if not finite(value):
        return ABSENT
    number = float(value)
    for size, name in ((1e12, "trillion"), (1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.3g}{NBSP}{name}"
    return whole(number)


def p_value(p: Any) -> str:
    """A p value; below a thousandth only that."""
    if not finite(p):
        return ABSENT
    return "< 0.001" if float(p) < 0.001 else decimal(p, 3)


def duration(seconds: Any) -> str:
    """A time in the units a reader would use."""
    if not finite(seconds):
        return ABSENT
    total = float(seconds)
    if total < 90:
        return f"{total:.1f}{NBSP}s" if total < 10 else f"{total:.0f}{NBSP}s"
    minutes = round(total / 60)
    if minutes < 90:
        return f"{minutes}{NBSP}min"
    return f"{minutes // 60}{NBSP}h {minutes % 60}{NBSP}min"
