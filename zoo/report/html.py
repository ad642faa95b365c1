"""The report as one HTML page: no script, nothing to load, readable in light, dark and print."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingExtra
from zoo.report import figures, text, words

if TYPE_CHECKING:
    from markupsafe import Markup

    from zoo.report.model import Example, Learning, ReportData, RunView

__all__ = ["to_html"]

SHADES = 10
"""Steps of shading in a confusion matrix; classes, not style attributes, for strict browsers."""


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
    return environment.get_template("report.html.j2").render(
        data=data,
        style=Markup(style),  # noqa: S704 (our own file)
        style_digest=digest,
        t=text,
        w=words,
        **_figures(data),
    )


def _figures(data: ReportData) -> dict[str, Any]:
    intervals = [run.test["macro_f1"] for run in data.runs if "macro_f1" in run.test]
    axis = figures.whisker_axis(intervals)
    leader = data.runs[0].test.get("macro_f1")

    def whisker(run: RunView) -> Markup | str:
        interval = run.test.get("macro_f1")
        if interval is None:
            return ""
        return figures.whisker(interval, axis, leader=leader, is_ensemble=run.is_ensemble)

    return {
        "whisker": whisker,
        "whisker_axis": figures.whisker(None, axis),
        "shade": _shade,
        "macro_f1_chart": _macro_f1_chart,
        "gap_chart": _gap_chart,
        "histogram": figures.histogram,
        "overlay": _overlay,
    }


def _shade(count: int, total: int) -> int:
    """Choose the shading of a cell, 0 (none) to ``SHADES`` (the whole row).

    Examples
    --------
    >>> _shade(0, 9), _shade(1, 90), _shade(9, 9)
    (0, 1, 10)
    """
    return -(-count * SHADES // total) if total else 0


def _macro_f1_chart(learning: Learning, name: str) -> Markup:
    label = f"Learning curves of {name}: mean training and validation macro-F1 per epoch."
    if learning.peak is not None:
        epoch, value = learning.peak
        label += f" Validation peaks at {text.number(value)} in epoch {epoch}."
    curves = (
        ("training", "train", learning.train),
        ("validation", "validation", learning.validation),
    )
    return figures.curve_chart(
        curves, label=label, y_title="macro-F1", bounds=(0, 1), peak=learning.peak
    )


def _gap_chart(learning: Learning, name: str) -> Markup:
    label = f"Overfit gap of {name}: training minus validation macro-F1 per epoch."
    if learning.gap is not None:
        label += f" In the last epoch it is {text.signed(learning.gap.mean[-1])}."
    return figures.curve_chart(
        (("gap", "gap", learning.gap),), label=label, y_title="overfit gap", bounds=(-1, 1)
    )


def _overlay(example: Example) -> Markup:
    if example.picture is None:
        raise ValueError("an example without a picture cannot be drawn")
    label = (
        f"Image {example.image_id}: {text.count(example.n_kept or 0, 'patch', 'patches')} kept, "
        f"{text.count(example.n_rejected or 0, 'patch', 'patches')} rejected."
    )
    return figures.overlay(example.picture, label=label)
