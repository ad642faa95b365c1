"""Runs: the directory that one ``zoo fit`` or ``zoo ensemble`` leaves behind, format 1.

::

    RUN/run.json             what was run, on what, and the metrics with intervals; written last
    RUN/predictions.parquet  image_id, patient_id, fold, seed, role, target, prob_<class>…,
                             of other tasks than classification: see zoo.predictions
    RUN/history.parquet      fold, seed, epoch, losses and metrics of training
    RUN/heads/<fold>-<seed>.*   fitted heads, no pickle among them (a run, not an ensemble)

A directory without ``run.json`` is no run: it is being made (:mod:`zoo.claiming`), or was stopped.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from histostore.errors import OptionError, StorageError
from histostore.provenance import versions
from histostore.text import table
from zoo.claiming import PLAN, UNFINISHED, read_json, write_json
from zoo.errors import RunError
from zoo.metrics import metric_heading, metric_names
from zoo.predictions import Predictions, average, measure
from zoo.showing import run_html, run_line
from zoo.soundness import HISTORY_COLUMNS, document_problem, table_problems
from zoo.tasks import Task

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import pandas as pd

    from zoo.heads.base import Head

__all__ = [
    "HISTORY_COLUMNS",
    "Run",
    "member_paths",
    "run_digest",
    "write_run",
]

FORMAT = 1
"""Version of the directory's layout."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """A finished run or ensemble."""

    path: Path
    """Its directory."""
    document: dict[str, Any]
    """``run.json``."""
    predictions: pd.DataFrame
    """``predictions.parquet``."""
    history: pd.DataFrame
    """``history.parquet``; without rows for an ensemble."""

    def __repr__(self) -> str:
        return run_line(self.document, metric_names(self.task)[0])

    def _repr_html_(self) -> str:
        titles = {name: metric_heading(name) for name in metric_names(self.task)}
        return run_html(self.document, titles, path=str(self.path))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Run:
        """Read a run directory.

        Raises
        ------
        RunError
            If it is not a finished run, of a newer format, or its files contradict each other.
        """
        folder = Path(path)
        document = _read_document(folder)
        run = cls(
            path=folder,
            document=document,
            predictions=_read_table(folder / "predictions.parquet"),
            history=_read_table(folder / "history.parquet"),
        )
        problems = table_problems(run.predictions, run.history, run.classes, run.task)
        if problems:
            raise RunError(f"{folder} is damaged: {problems[0]}", problems=problems)
        return run

    @property
    def name(self) -> str:
        """What the run is called in tables."""
        return str(self.document["name"])

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return tuple(self.document["classes"])

    @property
    def task(self) -> Task:
        """What was learned."""
        return Task.from_json(self.document.get("task"))

    @property
    def is_ensemble(self) -> bool:
        """Whether the directory combines other runs."""
        return bool(self.document["kind"] == "ensemble")

    def probabilities(self, role: str = "test", *, seed: int | None = None) -> Predictions:
        """Average each image's predictions over seeds, repeats and folds of one role.

        Of tasks without classes they are numbers or risks, not probabilities.

        Parameters
        ----------
        role
            ``train``, ``validation`` or ``test``.
        seed
            Only this seed's.
        """
        frame = self.predictions[self.predictions["role"] == role]
        if seed is not None:
            frame = frame[frame["seed"] == seed]
        return average(frame, self.classes, self.task)

    def test_probabilities(self) -> Predictions:
        """Average each image's out-of-fold predictions over seeds and repeats."""
        return self.probabilities("test")

    def head_paths(self, *, whole: bool = True) -> dict[tuple[int, int], Path]:
        """Find the fitted heads: (fold, seed) to file; none for an ensemble.

        Parameters
        ----------
        whole
            Whether they are to be asked, all of them.

        Raises
        ------
        RunError
            If some are there and others, of a whole, are not.
        """
        paths = {_fold_and_seed(path): path for path in _head_files(self.path)}
        fitted = self.predictions[["fold", "seed"]].drop_duplicates().itertuples(index=False)
        missing = [f"{fold}-{seed}" for fold, seed in fitted if (fold, seed) not in paths]
        if whole and paths and missing:
            told = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
            raise RunError(
                f"{self.path} is damaged: of its heads, {told} (fold-seed) "
                f"{'is' if len(missing) == 1 else 'are'} missing: copy it again, or fit it again"
            )
        return paths

    def member_paths(self) -> tuple[Path, ...]:
        """Say where an ensemble's members lie; none for other runs.

        They are recorded as seen from the ensemble's own directory, so that both may be moved
        together; by ensembles made earlier, as they were named then. A member that has gone is
        given where it should be.
        """
        return member_paths(self.path, self.document)

    def to_text(self) -> str:
        """Draw the metrics of the out-of-fold predictions as a plain table."""
        told = self.document
        n_folds, n_seeds = self.predictions["fold"].nunique(), len(told["seeds"])
        fitted = f"{n_folds} folds, {n_seeds} seed{'s' if n_seeds > 1 else ''}"
        made = f"{len(told.get('members', ()))} runs" if self.is_ensemble else fitted
        head = (told.get("head") or {}).get("name", "")
        rows = []
        for name in metric_names(self.task):
            test = told["metrics"]["test"][name]
            watched = told["metrics"].get("validation", {}).get(name, {})
            spread = (test["seed_mean"], test["seed_sd"])
            rows.append(
                {
                    "metric": name,
                    "test": test["value"],
                    "95 % interval": f"{_number(test['low'])} to {_number(test['high'])}",
                    "over seeds": "" if None in spread else f"{spread[0]:.3f} ± {spread[1]:.3f}",
                    "validation": watched.get("value"),
                }
            )
        first = f"{self.path}: {head}, {len(self.test_probabilities().image_ids):,} images tested"
        kind = self.task.kind
        what = f"{len(self.classes)} classes" if kind == "classification" else kind
        return "\n".join([f"{first}, {what}, {made}", table(rows)])

    @classmethod
    def load_each(cls, paths: Iterable[str | os.PathLike[str]]) -> list[Run]:
        """Read run directories, one that is named more than once a single time.

        Raises
        ------
        RunError
            As :meth:`load`.
        """
        return [cls.load(path) for path in {Path(path).resolve(): path for path in paths}.values()]

    def load_heads(self) -> dict[tuple[int, int], Head]:
        """Read all fitted heads: (fold, seed) to head.

        Raises
        ------
        RunError
            If a file is not a head of ours, or there is none.
        """
        from zoo.heads.catalog import load_head

        paths = self.head_paths(whole=False)
        if not paths:
            members = [str(path) for path in self.member_paths()]
            where = f"use its members: {', '.join(members)}" if members else "fit it again"
            raise RunError(f"{self.path} holds no heads: {where}")
        heads = {key: load_head(path) for key, path in sorted(paths.items())}
        self.head_paths()  # what is damaged is named first, then what is missing
        return heads


