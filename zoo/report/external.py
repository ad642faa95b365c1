"""The external test: a run of the report on images of another cohort, from what ``zoo predict`` wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo.errors import RunError
from zoo.metrics import metric_names
from zoo.predictions import Predictions, average
from zoo.report.judging import judge, tables
from zoo.report.sections import External, Range, Shift
from zoo.run import run_digest
from zoo.soundness import value_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from zoo.run import Run

__all__ = ["read_external"]

_NAN = float("nan")


def read_external(paths: Iterable[str | Path], runs: Sequence[Run]) -> tuple[External, ...]:
    """Read predictions of labelled images.

    Parameters
    ----------
    paths
        Tables that ``zoo predict`` wrote, each with its ``.json`` beside it.
    runs
        Runs of the report, in its order.

    Raises
    ------
    RunError
        If a file is missing or none of ours, holds no scores, or is of another run.
    """
    digests = {run_digest(run.path): i for i, run in reversed(list(enumerate(runs)))}
    return tuple(_read(Path(path), runs, digests) for path in paths)


def _read(path: Path, runs: Sequence[Run], digests: Mapping[str, int]) -> External:
    document = _document(path)
    place = digests.get(str(document.get("digest")))
    if place is None:
        raise RunError(
            f"{path} holds predictions of {document.get('path', 'another run')}, which is not in "
            "this report, or was changed since: name that run too, or predict again"
        )
    run = runs[place]
    test = document["test"]
    try:
        images = _images(_table(path), test["truth"], run)
        shifts = tuple(
            _shift(name, test["metrics"][name])
            for name in metric_names(run.task)
            if name in test["metrics"]
        )
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}.json does not fit {path}: predict again ({error})") from error
    confusion, report = tables(images, run.classes, run.task)
    mapped = document.get("label_map") or {}
    return External(
        run=run.name,
        number=place + 1,
        source=str(path),
        cohort_url=str(document.get("cohort") or ""),
        store_url=str(document.get("store") or ""),
        views=tuple(map(str, document.get("views") or ())),
        label_map=", ".join(f"{old} = {new}" for old, new in mapped.items()),
        classes=run.classes,
        shifts=shifts,
        confusion=confusion,
        report=report,
        judged=judge(images, run.classes, run.task, {shift.metric: shift.here for shift in shifts}),
        notes=tuple(map(str, document.get("notes") or ())),
    )


def _document(path: Path) -> dict[str, Any]:
    beside = path.with_name(f"{path.name}.json")
    if not beside.is_file():
        raise RunError(
            f"{beside} is not there: give the table that zoo predict wrote for a cohort with labels"
        )
    try:
        document = json.loads(beside.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{beside} cannot be read: {error}") from error
    if not isinstance(document, dict) or not isinstance(document.get("test"), dict):
        raise RunError(f"{beside} holds no scores of zoo predict: predict a cohort with labels")
    return document


def _table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix.lower() == ".csv":
            names = {"image_id": str, "prediction": str}
            return pd.read_csv(path, dtype=names, keep_default_na=False)  # NA may be a name
        return pd.read_parquet(path, engine="pyarrow")
    except (OSError, ValueError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RunError(f"{path} cannot be read: {line}") from error


def _images(table: pd.DataFrame, truth: Mapping[str, Sequence[Any]], run: Run) -> Predictions:
    """Put predictions and truth of the labelled images together, sorted by image."""
    import pandas as pd

    names = ["image_id", "patient_id", *run.task.target_columns]
    known = pd.DataFrame({name: list(truth[name]) for name in names}).astype({"image_id": str})
    rows = table.assign(image_id=table["image_id"].astype(str))
    columns = list(run.task.value_columns(run.classes))
    both = known.merge(rows[["image_id", *columns]], on="image_id", validate="1:1")
    if not len(known) or len(both) < len(known):
        raise ValueError(f"{len(known)} images with a label, {len(both)} of them predicted")
    problems = value_problems(both, run.classes, run.task)
    if problems:
        raise ValueError(problems[0])
    if run.task.one_class:  # a CSV has six digits
        both[columns] = both[columns].div(both[columns].sum(axis=1), axis=0)
    return average(both, run.classes, run.task)


def _shift(name: str, told: Mapping[str, Any]) -> Shift:
    def side(prefix: str, value: str) -> Range:
        keys = (value, f"{prefix}low", f"{prefix}high")
        v, low, high = (_NAN if told.get(k) is None else float(told[k]) for k in keys)
        return Range(value=v, low=low, high=high)

    return Shift(
        metric=name,
        own=side("own_", "own"),
        here=side("", "value"),
        drop=side("drop_", "drop"),
    )
