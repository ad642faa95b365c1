"""From a TOML file to an :class:`Experiment`: every key known, every value of its kind.

::

    cohort = "cohort.csv"          # relative paths start at the file's own folder
    store = "store"
    folds = 5
    seeds = 2

    [features]                     # names of your own for feature sets; may be left out
    texture = "texture-92a8cad1"
    other = {store = "s3://bucket/store", feature-set = "uni2-h"}

    [[grid]]
    heads = ["gated-mil", "svm"]
    recipes = ["default", "swa"]
    features = ["texture"]
    settings = {class_weights = "balanced"}
    vary = {lr = [1e-3, 3e-4]}

    [ensemble]
    rules = ["mean", "stack"]
    members = "all"

    [report]
    metric = "accuracy"
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import OptionError, StorageError, summarise
from histostore.files import public_url
from zoo.blending import CALIBRATIONS, RULES
from zoo.errors import RecipeError
from zoo.experiments.tables import TableReader
from zoo.split import VALIDATION_SHARE
from zoo.study import Terms
from zoo.tasks import Task

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Combining", "Experiment", "Grid", "Source", "read_experiment"]

MOST_BYTES = 1_000_000
"""Of an experiment's file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A feature set as an experiment names it."""

    alias: str
    """The experiment's name for it, part of the names of runs."""
    store: str
    """URL of the store."""
    feature_set: str | None
    """Its name, or that of its encoder where the store has one set of it; None: the only one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """Heads × recipes × feature sets × settings that vary."""

    heads: tuple[str, ...]
    """Names of heads."""
    recipes: tuple[str, ...]
    """Names of recipes."""
    features: tuple[str, ...]
    """Aliases of feature sets; all where it is empty."""
    settings: dict[str, Any]
    """Settings of all of them, as of ``zoo fit --set``."""
    vary: dict[str, tuple[Any, ...]]
    """Settings that take each of some values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Combining:
    """Ensembles of some runs, one for each rule."""

    name: str
    """First part of the ensembles' names."""
    rules: tuple[str, ...]
    """As of ``zoo ensemble --rule``."""
    members: tuple[str, ...]
    """Names of runs, or patterns (``svm.*``)."""
    calibrate: str
    """As of ``zoo ensemble --calibrate``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment(Terms):
    """What an experiment's file says."""

    path: Path
    """The file."""
    text: str
    """What stands in it."""
    cohort: str
    """URL of the table of images."""
    task: Task
    """What is learned."""
    grids: tuple[Grid, ...]
    """What is fitted."""
    sources: dict[str, Source]
    """Feature sets by alias."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each fold's fits."""
    ensembles: tuple[Combining, ...] = ()
    """What is combined."""
    report: bool = True
    """Whether a report is written."""
    metric: str | None = None
    """That the report ranks by."""
    n_full: int | None = None
    """Runs that the report shows in full."""

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def read_experiment(path: str | os.PathLike[str]) -> Experiment:
    """Read an experiment's file. Nothing else is opened.

    Parameters
    ----------
    path
        TOML file, UTF-8.

    Raises
    ------
    StorageError
        If it cannot be read.
    RecipeError
        If it is no TOML, a key is unknown or missing, or a value is of the wrong kind;
        ``problems`` lists everything found.
    """
    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror or error}") from error
    if len(content) > MOST_BYTES:
        raise RecipeError(f"{file} has {len(content):,} bytes: that is no experiment")
    try:
        text = content.decode()
        document = tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{file} is no TOML: {error}") from error
    problems: list[str] = []
    read = TableReader(document, "", problems)
    values = _top(read, file.resolve().parent)
    values["grids"] = tuple(_grid(part) for part in read.tables("grid", needed=True))
    values["ensembles"] = _ensembles(read)
    values |= _report(read)
    read.refuse_others()
    problems += _unknown_features(values["grids"], values["sources"])
    if problems:
        raise RecipeError(summarise(str(file), problems), problems=problems)
    return Experiment(path=file, text=text, **values)


def _top(read: TableReader, folder: Path) -> dict[str, Any]:
    """Read what all runs share."""
    store = read.text("store", "")
    task = _task(read)
    values = {
        "cohort": _placed(read.text("cohort"), folder, read),
        "task": task,
        "sources": _sources(read, store, folder),
        "levels": read.names("levels", ()),
        "augmentation": read.text("augmentation", "identity"),
        "train_views": read.text("train-views", ""),
        "test_views": read.text("test-views", ""),
        "split_column": read.text("split", "") or None,
        "repeats": read.whole("repeats", 1, low=1),
        "split_seed": read.whole("split-seed", 0, low=0),
        "validation_share": read.share("validation-share", VALIDATION_SHARE),
        "folds": read.folds(),
        "seeds": read.seeds(),
    }
    if values["split_column"] and {"folds", "repeats"} & read.table.keys():
        read.complain("split is a column that holds the split: leave out folds and repeats")
    return values


