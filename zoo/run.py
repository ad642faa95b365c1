"""Runs: the directory that one ``zoo fit`` or ``zoo ensemble`` leaves behind, format 1.

::

    RUN/run.json             what was run, on what, and the metrics with intervals; written last
    RUN/predictions.parquet  image_id, patient_id, fold, seed, role, target, prob_<class>…,
                             of other tasks than classification: see zoo.predictions
    RUN/history.parquet      fold, seed, epoch, losses and metrics of training
    RUN/heads/<fold>-<seed>.*   fitted heads, no pickle among them (a run, not an ensemble)

A directory without ``run.json`` is no run. While one is being made, ``RUN/unfinished/`` says
of what, so that the same command takes up where it was stopped and another one is refused.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from histostore.errors import OptionError, StorageError
from histostore.provenance import versions
from histostore.text import table
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
    "begin",
    "member_paths",
    "run_digest",
    "write_run",
]

FORMAT = 1
"""Version of the directory's layout."""

_UNFINISHED = "unfinished"


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

    def head_paths(self) -> dict[tuple[int, int], Path]:
        """Find the fitted heads: (fold, seed) to file; none for an ensemble."""
        return {_fold_and_seed(path): path for path in _head_files(self.path)}

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

        paths = self.head_paths()
        if not paths:
            members = [str(path) for path in self.member_paths()]
            where = f"use its members: {', '.join(members)}" if members else "fit it again"
            raise RunError(f"{self.path} holds no heads: {where}")
        return {key: load_head(path) for key, path in sorted(paths.items())}


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


def begin(path: str | os.PathLike[str], plan: Mapping[str, Any]) -> Path:
    """Claim a directory for a run, or take up one that was stopped.

    Parameters
    ----------
    path
        The run's directory: new, empty, or an unfinished run of the same plan, or of another
        plan of which nothing is finished yet.
    plan
        Everything that decides the result, as JSON values.

    Returns
    -------
    Path
        Folder for what is not finished yet; :func:`write_run` removes it.

    Raises
    ------
    RunError
        If the directory holds anything else.
    StorageError
        If it cannot be written.
    """
    folder = Path(path)
    written = folder / _UNFINISHED / "plan.json"
    try:
        if not folder.exists() or (folder.is_dir() and _is_mere_claim(folder)):
            written.parent.mkdir(parents=True, exist_ok=True)
            _write_json(written, dict(plan))
            return written.parent
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    if not written.is_file() or (folder / "run.json").exists():
        what = "a finished run" if (folder / "run.json").exists() else "other files"
        raise RunError(f"{folder} holds {what}: give another directory, or delete this one")
    known = _read_json(written)
    differing = [key for key in {**known, **plan} if known.get(key) != plan.get(key)]
    if differing:
        raise RunError(
            f"{folder} holds an unfinished run with another {', '.join(sorted(differing))}: "
            "give another directory, or delete this one"
        )
    return written.parent


def _is_mere_claim(folder: Path) -> bool:
    """Tell a directory that is empty, or claimed by a run of which nothing is finished yet."""
    plan = f"{_UNFINISHED}/plan.json", f"{_UNFINISHED}/.plan.json.tmp"
    claim = {folder / name for name in ("heads", _UNFINISHED, *plan)}
    return all(path in claim for path in folder.rglob("*"))


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
        Directory that :func:`begin` has claimed.
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
        _write_json(folder / "run.json", told)
        shutil.rmtree(folder / _UNFINISHED, ignore_errors=True)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    return Run.load(folder)


def _read_document(folder: Path) -> dict[str, Any]:
    if not (folder / "run.json").is_file():
        stopped = (folder / _UNFINISHED / "plan.json").is_file()
        why = "it was stopped before its end: fit it again" if stopped else "it has no run.json"
        raise RunError(f"{folder} is not a run: {why}")
    document = _read_json(folder / "run.json")
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise RunError(f"{path} was not written by zoo: it holds no JSON object")
    return document


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


def _write_json(path: Path, document: dict[str, Any]) -> None:
    """Write and force to disk, then rename, so that the file is there whole or not at all."""
    with atomic(path, durable=True) as hidden:
        told = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        hidden.write_text(told + "\n", encoding="utf-8")
