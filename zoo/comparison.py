"""Runs side by side: who is best, and by how much more than chance."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from histostore.errors import OptionError
from zoo.contrasts import Contrast, against_best, over_folds
from zoo.errors import RunError
from zoo.labels import named
from zoo.metrics import headline, higher_is_better, metric_names, metric_title
from zoo.run import Run, member_paths
from zoo.statistics import LEVEL, N_RESAMPLES, Difference
from zoo.tasks import Task

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from zoo.predictions import Predictions
    from zoo.significance import Friedman

__all__ = [
    "PIXELS",
    "SEVERAL",
    "Comparison",
    "Row",
    "check_metric",
    "compare",
    "feature_sets",
    "group_name",
]

PIXELS = "pixels"
"""Group of the runs that were trained on pixels, and know no feature set."""

SEVERAL = "several feature sets"
"""Group of the ensembles whose members differ in feature set."""

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
    """The feature set it was fitted on; :data:`SEVERAL` where its members differ."""
    n_images: int
    """Images tested."""
    n_seeds: int
    """Seeds averaged."""
    metrics: dict[str, dict[str, Any]]
    """Test metrics as in ``run.json``."""
    to_best: Difference | None
    """Metric minus that of the best run, by the same draws of patients; None for the best."""
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
    """Runs on the same images, the best first."""

    rows: tuple[Row, ...]
    """The runs."""
    warnings: tuple[str, ...]
    """What makes their numbers harder to compare, one sentence each."""
    task: Task = dataclasses.field(default_factory=Task)
    """What they learned."""
    folds: Friedman | None = None
    """Their ranks over folds, in the order of the rows; None for two runs or four folds."""
    metric: str = ""
    """By which they are ranked; nothing: the one that comes first in their task."""

    @property
    def groups(self) -> dict[str, tuple[Row, ...]]:
        """Rows by feature set, the group with the best run first."""
        names = dict.fromkeys(row.feature_set for row in self.rows)
        return {name: tuple(r for r in self.rows if r.feature_set == name) for name in names}

    def to_json(self) -> dict[str, Any]:
        """Write everything as JSON values."""
        return {
            "metric": self.metric or headline(self.task),
            "level": LEVEL,
            "resamples": N_RESAMPLES,
            "runs": [row.to_json() for row in self.rows],
            "folds": None if self.folds is None else self.folds.to_json(),
            "warnings": list(self.warnings),
        }

    def to_text(self) -> str:
        """Draw a plain table, by feature set where there are several, with the warnings below."""
        header, *cells = self._cells()
        widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
        drawn = {id(row): line for row, line in zip(self.rows, cells, strict=True)}
        text = ["  ".join(_padded(header, widths)).rstrip()]
        for name, rows in self.groups.items():
            text += [f"{name or 'no feature set'}:"] if len(self.groups) > 1 else []
            text += ["  ".join(_padded(drawn[id(row)], widths)).rstrip() for row in rows]
        return "\n".join([*text, *self._ranks(), *(f"! {warning}" for warning in self.warnings)])

    def to_markdown(self) -> str:
        """Draw a Markdown table for each feature set, with the warnings below."""
        header, *cells = self._cells()
        drawn = {id(row): line for row, line in zip(self.rows, cells, strict=True)}
        rule = ("---", "---", *["---:"] * (len(header) - 2))
        text = []
        for name, rows in self.groups.items():
            text += [f"**{_cell(name or 'no feature set')}**\n"] if len(self.groups) > 1 else []
            table = [header, rule, *(drawn[id(row)] for row in rows)]
            text += ["| " + " | ".join(map(_cell, line)) + " |" for line in table]
            text += [""] if len(self.groups) > 1 else []
        notes = [*self._ranks(), *self.warnings]
        return "\n".join([*text, *(f"\n> {note}" for note in notes)])

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
        usual = _COMPARED.get(self.task.kind, metric_names(self.task)[:3])
        lead = self.metric or usual[0]
        shown = (lead, *(name for name in usual if name != lead))[: len(usual)]
        first, *rest = map(metric_title, shown)
        header = ("run", "head", first, "95 % interval", *rest, "seed sd", "to best, p by Holm")
        return [header, *(_cells(row, shown) for row in self.rows)]


def compare(
    run_paths: Sequence[str | os.PathLike[str]], *, metric: str | None = None
) -> Comparison:
    """Compare runs that tested the same images.

    Parameters
    ----------
    run_paths
        Run and ensemble directories.
    metric
        By which they are ranked and compared; the first of their task where left out.

    Returns
    -------
    Comparison
        Rows sorted by the metric, each with its paired difference to the best.

    Raises
    ------
    RunError
        If there is no run, a directory is not one, or runs tested other images or labels;
        the message names them.
    OptionError
        If their task has no such metric.
    """
    runs = Run.load_each(run_paths)
    if not runs:
        raise RunError("nothing to compare: name at least one run")
    _check_tasks(runs)
    task = runs[0].task
    name = check_metric(task, metric)
    runs.sort(key=lambda run: (_worse(run, name), run.name))
    tested = [run.test_probabilities() for run in runs]
    for run, images in zip(runs[1:], tested[1:], strict=True):
        _check(run, images, runs[0], tested[0])
    tests = (None, *against_best(tested[0], tested[1:], task, name))
    rows = [
        _row(run, images, found, group_name(feature_sets(run, runs)))
        for run, images, found in zip(runs, tested, tests, strict=True)
    ]
    folds = over_folds(
        [run.predictions for run in runs],
        runs[0].classes,
        task,
        n_folds=(runs[0].document.get("split") or {}).get("n_folds"),
        metric=name,
    )
    return Comparison(
        rows=tuple(rows), warnings=tuple(_warnings(runs)), task=task, folds=folds, metric=name
    )


def check_metric(task: Task, metric: str | None) -> str:
    """Give the metric that is meant, the task's first where none is named.

    Raises
    ------
    OptionError
        If the task has no such metric.

    Examples
    --------
    >>> check_metric(Task(), None), check_metric(Task(), "auroc")
    ('macro_f1', 'auroc')
    """
    known = metric_names(task)
    if metric is not None and metric not in known:
        raise OptionError(
            f"metric {metric!r} is none of task {task.kind}: use one of {', '.join(known)}"
        )
    return metric or known[0]


def feature_sets(run: Run, others: Sequence[Run] = ()) -> tuple[str, ...]:
    """Name the feature sets that a run, or the members of an ensemble, were fitted on.

    Parameters
    ----------
    run
        A run or an ensemble.
    others
        Runs at hand, among which members are sought first, then on the disk. Of a member that is
        in neither place the feature set is not known, and left out.
    """
    documents = {other.path.resolve(): other.document for other in others}
    return tuple(dict.fromkeys(_feature_sets(run.path, run.document, documents)))


def group_name(names: Sequence[str]) -> str:
    """Say in a word where a run belongs in a table by feature set."""
    return SEVERAL if len(names) > 1 else "".join(names)


def _feature_sets(
    folder: Path, document: Mapping[str, Any], known: Mapping[Path, Mapping[str, Any]]
) -> list[str]:
    found: list[str] = []
    for path in member_paths(folder, document):
        told = known.get(path.resolve()) or _document(path / "run.json")
        found += _feature_sets(path, told, known)
    if not found:
        known_by = (document.get("store") or {}).get("feature_set")
        found = [str(known_by or (PIXELS if "trained_on" in document else ""))]
    return [name for name in found if name]


def _document(path: Path) -> Mapping[str, Any]:
    """Read the document of a member; nothing where it has gone."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


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


def _row(run: Run, images: Predictions, tests: Contrast | None, feature_set: str) -> Row:
    document = run.document
    return Row(
        name=run.name,
        path=str(run.path),
        head=str((document.get("head") or {}).get("name", "")),
        recipe=str((document.get("recipe") or {}).get("name", "")),
        feature_set=feature_set,
        n_images=len(images.image_ids),
        n_seeds=len(document["seeds"]),
        metrics=document["metrics"]["test"],
        to_best=None if tests is None else tests.difference,
        tests=tests,
    )


def _worse(run: Run, name: str) -> float:
    """Give a metric so that less is better, what is undefined last."""
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


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


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
