"""What an experiment asks for: one run per cell of its grids, and ensembles of them. Pure."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, summarise
from histostore.text import table
from zoo.configure import configure
from zoo.errors import RecipeError
from zoo.metrics import metric_names
from zoo.recipes import recipe as named_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from zoo.experiments.reading import Combining, Experiment, Grid, Source
    from zoo.heads.base import HeadSpec
    from zoo.recipes import Recipe

__all__ = ["Blending", "Cell", "Plan", "plan"]

_UNSAFE = re.compile(r"[^\w.,=+-]+")
"""What stands in no name of a folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One run."""

    name: str
    """``<head>.<recipe>.<features>``, then ``.<setting>=<value>`` for each that varies."""
    head: HeadSpec
    """What is fitted."""
    recipe: Recipe
    """How it is trained."""
    source: Source
    """On what."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blending:
    """One ensemble."""

    name: str
    """``<ensemble>.<rule>``."""
    rule: str
    """How members are combined."""
    calibrate: str
    """What follows."""
    members: tuple[str, ...]
    """Names of runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """All that an experiment asks for."""

    experiment: Experiment
    """As read."""
    cells: tuple[Cell, ...]
    """Runs, those of one feature set after another."""
    ensembles: tuple[Blending, ...]
    """What is made of them."""
    notes: tuple[str, ...]
    """What is left out, and why."""
    failed: tuple[tuple[str, str], ...] = ()
    """Nothing is done yet, so nothing failed."""

    @property
    def fits_per_run(self) -> int | None:
        """Folds × repeats × seeds; None where the folds are counted by the patients."""
        told = self.experiment
        if told.split_column is not None:
            return len(told.seeds)
        return told.folds * told.repeats * len(told.seeds) if isinstance(told.folds, int) else None

    def to_json(self) -> dict[str, Any]:
        """Give the plan as JSON values."""
        each = self.fits_per_run
        return {
            "experiment": str(self.experiment.path),
            "digest": self.experiment.digest,
            "n_runs": len(self.cells),
            "fits_per_run": each,
            "n_fits": None if each is None else each * len(self.cells),
            "runs": [
                {
                    "name": cell.name,
                    "head": cell.head.to_json(),
                    "recipe": cell.recipe.to_json(),
                    "store": cell.source.store,
                    "feature_set": cell.source.feature_set,
                }
                for cell in self.cells
            ],
            "ensembles": [
                {
                    "name": one.name,
                    "rule": one.rule,
                    "calibrate": one.calibrate,
                    "members": list(one.members),
                }
                for one in self.ensembles
            ],
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Draw the plan as a table, with the number of fits."""
        each = self.fits_per_run
        rows = [
            {
                "run": cell.name,
                "head": cell.head.name,
                "recipe": cell.recipe.name,
                "features": cell.source.alias,
                "fits": each,
            }
            for cell in self.cells
        ]
        lines = [table(rows)]
        if self.ensembles:
            made = [
                {"ensemble": one.name, "rule": one.rule, "members": len(one.members)}
                for one in self.ensembles
            ]
            lines += ["", table(made)]
        counted = f"{each * len(rows):,} fits" if each else "as many fits as patients and seeds"
        count = f"{len(rows):,} runs, {counted}; {len(self.ensembles)} ensembles"
        report = "; a report" if self.experiment.report else ""
        return "\n".join([*lines, "", count + report])


def plan(experiment: Experiment) -> Plan:
    """Say what an experiment asks for. Opens no file.

    A head that takes no gradient steps has nothing to do with most recipes: those are left out
    for it, with a note, where another recipe of the grid fits.

    Parameters
    ----------
    experiment
        As read.

    Raises
    ------
    RecipeError
        If a head, recipe, setting or metric is unknown or does not fit, two cells are the same,
        or an ensemble has fewer than two members; ``problems`` lists everything found.
    """
    problems: list[str] = []
    notes: list[str] = []
    cells: list[Cell] = []
    for grid in experiment.grids:
        cells += _cells(grid, experiment, problems, notes)
    names = [cell.name for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"run {name} is asked for twice: each run once" for name in twice]
    ensembles = [] if problems else list(_ensembles(experiment.ensembles, names, problems))
    known = metric_names(experiment.task)
    if experiment.metric and experiment.metric not in known:
        problems.append(f"report: metric is {experiment.metric!r}: use one of {', '.join(known)}")
    problems = list(dict.fromkeys(problems))
    if problems:
        raise RecipeError(summarise(str(experiment.path), problems), problems=problems)
    order = list(experiment.sources)
    return Plan(
        experiment=experiment,
        cells=tuple(sorted(cells, key=lambda cell: order.index(cell.source.alias))),
        ensembles=tuple(ensembles),
        notes=tuple(dict.fromkeys(notes)),
    )


def _cells(
    grid: Grid, experiment: Experiment, problems: list[str], notes: list[str]
) -> Iterator[Cell]:
    """Give the cells of one grid."""
    sources = [experiment.sources[alias] for alias in grid.features or experiment.sources]
    varied = [
        dict(zip(grid.vary, values, strict=True))
        for values in itertools.product(*grid.vary.values())
    ]
    for head in grid.heads:
        fitting = _recipes(head, grid.recipes, notes)
        for recipe, changed in itertools.product(fitting, varied):
            try:
                spec, chosen = configure(head, recipe, {**grid.settings, **changed})
                spec.check_task(experiment.task, chosen)
                spec.check_recipe(chosen, has_validation=True)
            except HistostoreError as error:
                problems.append(f"grid: {error}")
                continue
            for source in sources:
                yield Cell(
                    name=_name(head, recipe, source.alias, changed),
                    head=spec,
                    recipe=chosen,
                    source=source,
                )


def _recipes(head: str, recipes: tuple[str, ...], notes: list[str]) -> tuple[str, ...]:
    """Choose the recipes that fit a head; all where none does, so that each is refused."""
    from zoo.heads.catalog import HEADS

    if head not in HEADS or HEADS[head].gradient:
        return recipes
    fitting = []
    for name in recipes:
        try:
            unfit = named_recipe(name).unfit_for_estimators()
        except RecipeError:
            return recipes
        if not unfit:
            fitting.append(name)
    others = [name for name in recipes if name not in fitting]
    if fitting and others:
        notes.append(f"{head} takes no gradient steps: left out with {', '.join(others)}")
    return tuple(fitting) or recipes


def _name(head: str, recipe: str, alias: str, changed: Mapping[str, Any]) -> str:
    """Name a run after all that tells it from others, as a folder may be called."""
    parts = [head, recipe, alias, *(f"{key}={_value(value)}" for key, value in changed.items())]
    return ".".join(_UNSAFE.sub("_", part) for part in parts)


def _value(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value).lower()


def _ensembles(
    asked: tuple[Combining, ...], names: list[str], problems: list[str]
) -> Iterator[Blending]:
    for combining in asked:
        members = tuple(
            name for name in names if any(fnmatchcase(name, one) for one in combining.members)
        )
        problems.extend(
            f"{combining.name}: members holds {pattern!r}, but no run is called so; "
            f"runs are called as {names[0]}"
            for pattern in combining.members
            if not any(fnmatchcase(name, pattern) for name in names)
        )
        if len(members) < 2:
            problems.append(
                f"{combining.name}: an ensemble needs two runs or more, members names "
                f"{len(members)}"
            )
            continue
        for rule in combining.rules:
            name = _UNSAFE.sub("_", f"{combining.name}.{rule}")
            yield Blending(name=name, rule=rule, calibrate=combining.calibrate, members=members)
