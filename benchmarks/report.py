"""A run of the benchmarks as tables: ratios, counts, quality of heads. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.compare import when

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MET = {True: "yes", False: "**no**", None: "–"}


def markdown(document: Mapping[str, Any]) -> str:
    """Write a run as tables."""
    facts = document["machine"]
    lines = [
        "# Benchmarks",
        "",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB; {when(document)}. "
        "Ratios hold within this run; seconds do not carry over to other machines.",
        "",
        "| question | ours (s) | baseline (s) | ratio | target | met | baseline |",
        "|---|--:|--:|--:|--:|:-:|---|",
        *map(_line, document["rows"]),
        "",
        _summary(document["rows"]),
        *_counts(document.get("counts", ())),
        *_quality(document.get("quality", ())),
        "",
        "Seconds per question: "
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in document["seconds"].items())
        + ".",
        "",
        "Versions: "
        + ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _line(row: Mapping[str, Any]) -> str:
    target = "–" if row["target"] is None else f"{row['target']:g}"
    if row["not_run"] is not None:
        return f"| {row['name']} | | | | {target} | not run: {row['not_run']} | {row['baseline']} |"
    return (
        f"| {row['name']} | {row['ours_s']:.4g} | {row['theirs_s']:.4g} | {row['ratio']:.2f} "
        f"| {target} | {MET[row['met']]} | {row['baseline']} |"
    )


def _summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """Count targets, so that a missed one is not to be looked for."""
    met = [row["met"] for row in rows if row["target"] is not None]
    counts = {"met": met.count(True), "missed": met.count(False), "not run": met.count(None)}
    return "Targets: " + ", ".join(f"{count} {word}" for word, count in counts.items()) + "."


def _counts(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the numbers that no machine changes."""
    if not rows:
        return []
    return [
        "",
        "## Counts",
        "",
        "The same on every machine; one that is not as wanted fails the run.",
        "",
        "| what | seen | wanted | held |",
        "|---|--:|--:|:-:|",
        *(
            f"| {row['name']} | {row['seen']} | {'≤ ' * row['at_most']}{row['wanted']} "
            f"| {MET[row['held']]} |"
            for row in rows
        ),
    ]


def _quality(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write how good every head is on images whose truth is known."""
    if not rows:
        return []
    return [
        "",
        "## Heads",
        "",
        "On the synthetic cohort, out of fold, with 95 % intervals over patients; attention is the "
        "AUROC of a patch's weight against whether the class was planted there.",
        "",
        "| head | macro-F1 | accuracy | AUROC | attention | fits (s) | set |",
        "|---|--:|--:|--:|--:|--:|---|",
        *map(quality_line, rows),
    ]


def quality_line(row: Mapping[str, Any]) -> str:
    """Write one head's row."""
    if row["not_run"] is not None:
        return f"| {row['head']} | | | | | | not run: {row['not_run']} |"
    scores = [
        f"{row[name]['value']:.3f} ({row[name]['low']:.2f}–{row[name]['high']:.2f})"
        for name in ("macro_f1", "accuracy", "auroc")
    ]
    found = "–" if row["attention_auroc"] is None else f"{row['attention_auroc']:.3f}"
    return (
        f"| {row['head']} | {' | '.join(scores)} | {found} | {row['seconds']:.1f} "
        f"| {row['settings'] or '–'} |"
    )
