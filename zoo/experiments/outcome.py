"""What became of an experiment, for people and programs."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.provenance import versions
from histostore.text import failures, table
from zoo.metrics import headline, higher_is_better

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.experiments.planning import Plan
    from zoo.run import Run

__all__ = ["Outcome"]

FORMAT = 1
"""Version of ``experiment.json``."""

_BESIDE = ("macro_f1", "accuracy", "auroc")
"""Metrics that are printed beside the one that ranks, where the task has them."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Outcome:
    """What became of an experiment."""

    folder: Path
    """Where it lies."""
    plan: Plan
    """What was asked for."""
    runs: tuple[Run, ...]
    """Runs that are there, in the order of the plan."""
    ensembles: tuple[Run, ...]
    """Ensembles that are there."""
    n_fitted: int
    """Runs that were fitted now; the others were there."""
    failed: tuple[tuple[str, str], ...]
    """Name and reason of what could not be done."""
    report: Path | None
    """The page, where one was asked for and written."""
    notes: tuple[str, ...]
    """What else is to be known."""

    @property
    def command(self) -> str:
        """What does the same again."""
        words = ("zoo", "fit", self.plan.experiment.path.resolve(), "-o", self.folder.resolve())
        return shlex.join(map(str, words))

    def to_json(self) -> dict[str, Any]:
        """Give the outcome as JSON values; paths of runs are relative to the folder."""
        return {
            "format": FORMAT,
            "kind": "experiment",
            "experiment": str(self.plan.experiment.path.resolve()),
            "digest": self.plan.experiment.digest,
            "command": self.command,
            "folder": str(self.folder.resolve()),
            "n_runs": len(self.plan.cells),
            "n_fitted": self.n_fitted,
            "runs": [_told(run, self.folder) for run in self.runs],
            "ensembles": [_told(run, self.folder) for run in self.ensembles],
            "failed": [{"name": name, "reason": reason} for name, reason in self.failed],
            "report": None if self.report is None else str(self.report.relative_to(self.folder)),
            "notes": list(self.notes),
            "versions": versions(),
        }

    def to_text(self) -> str:
        """Draw runs and ensembles, the best first, and say where the report is."""
        told = self.plan.experiment
        metric = told.metric or headline(told.task)
        names = [metric, *(name for name in _BESIDE if name != metric)]
        found = [(run.name, run.document["metrics"]["test"]) for run in self.ensembles + self.runs]
        names = [name for name in names if all(name in test for _, test in found)]
        rows = [{"run": name, **{key: test[key]["value"] for key in names}} for name, test in found]
        if names:
            rows = _ranked(rows, metric)
        there = len(self.runs) - self.n_fitted
        lines = [table(rows), f"{self.n_fitted:,} runs fitted now, {there:,} were there before"]
        if self.failed:
            lines += [f"{len(self.failed):,} failed; the same command tries them again:"]
            lines += failures(self.failed)
        return "\n".join([*lines, *([str(self.report)] if self.report else ())])


def _ranked(rows: list[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Put the best first; what has no number comes last."""
    sign = -1 if higher_is_better(metric) else 1
    return sorted(rows, key=lambda row: (row[metric] is None, sign * (row[metric] or 0.0)))


def _told(run: Run, folder: Path) -> dict[str, Any]:
    test = run.document["metrics"]["test"]
    return {
        "name": run.name,
        "path": str(run.path.relative_to(folder)),
        "metrics": {name: found["value"] for name, found in test.items()},
    }
