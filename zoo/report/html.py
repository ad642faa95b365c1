"""The report as one HTML page: no script, nothing to load, readable in light, dark and print."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingExtra
from zoo.metrics import metric_title
from zoo.report import figures, overview, plots, text, words

if TYPE_CHECKING:
    from collections.abc import Iterable

    from markupsafe import Markup

    from zoo.report.model import Example, Learning, ReportData, RunView

__all__ = ["to_html"]

SHADES = 10
"""Steps of shading in a confusion matrix; classes, not style attributes, for strict browsers."""

MOST_IN_ONE_TABLE = 15
"""Runs of one feature set that stand in one table; of more, the best come first and the rest fold."""


def to_html(data: ReportData) -> str:
    """Render the page; every text from outside is escaped by the template engine.

    The page forbids itself scripts and requests by a Content-Security-Policy that names its
    own style sheet by digest.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtra.named("jinja2", extra="zoo") from error
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("zoo.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style = (files("zoo.report") / "report.css").read_text(encoding="utf-8")
    digest = b64encode(hashlib.sha256(style.encode()).digest()).decode("ascii")
    # Macros in other files see globals alone.
    environment.globals |= {"data": data, "facts": data.facts, "t": text, "w": words, "metric_title": metric_title, **_figures(data)}  # fmt: skip
    return environment.get_template("report.html.j2").render(
        style=Markup(style),  # noqa: S704 (our own file)
        style_digest=digest,
        is_one_table=len(data.groups) == 1 and len(data.runs) <= MOST_IN_ONE_TABLE,
    )


def _figures(data: ReportData) -> dict[str, Any]:
    metric = data.facts.metric
    leader = data.runs[0].test.get(metric)

    def axis_of(numbers: Iterable[int]) -> figures.Axis:
        shown = [data.runs[number - 1].test for number in numbers]
        return figures.whisker_axis([test[metric] for test in shown if metric in test])

    def whisker(run: RunView | None, axis: figures.Axis) -> Markup | str:
        if run is None:
            return figures.whisker(None, axis)
        interval = run.test.get(metric)
        if interval is None:
            return ""
        return figures.whisker(interval, axis, leader=leader, is_ensemble=run.is_ensemble)

    return {
        "axis_of": axis_of,
        "whisker": whisker,
        "shade": _shade,
        "metric_chart": _metric_chart,
        "gap_chart": _gap_chart,
        "histogram": figures.histogram,
        "overlay": _overlay,
        "plots": plots,
        "overview": overview,
    }


def _shade(count: int, total: int) -> int:
    """Choose the shading of a cell, 0 (none) to ``SHADES`` (the whole row).

    Examples
    --------
    >>> _shade(0, 9), _shade(1, 90), _shade(9, 9)
    (0, 1, 10)
    """
    return -(-count * SHADES // total) if total else 0


def _bounds(metric: str) -> tuple[float, float]:
    return figures.BOUNDS.get(metric, (-1e12, 1e12))


def _metric_chart(learning: Learning, name: str) -> Markup:
    metric = metric_title(learning.metric)
    label = f"Learning curves of {name}: mean training and validation {metric} per epoch."
    if learning.peak is not None:
        epoch, value = learning.peak
        label += f" Validation is best, {text.number(value)}, in epoch {epoch}."
    curves = (
        ("training", "train", learning.train),
        ("validation", "validation", learning.validation),
    )
    bounds = _bounds(learning.metric)
    return figures.curve_chart(curves, label=label, y_title=metric, bounds=bounds, peak=learning.peak)  # fmt: skip


def _gap_chart(learning: Learning, name: str) -> Markup:
    metric = metric_title(learning.metric)
    label = f"Overfit gap of {name}: by how much training {metric} is better, per epoch."
    if learning.gap is not None:
        label += f" In the last epoch it is {text.signed(learning.gap.mean[-1])}."
    low, high = _bounds(learning.metric)
    return figures.curve_chart(
        (("gap", "gap", learning.gap),),
        label=label,
        y_title="overfit gap",
        bounds=(low - high, high - low),
    )


def _overlay(example: Example) -> Markup:
    if example.picture is None:
        raise ValueError("an example without a picture cannot be drawn")
    label = (
        f"Image {example.image_id}: {text.count(example.n_kept or 0, 'patch', 'patches')} kept, "
        f"{text.count(example.n_rejected or 0, 'patch', 'patches')} rejected."
    )
    return figures.overlay(example.picture, label=label)