def member_paths(folder: Path, document: Mapping[str, Any]) -> tuple[Path, ...]:
    """Do what :meth:`Run.member_paths` does, from the document of the run in ``folder``."""
    found = []
    for member in document.get("members") or ():
        named = Path(str(member.get("path", "")))
        places = [Path(os.path.normpath(folder / named)), named]
        there = [place for place in places if (place / "run.json").is_file()]
        same = [place for place in there if run_digest(place) == member.get("digest")]
        found.append([*same, *there, *places][0])
    return tuple(found)


def run_digest(folder: Path) -> str:
    """Give the SHA-256 of a run's document, which tells every change of its results."""
    return hashlib.sha256((folder / "run.json").read_bytes()).hexdigest()


def write_run(
    path: str | os.PathLike[str],
    document: Mapping[str, Any],
    predictions: pd.DataFrame,
    history: pd.DataFrame,
) -> Run:
    """Write a run's tables, then ``run.json``, each at once, and read the run back.

    Parameters
    ----------
    path
        Directory that :func:`zoo.claiming.begin` has claimed.
    document
        What :mod:`zoo.fit` or :mod:`zoo.ensembles` knows; format, versions, time and metrics
        are added here.
    predictions, history
        The tables.
    """
    folder = Path(path)
    classes, task = tuple(document["classes"]), Task.from_json(document.get("task"))
    told = {
        "format": FORMAT,
        **document,
        "versions": versions(),
        "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "metrics": measure(predictions, classes, task),
    }
    try:
        _write_table(folder / "predictions.parquet", predictions)
        _write_table(folder / "history.parquet", history)
        write_json(folder / "run.json", told)
        shutil.rmtree(folder / UNFINISHED, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return Run.load(folder)


def _read_document(folder: Path) -> dict[str, Any]:
    if not (folder / "run.json").is_file():
        stopped = (folder / PLAN).is_file()
        why = "it was stopped before its end: fit it again" if stopped else "it has no run.json"
        raise RunError(f"{folder} is not a run: {why}")
    document = read_json(folder / "run.json")
    version = document.get("format")
    if not isinstance(version, int) or document.get("kind") not in {"run", "ensemble"}:
        raise RunError(f"{folder / 'run.json'} was not written by zoo: it names no format and kind")
    if version > FORMAT:
        raise RunError(
            f"{folder} has format {version}, this version reads up to {FORMAT}: upgrade histostore"
        )
    try:
        problem = document_problem(document, Task.from_json(document.get("task")))
    except OptionError as error:
        problem = str(error)
    if problem:
        raise RunError(f"{folder / 'run.json'} is damaged: {problem}")
    return document


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _head_files(folder: Path) -> Iterator[Path]:
    for path in sorted((folder / "heads").glob("*-*.*")):
        fold, _, rest = path.name.partition("-")
        if fold.isdigit() and rest.split(".")[0].isdigit():
            yield path


def _fold_and_seed(path: Path) -> tuple[int, int]:
    fold, _, rest = path.name.partition("-")
    return int(fold), int(rest.split(".")[0])


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    if not path.is_file():
        raise RunError(f"{path.parent} is damaged: it has no {path.name}")
    try:
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise RunError(f"{path} cannot be read: {line}") from error


def _write_table(path: Path, frame: pd.DataFrame) -> None:
    with atomic(path) as hidden:
        frame.to_parquet(hidden, engine="pyarrow", index=False)
