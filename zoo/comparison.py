"""Runs side by side: who is best, and by how much more than chance."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from zoo.errors import RunError
from zoo.labels import named
from zoo.run import Run
from zoo.statistics import LEVEL, N_RESAMPLES, Difference, paired_bootstrap

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from zoo.predictions import Predictions

__all__ = ["Comparison", "Row", "compare"]

_HEADER = ("run", "head", "macro-F1", "95 % interval", "accuracy", "AUROC", "seed sd", "to best")


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
    """Macro-F1 minus that of the best run, by the same draws of patients; None for the best."""

    def to_json(self) -> dict[str, Any]:
        """Write the row as JSON values."""
        told = dataclasses.asdict(self)
        told["to_best"] = None if self.to_best is None else self.to_best.to_json()
        return told


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Runs on the same images, best macro-F1 first."""

    rows: tuple[Row, ...]
    """The runs."""
    warnings: tuple[str, ...]
    """What makes their numbers harder to compare, one sentence each."""

    def to_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        return {
            "level": LEVEL,
            "resamples": N_RESAMPLES,
            "runs": [row.to_json() for row in self.rows],
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Draw a plain table, with the warnings below it."""
        cells = [_HEADER, *(_cells(row) for row in self.rows)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADER))]
        lines = ["  ".join(_padded(line, widths)).rstrip() for line in cells]
        return "\n".join([*lines, *(f"! {warning}" for warning in self.warnings)])

    def to_markdown(self) -> str:
        """Draw a Markdown table, with the warnings below it."""
        marks = ["---", "---", *["---:"] * (len(_HEADER) - 2)]
        cells = [_HEADER, marks, *(_cells(row) for row in self.rows)]
        lines = ["| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in cells]
        return "\n".join([*lines, *(f"\n> {warning}" for warning in self.warnings)])


def compare(run_paths: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Compare runs that tested the same images.

    Parameters
    ----------
    run_paths
        Run and ensemble directories.

    Returns
    -------
    Comparison
        Rows sorted by macro-F1, each with its paired difference to the best.

    Raises
    ------
    RunError
        If there is no run, a directory is not one, or runs tested other images or labels;
        the message names them.
    """
    runs = [Run.load(path) for path in run_paths]
    if not runs:
        raise RunError("nothing to compare: name at least one run")
    runs.sort(key=lambda run: (-_macro_f1(run), run.name))
    tested = [run.test_probabilities() for run in runs]
    for run, images in zip(runs[1:], tested[1:], strict=True):
        _check(run, images, runs[0], tested[0])
    rows = [_row(runs[0], tested[0], None)]
    rows += [
        _row(run, images, _to_best(images, tested[0]))
        for run, images in zip(runs[1:], tested[1:], strict=True)
    ]
    return Comparison(rows=tuple(rows), warnings=tuple(_warnings(runs)))


def _check(run: Run, images: Predictions, best: Run, others: Predictions) -> None:
    differs = ""
    if run.classes != best.classes:
        differs = f"classes {', '.join(run.classes)} and {', '.join(best.classes)}"
    elif images.image_ids.tolist() != others.image_ids.tolist():
        only_one = set(images.image_ids.tolist()) ^ set(others.image_ids.tolist())
        differs = f"{named(sorted(only_one))} that only one of them tested"
    elif (images.y_true != others.y_true).any():
        differs = f"the label of {named(images.image_ids[images.y_true != others.y_true])}"
    if differs:
        raise RunError(f"{run.path} and {best.path} cannot be compared, they differ in {differs}")


def _to_best(images: Predictions, best: Predictions) -> Difference:
    found = paired_bootstrap(best.y_true, images.prob, best.prob, best.patient_ids)
    return found["macro_f1"]


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


def _row(run: Run, images: Predictions, to_best: Difference | None) -> Row:
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
        to_best=to_best,
    )


def _macro_f1(run: Run) -> float:
    return float(run.document["metrics"]["test"]["macro_f1"]["value"])


def _cells(row: Row) -> tuple[str, ...]:
    f1 = row.metrics["macro_f1"]
    difference = "best"
    if row.to_best is not None:
        told = row.to_best
        difference = f"{told.value:+.3f} [{told.low:+.3f}, {told.high:+.3f}] p={told.p:.3f}"
    return (
        row.name,
        row.head,
        _number(f1["value"]),
        f"{_number(f1['low'])}–{_number(f1['high'])}",
        _number(row.metrics["accuracy"]["value"]),
        _number(row.metrics["auroc"]["value"]),
        _number(f1["seed_sd"]),
        difference,
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    """Put names to the left and numbers to the right."""
    return [
        cell.ljust(width) if i < 2 or i == len(widths) - 1 else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(line, widths, strict=True))
    ]