def _task(read: TableReader) -> Task:
    kind, target = read.text("task", "auto"), read.text("target", "label")
    loss = read.text("loss", "") or None
    intervals = read.whole("intervals", 4, low=2)
    try:
        return Task.of(kind, target, loss=loss, intervals=intervals)
    except OptionError as error:
        read.complain(str(error))
        return Task()


def _sources(read: TableReader, store: str, folder: Path) -> dict[str, Source]:
    """Read the feature sets that have names, and those that grids name as they are."""
    found: dict[str, Source] = {}
    for alias, given in read.mapping("features").items():
        part = TableReader({"feature-set": given}, f"features.{alias}: ", read.problems)
        if isinstance(given, dict):
            part = TableReader(given, f"features.{alias}: ", read.problems)
        name, place = part.text("feature-set", ""), part.text("store", store)
        part.refuse_others()
        if not place:
            part.complain("no store is given, neither here nor at the top")
        placed = _placed(place, folder, part)
        found[alias] = Source(alias=alias, store=placed, feature_set=name or None)
    if not store:
        if not found:
            read.complain("store is missing: where the embeddings lie")
        return found
    placed = _placed(store, folder, read)
    grids = read.table.get("grid")
    for grid in grids if isinstance(grids, list) else []:
        named = grid.get("features", ()) if isinstance(grid, dict) else ()
        for alias in named if isinstance(named, list) else ():
            if isinstance(alias, str) and alias and "features" not in read.table:
                found[alias] = Source(alias=alias, store=placed, feature_set=alias)
    return found or {"features": Source(alias="features", store=placed, feature_set=None)}


def _placed(path: str, folder: Path, read: TableReader) -> str:
    """Give a local path from the root, relative ones from the file's folder."""
    if "://" not in path:
        return str((folder / Path(path).expanduser()).absolute())
    if public_url(path) != path:
        # The file is copied into the output, and shown.
        read.complain(
            f"{public_url(path)} is written with a user or a query: credentials belong into the "
            "environment or --storage-option"
        )
    return path


def _grid(read: TableReader) -> Grid:
    vary = {}
    for key, values in read.mapping("vary").items():
        if not isinstance(values, list) or not values:
            read.complain(f"vary.{key} must be a list of values, seen {values!r}")
            continue
        vary[key] = tuple(values)
    grid = Grid(
        heads=read.names("heads"),
        recipes=read.names("recipes", ("default",)),
        features=read.names("features", ()),
        settings=read.mapping("settings"),
        vary=vary,
    )
    both = sorted(grid.settings.keys() & vary.keys())
    if both:
        read.complain(f"{', '.join(both)} stands under settings and under vary: choose one")
    read.refuse_others()
    return grid


def _ensembles(read: TableReader) -> tuple[Combining, ...]:
    made = []
    for part in read.tables("ensemble"):
        rules = part.names("rules", ("mean",))
        unknown = [rule for rule in rules if rule not in RULES]
        if unknown:
            part.complain(f"rules holds {', '.join(unknown)}: use {', '.join(RULES)}")
        calibrate = part.text("calibrate", CALIBRATIONS[0])
        if calibrate not in CALIBRATIONS:
            part.complain(f"calibrate is {calibrate!r}: use one of {', '.join(CALIBRATIONS)}")
        members = ("*",) if part.get("members", "all") == "all" else part.names("members")
        name = part.text("name", "ensemble")
        made.append(Combining(name=name, rules=rules, members=members, calibrate=calibrate))
        part.refuse_others()
    names = [combining.name for combining in made]
    if len(set(names)) < len(names):
        read.complain("several ensembles have one name: give each [[ensemble]] a name of its own")
    return tuple(made)


def _report(read: TableReader) -> dict[str, Any]:
    given = read.get("report", {})
    if isinstance(given, bool):
        return {"report": given}
    if not isinstance(given, dict):
        read.complain(f"report must be a table, or false, seen {given!r}")
        return {}
    part = TableReader(given, "report: ", read.problems)
    values: dict[str, Any] = {"metric": part.text("metric", "") or None}
    if "full" in given:
        values["n_full"] = part.whole("full", 10, low=1)
    part.refuse_others()
    return values


def _unknown_features(grids: tuple[Grid, ...], sources: Mapping[str, Source]) -> list[str]:
    found = []
    for grid in grids:
        for alias in grid.features:
            if alias not in sources:
                near = get_close_matches(alias, sources, n=1)
                hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sources)}"
                found.append(f"grid: features holds {alias!r}, which [features] does not; {hint}")
    return list(dict.fromkeys(found))
