"""Run the benchmarks and write one report, as Markdown and as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import bench_build, bench_read, bench_train
from benchmarks.measure import Ratio, machine

MET = {True: "yes", False: "**no**", None: "–"}
QUESTIONS = (bench_build, bench_read, bench_train)


def markdown(rows: list[Ratio], facts: dict[str, object]) -> str:
    lines = [
        "# Benchmarks",
        "",
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory_gib']} GiB. "
        "Ratios hold within this run; seconds do not carry over to other machines.",
        "",
        "| question | ours (s) | baseline (s) | ratio | target | met | baseline |",
        "|---|--:|--:|--:|--:|:-:|---|",
    ]
    lines += [
        f"| {row.name} | {row.ours_s:.3f} | {row.theirs_s:.3f} | {row.ratio:.2f} "
        f"| {'–' if row.target is None else f'{row.target:g}'} | {MET[row.met]} | {row.baseline} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, about two minutes")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    arguments = parser.parse_args()
    rows = [row for question in QUESTIONS for row in question.run(smoke=arguments.smoke)]
    facts = machine()
    arguments.out.mkdir(parents=True, exist_ok=True)
    document = {"machine": facts, "smoke": arguments.smoke, "rows": [row.to_json() for row in rows]}
    (arguments.out / "report.json").write_text(json.dumps(document, indent=2) + "\n")
    (arguments.out / "report.md").write_text(markdown(rows, facts))
    print(markdown(rows, facts))


if __name__ == "__main__":
    main()
