"""The ensembles of an experiment: made of the runs that are there, and again when those change."""

from __future__ import annotations

import hashlib
import shutil
from typing import TYPE_CHECKING

from histostore.errors import HistostoreError
from zoo.ensembles import ensemble
from zoo.errors import RunError
from zoo.run import Run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from zoo.experiments.planning import Blending

__all__ = ["combine"]


def combine(
    blendings: Iterable[Blending], runs: Mapping[str, Run], folder: Path
) -> tuple[list[Run], list[tuple[str, str]]]:
    """Make the ensembles that are not there, or are of other runs than these.

    Parameters
    ----------
    blendings
        What to make.
    runs
        Runs that are there, by name. What is missing is left out of an ensemble.
    folder
        Where ensembles lie.

    Returns
    -------
    ensembles
        In the order asked for.
    failed
        Name and reason.
    """
    made: list[Run] = []
    failed: list[tuple[str, str]] = []
    for blending in blendings:
        members = [runs[name] for name in blending.members if name in runs]
        if len(members) < 2:
            why = f"{len(members)} of its {len(blending.members)} members is there: it needs two"
            failed.append((blending.name, why))
            continue
        try:
            made.append(_made(blending, members, folder / blending.name))
        except (HistostoreError, OSError) as error:
            failed.append((blending.name, " ".join(str(error).split())))
    return made, failed


def _made(blending: Blending, members: Sequence[Run], path: Path) -> Run:
    """Keep the ensemble that is there where it is of these runs, else put a new one in its place."""
    if (path / "run.json").exists():
        there = Run.load(path)
        if not there.is_ensemble:
            raise RunError(f"{path} is a run, not an ensemble: delete it")
        if _is_of(there, blending, members):
            return there
    hidden = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(hidden, ignore_errors=True)
    ensemble(
        [member.path for member in members],
        blending.rule,
        out=hidden,
        name=blending.name,
        calibrate=blending.calibrate,
    )
    if path.exists():
        shutil.rmtree(path)
    hidden.rename(path)
    return Run.load(path)


def _is_of(there: Run, blending: Blending, members: Sequence[Run]) -> bool:
    told = there.document
    rules = (told.get("rule"), told.get("calibrate", "none"))
    digests = [
        hashlib.sha256((member.path / "run.json").read_bytes()).hexdigest() for member in members
    ]
    return rules == (blending.rule, blending.calibrate) and digests == [
        member.get("digest") for member in told.get("members", ())
    ]
