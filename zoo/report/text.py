"""Numbers and names in words: one place, so that the three writers agree to the last digit."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zoo.metrics import higher_is_better

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.report.model import Interval

__all__ = ["bracket", "count", "duration", "metric_name", "number", "prose_list", "signed"]

_NAMES = {
    "macro_f1": "Macro-F1",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "kappa": "Cohen’s κ (quadratic)",
    "log_loss": "Log loss",
    "brier": "Brier score",
    "ece": "Calibration error",
}


def metric_name(key: str) -> str:
    """Name a metric; others than the known ones keep their own names.

    Examples
    --------
    >>> metric_name("macro_f1"), metric_name("ece"), metric_name("top_2")
    ('Macro-F1', 'Calibration error (lower is better)', 'top 2')
    """
    direction = "" if higher_is_better(key) else " (lower is better)"
    return _NAMES.get(key, key.replace("_", " ")) + direction


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


def bracket(interval: Interval, digits: int = 3) -> str:
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
