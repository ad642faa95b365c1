"""Figures of predictions: ROC, precision and recall, reliability, agreement, survival, ranks, shifts.

Pure functions from numbers to markup, in the manner of :mod:`zoo.report.figures`: colours and dashes
are the page's, by class names, ``c0`` to ``c7`` for one class after the other.
"""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from zoo.intervals import SHARES
from zoo.metrics import metric_title
from zoo.report.overview import shortened
from zoo.report.svg import Axis, axes, figure, line, path, rect, text, ticks
from zoo.report.text import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.report.sections import Calibration, ClassCurves, Range, Ranks, Scatter, Shift, Survival

__all__ = [
    "N_COLOURS",
    "agreement_chart",
    "bland_altman_chart",
    "curves_chart",
    "rank_chart",
    "reliability_chart",
    "shift_chart",
    "survival_chart",
    "swatch",
]

N_COLOURS = 8
"""Colours, each with a dash of its own; they start again after that."""

_WIDTH, _HEIGHT = 440, 380
_SHARE = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_X = Axis(ticks=_SHARE, start=56, stop=_WIDTH - 16)
_Y = Axis(ticks=_SHARE, start=_HEIGHT - 44, stop=14)


def swatch(i: int) -> Markup:
    """Draw the line of the i-th class for a legend."""
    return Markup(  # noqa: S704 (a number only)
        '<svg class="key" viewBox="0 0 34 12" aria-hidden="true" focusable="false">'
        f'<path class="curve c{i % N_COLOURS}" d="M1 6L33 6"/></svg>'
    )


def curves_chart(curves: Sequence[ClassCurves], kind: str, of: str) -> Markup:
    """Draw the curves of all classes with their bands.

    Parameters
    ----------
    curves
        One per class; of two classes that mirror each other, the last one alone.
    kind
        ``roc`` or ``pr``.
    of
        Whose they are.
    """
    is_roc = kind == "roc"
    titles = ("false positive rate", "true positive rate") if is_roc else ("recall", "precision")
    parts = axes(_X, _Y, *titles)
    if is_roc:
        parts.append(line(_X(0), _Y(0), _X(1), _Y(1), "chance"))
    bands, lines, told = [], [], []
    for i, curve in enumerate(curves):
        drawn = curve.roc if is_roc else curve.pr
        css = f"c{i % N_COLOURS}"
        if drawn.band_x:
            xs = [_X(v) for v in (*drawn.band_x, *reversed(drawn.band_x))]
            ys = [_Y(v) for v in (*drawn.band_high, *reversed(drawn.band_low))]
            bands.append(path(xs, ys, f"band {css}", is_closed=True))
        points = list(zip(drawn.x, drawn.y, strict=True))
        if not is_roc:
            points = _steps(points)
        lines.append(path([_X(a) for a, _ in points], [_Y(b) for _, b in points], f"curve {css}"))
        area = curve.auroc if is_roc else curve.average_precision
        told.append(f"{curve.name} {number(area.value)}")
    name = "ROC curves" if is_roc else "Precision-recall curves"
    what = "Area under the curve" if is_roc else "Average precision"
    return figure(
        [*parts, *bands, *lines],
        f"{name} of {of}, each class against the rest",
        width=_WIDTH,
        height=_HEIGHT,
        desc=f"{what}: {', '.join(told)}. Bands: 95 % of resamples of patients.",
    )


def reliability_chart(found: Calibration, of: str) -> Markup:
    """Draw what came true against what was said, with how many images below."""
    bottom, foot = _HEIGHT - 96, _HEIGHT - 44
    y = Axis(ticks=_SHARE, start=bottom, stop=14)
    parts = [line(_X(0), y(tick), _X(1), y(tick), "grid") for tick in _SHARE]
    parts += [text(_X(0) - 7, y(t) + 4, number(t, 1), "tick", "end") for t in _SHARE]
    parts += [line(_X(0), y(0), _X(1), y(1), "chance")]
    most = max((bin_.n for bin_ in found.bins), default=1) or 1
    for part in found.bins:
        left, right = _X(part.low), _X(part.high)
        height = (foot - bottom - 14) * part.n / most
        parts.append(rect(left + 0.5, foot - height, right - left - 1, height, "bar faint"))
        ends = (part.predicted, part.observed, part.observed_low, part.observed_high)
        if None in ends:
            continue
        said, seen, low, high = (float(v) for v in ends if v is not None)
        parts.append(line(_X(said), y(low), _X(said), y(high), "whisker thin"))
        parts.append(
            f'<circle class="dot" cx="{_X(said)}" cy="{y(seen)}" r="4.5"><title>{part.n} images: '
            f"predicted {said:.3f}, came true {seen:.3f}</title></circle>"
        )
    parts.append(line(_X(0), bottom, _X(1), bottom, "axis"))
    parts.append(line(_X(0), foot, _X(1), foot, "axis"))
    parts.append(text(_X(0) - 7, foot - 4, "0", "tick", "end"))
    parts.append(text(_X(0) - 7, bottom + 22, str(most), "tick", "end"))
    parts += [text(_X(t), foot + 17, number(t, 1), "tick", "middle") for t in _SHARE]
    parts.append(text((_X(0) + _X(1)) / 2, foot + 35, "predicted probability", "title", "middle"))
    for middle, words in (((bottom + 14) / 2, "share that came true"), ((bottom + foot + 10) / 2, "images")):  # fmt: skip
        parts.append(
            f'<text class="title" transform="translate(11 {middle:.1f}) rotate(-90)" '
            f'text-anchor="middle">{escape(words)}</text>'
        )
    return figure(
        parts,
        f"Reliability diagram of {of}",
        width=_WIDTH,
        height=_HEIGHT,
        desc=f"Expected calibration error {number(found.ece.value)}; points on the diagonal are "
        f"calibrated. Whiskers: 95 % intervals of the share.",
    )


