"""Small SVG figures, composed by hand: pure functions from numbers to markup.

Colours, fonts and line styles come from the page's style sheet by class names, so that one
figure serves light, dark and print. Text is at least 11 px where a figure is 350 px wide.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from zoo.report.svg import Axis, figure, line, rect, text, ticks
from zoo.report.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.report.model import Curve, Interval, PatchCounts, Picture

__all__ = [
    "BOUNDS",
    "Axis",
    "curve_chart",
    "histogram",
    "overlay",
    "ticks",
    "whisker",
    "whisker_axis",
]

BOUNDS = dict.fromkeys(
    ("macro_f1", "micro_f1", "accuracy", "balanced_accuracy", "auroc", "auprc", "c_index"),
    (0.0, 1.0),
) | {"mae": (0.0, 1e12), "rmse": (0.0, 1e12), "log_loss": (0.0, 1e12)}
"""What a metric can be at all; a band of a learning curve does not reach beyond."""

_WIDTH, _HEIGHT = 440, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 16, 14, 40
_WIDEST_BAR = 56
_WHISKER_WIDTH, _WHISKER_HEIGHT, _WHISKER_PAD = 220, 46, 14


def whisker_axis(intervals: Sequence[Interval]) -> Axis:
    """Make the one scale that all rows of a leaderboard share."""
    ends = [v for i in intervals for v in (i.low, i.value, i.high) if math.isfinite(v)]
    span = ticks(min(ends), max(ends), most=4) if ends else ticks(0, 1, most=4)
    return Axis(ticks=span, start=_WHISKER_PAD, stop=_WHISKER_WIDTH - _WHISKER_PAD)


def whisker(
    interval: Interval | None,
    axis: Axis,
    *,
    leader: Interval | None = None,
    is_ensemble: bool = False,
) -> Markup:
    """Draw a value with its interval; without an interval, draw the scale itself.

    The leader's interval lies behind as a band, so that overlap is seen row by row. The
    figure is hidden from screen readers: its numbers stand in the cell beside it.
    """
    if interval is None:
        parts = [text(axis(t), 14, number(t, axis.digits), "tick", "middle") for t in axis.ticks]
        return _row(parts, height=20)
    middle = _WHISKER_HEIGHT / 2
    parts = []
    # a little taller than the row, so that bands and grid lines run on from row to row
    if leader is not None and math.isfinite(leader.low) and math.isfinite(leader.high):
        left, right = axis(leader.low), axis(leader.high)
        parts.append(rect(left, -3, right - left, _WHISKER_HEIGHT + 6, "reference"))
    parts += [line(axis(t), -3, axis(t), _WHISKER_HEIGHT + 3, "grid") for t in axis.ticks]
    if math.isfinite(interval.low) and math.isfinite(interval.high):
        parts.append(line(axis(interval.low), middle, axis(interval.high), middle, "whisker"))
    if math.isfinite(interval.value):
        parts.append(_dot(axis(interval.value), middle, is_diamond=is_ensemble))
    return _row(parts, height=_WHISKER_HEIGHT)


def curve_chart(
    curves: Sequence[tuple[str, str, Curve | None]],
    *,
    label: str,
    y_title: str,
    bounds: tuple[float, float],
    peak: tuple[int, float] | None = None,
) -> Markup:
    """Draw curves with bands against the epoch.

    Parameters
    ----------
    curves
        (name, CSS class, curve); the name is written at the curve's end where there are
        several; absent curves are left out.
    label
        What a screen reader says in place of the figure.
    y_title
        Title of the vertical axis.
    bounds
        What the quantity can be at all; a band does not reach beyond.
    peak
        (epoch, value) to mark.
    """
    there = [(name, css, curve) for name, css, curve in curves if curve is not None]
    if not there:
        return Markup()
    right = 92 if len(there) > 1 else _RIGHT
    x = Axis(
        ticks=(
            min(float(c.epoch[0]) for *_, c in there),
            max(float(c.epoch[-1]) for *_, c in there),
        ),
        start=_LEFT,
        stop=_WIDTH - right,
    )
    ends = [m + s * sd for *_, c in there for m, sd in zip(c.mean, c.sd, strict=True) for s in (-1, 1)]  # fmt: skip
    y = Axis(
        ticks=ticks(max(min(ends), bounds[0]), min(max(ends), bounds[1])),
        start=_HEIGHT - _BOTTOM,
        stop=_TOP,
    )
    parts = _frame(x, y, y_title)
    parts += [_band(curve, css, x, y) for _, css, curve in there]
    parts += [_path(curve, css, x, y) for _, css, curve in there]
    if len(there) > 1:
        parts += _end_labels(there, x, y)
    if peak is not None:
        parts += _peak_mark(peak, x, y)
    return figure(parts, label, width=_WIDTH, height=_HEIGHT)


def histogram(counts: PatchCounts) -> Markup:
    """Draw how many images have how many patches."""
    bars = counts.bins
    most = max(n for *_, n in bars)
    y = Axis(ticks=_whole(ticks(0, most)), start=_HEIGHT - _BOTTOM, stop=_TOP)
    width = min(_WIDEST_BAR, (_WIDTH - _LEFT - _RIGHT) / len(bars))
    edge = (_LEFT + _WIDTH - _RIGHT - width * len(bars)) / 2
    parts = _y_axis(y, "images")
    every = math.ceil(len(bars) / 9)
    for i, (first, last, n) in enumerate(bars):
        left, top = edge + i * width, y(n)
        gap = min(2.0, width * 0.12)
        name = str(first) if first == last else f"{first}–{last}"
        parts.append(
            f"<g><title>{escape(name)} patches: {n} images</title>"
            f"{rect(left + gap / 2, top, width - gap, y.start - top, 'bar')}</g>"
        )
        if i % every == 0:
            parts.append(text(left + width / 2, y.start + 16, str(first), "tick", "middle"))
    parts.append(line(_LEFT, y.start, _WIDTH - _RIGHT, y.start, "axis"))
    parts.append(text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 6, "patches per image", "title", "middle"))  # fmt: skip
    label = (
        f"Histogram: {counts.n_images} images have between {counts.smallest} and "
        f"{counts.largest} patches, median {counts.median:g}."
    )
    return figure(parts, label, width=_WIDTH, height=_HEIGHT)


def overlay(picture: Picture, *, label: str) -> Markup:
    """Draw kept patches solid and rejected ones dashed over the thumbnail."""
    from base64 import b64encode

    data = b64encode(picture.jpeg).decode("ascii")
    w, h, edge = picture.width_px, picture.height_px, picture.edge_px
    inset = edge * 0.03
    outlines = ""
    for css, corners in (("rejected", picture.rejected), ("kept", picture.kept)):
        squares = "".join(
            f"M{x + inset:.4g} {y + inset:.4g}h{edge - 2 * inset:.4g}"
            f"v{edge - 2 * inset:.4g}h-{edge - 2 * inset:.4g}z"
            for x, y in corners
        )
        if squares:
            outlines += f'<path class="halo" d="{squares}"/><path class="{css}" d="{squares}"/>'
    return Markup(  # noqa: S704 (numbers and base64 only; the label is escaped)
        f'<svg class="photo" viewBox="0 0 {w} {h}" role="img" aria-label="{escape(label)}">'
        f"<title>{escape(label)}</title>"
        f'<image href="data:image/jpeg;base64,{data}" width="{w}" height="{h}" '
        f'preserveAspectRatio="none"/>{outlines}</svg>'
    )


def _row(parts: Sequence[str], *, height: int) -> Markup:
    return Markup(  # noqa: S704 (numbers and fixed words only; texts are escaped in _text)
        f'<svg class="chart row" viewBox="0 0 {_WHISKER_WIDTH} {height}" '
        f'aria-hidden="true" focusable="false">{"".join(parts)}</svg>'
    )


def _frame(x: Axis, y: Axis, y_title: str) -> list[str]:
    parts = _y_axis(y, y_title, right=x.stop)
    for epoch in _whole(ticks(x.ticks[0], x.ticks[-1], most=6)):
        if x.ticks[0] <= epoch <= x.ticks[-1]:
            parts.append(text(x(epoch), y.start + 17, number(epoch, 0), "tick", "middle"))
            parts.append(line(x(epoch), y.start, x(epoch), y.start + 4, "axis"))
    parts.append(line(x.start, y.start, x.stop, y.start, "axis"))
    if y.ticks[0] < 0 < y.ticks[-1]:
        parts.append(line(x.start, y(0), x.stop, y(0), "axis"))
    parts.append(text((x.start + x.stop) / 2, _HEIGHT - 6, "epoch", "title", "middle"))
    return parts


def _y_axis(y: Axis, title: str, right: float = _WIDTH - _RIGHT) -> list[str]:
    parts = []
    for tick in y.ticks:
        parts.append(line(_LEFT, y(tick), right, y(tick), "grid"))
        parts.append(text(_LEFT - 7, y(tick) + 4, number(tick, y.digits), "tick", "end"))
    middle = (y.start + y.stop) / 2
    parts.append(
        f'<text class="title" transform="translate(11 {middle}) rotate(-90)" '
        f'text-anchor="middle">{escape(title)}</text>'
    )
    return parts


def _band(curve: Curve, css: str, x: Axis, y: Axis) -> str:
    both = list(zip(curve.epoch, curve.mean, curve.sd, strict=True))
    upper = [f"{x(e)} {y(m + s)}" for e, m, s in both]
    lower = [f"{x(e)} {y(m - s)}" for e, m, s in reversed(both)]
    return f'<path class="band {css}" d="M{"L".join(upper + lower)}z"/>'


def _path(curve: Curve, css: str, x: Axis, y: Axis) -> str:
    points = [f"{x(e)} {y(m)}" for e, m in zip(curve.epoch, curve.mean, strict=True)]
    return f'<path class="curve {css}" d="M{"L".join(points)}"/>'


def _end_labels(curves: Sequence[tuple[str, str, Curve]], x: Axis, y: Axis) -> list[str]:
    """Write each name at its curve's end, moved apart where two would overlap."""
    placed = sorted((y(c.mean[-1]) + 4, name, css, x(c.epoch[-1])) for name, css, c in curves)
    parts, last = [], -math.inf
    for height, name, css, end in placed:
        last = max(height, last + 15)
        parts.append(text(end + 6, min(last, _HEIGHT - 8), name, f"name {css}", "start"))
    return parts


def _peak_mark(peak: tuple[int, float], x: Axis, y: Axis) -> list[str]:
    epoch, value = peak
    at = x(epoch)
    anchor = "end" if at > (x.start + x.stop) / 2 else "start"
    return [
        line(at, y(value), at, y.start, "drop"),
        f'<circle class="peak" cx="{at}" cy="{y(value)}" r="4"/>',
        text(
            at + (-6 if anchor == "end" else 6),
            y.start - 7,
            f"best {number(value)}, epoch {epoch}",
            "tick",
            anchor,
        ),
    ]


def _whole(values: Sequence[float]) -> tuple[float, ...]:
    """Keep whole numbers; counts and epochs have no fractions."""
    kept = tuple(v for v in values if float(v).is_integer())
    return kept if len(kept) > 1 else (math.floor(values[0]), math.ceil(values[-1]))


def _dot(x: float, y: float, *, is_diamond: bool) -> str:
    if is_diamond:
        return f'<path class="dot" d="M{x} {y - 6}l6 6l-6 6l-6 -6z"/>'
    return f'<circle class="dot" cx="{x}" cy="{y}" r="4.5"/>'
