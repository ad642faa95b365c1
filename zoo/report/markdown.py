"""The report as Markdown tables, for a pull request or a laboratory book."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from zoo.report import words
from zoo.report.text import duration, metric_name, number, signed

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zoo.report.model import Facts, Learning, ReportData, RunView

__all__ = ["escaped", "table", "to_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def to_markdown(data: ReportData) -> str:
    """Write the report; every text from outside is escaped."""
    blocks = [f"# {escaped(data.title)}", escaped(data.summary)]
    blocks += [f"> {escaped(note)}" for note in data.notes]
    blocks += ["## What was compared", *_facts(data.facts)]
    blocks += ["## Leaderboard", _leaderboard(data), _leaderboard_note(data)]
    for run in data.runs:
        blocks += _run(run)
    blocks += ["## Patches", *_patches(data)]
    blocks += ["## How to reproduce", *_reproduce(data)]
    return "\n\n".join(block for block in blocks if block) + "\n"


def escaped(text: str) -> str:
    r"""Make a text harmless in Markdown, where HTML passes through.

    Examples
    --------
    >>> escaped("a|b <script> _x_")
    'a\\|b &lt;script&gt; \\_x\\_'
    """
    one_line = " ".join(str(text).split())
    return _SPECIAL.sub(r"\\\1", html.escape(one_line, quote=False))


def table(header: Sequence[str], rows: Iterable[Sequence[object]], n_words: int = 1) -> str:
    """Write a table from finished Markdown; the first ``n_words`` columns hold words.

    Examples
    --------
    >>> print(table(["run", "F1"], [["a", 0.5]]))
    | run | F1 |
    | :-- | --: |
    | a | 0.5 |
    """
    rule = [":--"] * n_words + ["--:"] * (len(header) - n_words)
    lines = [header, rule, *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _facts(facts: Facts) -> list[str]:
    sets = ", ".join(_code(name) for name in facts.feature_sets) or "not recorded"
    rows = [
        ("Cohort", escaped(facts.cohort_url or "not recorded")),
        ("Target", escaped(facts.target)),
        ("Images", words.image_words(facts)),
        ("Split", escaped(words.split_words(facts.split))),
        ("Seeds", words.seed_words(facts.seeds)),
        ("Store", escaped(facts.store_url or "not recorded")),
        ("Feature sets", sets + (f", view {escaped(facts.augmentation)}" * bool(facts.augmentation))),
        ("Created", escaped(" to ".join(facts.created))),
    ]  # fmt: skip
    classes = [
        (escaped(c.name), c.images, words.percent(c.images, facts.n_images), c.patients)
        for c in facts.classes
    ]
    return [
        table(["what", "value"], rows, n_words=2),
        table(["class", "images", "share", "patients"], classes),
    ]


def _leaderboard(data: ReportData) -> str:
    rows = []
    for run in data.runs:
        name = escaped(run.name) + (" (ensemble)" if run.is_ensemble else "")
        f1, accuracy, auroc = (
            words.score(run.test.get(key)) for key in ("macro_f1", "accuracy", "auroc")
        )
        told = "–"
        if run.difference is not None:
            told = " ".join(words.difference(run.difference))
        spread, seconds = words.seed_sd(run), duration(run.seconds)
        rows.append([run.number, name, f1, told, accuracy, auroc, spread, seconds])
    header = ["", "run", "macro-F1", "difference to the first", "accuracy", "AUROC"]
    return table([*header, "SD over seeds (macro-F1)", "time"], rows, n_words=2)


def _leaderboard_note(data: ReportData) -> str:
    facts, unit = data.facts, words.unit(data.facts)
    return (
        "Test images only, probabilities averaged over seeds; in brackets the 95 % "
        f"interval over {unit}. Differences are in macro-F1, paired over the same draws of "
        f"{unit}, their p-values corrected for the number of runs (Holm). Always guessing the largest class would reach accuracy "
        f"{number(facts.majority_accuracy)} and macro-F1 {number(facts.majority_macro_f1)}."
    )


def _run(run: RunView) -> list[str]:
    names = [escaped(name) for name in run.classes]
    confusion = [
        [name, *(f"{n} ({words.percent(n, sum(row))})" for n in row), sum(row)]
        for name, row in zip(names, run.confusion, strict=True)
    ]
    report = [
        [
            escaped(r.name),
            "" if r.precision is None else number(r.precision, 4),
            "" if r.recall is None else number(r.recall, 4),
            number(r.f1, 4),
            r.support,
        ]
        for r in run.report
    ]
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
        "Confusion matrix (rows: true class, columns: predicted; images and share of the row)",
        table(["true", *names, "images"], confusion),
        table(["class", "precision", "recall", "F1", "support"], report),
        table(["metric", "test", "seeds, mean ± SD", "validation"], metrics),
        *_learning(run.learning),
    ]


def _learning(learning: Learning, most: int = 12) -> list[str]:
    """Tabulate the curves at evenly spaced epochs."""
    train, validation, gap = learning.train, learning.validation, learning.gap
    if train is None or validation is None or gap is None or train.epoch != gap.epoch:
        return [learning.note]
    step = -(-len(gap.epoch) // most)
    at = sorted({*range(0, len(gap.epoch), step), len(gap.epoch) - 1})
    where = {epoch: i for i, epoch in enumerate(validation.epoch)}
    rows = []
    for i in at:
        j = where.get(train.epoch[i])
        told = "–" if j is None else f"{number(validation.mean[j])} ± {number(validation.sd[j])}"
        rows.append(
            [train.epoch[i], f"{number(train.mean[i])} ± {number(train.sd[i])}", told,
             f"{signed(gap.mean[i])} ± {number(gap.sd[i])}"]
        )  # fmt: skip
    peak = ""
    if learning.peak is not None:
        epoch, value = learning.peak
        peak = f" Validation macro-F1 peaks at {number(value)} in epoch {epoch}."
    note = f"Learning curves. {learning.note}{peak}"
    return [note, table(["epoch", "training macro-F1", "validation macro-F1", "gap"], rows)]


def _patches(data: ReportData) -> list[str]:
    counts = [
        [_code(c.feature_set), c.n_images, c.n_patches, c.smallest, f"{c.median:g}", c.largest]
        for c in data.patches
    ]
    examples = [
        [
            escaped(e.image_id),
            escaped(e.why),
            escaped(e.target),
            escaped(e.predicted),
            number(e.p_target, 2),
            number(e.log_loss, 2),
            "–" if e.n_kept is None else e.n_kept,
            "–" if e.n_rejected is None else e.n_rejected,
        ]
        for e in data.examples
    ]
    header = ["image", "why", "true", "predicted", "p(true)", "log loss", "kept", "rejected"]
    return [
        table(["feature set", "images", "patches", "least", "median", "most"], counts)
        if counts
        else "",
        table(header, examples, n_words=4) if examples else "",
        *(f"> {escaped(note)}" for note in data.image_notes),
    ]


def _reproduce(data: ReportData) -> list[str]:
    fence = "```"
    while any(fence in line for line in data.commands):
        fence += "`"
    return [
        "\n".join([f"{fence}sh", *map(words.wrapped, data.commands), fence]),
        table(["what", "digest"], [[escaped(a), _code(b)] for a, b in data.digests], n_words=2),
        table(["software", "version"], [[escaped(a), escaped(b)] for a, b in data.versions], n_words=2),
    ]  # fmt: skip


def _code(text: str) -> str:
    """Write a code span that survives back-ticks and table cells."""
    return f"`{text.replace('`', '’').replace('|', '¦')}`"
