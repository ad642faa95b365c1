"""A run of the benchmarks as a table, and what has moved between two of them. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MET = {True: "yes", False: "**no**", None: "–"}

MOVED = 0.25
"""Ratios of short runs on busy machines differ by this share with nothing changed."""


def markdown(document: Mapping[str, Any]) -> str:
    """Write a run as a table."""
    facts = document["machine"]
    lines = [
        "# Benchmarks",
        "",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB; {_when(document)}. "
        "Ratios hold within this run; seconds do not carry over to other machines.",
        "",
        "| question | ours (s) | baseline (s) | ratio | target | met | baseline |",
        "|---|--:|--:|--:|--:|:-:|---|",
        *map(_line, document["rows"]),
        "",
        _summary(document["rows"]),
        "",
        "Seconds per question: "
        + ", ".join(f"{name} {seconds:.0f}" for name, seconds in document["seconds"].items())
        + ".",
    ]
    return "\n".join(lines) + "\n"


def _when(document: Mapping[str, Any]) -> str:
    sizes = "small sizes" if document["smoke"] else "full sizes"
    before, after = document["load"]
    return f"{document['date']}, {sizes}, load {before[0]:g} before and {after[0]:g} after"


def _line(row: Mapping[str, Any]) -> str:
    target = "–" if row["target"] is None else f"{row['target']:g}"
    if row["not_run"] is not None:
        return f"| {row['name']} | | | | {target} | not run: {row['not_run']} | {row['baseline']} |"
    return (
        f"| {row['name']} | {row['ours_s']:.4g} | {row['theirs_s']:.4g} | {row['ratio']:.2f} "
        f"| {target} | {MET[row['met']]} | {row['baseline']} |"
    )


def _summary(rows: list[Mapping[str, Any]]) -> str:
    """Count targets, so that a missed one is not to be looked for."""
    met = [row["met"] for row in rows if row["target"] is not None]
    counts = {"met": met.count(True), "missed": met.count(False), "not run": met.count(None)}
    return "Targets: " + ", ".join(f"{count} {word}" for word, count in counts.items()) + "."


def comparison(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how the ratios of a run differ from those of an earlier one.

    Parameters
    ----------
    before, now
        Documents as a run writes them.

    Returns
    -------
    markdown
        A row per question that both asked, those in bold that moved by more than a quarter;
        then the questions that only one of them asked, or could answer.
    """
    then, today = _ratios(before), _ratios(now)
    lines = [
        f"Before: {before['machine']['processor']}, {_when(before)}.  ",
        f"Now: {now['machine']['processor']}, {_when(now)}.",
        "",
        "| question | before | now | change |",
        "|---|--:|--:|--:|",
    ]
    for key, ratio in today.items():
        if key in then:
            change = ratio / then[key] - 1
            shown = f"{change:+.0%}"
            if moved(then[key], ratio):
                shown = f"**{shown}**"
            lines.append(f"| {': '.join(key)} | {then[key]:.2f} | {ratio:.2f} | {shown} |")
    for word, here, there in (("before", then, today), ("now", today, then)):
        alone = ["; ".join(key) for key in here if key not in there]
        if alone:
            lines += ["", f"Only {word}: " + " · ".join(alone)]
    return "\n".join(lines) + "\n"


def moved(before: float, now: float) -> bool:
    """Say whether a ratio has changed by more than the noise of a short run, up or down.

    Examples
    --------
    >>> moved(10, 11), moved(10, 20), moved(20, 10)
    (False, True, True)
    """
    return max(before, now) > (1 + MOVED) * min(before, now)


def _ratios(document: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Ratio by question and by baseline, whose remarks do not count."""
    return {
        (row["name"], row["baseline"].partition(";")[0]): row["ratio"]
        for row in document["rows"]
        if row["ratio"] is not None
    }
