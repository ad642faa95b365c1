"""Ensembles: several runs over the same folds, combined image by image.

Only validation and out-of-fold test predictions are combined, fold by fold, so an ensemble's
test rows are as unseen as those of its members. What a rule learns for a fold, it learns from
other folds (:mod:`zoo.blending.nested`).
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.text import table as drawn
from zoo.blending import CALIBRATIONS, RULES, Members, blend, check_rule
from zoo.claiming import begin
from zoo.errors import RunError
from zoo.labels import named
from zoo.predictions import fixed_columns, read_truth
from zoo.run import Run, run_digest, write_run
from zoo.soundness import history_columns

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from zoo.blending import Blend
    from zoo.tasks import Task

__all__ = ["CALIBRATIONS", "RULES", "ensemble", "learned_text"]

_KEY = ["fold", "role", "image_id"]

_SHOWN = 3
"""Rows that a message shows of those that differ."""

_FOLDS_SHOWN = 10
"""Folds whose weights are printed; of more, only mean and range are."""


def ensemble(
    run_paths: Sequence[str | os.PathLike[str]],
    rule: str = "mean",
    *,
    out: str | os.PathLike[str],
    name: str | None = None,
    calibrate: str = "none",
) -> Run:
    """Combine runs into one.

    Each member's probabilities are averaged over its seeds first, then the rule combines the
    members. The result is a run directory without heads; its predictions have seed 0, its
    history no rows, and ``members`` names the runs, where they lie as seen from ``out``, and the
    digests of their ``run.json``. What was learned for each fold stands under ``learned``, weights in the order of ``members``;
    beside it, as ``all``, what all out-of-fold predictions together teach, for images beyond them.

    Members may differ in head, recipe, seeds, feature set and encoder, not in cohort, folds and
    task; in its loss they may where what they predict has one scale, which risks of ``cox`` and
    ``hazards`` have not for ``mean``.

    Parameters
    ----------
    run_paths
        Directories of two runs or more, with equal images, labels, classes and folds.
    rule
        ``mean`` of what the members predict, or of their ``rank`` within a fold; ``weighted``
        mean; ``greedy`` selection with replacement; ``stack``, a logistic model on their
        log-probabilities, of numbers a linear one. The last three learn each fold's weights from
        other folds, by the task's loss (:mod:`zoo.blending.mixing`).
    out
        Directory for the ensemble, new or empty.
    name
        What to call it; the directory's name where left out.
    calibrate
        ``none``, or ``temperature``: one number per fold, learned from other folds, where
        probabilities are predicted.

    Raises
    ------
    NotSupported
        If rule or calibration is unknown, has no meaning for the task, or has no other fold to
        learn from.
    RunError
        If a directory is not a run, one is named twice, or runs do not match; the message
        names what differs.
    """
    start = time.monotonic()
    check_rule(rule, calibrate)
    paths = [Path(path) for path in run_paths]
    if len({path.resolve() for path in paths}) < max(2, len(paths)):
        raise RunError(f"an ensemble needs two or more different runs, seen {len(paths)}")
    members = [Run.load(path) for path in paths]
    tables = [_mean_over_seeds(member) for member in members]
    _check(members, tables, rule)
    check_rule(rule, calibrate, members[0].task.kind)
    combined, learned = _combined(members, tables, rule, calibrate)
    folder = Path(out)
    document = _document(members, folder, rule, calibrate)
    with begin(folder, document):
        document["name"] = name or folder.resolve().name
        if learned:
            document["learned"] = learned
        document["seconds"] = round(time.monotonic() - start, 3)
        return write_run(folder, document, combined, _no_history(members[0].task))


def learned_text(document: Mapping[str, Any]) -> str:
    """Draw what an ensemble learned for each fold; empty where that is nothing.

    Parameters
    ----------
    document
        Its ``run.json``.
    """
    learned = document.get("learned") or {}
    names = [str(member["run"]) for member in document.get("members", ())]
    rows: dict[str, dict[str, Any]] = {}
    for what, titles in (("weights", names), ("temperature", ["temperature"])):
        if what not in learned:
            continue
        found = np.array(list(learned[what]["folds"].values())).reshape(-1, len(titles))
        lines = dict(zip(learned[what]["folds"], found, strict=True))
        if len(found) > _FOLDS_SHOWN:
            lines = {"least": found.min(axis=0), "most": found.max(axis=0)}
        lines["mean"] = found.mean(axis=0)
        for line, values in lines.items():
            told = dict(zip(titles, values.tolist(), strict=True))
            rows[line] = {**rows.get(line, {"fold": line}), **told}
    return drawn(list(rows.values())) if rows else ""


def _mean_over_seeds(run: Run) -> pd.DataFrame:
    """Average the judged rows over seeds: one row per fold, role and image, sorted."""
    frame = run.predictions[run.predictions["role"] != "train"]
    told = dict.fromkeys(("patient_id", *run.task.target_columns), "first")
    told |= dict.fromkeys(run.task.value_columns(run.classes), "mean")
    return frame.groupby(_KEY, sort=True, observed=True).agg(told).reset_index()


def _check(members: Sequence[Run], tables: Sequence[pd.DataFrame], rule: str) -> None:
    """Refuse members that do not match the first, naming what differs."""
    first = members[0]
    for member, table in zip(members[1:], tables[1:], strict=True):
        if _scale(member, rule) != _scale(first, rule):
            differs = f"task: {_named(member)} and {_named(first)}"
        elif member.classes != first.classes:
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


def _scale(run: Run, rule: str) -> tuple[object, ...]:
    """Say what members must share, so that what they predict can be put together."""
    task = run.task
    if task.kind == "survival" and rule == "mean":
        return task.kind, task.loss, task.intervals, _is_standardised(run)
    return (task.kind,)


def _is_standardised(run: Run) -> bool:
    """Whether an ensemble's risks are in standard deviations of its members'."""
    return "scale" in (run.document.get("learned") or {})


def _named(run: Run) -> str:
    task, words = run.task, ", standardised" if _is_standardised(run) else ""
    return task.kind if task.one_class else f"{task.kind} by {task.loss}{words}"


def _difference(table: pd.DataFrame, other: pd.DataFrame) -> str:
    """Say which rows differ, or nothing where none does."""
    images, others = set(table["image_id"]), set(other["image_id"])
    if images != others:
        return named(sorted(images ^ others)) + " that only one of them has"
    both = table.merge(other, on=_KEY, how="outer", suffixes=("", "_other"), indicator=True)
    moved = both[both["_merge"] != "both"]
    if len(moved):
        return f"the folds of {named(sorted(set(moved['image_id'])))}: {_places(moved)}"
    targets = [name for name in table.columns if name.startswith("target")]
    for column in (*targets, "patient_id"):
        wrong = both[both[column] != both[f"{column}_other"]]
        if len(wrong):
            first = wrong.iloc[0]
            seen = f"{first[column]} and {first[f'{column}_other']} for {first['image_id']}"
            return f"the {column} of {named(sorted(set(wrong['image_id'])))}: {seen}"
    return ""


def _places(moved: pd.DataFrame) -> str:
    """Say where the first images that moved are, in each of two runs."""
    told = []
    for image, rows in list(moved.groupby("image_id", sort=True))[:_SHOWN]:
        sides = []
        for side in ("left_only", "right_only"):
            own = rows[rows["_merge"] == side]
            places = [f"{role} of fold {fold}" for fold, role in own[["fold", "role"]].values]
            sides.append(", ".join(places[:2]) + ", …" * (len(places) > 2) or "neither there")
        told.append(f"{image} is {sides[0]} here and {sides[1]} there")
    return "; ".join(told)


def _digests(run: Run, other: Run) -> str:
    """Say which digest differs where no row does."""
    for what in ("cohort", "split"):
        mine, theirs = ((r.document.get(what) or {}).get("digest") for r in (run, other))
        if mine != theirs:
            digests = f"the digest of the {what} ({str(mine)[:8]} and {str(theirs)[:8]})"
            return digests + (_trained(run, other) if what == "split" else "")
    return ""


def _trained(run: Run, other: Run) -> str:
    """Say which training rows differ, where both runs keep theirs."""
    mine, theirs = (
        set(zip(rows["fold"].tolist(), rows["image_id"].tolist(), strict=True))
        for rows in (r.predictions[r.predictions["role"] == "train"] for r in (run, other))
    )
    if not (mine and theirs and mine != theirs):
        return ""
    rows = sorted(mine ^ theirs)
    shown = ", ".join(f"{image} in fold {fold}" for fold, image in rows[:_SHOWN])
    return f": only one of them trains on {shown}{', …' * (len(rows) > _SHOWN)}"


def _document(members: Sequence[Run], folder: Path, rule: str, calibrate: str) -> dict[str, Any]:
    first = members[0].document
    settings = {"rule": rule}
    if calibrate != "none":
        settings["calibrate"] = calibrate
    task = {} if "task" not in first else {"task": first["task"]}
    return {
        **task,
        "kind": "ensemble",
        **settings,
        "head": {"name": "ensemble", "settings": settings},
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
                "path": Path(os.path.relpath(member.path, folder)).as_posix(),
                "digest": run_digest(member.path),
            }
            for member in members
        ],
    }


def _combined(
    members: Sequence[Run], tables: Sequence[pd.DataFrame], rule: str, calibrate: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Combine the members' rows, which are the same rows in the same order."""
    first, rows = members[0], tables[0]
    columns = list(first.task.value_columns(first.classes))
    values = np.array([table[columns].to_numpy(dtype=np.float64) for table in tables])
    combined, learned = rows.copy(), {}
    if (rule, calibrate) == ("mean", "none"):
        combined[columns] = values.mean(axis=0)
    else:
        blended = blend(
            Members(
                prob=values,
                y_true=read_truth(rows, first.classes, first.task),
                patient_ids=rows["patient_id"].to_numpy(dtype=object),
                fold=rows["fold"].to_numpy(dtype=np.int64),
                role=rows["role"].to_numpy(dtype=object),
                n_folds=_folds_of_a_repeat(first),
                kind=first.task.kind,
            ),
            rule,
            calibrate,
        )
        combined[columns], learned = blended.prob, _learned(blended)
    combined["seed"] = 0
    return combined[[*fixed_columns(first.task), *columns]], learned


def _folds_of_a_repeat(run: Run) -> int:
    n_folds = (run.document.get("split") or {}).get("n_folds")
    if not isinstance(n_folds, int) or n_folds < 1:
        raise RunError(
            f"{run.path} does not say how many folds a repeat has: fit it again, or use rule mean"
        )
    return n_folds


def _learned(blended: Blend) -> dict[str, Any]:
    """Write what was learned as JSON: mean over folds, each fold's, and from all folds together."""
    mixes = [mix.to_json() for mix in blended.mixes or ()]
    final = blended.final.to_json() if blended.final is not None else {}
    told = {what: ([mix[what] for mix in mixes], final[what]) for what in final}
    if blended.temperature is not None:
        told["temperature"] = (blended.temperature.tolist(), blended.final_temperature)
    return {
        what: {
            "mean": np.mean(values, axis=0).tolist(),
            "folds": dict(zip(map(str, blended.folds), values, strict=True)),
            "all": last,
        }
        for what, (values, last) in told.items()
    }


def _no_history(task: Task) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({name: np.empty(0) for name in history_columns(task)})
