"""Numbers and names in words: one place, so that the three writers agree to the last digit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.metrics import higher_is_better, metric_heading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.report.model import Interval
    from zoo.report.sections import Range

__all__ = [
    "bracket",
    "count",
    "duration",
    "grouped",
    "metric_name",
    "number",
    "p_value",
    "prose_list",
    "signed",
    "size",
]


def metric_name(key: str, *, short: bool = False) -> str:
    """Name a metric in a heading, with its direction where that is not the usual one.

    Examples
    --------
    >>> metric_name("macro_f1"), metric_name("log_loss")
    ('Macro-F1', 'Log loss (lower is better)')
    """
    direction = "" if short or higher_is_better(key) else " (lower is better)"
    return metric_heading(key) + direction


def p_value(p: float | None) -> str:
    """Write a p-value.

    Examples
    --------
    >>> p_value(0.0004), p_value(0.04), p_value(None)
    ('< 0.001', '0.040', '–')
    """
    return "< 0.001" if p is not None and p < 0.001 else number(p)


def size(n_bytes: int | None) -> str:
    r"""Write a number of bytes.

    Examples
    --------
    >>> size(950), size(1_500_000), size(None)
    ('950\xa0B', '1.5\xa0MB', '–')
    """
    if n_bytes is None:
        return "–"
    value, unit = float(n_bytes), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.3g}\xa0{unit}"


def number(value: float | None, digits: int = 3) -> str:
    """Write a number with a fixed count of decimals and a true minus sign; a dash for none.

    Examples
    --------
    >>> number(0.5), number(-0.0301), number(float("nan")), number(-0.0001)
    ('0.500', '−0.030', '–', '0.000')
    """
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.removeprefix("-")
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """Write a difference, with its sign.

    Examples
    --------
    >>> signed(0.02), signed(-0.02)
    ('+0.020', '−0.020')
    """
    text = number(value, digits)
    return text if text.startswith(("−", "–")) else f"+{text}"


def bracket(interval: Interval | Range, digits: int = 3) -> str:
    """Write an interval as ``[low, high]``; nothing where it was not computed."""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return ""
    return f"[{number(interval.low, digits)}, {number(interval.high, digits)}]"


def count(n: int, singular: str, plural: str | None = None) -> str:
    r"""Count things, with thin spaces between thousands.

    Examples
    --------
    >>> count(1, "image"), count(2, "class", "classes"), count(12345, "patch", "patches")
    ('1 image', '2 classes', '12\u202f345 patches')
    """
    word = singular if n == 1 else plural or f"{singular}s"
    return f"{n:,} {word}".replace(",", "\u202f")


def grouped(n: int | None) -> str:
    r"""Write a whole number with thin spaces between thousands; a dash for none.

    Examples
    --------
    >>> grouped(12345), grouped(None)
    ('12\u202f345', '–')
    """
    return "–" if n is None else f"{n:,}".replace(",", "\u202f")


def duration(seconds: float) -> str:
    r"""Write a time span as people say it.

    Examples
    --------
    >>> duration(3.14159), duration(75), duration(7384)
    ('3.1\xa0s', '1\xa0min\xa015\xa0s', '2\xa0h\xa003\xa0min')
    """
    if not math.isfinite(seconds):
        return "–"
    if seconds < 60:
        return f"{seconds:.1f}\xa0s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}\xa0min\xa0{rest:02d}\xa0s"
    return f"{minutes // 60}\xa0h\xa0{minutes % 60:02d}\xa0min"


def prose_list(words: Sequence[str]) -> str:
    """Join words as in a sentence.

    Examples
    --------
    >>> prose_list(["a"]), prose_list(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
