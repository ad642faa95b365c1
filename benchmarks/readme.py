"""The numbers of the README, from committed results and from nothing else.

``python -m benchmarks.readme`` writes what stands between the two marks anew.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

START, END = "<!-- benchmarks:start -->", "<!-- benchmarks:end -->"
ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A row of the README: which committed answer it shows."""

    what: str
    against: str
    name: str
    """The question's name begins like this."""
    baseline: str
    """So does its baseline."""
    file: str = "smoke.json"


TRIDENT = "one HDF5 per image"
CLAM = "CLAM-style loop"
SHOWN = (
    Shown(
        what="building a store, ResNet-18 on a CPU",
        against="the bare forward pass",
        name="bare forward ÷ build, ResNet-18",
        baseline="the encoder alone",
        file="build.json",
    ),
    Shown(
        what="the same in bfloat16",
        against="TRIDENT's order of work, float32",
        name="TRIDENT's order",
        baseline="segment",
        file="build.json",
    ),
    *(
        Shown(
            what=f"a cohort into memory, bags of {patches}",
            against="one HDF5 per image, as TRIDENT writes it",
            name=f"whole cohort into memory, warm, {size}",
            baseline=TRIDENT,
            file="read.json",
        )
        for patches, size in (("12", "2,000 × 12"), ("100", "2,000 × 100"), ("10,000", "20 × "))
    ),
    *(
        Shown(
            what=f"an epoch of random bags of {patches}",
            against="the same files",
            name=f"epoch of random bags from memory, warm, {size}",
            baseline=TRIDENT,
            file="read.json",
        )
        for patches, size in (("12", "2,000 × 12"), ("100", "2,000 × 100"), ("10,000", "20 × "))
    ),
    Shown(
        what="a training epoch, bags of 12",
        against="a bag at a time from .pt files, as CLAM trains",
        name="epoch, equal bags",
        baseline=CLAM,
        file="train.json",
    ),
    Shown(
        what="a training epoch, bags of 30 to 1,000",
        against="the same",
        name="epoch, uneven bags of 30 to 1,000 patches",
        baseline=CLAM,
        file="train.json",
    ),
    Shown(
        what="a build with nothing to do, 100,000 images",
        against="2 seconds",
        name="build with nothing to do, 100,000",
        baseline="2 s",
        file="noop.json",
    ),
)


def load() -> dict[str, Any]:
    """Read the committed results, by the names of their files."""
    return {path.name: json.loads(path.read_text("utf-8")) for path in RESULTS.glob("*.json")}


def table(results: Mapping[str, Any]) -> str:
    """Write the table of the README: what was measured, promised or not, met or not."""
    shown = [results[one.file] for one in SHOWN if one.file in results]
    dates = sorted({facts["date"] for facts in shown})
    machines = sorted({_machine(facts) for facts in shown})
    small = r", \* is of small sizes" if any(facts["smoke"] for facts in shown) else ""
    lines = [
        "| | against | times faster | promised |",
        "|---|---|--:|--:|",
        *(_line(one, results) for one in SHOWN),
        "",
        f"Measured on {' and '.join(machines)}, {' to '.join(dict.fromkeys((*dates[:1], *dates[-1:])))}; "
        f"bold is missed{small}.",
        "All questions, what was missed, and why: [benchmarks](docs/benchmarks.md).",
    ]
    return "\n".join(lines)


def _machine(facts: Mapping[str, Any]) -> str:
    return f"{facts['machine']['cores']} cores of {facts['machine']['processor']}"


def _line(one: Shown, results: Mapping[str, Any]) -> str:
    rows = results.get(one.file, {}).get("rows", ())
    found = [
        row
        for row in rows
        if row["name"].startswith(one.name) and row["baseline"].startswith(one.baseline)
    ]
    if not found or found[0]["ratio"] is None:
        return f"| {one.what} | {one.against} | not measured | |"
    row = found[0]
    small = r"\*" if results[one.file]["smoke"] else ""
    ratio = f"{row['ratio']:.1f}" if row["ratio"] < 10 else f"{row['ratio']:.0f}"
    shown = f"**{ratio}**" if row["met"] is False else ratio
    target = "–" if row["target"] is None else f"{row['target']:g}"
    return f"| {one.what} | {one.against} | {shown}{small} | {target} |"


def filled(text: str, results: Mapping[str, Any]) -> str:
    """Give a page with what stands between the marks written anew.

    Raises
    ------
    ValueError
        If the marks are not there, once each and in order.
    """
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"the page needs {START} and, after it, {END}")
    return f"{before}{START}\n{table(results)}\n{END}{after}"


if __name__ == "__main__":
    page = ROOT / "README.md"
    page.write_text(filled(page.read_text("utf-8"), load()), encoding="utf-8")
