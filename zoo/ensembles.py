"""Ensembles: several runs over the same folds, combined image by image.

Only validation and out-of-fold test predictions are combined, fold by fold, so an ensemble's
test rows are as unseen as those of its members.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import NotSupported, RunError
from zoo.labels import named
from zoo.predictions import FIXED_COLUMNS
from zoo.run import HISTORY_COLUMNS, Run, begin, write_run

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    import pandas as pd

__all__ = ["RULES", "ensemble"]

RULES = ("mean",)
"""Rules that combine the members' probabilities."""

_KEY = ["fold", "role", "image_id"]


def ensemble(
    run_paths: Sequence[str | os.PathLike[str]],
    rule: str = "mean",
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
) -> Run:
    """Combine runs into one.

    Each member's probabilities are averaged over its seeds first, then the rule combines the
    members. The result is a run directory without heads; its predictions have seed 0, its
    history no rows, and ``members`` names the runs with the digests of their ``run.json``.

    Parameters
    ----------
    run_paths
        Directories of two runs or more, with equal images, labels, classes and folds.
    rule
        ``mean``: the average of the members' probabilities.
    out
        Directory for the ensemble, new or empty.
    name
        What to call it; the directory's name where left out.

    Raises
    ------
    NotSupported
        If the rule is unknown.
    RunError
        If a directory is not a run, one is named twice, or runs do not match; the message
        names what differs.
    """
    start = time.monotonic()
    if rule not in RULES:
        raise NotSupported(f"rule {rule!r} is not known: use one of {', '.join(RULES)}")
    paths = [Path(path) for path in run_paths]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunError(f"an ensemble needs two or more different runs, seen {len(paths)}")
    members = [Run.load(path) for path in paths]
    tables = [_mean_over_seeds(member) for member in members]
    _check(members, tables)
    document = _document(members, rule)
    folder = Path(out)
    begin(folder, document)
    document["name"] = name or folder.resolve().name
    document["seconds"] = round(time.monotonic() - start, 3)
    return write_run(folder, document, _combined(tables, members[0].classes), _no_history())


def _mean_over_seeds(run: Run) -> pd.DataFrame:
    """Average the judged rows over seeds: one row per fold, role and image, sorted."""
    frame = run.predictions[run.predictions["role"] != "train"]
    prob = [f"prob_{name}" for name in run.classes]
    told = {"patient_id": "first", "target": "first", **dict.fromkeys(prob, "mean")}
    return frame.groupby(_KEY, sort=True, observed=True).agg(told).reset_index()


def _check(members: Sequence[Run], tables: Sequence[pd.DataFrame]) -> None:
    """Refuse members that do not match the first, naming what differs."""
    first = members[0]
    for member, table in zip(members[1:], tables[1:], strict=True):
        if member.classes != first.classes:
            differs = f"classes {', '.join(member.classes)} and {', '.join(first.classes)}"
        elif member.document.get("target") != first.document.get("target"):
            differs = f"targets {member.document.get('target')} and {first.document.get('target')}"
        else:
            differs = _difference(table, tables[0]) or _digests(member, first)
        if differs:
            raise RunError(
                f"{member.path} and {first.path} cannot be combined, they differ in {differs}: "
                "fit both on the same cohort with the same folds"
            )


def _difference(table: pd.DataFrame, other: pd.DataFrame) -> str:
    """Say which rows differ, or nothing where none does."""
    images, others = set(table["image_id"]), set(other["image_id"])
    if images != others:
        return named(sorted(images ^ others)) + " that only one of them has"
    both = table.merge(other, on=_KEY, how="outer", suffixes=("", "_other"), indicator=True)
    moved = both[both["_merge"] != "both"]
    if len(moved):
        return f"the folds of {named(sorted(set(moved['image_id'])))}"
    for column in ("target", "patient_id"):
        wrong = both[both[column] != both[f"{column}_other"]]
        if len(wrong):
            return f"the {column} of {named(sorted(set(wrong['image_id'])))}"
    return ""


def _digests(run: Run, other: Run) -> str:
    """Say which digest differs where no row does."""
    for what in ("cohort", "split"):
        mine, theirs = ((r.document.get(what) or {}).get("digest") for r in (run, other))
        if mine != theirs:
            return f"the digest of the {what} ({str(mine)[:8]} and {str(theirs)[:8]})"
    return ""


def _document(members: Sequence[Run], rule: str) -> dict[str, Any]:
    first = members[0].document
    return {
        "kind": "ensemble",
        "rule": rule,
        "head": {"name": "ensemble", "settings": {"rule": rule}},
        "recipe": {},
        "target": first.get("target"),
        "classes": list(members[0].classes),
        "augmentation": first.get("augmentation"),
        "split": first.get("split"),
        "seeds": [0],
        "store": first.get("store"),
        "cohort": first.get("cohort"),
        "members": [
            {
                "run": member.name,
                "path": str(member.path),
                "digest": hashlib.sha256((member.path / "run.json").read_bytes()).hexdigest(),
            }
            for member in members
        ],
    }


def _combined(tables: Sequence[pd.DataFrame], classes: Sequence[str]) -> pd.DataFrame:
    """Average the members' rows, which are the same rows in the same order."""
    prob = [f"prob_{name}" for name in classes]
    combined = tables[0].copy()
    combined[prob] = np.mean([table[prob].to_numpy() for table in tables], axis=0)
    combined["seed"] = 0
    return combined[[*FIXED_COLUMNS, *prob]]


def _no_history() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: np.empty(0) for name in HISTORY_COLUMNS})