def agreement_chart(found: Scatter, of: str) -> Markup:
    """Draw predicted numbers against true ones."""
    ends = [*found.truth, *found.predicted]
    span = ticks(min(ends), max(ends))
    x = Axis(ticks=span, start=_X.start, stop=_X.stop)
    y = Axis(ticks=span, start=_Y.start, stop=_Y.stop)
    parts = axes(x, y, f"true {found.target}", "predicted")
    parts.append(line(x(span[0]), y(span[0]), x(span[-1]), y(span[-1]), "chance"))
    parts += _points(found.truth, found.predicted, x, y)
    return figure(
        parts,
        f"Predicted against true {found.target}, {of}",
        width=_WIDTH,
        height=_HEIGHT,
        desc=f"{found.n_images} images; points on the diagonal are right.",
    )


def bland_altman_chart(found: Scatter, of: str) -> Markup:
    """Draw errors against means, with bias and limits of agreement (Bland & Altman 1986)."""
    pairs = list(zip(found.truth, found.predicted, strict=True))
    means = [(a + b) / 2 for a, b in pairs]
    off = [b - a for a, b in pairs]
    lines = [v for v in (found.bias, *found.limits) if math.isfinite(v)]
    x = Axis(ticks=ticks(min(means), max(means)), start=_X.start, stop=_X.stop)
    y = Axis(ticks=ticks(min(off + lines), max(off + lines)), start=_Y.start, stop=_Y.stop)
    parts = axes(x, y, f"mean of true and predicted {found.target}", "predicted − true")
    parts += _points(means, off, x, y)
    for value, css in ((found.bias, "mean"), *((v, "limit") for v in found.limits)):
        if math.isfinite(value):
            parts.append(line(x.start, y(value), x.stop, y(value), css))
            label = text(x.stop - 3, y(value) - 5, number(value, 2), "tick strong", "end")
            parts.append(label)
    return figure(
        parts,
        f"Bland-Altman plot of {of}",
        width=_WIDTH,
        height=_HEIGHT,
        desc=f"Bias {number(found.bias, 2)}, 95 % limits of agreement {number(found.limits[0], 2)} "
        f"to {number(found.limits[1], 2)}.",
    )


def survival_chart(found: Survival, of: str) -> Markup:
    """Draw Kaplan-Meier curves of the groups with their bands."""
    latest = max(group.time[-1] for group in found.groups)
    x = Axis(ticks=ticks(0, latest), start=_X.start, stop=_X.stop)
    parts = axes(x, _Y, found.time_name, "without event")
    bands, lines = [], []
    for i, group in enumerate(found.groups):
        css = f"c{i % N_COLOURS}"
        steps = _stairs(group.time, group.share)
        lines.append(path([x(a) for a, _ in steps], [_Y(b) for _, b in steps], f"curve {css}"))
        upper, lower = _stairs(group.time, group.high), _stairs(group.time, group.low)
        around = [*upper, *reversed(lower)]
        xs, ys = [x(a) for a, _ in around], [_Y(b) for _, b in around]
        bands.append(path(xs, ys, f"band {css}", is_closed=True))
    told = "; ".join(f"{g.name}: {g.n_events} events in {g.n_images}" for g in found.groups)
    return figure(
        [*parts, *bands, *lines],
        f"Kaplan-Meier curves by predicted risk, {of}",
        width=_WIDTH,
        height=_HEIGHT,
        desc=f"{told}. Log-rank test: p = {number(found.logrank_p)}. Bands: 95 % intervals.",
    )


