"""Run the benchmarks and write one report, as Markdown and as JSON; or compare two of them.

Examples::

    python -m benchmarks --smoke                                   # report in benchmarks/out
    python -m benchmarks --smoke --only counts,quality             # what no machine changes, heads
    python -m benchmarks --compare benchmarks/results/smoke.json   # that report against another
    python -m benchmarks --only read,write --save benchmarks/results/disk.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compare import comparison, missed
from benchmarks.measure import Count, Quality, Ratio, machine
from benchmarks.report import markdown

if TYPE_CHECKING:
    from collections.abc import Sequence

QUESTIONS = ("counts", "build", "read", "write", "noop", "cluster", "train", "s3", "quality")
"""Each is a module ``bench_<name>`` with a function ``run(*, smoke)``, imported when it is asked."""

TABLES = {Ratio: "rows", Count: "counts", Quality: "quality"}
"""Where an answer stands in the document."""

COMMITTED = Path(__file__).parent / "results" / "smoke.json"
"""What a smoke run is compared with."""


def blank(*, smoke: bool) -> dict[str, Any]:
    """Begin the document that a report is made of; ``load`` is before and after."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "smoke": smoke,
        "load": [_load(), _load()],
        "seconds": {},
        "rows": [],
        "counts": [],
        "quality": [],
    }


def ask(name: str, document: dict[str, Any]) -> None:
    """Ask one question, and put its answers into the document."""
    began = time.perf_counter()
    question = import_module(f"benchmarks.bench_{name}")
    for row in question.run(smoke=document["smoke"]):
        document[TABLES[type(row)]].append(row.to_json())
    document["seconds"][name] = round(time.perf_counter() - began, 1)
    document["load"][1] = _load()
    gc.collect()  # what one question leaves behind shall not slow down the next


def _load() -> list[float]:
    """Give the number of processes that ran or waited, over 1, 5 and 15 minutes."""
    return [round(load, 2) for load in os.getloadavg()]


def _questions(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in QUESTIONS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"no question {', '.join(unknown)}; there are {', '.join(QUESTIONS)}"
        )
    return names


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="small sizes, some minutes in all")
    parser.add_argument(
        "--only", type=_questions, default=list(QUESTIONS), help="questions, by commas"
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    parser.add_argument("--save", type=Path, help="write the JSON here too, to be committed")
    parser.add_argument(
        "--compare", type=Path, help="measure nothing: say how the report in --out differs"
    )
    chosen = parser.parse_args(arguments)
    report = chosen.out / "report.json"
    if chosen.compare is not None:
        for path in (chosen.compare, report):
            if not path.is_file():
                parser.error(f"{path}: no such report; one is written by a run")
        before, now = (json.loads(path.read_text()) for path in (chosen.compare, report))
        print(comparison(before, now))
        return
    # Read before anything is written: --save may name the very file.
    known = json.loads(COMMITTED.read_text()) if chosen.smoke and COMMITTED.is_file() else None
    document = blank(smoke=chosen.smoke)
    for name in chosen.only:
        ask(name, document)
        # Minutes of measuring are not to be lost by what fails after them.
        for path in filter(None, (report, chosen.save)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
        report.with_suffix(".md").write_text(written(document, known))
    print(written(document, known))
    problems = missed(document)
    if problems:
        parser.exit(1, "".join(f"missed: {problem}\n" for problem in problems))


def written(document: dict[str, Any], known: dict[str, Any] | None) -> str:
    """Write a run as Markdown, and what moved since the one that is committed."""
    text = markdown(document)
    if known is None:
        return text
    return f"{text}\n## Against the committed run\n\n{comparison(known, document)}"


if __name__ == "__main__":
    main()
