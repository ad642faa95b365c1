"""The experiment that runs come from: its name, its file, and what failed in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.report.sections import Experiment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.run import Run

__all__ = ["find_experiment"]

_FORMAT = 1


def find_experiment(runs: Sequence[Run]) -> Experiment | None:
    """Read ``experiment.json`` and ``experiment.toml`` where all runs come from one experiment.

    Nothing is told where they do not, or where a newer version wrote the files.
    """
    folders = {run.path.resolve().parent.parent for run in runs}
    folder = folders.pop()
    told = _document(folder / "experiment.json")
    if folders or told is None:
        return None
    known = {entry.get("path") for part in ("runs", "ensembles") for entry in told.get(part) or ()}
    here = {run.path.resolve().relative_to(folder).as_posix() for run in runs}
    if not here <= known:
        return None
    file = Path(str(told.get("experiment", "")))
    return Experiment(
        name=folder.name if file.stem == "experiment" else file.stem,
        file=str(file),
        text=_text(folder / "experiment.toml"),
        command=str(told.get("command", "")),
        digest=str(told.get("digest", "")),
        n_runs=len(known),
        failed=tuple(
            (str(one.get("name")), str(one.get("reason"))) for one in told.get("failed") or ()
        ),
        notes=tuple(map(str, told.get("notes") or ())),
    )


def _document(path: Path) -> dict[str, Any] | None:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # made without an experiment, or by something else
        return None
    is_ours = isinstance(told, dict) and told.get("kind") == "experiment"
    return told if is_ours and told.get("format") == _FORMAT else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""
