"""Runs side by side: who is best, and by how much more than chance."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

from zoo.contrasts import Contrast, against_best, over_folds
from zoo.errors import RunError
from zoo.labels import named
from zoo.metrics import headline, higher_is_better, metric_names, metric_title
from zoo.run import Run
from zoo.statistics import LEVEL, N_RESAMPLES, Difference
from zoo.tasks import Task

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from zoo.predictions import Predictions
    from zoo.significance import Friedman

__all__ = ["Comparison", "Row", "compare"]

_COMPARED = {"classification": ("macro_f1", "accuracy", "auroc")}
"""Metrics in the table; the first three of other tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One run in the table."""

    name: str
    """What the run is called."""
    path: str
    """Its directory."""
    head: str
    """Its head, or ``ensemble``."""
    recipe: str
    """Its recipe; nothing for an ensemble."""
    feature_set: str
    """The feature set it was fitted on."""
    n_images: int
    """Images tested."""
    n_seeds: int
    """Seeds averaged."""
    metrics: dict[str, dict[str, Any]]
    """Test metrics as in ``run.json``."""
    to_best: Difference | None
    """First metric minus that of the best run, by the same draws of patients; None for the best."""
    tests: Contrast | None = None
    """The same and further tests against the best run, corrected for how many runs there are."""

    def to_json(self) -> dict[str, Any]:
        """Write the row as JSON values."""
        told = dataclasses.asdict(self)
        told["to_best"] = None if self.to_best is None else self.to_best.to_json()
        told["tests"] = None if self.tests is None else self.tests.to_json()
        return told


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs on the same images, the best first, by the metric that comes first in their task."""

    rows: tuple[Row, ...]
    """The runs."""
    warnings: tuple[str, ...]
    """What makes their numbers harder to compare, one sentence each."""
    task: Task = dataclasses.field(default_factory=Task)
    """What they learned."""
    folds: Friedman | None = None
    """Their ranks over folds, in the order of the rows; None for two runs or four folds."""

    def to_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        return {
            "level": LEVEL,
            "resamples": N_RESAMPLES,
            "runs": [row.to_json() for row in self.rows],
            "folds": None if self.folds is None else self.folds.to_json(),
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Draw a plain table, with the warnings below it."""
        cells = self._cells()
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = ["  ".join(_padded(line, widths)).rstrip() for line in cells]
        notes = [*self._ranks(), *(f"! {warning}" for warning in self.warnings)]
        return "\n".join([*lines, *notes])

    def to_markdown(self) -> str:
        """Draw a Markdown table, with the warnings below it."""
        header, *rows = self._cells()
        cells = [header, ("---", "---", *["---:"] * (len(header) - 2)), *rows]
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells]
        notes = [*self._ranks(), *self.warnings]
        return "\n".join([*lines, *(f"\n> {note}" for note in notes)])

    def _ranks(self) -> list[str]:
        """Say in a line what the folds say; nothing where that was not asked."""
        if self.folds is None:
            return []
        told = self.folds
        ranks = ", ".join(f"{r.name} {k:.1f}" for r, k in zip(self.rows, told.ranks, strict=True))
        return [
            f"mean ranks over {told.n_blocks} folds: {ranks}; Friedman p={told.p:.3f}, "
            f"{told.critical_difference:.1f} apart differ (Nemenyi)"
        ]

    def _cells(self) -> list[tuple[str, ...]]:
        """Give the table's header and rows."""
        shown = _COMPARED.get(self.task.kind, metric_names(self.task)[:3])
        first, *rest = map(metric_title, shown)
        header = ("run", "head", first, "95 % interval", *rest, "seed sd", "to best, p by Holm")
        return [header, *(_cells(row, shown) for row in self.rows)]


def compare(run_paths: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare runs that tested the same images.

    Parameters
    ----------
    run_paths
        Run and ensemble directories.

    Returns
    -------
    Comparison
        Rows sorted by macro-F1, or what comes first in another task, each with its paired
        difference to the best.

    Raises
    ------
    RunError
        If there is no run, a directory is not one, or runs tested other images or labels;
        the message names them.
    """
    runs = [Run.load(path) for path in run_paths]
    if not runs:
        raise RunError("nothing to compare: name at least one run")
    _check_tasks(runs)
    task = runs[0].task
    runs.sort(key=lambda run: (_worse(run), run.name))
    tested = [run.test_probabilities() for run in runs]
    for run, images in zip(runs[1:], tested[1:], strict=True):
        _check(run, images, runs[0], tested[0])
    tests = (None, *against_best(tested[0], tested[1:], task))
    rows = [_row(*found) for found in zip(runs, tested, tests, strict=True)]
    folds = over_folds(
        [run.predictions for run in runs],
        runs[0].classes,
        task,
        n_folds=(runs[0].document.get("split") or {}).get("n_folds"),
    )
    return Comparison(rows=tuple(rows), warnings=tuple(_warnings(runs)), task=task, folds=folds)


def _check(run: Run, images: Predictions, best: Run, others: Predictions) -> None:
    differs = ""
    if run.classes != best.classes:
        differs = f"classes {', '.join(run.classes)} and {', '.join(best.classes)}"
    elif images.image_ids.tolist() != others.image_ids.tolist():
        only_one = set(images.image_ids.tolist()) ^ set(others.image_ids.tolist())
        differs = f"{named(sorted(only_one))} that only one of them tested"
    elif (images.y_true != others.y_true).any():
        wrong = (images.y_true != others.y_true).reshape(len(images.image_ids), -1).any(axis=1)
        differs = f"the label of {named(images.image_ids[wrong])}"
    if differs:
        raise RunError(f"{run.path} and {best.path} cannot be compared, they differ in {differs}")


def _check_tasks(runs: Sequence[Run]) -> None:
    first = runs[0]
    for run in runs[1:]:
        if run.task.kind != first.task.kind:
            raise RunError(
                f"{run.path} and {first.path} cannot be compared, they differ in task: "
                f"{run.task.kind} and {first.task.kind}"
            )


def _warnings(runs: Sequence[Run]) -> list[str]:
    best, found = runs[0], []
    for what in ("split", "cohort"):
        digests = [(run.document.get(what) or {}).get("digest") for run in runs]
        others = [run.name for run, told in zip(runs, digests, strict=True) if told != digests[0]]
        if others:
            found.append(
                f"{', '.join(others)}: another {what} than {best.name}, so part of the "
                "difference may come from that"
            )
    single = [run.name for run in runs if not run.is_ensemble and len(run.document["seeds"]) == 1]
    if single:
        found.append(f"{', '.join(single)}: one seed only, the spread over seeds is not known")
    return found


def _row(run: Run, images: Predictions, tests: Contrast | None) -> Row:
    document = run.document
    return Row(
        name=run.name,
        path=str(run.path),
        head=str((document.get("head") or {}).get("name", "")),
        recipe=str((document.get("recipe") or {}).get("name", "")),
        feature_set=str((document.get("store") or {}).get("feature_set", "")),
        n_images=len(images.image_ids),
        n_seeds=len(document["seeds"]),
        metrics=document["metrics"]["test"],
        to_best=None if tests is None else tests.difference,
        tests=tests,
    )


def _worse(run: Run) -> float:
    """Give the first metric so that less is better, what is undefined last."""
    name = headline(run.task)
    value = run.document["metrics"]["test"][name]["value"]
    if value is None:
        return math.inf
    return -float(value) if higher_is_better(name) else float(value)


def _cells(row: Row, shown: Sequence[str]) -> tuple[str, ...]:
    f1 = row.metrics[shown[0]]
    difference = "best"
    if row.tests is not None:
        told, p = row.tests.difference, _number(row.tests.holm_p)
        difference = f"{_signed(told.value)} [{_signed(told.low)}, {_signed(told.high)}] p={p}"
    return (
        row.name,
        row.head,
        _number(f1["value"]),
        f"{_number(f1['low'])}–{_number(f1['high'])}",
        *(_number(row.metrics[name]["value"]) for name in shown[1:]),
        _number(f1["seed_sd"]),
        difference,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.3f}"


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Put names to the left and numbers to the right."""
    return [
        cell.ljust(width) if i < 2 or i == len(widths) - 1 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
