"""Runs to plain data: reads run directories, computes what the report shows of them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import NotSupported, RunError
from zoo.metrics import confusion_matrix
from zoo.report.learning import learning
from zoo.report.model import ClassCount, Difference, Facts, Interval, RunView
from zoo.report.scores import classification_report, majority
from zoo.report.text import bracket, count, number, prose_list
from zoo.significance import holm
from zoo.statistics import paired_bootstrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import pandas as pd

    from zoo.predictions import Predictions
    from zoo.run import Run

__all__ = ["facts", "load_runs", "notes", "summary", "title", "views"]

_NAN = float("nan")


def load_runs(run_paths: Iterable[str | Path]) -> tuple[Run, ...]:
    """Load runs, the best macro-F1 first.

    Raises
    ------
    RunError
        If there is nothing to report on, or a directory is not a run.
    NotSupported
        If a run is of another task than classification.
    """
    from zoo.run import Run

    runs = [Run.load(path) for path in run_paths]
    if not runs:
        raise RunError("no runs were given; name at least one run directory")
    others = [run for run in runs if run.task.kind != "classification"]
    if others:
        raise NotSupported(
            f"{others[0].path} learned task {others[0].task.kind}, but reports are of "
            "classification alone so far: use zoo compare"
        )
    return tuple(sorted(runs, key=lambda run: (-_macro_f1(run), run.name)))


def views(runs: Sequence[Run]) -> tuple[RunView, ...]:
    """Compute what is shown of each run, in the order given; the first one leads."""
    judged = [run.test_probabilities() for run in runs]
    gaps = [None, *(_difference(mine, judged[0]) for mine in judged[1:])]
    # Several runs are held against one, so p-values are Holm's, as those of zoo compare.
    corrected = holm([None if gap is None else gap.p for gap in gaps])
    differences = [
        None if gap is None or p is None else replace(gap, p=p)
        for gap, p in zip(gaps, corrected, strict=True)
    ]
    return tuple(
        _view(run, mine, difference, number=i)
        for i, (run, mine, difference) in enumerate(
            zip(runs, judged, differences, strict=True), start=1
        )
    )


def facts(runs: Sequence[Run]) -> Facts:
    """Say what was compared, as the leading run (the first) recorded it."""
    leader = runs[0].document
    store, cohort = leader.get("store") or {}, leader.get("cohort") or {}
    images = _image_table(runs)
    y_true = runs[0].test_probabilities().y_true
    share, macro_f1 = majority(y_true)
    created = sorted({str(run.document.get("created", ""))[:10] for run in runs} - {""})
    return Facts(
        cohort_url=str(cohort.get("url", "")),
        cohort_digest=str(cohort.get("digest", "")),
        target=str(leader.get("target", "")),
        n_images=len(images),
        n_test=len(y_true),
        n_patients=int(images["patient_id"].nunique()),
        has_patients=_has_patients(images),
        n_unlabelled=int(cohort.get("n_unlabelled", 0)),
        classes=_class_counts(images, runs[0].classes),
        store_url=str(store.get("url", "")),
        feature_sets=tuple(dict.fromkeys(_feature_set(run) for run in runs if _feature_set(run))),
        snapshot=str(store.get("snapshot", "")),
        spec=dict(store.get("spec") or {}),
        augmentation=str(leader.get("augmentation", "")),
        split=dict(leader.get("split") or {}),
        seeds=tuple(sorted({int(s) for run in runs for s in run.document.get("seeds", ())})),
        created=tuple(dict.fromkeys((created[0], created[-1]))) if created else (),
        majority_accuracy=share,
        majority_macro_f1=macro_f1,
    )


def title(n_runs: int, cohort_url: str) -> str:
    """Name the report after the cohort, or its folder where the table's own name says nothing.

    Examples
    --------
    >>> title(3, "s3://lab/lymphoma/cohort.csv"), title(1, "breast.parquet"), title(1, "")
    ('3 runs on lymphoma', '1 run on breast', '1 run on one cohort')
    """
    path = PurePosixPath(cohort_url)
    name = path.parent.name if path.stem in {"cohort", "index", "table"} else path.stem
    return f"{count(n_runs, 'run')} on {name or path.stem or 'one cohort'}"


def summary(runs: Sequence[RunView], facts: Facts) -> str:
    """Put the result into one or two sentences, with intervals."""
    best = runs[0]
    over, pairing = count(facts.n_test, "image"), "image by image"
    if facts.has_patients:
        over += f" of {count(facts.n_patients, 'patient')}"
        pairing = "patient by patient"
    if len(runs) == 1:
        return f"{best.name} reaches {_score(best)} on {over}."
    lead = f"{best.name} is ahead on {over}: {_score(best)}."
    rivals = [run for run in runs[1:] if run.difference and not run.difference.is_clear]
    if rivals:
        named = [f"{run.name} ({number(_value(run), 2)})" for run in rivals[:3]]
        if len(rivals) > 3:
            named.append(f"{len(rivals) - 3} more")
        return f"{lead} Compared {pairing}, {prose_list(named)} cannot be told apart from it."
    following = next((run for run in runs[1:] if run.difference), None)
    if following is None or following.difference is None:
        return lead
    behind = following.difference
    return (
        f"{lead} Compared {pairing}, the next, {following.name}, is behind by "
        f"{number(-behind.value, 2)} [{number(-behind.high, 2)}, {number(-behind.low, 2)}]."
    )


def notes(runs: Sequence[Run]) -> tuple[str, ...]:
    """List the differences between runs that make their numbers hard to compare."""
    leader, found = runs[0], []
    for what, key in (
        ("cohort", lambda run: (run.document.get("cohort") or {}).get("digest")),
        ("split", lambda run: (run.document.get("split") or {}).get("digest")),
        ("target", lambda run: run.document.get("target")),
        ("classes", lambda run: tuple(run.classes)),
    ):
        others = [run.name for run in runs[1:] if key(run) != key(leader)]
        if others:
            verb = "has" if len(others) == 1 else "have"
            found.append(
                f"{prose_list(others)} {verb} another {what} than {leader.name}: "
                "their numbers cannot be compared with its own."
            )
    if not _has_patients(_image_table(runs)):
        found.append(
            "The cohort has no patient ids, so every image counts as a patient of its own. Where "
            "patients have several images, folds leak and the intervals are too narrow."
        )
    single = [
        run.name for run in runs if not run.is_ensemble and len(run.document.get("seeds", ())) == 1
    ]
    if single:
        found.append(f"{prose_list(single)}: one seed only, so the spread over seeds is unknown.")
    return tuple(found)


def _view(run: Run, mine: Predictions, difference: Difference | None, *, number: int) -> RunView:
    document = run.document
    head = document.get("head") or {}
    metrics = document.get("metrics") or {}
    y_true, prob = mine.y_true, mine.prob
    counts = confusion_matrix(y_true, prob.argmax(axis=1), len(run.classes))
    return RunView(
        number=number,
        name=run.name,
        path=str(run.path),
        is_ensemble=run.is_ensemble,
        head=str(head.get("name") or ("ensemble" if run.is_ensemble else "")),
        settings=dict(head.get("settings") or {}),
        recipe=dict(document.get("recipe") or {}),
        members=tuple(document.get("members") or ()),
        feature_set=_feature_set(run),
        seeds=tuple(int(s) for s in document.get("seeds", ())),
        seconds=float(document.get("seconds") or _NAN),
        created=str(document.get("created", "")),
        classes=tuple(run.classes),
        test=_intervals(metrics.get("test") or {}),
        validation=_intervals(metrics.get("validation") or {}),
        confusion=tuple(tuple(int(n) for n in row) for row in counts),
        report=classification_report(y_true, prob, run.classes),
        learning=learning(run.history, is_ensemble=run.is_ensemble),
        difference=difference,
    )


def _difference(mine: Predictions, leading: Predictions) -> Difference | None:
    if mine.prob.shape != leading.prob.shape or not all(
        np.array_equal(getattr(mine, what), getattr(leading, what))
        for what in ("image_ids", "patient_ids", "y_true")
    ):
        return None
    found = paired_bootstrap(mine.y_true, mine.prob, leading.prob, mine.patient_ids)["macro_f1"]
    return Difference(
        value=_float(found.value), low=_float(found.low), high=_float(found.high), p=_float(found.p)
    )


def _image_table(runs: Sequence[Run]) -> pd.DataFrame:
    """List the leader's images; an ensemble keeps no training rows, but its members do."""
    import pandas as pd

    digest = (runs[0].document.get("cohort") or {}).get("digest")
    same = [run for run in runs if (run.document.get("cohort") or {}).get("digest") == digest]
    columns = ["image_id", "patient_id", "target"]
    return pd.concat([run.predictions[columns] for run in same]).drop_duplicates("image_id")


