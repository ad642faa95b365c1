"""Pieces of SVG: scales, lines, text; and the frame that says what a figure shows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from zoo.report.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Axis", "axes", "figure", "line", "path", "rect", "text", "ticks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """A linear scale from data to drawing units, with the ticks that bound it."""

    ticks: tuple[float, ...]
    start: float
    """Where the first tick lies, in drawing units."""

    stop: float
    """Where the last tick lies."""

    def __call__(self, value: float) -> float:
        """Place a value; values outside the ticks are moved to the nearer end."""
        low, high = self.ticks[0], self.ticks[-1]
        share = (min(max(value, low), high) - low) / (high - low)
        return round(self.start + share * (self.stop - self.start), 1)

    @property
    def digits(self) -> int:
        """Decimals that the tick labels need."""
        step = self.ticks[1] - self.ticks[0]
        return max(0, -math.floor(math.log10(step) + 1e-9))


def ticks(low: float, high: float, most: int = 5) -> tuple[float, ...]:
    """Choose round numbers, evenly spaced, that enclose an interval.

    Examples
    --------
    >>> ticks(0.42, 0.93)
    (0.4, 0.6, 0.8, 1.0)
    >>> ticks(3, 3)
    (2.5, 3.0, 3.5)
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return (0.0, 0.5, 1.0)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    for factor in (1.0, 2.0, 5.0, 10.0, 20.0):
        step = factor * power
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first <= most:
            break
    return tuple(round(i * step, 10) for i in range(first, last + 1))


def figure(
    parts: Sequence[str], label: str, *, width: float, height: float, desc: str = ""
) -> Markup:
    """Put a figure together, with a title and a description for who cannot see it.

    Parameters
    ----------
    parts
        Markup.
    label
        Title, one sentence.
    width, height
        In drawing units.
    desc
        What is to be seen, in words and numbers.
    """
    told = f"<desc>{escape(desc)}</desc>" if desc else ""
    return Markup(  # noqa: S704 (texts are escaped in text(), label and description here)
        f'<svg class="chart" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}"><title>{escape(label)}</title>{told}{"".join(parts)}</svg>'
    )


def axes(x: Axis, y: Axis, x_title: str, y_title: str) -> list[str]:
    """Draw both axes with ticks, grid and titles; ``y.start`` is the bottom."""
    parts = []
    for tick in y.ticks:
        parts.append(line(x.start, y(tick), x.stop, y(tick), "grid"))
        parts.append(text(x.start - 7, y(tick) + 4, number(tick, y.digits), "tick", "end"))
    for tick in x.ticks:
        parts.append(line(x(tick), y.start, x(tick), y.start + 4, "axis"))
        parts.append(text(x(tick), y.start + 17, number(tick, x.digits), "tick", "middle"))
    parts.append(line(x.start, y.start, x.stop, y.start, "axis"))
    parts.append(text((x.start + x.stop) / 2, y.start + 35, x_title, "title", "middle"))
    middle = (y.start + y.stop) / 2
    parts.append(
        f'<text class="title" transform="translate(11 {middle:.1f}) rotate(-90)" '
        f'text-anchor="middle">{escape(y_title)}</text>'
    )
    return parts


def path(xs: Sequence[float], ys: Sequence[float], css: str, *, is_closed: bool = False) -> str:
    """Draw a line through points that are placed already."""
    points = "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(xs, ys, strict=True))
    return f'<path class="{css}" d="M{points}{"z" if is_closed else ""}"/>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Draw a straight line."""
    return f'<line class="{css}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def rect(x: float, y: float, width: float, height: float, css: str) -> str:
    """Draw a rectangle."""
    return (
        f'<rect class="{css}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    )


def text(x: float, y: float, words: str, css: str, anchor: str) -> str:
    """Write words, escaped; anchor is start, middle or end."""
    return (
        f'<text class="{css}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
    )
