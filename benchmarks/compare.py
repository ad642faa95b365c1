"""What has moved between two runs of the benchmarks, beyond their noise. Pure functions.

Ratios of short runs differ with nothing changed. How much may be noise goes by what is known of
the two runs (:func:`noise`); what moved by more is told, and never an error. Counts have no noise:
one that is not as wanted is an error wherever it is seen (:func:`missed`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

QUIET, BUSY, ELSEWHERE = 1.25, 1.6, 2.0
"""Factors by which ratios differ with nothing changed: on one machine that has little else to do,
where it was busy in either run, and on two machines."""


SHOWN = 8
"""Questions that only one run asked: as many are named."""


def noise(before: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[float, str]:
    """Say by which factor ratios of two runs may differ without meaning, and why.

    Parameters
    ----------
    before, now
        Documents as a run writes them.

    Examples
    --------
    >>> run = {"machine": {"processor": "x", "cores": 2}, "load": [[0.3, 0, 0], [1.5, 0, 0]]}
    >>> noise(run, run)
    (1.25, 'the same machine, with little else to do')
    >>> noise(run, run | {"load": [[9.0, 0, 0], [9.5, 0, 0]]})[0]
    1.6
    """
    machines = [(run["machine"]["processor"], run["machine"]["cores"]) for run in (before, now)]
    if machines[0] != machines[1]:
        return ELSEWHERE, "two machines"
    # What a run itself adds to the load comes on top of what was there before it.
    if any(run["load"][0][0] > 0.75 * run["machine"]["cores"] for run in (before, now)):
        return BUSY, "the same machine, busy with something else"
    return QUIET, "the same machine, with little else to do"


def moved(before: float, now: float, factor: float = QUIET) -> bool:
    """Say whether a ratio has changed by more than noise, up or down.

    Examples
    --------
    >>> moved(10, 11), moved(10, 20), moved(20, 10), moved(10, 15, BUSY)
    (False, True, True, False)
    """
    return max(before, now) > factor * min(before, now)


def comparison(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say how a run differs from an earlier one.

    Parameters
    ----------
    before, now
        Documents as a run writes them.

    Returns
    -------
    markdown
        How large noise may be here; a row per question that both asked, first and in bold those
        that moved by more; heads whose score left its own interval; what only one of them has.
    """
    factor, why = noise(before, now)
    then, today = _ratios(before), _ratios(now)
    both = [key for key in today if key in then]
    changed = [key for key in both if moved(then[key], today[key], factor)]
    lines = [
        f"Before: {before['machine']['processor']}, {when(before)}.  ",
        f"Now: {now['machine']['processor']}, {when(now)}.",
        "",
        f"{len(changed)} of {len(both)} ratios moved by more than a factor of {factor:g}; less is "
        f"noise here ({why}).",
        "",
        "| question | before | now | change |",
        "|---|--:|--:|--:|",
    ]
    for key in changed + [key for key in both if key not in changed]:
        shown = f"{today[key] / then[key] - 1:+.0%}"
        shown = f"**{shown}**" if key in changed else shown
        lines.append(f"| {': '.join(key)} | {then[key]:.2f} | {today[key]:.2f} | {shown} |")
    lines += [*_quality_moves(before, now), *_alone(then, today)]
    return "\n".join(lines) + "\n"


def missed(document: Mapping[str, Any]) -> list[str]:
    """Name the counts that are not as wanted: rows, requests, damage found."""
    return [
        f"{row['name']}: {row['seen']}, wanted {'at most ' * row['at_most']}{row['wanted']}"
        for row in document.get("counts", ())
        if not row["held"]
    ]


def when(document: Mapping[str, Any]) -> str:
    """Say when, on what sizes and under which load a run was made."""
    sizes = "small sizes" if document["smoke"] else "full sizes"
    before, after = document["load"]
    return f"{document['date']}, {sizes}, load {before[0]:g} before and {after[0]:g} after"


def _quality_moves(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the heads whose macro-F1 left the interval that it had before."""
    then = {row["head"]: row for row in before.get("quality", ()) if row["not_run"] is None}
    told = []
    for row in now.get("quality", ()):
        known = then.get(row["head"])
        if known is None or row["not_run"] is not None:
            continue
        was, score = known["macro_f1"], row["macro_f1"]["value"]
        if not was["low"] <= score <= was["high"]:
            told.append(f"{row['head']} {was['value']:.3f} → **{score:.3f}**")
    return ["", "Macro-F1 outside its interval of before: " + ", ".join(told) + "."] * bool(told)


def _alone(
    then: Mapping[tuple[str, str], float], today: Mapping[tuple[str, str], float]
) -> list[str]:
    """List what only one of two runs asked, or could answer."""
    lines: list[str] = []
    for word, here, there in (("before", then, today), ("now", today, then)):
        alone: Sequence[str] = ["; ".join(key) for key in here if key not in there]
        if alone:
            more = f" · and {len(alone) - SHOWN} more" if len(alone) > SHOWN else ""
            lines += ["", f"Only {word}: " + " · ".join(alone[:SHOWN]) + more]
    return lines


def _ratios(document: Mapping[str, Any]) -> dict[tuple[str, str], float]:
    """Ratio by question and by baseline, whose remarks do not count."""
    return {
        (row["name"], row["baseline"].partition(";")[0]): row["ratio"]
        for row in document["rows"]
        if row["ratio"] is not None
    }