def _has_patients(images: pd.DataFrame) -> bool:
    return bool((images["image_id"] != images["patient_id"]).any())


def _class_counts(images: pd.DataFrame, classes: Iterable[str]) -> tuple[ClassCount, ...]:
    counts = []
    for name in classes:
        mine = images[images["target"] == name]
        patients = int(mine["patient_id"].nunique())
        counts.append(ClassCount(name=name, images=len(mine), patients=patients))
    return tuple(counts)


def _intervals(metrics: Mapping[str, Any]) -> dict[str, Interval]:
    return {key: _interval(value) for key, value in metrics.items()}


def _interval(metric: Any) -> Interval:
    given = metric if isinstance(metric, dict) else {"value": metric}
    numbers = {
        key: _float(given.get(key)) for key in ("value", "low", "high", "seed_mean", "seed_sd")
    }
    return Interval(**numbers, seeds=tuple(_float(v) for v in given.get("seeds") or ()))


def _float(value: Any) -> float:
    return _NAN if value is None else float(value)


def _feature_set(run: Run) -> str:
    return str((run.document.get("store") or {}).get("feature_set") or "")


def _macro_f1(run: Run) -> float:
    value = _intervals((run.document.get("metrics") or {}).get("test") or {}).get("macro_f1")
    return value.value if value is not None and math.isfinite(value.value) else -math.inf


def _value(run: RunView) -> float:
    return run.test["macro_f1"].value if "macro_f1" in run.test else _NAN


def _score(run: RunView) -> str:
    if "macro_f1" not in run.test:
        return "a macro-F1 that was not recorded"
    interval = run.test["macro_f1"]
    return f"macro-F1 {number(interval.value, 2)} {bracket(interval, 2)}".rstrip()
