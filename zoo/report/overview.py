"""All runs at a glance: one line per head, one mark per run, one kind of mark per feature set."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

from zoo.metrics import metric_title
from zoo.report.svg import Axis, figure, line, rect, text, ticks
from zoo.report.text import number

if TYPE_CHECKING:
    from zoo.report.model import ReportData, RunView

__all__ = ["LEAST_RUNS", "mark", "overview_chart", "shortened"]

LEAST_RUNS = 6
"""Of fewer, the leaderboard is glance enough."""

_WIDTH, _STEP, _TOP, _LEFT = 440, 27, 34, 132
_SPREAD = 9
"""How far the marks of a line lie apart in height, for all feature sets together."""
_ENSEMBLES = "ensembles"
_SHAPES = (
    "M0 -5a5 5 0 1 0 .01 0z",  # circle
    "M-4.5 -4.5h9v9h-9z",  # square
    "M0 -6.2l6.2 6.2l-6.2 6.2l-6.2 -6.2z",  # diamond
    "M0 -6l5.8 10h-11.6z",  # triangle
    "M0 6l5.8 -10h-11.6z",  # triangle, upside down
    "M-2 -6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",  # cross
    "M-6 -2.5h12v5h-12z",  # bar
    "M-2.5 -6h5v12h-5z",  # pillar
)


def overview_chart(data: ReportData) -> Markup:
    """Draw the metric of every run by head; nothing where runs are few or have no value."""
    metric, leader = data.facts.metric, data.runs[0].test.get(data.facts.metric)
    shown = [
        (run, found.value)
        for run in data.runs
        if (found := run.test.get(metric)) is not None and math.isfinite(found.value)
    ]
    if len(shown) < LEAST_RUNS or leader is None:
        return Markup()
    rows = list(dict.fromkeys(_row(run) for run, _ in shown))
    kinds = [group.name for group in data.groups]
    band = [v for v in (leader.low, leader.high) if math.isfinite(v)]
    values = [value for _, value in shown] + band
    x = Axis(ticks=ticks(min(values), max(values)), start=_LEFT, stop=_WIDTH - 18)
    bottom = _TOP + _STEP * len(rows)
    parts = [
        rect(x(band[0]), _TOP - 6, x(band[1]) - x(band[0]), bottom - _TOP + 6, "reference")
        for _ in band[:1]
    ]
    for tick in x.ticks:
        parts.append(line(x(tick), _TOP - 6, x(tick), bottom, "grid"))
        parts.append(text(x(tick), _TOP - 13, number(tick, x.digits), "tick", "middle"))
    for i, name in enumerate(rows):
        y = _TOP + _STEP * (i + 0.5)
        parts.append(text(_LEFT - 12, y + 4, shortened(name, 16), "", "end"))
        parts.append(line(_LEFT, y + _STEP / 2, x.stop, y + _STEP / 2, "grid"))
    for run, value in reversed(shown):  # the best on top
        y = _TOP + _STEP * (rows.index(_row(run)) + 0.5)
        told = f"{run.name}, {run.feature_set}: {number(value)}"
        kind = kinds.index(run.feature_set)
        y += _SPREAD * (kind - (len(kinds) - 1) / 2) / max(len(kinds) - 1, 1)
        parts.append(_mark(kind, x(value), y, told))
    middle = (x.start + x.stop) / 2
    parts.append(text(middle, bottom + 22, metric_title(metric), "title", "middle"))
    desc = "; ".join(
        f"{row}: {number(min(scores))} to {number(max(scores))}"
        for row in rows
        if (scores := [value for run, value in shown if _row(run) == row])
    )
    label = f"{metric_title(metric)} of {len(shown)} runs by head and feature set"
    return figure(parts, label, width=_WIDTH, height=bottom + 32, desc=desc)


def mark(kind: int) -> Markup:
    """Draw one mark for a legend."""
    return Markup(  # noqa: S704 (fixed words only)
        '<svg class="chart mark-key" viewBox="-9 -9 18 18" aria-hidden="true" focusable="false">'
        f"{_mark(kind, 0, 0)}</svg>"
    )


def shortened(name: str, most: int) -> str:
    """Leave out the middle of a long name: how it begins and ends tells runs apart.

    Examples
    --------
    >>> shortened("mean-pool.default.squeezenet", 16), shortened("knn", 16)
    ('mean-po…ueezenet', 'knn')
    """
    if len(name) <= most:
        return name
    tail = most // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def _row(run: RunView) -> str:
    return _ENSEMBLES if run.is_ensemble else run.head or run.name


def _mark(kind: int, x: float, y: float, told: str = "") -> str:
    title = f"<title>{escape(told)}</title>" if told else ""
    shape = _SHAPES[kind % len(_SHAPES)]
    return (
        f'<path class="mark c{kind % 8}" transform="translate({x:g} {y:g})" d="{shape}">'
        f"{title}</path>"
    )