def rank_chart(ranks: Ranks) -> Markup:
    """Draw mean ranks as rows; runs that a bar joins do not lie apart (Demšar 2006, fig. 1)."""
    n, step, top = len(ranks.runs), 24, 44
    left, bars = 214.0, 9.0 * len(ranks.groups)
    height = top + step * n + 40
    x = Axis(ticks=(1.0, float(n)), start=left, stop=_WIDTH - 20 - bars)
    parts = []
    for tick in _rank_ticks(n):
        parts.append(line(x(tick), top - 6, x(tick), height - 36, "grid"))
        parts.append(text(x(tick), top - 12, number(tick, 0), "tick", "middle"))
    reach = x(ranks.ranks[0] + ranks.critical_difference)
    parts.append(rect(x(ranks.ranks[0]), top - 6, reach - x(ranks.ranks[0]), step * n + 14, "reference"))  # fmt: skip
    height_of: dict[float, list[float]] = {}
    for i, (name, rank) in enumerate(zip(ranks.runs, ranks.ranks, strict=True)):
        y = top + step * (i + 0.5)
        height_of.setdefault(rank, []).append(y)
        parts.append(text(left - 12, y + 4, shortened(name, 24), "", "end"))
        parts.append(
            f'<circle class="dot" cx="{x(rank)}" cy="{y}" r="5"><title>{escape(name)}: mean rank '
            f"{rank:.2f}</title></circle>"
        )
    for i, (low, high) in enumerate(ranks.groups):
        at = _WIDTH - 10 - bars + 9.0 * (i + 1)
        ends = min(height_of[low]) - 6, max(height_of[high]) + 6
        parts.append(line(at, ends[0], at, ends[1], "whisker"))
    parts.append(
        text(
            (x.start + x.stop) / 2,
            height - 12,
            "mean rank over folds, 1 is best",
            "title",
            "middle",
        )
    )
    told = ", ".join(f"{a} {b:.2f}" for a, b in zip(ranks.runs, ranks.ranks, strict=True))
    return figure(
        parts,
        "Mean ranks over folds, with the critical difference",
        width=_WIDTH,
        height=height,
        desc=f"{told}. Mean ranks {ranks.critical_difference:.2f} apart differ (Nemenyi).",
    )


def shift_chart(shifts: Sequence[Shift], of: str) -> Markup:
    """Draw scores from 0 to 1 on both cohorts, one pair of whiskers per metric."""
    shown = [
        shift
        for shift in shifts
        if shift.metric in SHARES and math.isfinite(shift.own.value + shift.here.value)
    ]
    if not shown:
        return Markup()
    step, top = 46, 16
    height = top + step * len(shown) + 44
    ends = [v for s in shown for r in (s.own, s.here) for v in (r.low, r.value, r.high) if math.isfinite(v)]  # fmt: skip
    x = Axis(ticks=ticks(min(ends), max(ends)), start=136, stop=_WIDTH - 20)
    parts = []
    for tick in x.ticks:
        parts.append(line(x(tick), top, x(tick), height - 40, "grid"))
        parts.append(text(x(tick), height - 24, number(tick, x.digits), "tick", "middle"))
    for i, shift in enumerate(shown):
        y = top + step * (i + 0.5)
        parts.append(text(x.start - 10, y + 4, metric_title(shift.metric), "", "end"))
        parts += _whisker(shift.own, x, y - 7, "c0")
        parts += _whisker(shift.here, x, y + 8, "c1")
    told = "; ".join(
        f"{metric_title(s.metric)} {number(s.own.value)} here, {number(s.here.value)} there"
        for s in shown
    )
    parts.append(text((x.start + x.stop) / 2, height - 6, "score", "title", "middle"))
    return figure(parts, f"Scores of {of} on both cohorts", width=_WIDTH, height=height, desc=told)


def _whisker(found: Range, x: Axis, y: float, css: str) -> list[str]:
    parts = []
    if math.isfinite(found.low) and math.isfinite(found.high):
        parts.append(line(x(found.low), y, x(found.high), y, f"curve {css} solid"))
    parts.append(f'<circle class="dot {css}" cx="{x(found.value)}" cy="{y}" r="4.5"/>')
    return parts


def _rank_ticks(n: int) -> list[int]:
    step = max(1, -(-n // 5))
    return list(dict.fromkeys([1, *range(step, n + 1, step)]))


def _points(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> list[str]:
    return [
        f'<circle class="point" cx="{x(a)}" cy="{y(b)}" r="3"/>'
        for a, b in zip(xs, ys, strict=True)
    ]


def _steps(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Keep precision until the next recall: the step function whose area is the average precision."""
    told = [(0.0, points[0][1])] if points else []
    for (a, b), (c, d) in itertools.pairwise([(0.0, points[0][1]), *points]):
        told += [(a, d), (c, d)] if b != d else [(c, d)]
    return told


def _stairs(time: Sequence[float], share: Sequence[float]) -> list[tuple[float, float]]:
    told = [(time[0], share[0])]
    for (_, b), (c, d) in itertools.pairwise(zip(time, share, strict=True)):
        told += [(c, b), (c, d)] if b != d else [(c, d)]
    return told
