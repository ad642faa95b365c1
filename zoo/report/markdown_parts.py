"""Parts of the Markdown report: one run, differences, the external test, cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zoo.metrics import metric_title
from zoo.report import words
from zoo.report.markdown import escaped, table
from zoo.report.text import (
    bracket,
    duration,
    grouped,
    metric_name,
    number,
    p_value,
    signed,
    size,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.report.model import Learning, ReportData, RunView
    from zoo.report.sections import ClassRow, External, Judged, Operating

__all__ = ["costs", "differences", "external", "full"]

_CONFUSION = "Confusion matrix (rows: true class, columns: predicted; images and share of the row)"


def full(run: RunView) -> list[str]:
    """Write everything about one run."""
    metrics = [
        [
            metric_name(key),
            words.score(run.test.get(key)),
            words.seed_spread(run.test.get(key)),
            words.score(run.validation.get(key)),
        ]
        for key in words.metric_order(run)
    ]
    members = ", ".join(escaped(words.member_name(m)) for m in run.members)
    return [
        f"## {run.number}. {escaped(run.name)}",
        escaped(words.run_words(run)),
        f"Members: {members}." if members else "",
        *_classes(run.confusion, run.report, run.classes),
        *(_judged(run.judged) if run.judged is not None else ()),
        *_operating(run.operating),
        table(["metric", "test", "seeds, mean ± SD", "validation"], metrics),
        *_learning(run.learning),
    ]


def differences(data: ReportData) -> list[str]:
    """Write every run against the first, pairs of the best, and ranks."""
    against = [run for run in data.runs[1:] if run.difference is not None]
    one_class = data.facts.task in {"classification", "ordinal"}
    rows = []
    for run in against:
        told = run.difference
        if told is not None:
            ends = words.difference(told)[1]
            tests = [p_value(told.mcnemar_p), p_value(told.delong_p)] if one_class else []
            rows.append(
                [escaped(run.name), f"{signed(told.value)} {ends}", p_value(told.p), *tests]
            )
    names = ["McNemar mid-p", "DeLong p"] if one_class else []
    header = ["run", f"difference in {metric_title(data.facts.metric)}", "bootstrap p", *names]
    pairs = [
        [
            escaped(data.runs[pair.first - 1].name),
            escaped(data.runs[pair.second - 1].name),
            f"{signed(pair.value)} [{signed(pair.low)}, {signed(pair.high)}]",
            p_value(pair.p),
        ]
        for pair in data.pairs
    ]
    blocks = [
        f"Each run against {escaped(data.runs[0].name)}, p by Holm over all of a kind:"
        if rows
        else "",
        table(header, rows) if rows else "No other run judged the same images.",
    ]
    if pairs:
        blocks += ["Pair by pair, the first minus the second, p by Holm over all pairs:"]
        blocks += [table(["first", "second", "difference", "p"], pairs, n_words=2)]
    if data.ranks is None:
        return [*blocks, data.ranks_note]
    told_ranks = ", ".join(
        f"{escaped(name)} {number(rank, 2)}"
        for name, rank in zip(data.ranks.runs, data.ranks.ranks, strict=True)
    )
    return [
        *blocks,
        f"Mean ranks over {data.ranks.n_folds} folds: {told_ranks}. Friedman p "
        f"{p_value(data.ranks.p)}; ranks {number(data.ranks.critical_difference, 2)} apart differ "
        f"(Nemenyi). {data.ranks_note}".rstrip(),
    ]


def external(one: External) -> list[str]:
    """Write the external test of one run."""
    rows = [
        [
            metric_name(shift.metric),
            words.score(shift.own),
            words.score(shift.here),
            f"{signed(shift.drop.value)} {bracket(shift.drop)}".rstrip(),
        ]
        for shift in one.shifts
    ]
    who = f"{one.judged.n_images} labelled images of {one.judged.n_patients} patients"
    where = escaped(one.cohort_url or one.source)
    mapped = f", labels {escaped(one.label_map)}" if one.label_map else ""
    return [
        f"### {escaped(one.run)} on {where}",
        f"{who}{mapped}.",
        *(f"> {escaped(note)}" for note in one.notes),
        table(["metric", "out of fold", "other cohort", "drop"], rows),
        *_classes(one.confusion, one.report, one.classes),
        *_judged(one.judged),
    ]


def costs(data: ReportData) -> str:
    """Write what every run took."""
    rows = [
        [
            escaped(run.name),
            duration(run.cost.seconds),
            run.cost.n_fits or "–",
            grouped(run.cost.parameters),
            size(run.cost.bytes_of_heads) if run.cost.bytes_of_heads else "–",
            size(run.cost.peak_memory_bytes),
            escaped(words.views_words(run)),
        ]
        for run in data.runs
    ]
    header = ["run", "time", "fits", "numbers in a head", "all heads", "peak memory", "views"]
    return table(header, rows)


def _classes(
    confusion: Sequence[Sequence[int]], rows: Sequence[ClassRow], classes: Sequence[str]
) -> list[str]:
    names = [escaped(name) for name in classes]
    counts = [
        [name, *(f"{n} ({words.percent(n, sum(row))})" for n in row), sum(row)]
        for name, row in zip(names, confusion, strict=False)
    ]
    report = [
        [
            escaped(r.name),
            "" if r.precision is None else number(r.precision, 4),
            "" if r.recall is None else number(r.recall, 4),
            number(r.f1, 4),
            r.support,
        ]
        for r in rows
    ]
    return [
        _CONFUSION if counts else "",
        table(["true", *names, "images"], counts) if counts else "",
        table(["class", "precision", "recall", "F1", "support"], report) if report else "",
    ]


def _judged(judged: Judged) -> list[str]:
    blocks = []
    if judged.curves:
        rows = [
            [escaped(c.name), c.n_positive, words.score(c.auroc), words.score(c.average_precision)]
            for c in judged.curves
        ]
        blocks += ["Each class against the rest"]
        blocks += [table(["class", "images", "AUROC", "average precision"], rows)]
    if judged.calibration is not None:
        told = judged.calibration
        brier = f"; Brier score {words.score(told.brier)}" if told.brier else ""
        blocks.append(
            f"Calibration of {told.of}: expected calibration error {words.score(told.ece)}, by "
            f"chance alone {number(told.chance)} (up to {number(told.chance_high)}){brier}."
        )
    if judged.scatter is not None:
        seen = judged.scatter
        blocks.append(
            f"Predicted minus true {escaped(seen.target)}: bias {signed(seen.bias, 2)}, 95 % limits "
            f"of agreement {signed(seen.limits[0], 2)} to {signed(seen.limits[1], 2)}."
        )
    if judged.survival is not None:
        found = judged.survival
        groups = [[g.name, g.n_images, g.n_events, number(g.median, 1)] for g in found.groups]
        name = f"median {escaped(found.time_name)}"
        blocks += [f"Groups cut at the median risk; log-rank p {p_value(found.logrank_p)}"]
        blocks += [table(["group", "images", "events", name], groups)]
    return blocks


def _operating(points: Sequence[Operating]) -> list[str]:
    if not points:
        return []
    rows = [
        [
            escaped(point.positive),
            point.rule,
            f"{number(point.threshold_low)} to {number(point.threshold_high)}",
            *map(words.score, (point.sensitivity, point.specificity, point.ppv, point.npv)),
        ]
        for point in points
    ]
    header = ["positive", "chosen for", "threshold", "sensitivity", "specificity", "PPV", "NPV"]
    return ["Operating points, chosen on validation images", table(header, rows, n_words=2)]


def _learning(learning: Learning) -> list[str]:
    """Tabulate the curves at evenly spaced epochs."""
    rows = words.learning_rows(learning)
    if not rows:
        return [learning.note]
    name = metric_title(learning.metric)
    peak = ""
    if learning.peak is not None:
        epoch, value = learning.peak
        peak = f" Validation {name} peaks at {number(value)} in epoch {epoch}."
    header = ["epoch", f"training {name}", f"validation {name}", "gap"]
    return [f"Learning curves. {learning.note}{peak}", table(header, rows)]
