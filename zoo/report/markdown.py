"""The report as Markdown tables, for a pull request or a laboratory book."""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING

from zoo.metrics import metric_title
from zoo.report import words
from zoo.report.text import duration, metric_name, number

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zoo.report.model import Facts, ReportData

__all__ = ["escaped", "table", "to_markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~!])")


def to_markdown(data: ReportData) -> str:
    """Write the report; every text from outside is escaped."""
    from zoo.report import markdown_parts as parts

    blocks = [f"# {escaped(data.title)}", escaped(data.subtitle), escaped(data.summary)]
    blocks += [f"> {escaped(note)}" for note in data.notes]
    blocks += ["## What was compared", *_facts(data.facts)]
    blocks += ["## Leaderboard", *_leaderboards(data), _leaderboard_note(data)]
    if len(data.runs) > 1:
        blocks += ["## Differences", *parts.differences(data)]
    if data.external:
        blocks += ["## External test", *(b for one in data.external for b in parts.external(one))]
    for run in data.runs[: data.n_full]:
        blocks += parts.full(run)
    blocks += ["## Patches and images", *_patches(data)]
    blocks += ["## Cost", parts.costs(data)]
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
        ("Target", escaped(facts.target + (f" ({facts.task})" * (facts.task != "classification")))),
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
        table(["class", "images", "share", "patients"], classes) if classes else "",
    ]


def _leaderboards(data: ReportData) -> list[str]:
    """Draw one table for each feature set, the place among all runs in front."""
    if len(data.groups) == 1:
        return [_leaderboard(data, data.groups[0].numbers)]
    blocks = []
    for group in data.groups:
        name = escaped(group.name or "feature set not recorded")
        blocks += [f"### {name}", _leaderboard(data, group.numbers)]
    return blocks


def _leaderboard(data: ReportData, numbers: Sequence[int]) -> str:
    metric, others = data.facts.metric, words.board_metrics(data)
    rows = []
    for number_ in numbers:
        run = data.runs[number_ - 1]
        name = escaped(run.name) + (" (ensemble)" if run.is_ensemble else "")
        told = "–"
        if run.difference is not None:
            told = " ".join(words.difference(run.difference))
        scores = [words.score(run.test.get(key)) for key in others]
        spread, seconds = words.seed_sd(run, metric), duration(run.seconds)
        rows.append(
            [run.number, name, words.score(run.test.get(metric)), told, *scores, spread, seconds]
        )
    names = [metric_name(key, short=True) for key in others]
    header = ["", "run", metric_name(metric, short=True), "difference to the first", *names]
    return table([*header, "SD over seeds", "time"], rows, n_words=2)


def _leaderboard_note(data: ReportData) -> str:
    facts, unit = data.facts, words.unit(data.facts)
    guess = ""
    if facts.majority_accuracy is not None:
        guess = (
            f" Always guessing the largest class would reach accuracy "
            f"{number(facts.majority_accuracy)} and macro-F1 {number(facts.majority_macro_f1)}."
        )
    return (
        "Test images only, predictions averaged over seeds; in brackets the 95 % "
        f"interval over {unit}. Differences are in {metric_title(facts.metric)}, paired over the same "
        f"draws of {unit}, their p-values corrected for the number of runs (Holm).{guess}"
    )


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
            number(e.loss, 2),
            "–" if e.n_kept is None else e.n_kept,
            "–" if e.n_rejected is None else e.n_rejected,
        ]
        for e in data.examples
    ]
    loss = data.examples[0].loss_name if data.examples else ""
    header = ["image", "why", "true", "predicted", "p(true)", loss, "kept", "rejected"]
    return [
        table(["feature set", "images", "patches", "least", "median", "most"], counts)
        if counts
        else "",
        table(header, examples, n_words=4) if examples else "",
        *(f"> {escaped(note)}" for note in data.image_notes),
    ]


def _reproduce(data: ReportData) -> list[str]:
    fence = "```"
    told = data.experiment.text if data.experiment else ""
    while any(fence in line for line in (*data.commands, told)):
        fence += "`"
    whole = []
    if data.experiment is not None:
        whole = [
            "One command and one file led to all of this:",
            "\n".join([f"{fence}sh", words.wrapped(data.experiment.command), fence]),
            "\n".join([f"{fence}toml", told.rstrip(), fence]) if told else "",
            *(
                f"- failed: {escaped(name)}: {escaped(reason)}"
                for name, reason in data.experiment.failed
            ),
            "Run by run:",
        ]
    return [
        *whole,
        "\n".join([f"{fence}sh", *map(words.wrapped, data.commands), fence]),
        table(["what", "digest"], [[escaped(a), _code(b)] for a, b in data.digests], n_words=2),
        table(["software", "version"], [[escaped(a), escaped(b)] for a, b in data.versions], n_words=2),
    ]  # fmt: skip


def _code(text: str) -> str:
    """Write a code span that survives back-ticks and table cells."""
    return f"`{text.replace('`', '’').replace('|', '¦')}`"
