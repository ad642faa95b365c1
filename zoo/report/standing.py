"""What was compared, in facts and sentences: title, summary, notes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from zoo.comparison import feature_sets
from zoo.metrics import higher_is_better, metric_title
from zoo.report.model import ClassCount, Facts
from zoo.report.scores import majority
from zoo.report.text import bracket, count, number, prose_list

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd

    from zoo.report.model import RunView
    from zoo.report.sections import Experiment
    from zoo.run import Run

__all__ = ["facts", "notes", "subtitle", "summary", "title"]

MOST_NAMED = 5
"""Classes that are named in one line; of more, only how many."""


def facts(runs: Sequence[Run], metric: str) -> Facts:
    """Say what was compared, as the leading run (the first) recorded it."""
    leader, task = runs[0].document, runs[0].task
    store, cohort = leader.get("store") or {}, leader.get("cohort") or {}
    images = _image_table(runs)
    y_true = runs[0].test_probabilities().y_true
    share, macro_f1 = majority(y_true) if task.one_class else (None, None)
    created = sorted({str(run.document.get("created", ""))[:10] for run in runs} - {""})
    sets = [name for run in runs for name in feature_sets(run, runs)]
    return Facts(
        cohort_url=str(cohort.get("url", "")),
        cohort_digest=str(cohort.get("digest", "")),
        target=str(leader.get("target", "")),
        task=task.kind,
        metric=metric,
        n_images=len(images),
        n_test=len(y_true),
        n_patients=int(images["patient_id"].nunique()),
        has_patients=_has_patients(images),
        n_unlabelled=int(cohort.get("n_unlabelled", 0)),
        classes=_class_counts(images, runs[0].classes if task.has_classes else ()),
        store_url=str(store.get("url", "")),
        feature_sets=tuple(dict.fromkeys(sets)),
        snapshot=str(store.get("snapshot", "")),
        spec=dict(store.get("spec") or {}),
        augmentation=str(leader.get("augmentation") or ""),
        split=dict(leader.get("split") or {}),
        seeds=tuple(sorted({int(s) for run in runs for s in run.document.get("seeds", ())})),
        created=tuple(dict.fromkeys((created[0], created[-1]))) if created else (),
        majority_accuracy=share,
        majority_macro_f1=macro_f1,
    )


def title(n_runs: int, cohort_url: str, experiment: Experiment | None = None) -> str:
    """Name the report after the experiment, else the cohort, or its folder where the table's own name says nothing.

    Examples
    --------
    >>> title(3, "s3://lab/lymphoma/cohort.csv"), title(1, "breast.parquet"), title(2, "")
    ('Lymphoma: 3 runs compared', 'Breast: 1 run', '2 runs compared')
    """
    path = PurePosixPath(cohort_url)
    says_nothing = path.stem in {"cohort", "data", "images", "index", "labels", "table"}
    data = (path.parent.name if says_nothing else path.stem) or path.stem
    runs, name = count(n_runs, "run"), experiment.name if experiment else ""
    if name and data and name != data:
        runs += f" on {data}"
    elif n_runs > 1:
        runs += " compared"
    name = name or data
    return f"{name[:1].upper()}{name[1:]}: {runs}" if name else runs


def subtitle(facts: Facts) -> str:
    """Say in one line what was learned, from how much, and how it was tested."""
    names = [row.name for row in facts.classes]
    listed = f": {prose_list(names)}" if 0 < len(names) <= MOST_NAMED else ""
    kind = f"{len(names)} classes" if names else facts.task
    words = [f"{facts.target} ({kind}{listed})", count(facts.n_images, "image")]
    words += [count(facts.n_patients, "patient")] if facts.has_patients else []
    folds = facts.split.get("n_folds")
    words += [count(int(folds), "fold")] if folds else []
    words += [count(len(facts.seeds), "seed")] if facts.seeds else []
    return " · ".join(words)


def summary(runs: Sequence[RunView], facts: Facts) -> str:
    """Put the result into one or two sentences, with intervals."""
    best, metric = runs[0], facts.metric
    over, pairing = count(facts.n_test, "image"), "image by image"
    if facts.has_patients:
        over += f" of {count(facts.n_patients, 'patient')}"
        pairing = "patient by patient"
    if len(runs) == 1:
        return f"{best.name} reaches {_score(best, metric)} on {over}."
    lead = f"{best.name} is ahead on {over}: {_score(best, metric)}."
    rivals = [run for run in runs[1:] if run.difference and not run.difference.is_clear]
    if rivals:
        named = [f"{run.name} ({_value(run, metric)})" for run in rivals[:3]]
        if len(rivals) > 3:
            named.append(f"{len(rivals) - 3} more")
        return f"{lead} Compared {pairing}, {prose_list(named)} cannot be told apart from it."
    following = next((run for run in runs[1:] if run.difference), None)
    if following is None or following.difference is None:
        return lead
    behind = following.difference
    ends = [-behind.value, -behind.high, -behind.low]
    if not higher_is_better(metric):
        ends = [behind.value, behind.low, behind.high]
    return (
        f"{lead} Compared {pairing}, the next, {following.name}, is behind by "
        f"{number(ends[0], 2)} [{number(ends[1], 2)}, {number(ends[2], 2)}]."
    )


def notes(runs: Sequence[Run], experiment: Experiment | None = None) -> tuple[str, ...]:
    """List the differences between runs that make their numbers hard to compare, and what failed."""
    leader, found = runs[0], _of_experiment(experiment, len(runs))
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
                f"{_few(others)} {verb} another {what} than {leader.name}: "
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
        found.append(f"{_few(single)}: one seed only, so the spread over seeds is unknown.")
    return tuple(found)


def _of_experiment(experiment: Experiment | None, n_runs: int) -> list[str]:
    """Say what of an experiment is not in the report."""
    if experiment is None:
        return []
    found = []
    if experiment.failed:
        named = _few([name for name, _ in experiment.failed])
        more = "; the reasons stand under How to reproduce"
        found.append(f"{len(experiment.failed)} of the experiment failed: {named}{more}.")
    if n_runs < experiment.n_runs:
        found.append(f"{n_runs} of the {experiment.n_runs} runs of the experiment are shown.")
    return found


def _few(names: Sequence[str], most: int = 6) -> str:
    """List names, but not dozens of them.

    Examples
    --------
    >>> _few(["a", "b", "c"], most=2)
    'a, b and 1 more'
    """
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return prose_list([*names[:most], *more])


def _image_table(runs: Sequence[Run]) -> pd.DataFrame:
    """List the leader's images; an ensemble keeps no training rows, but its members do."""
    import pandas as pd

    digest = (runs[0].document.get("cohort") or {}).get("digest")
    same = [run for run in runs if (run.document.get("cohort") or {}).get("digest") == digest]
    columns = ["image_id", "patient_id", *runs[0].task.target_columns]
    # Every member of dozens holds the same rows: each once is enough.
    tables = [run.predictions[columns].drop_duplicates("image_id") for run in same]
    return pd.concat(tables).drop_duplicates("image_id")


def _has_patients(images: pd.DataFrame) -> bool:
    return bool((images["image_id"] != images["patient_id"]).any())


def _class_counts(images: pd.DataFrame, classes: Iterable[str]) -> tuple[ClassCount, ...]:
    """Count images and patients; of several labels, those that have each."""
    counts = []
    cells = [set(str(cell).split(";")) | {str(cell)} for cell in images[images.columns[-1]]]
    for name in classes:
        mine = images[[name in cell for cell in cells]]
        patients = int(mine["patient_id"].nunique())
        counts.append(ClassCount(name=name, images=len(mine), patients=patients))
    return tuple(counts)


def _value(run: RunView, metric: str) -> str:
    return number(run.test[metric].value, 2) if metric in run.test else "not recorded"


def _score(run: RunView, metric: str) -> str:
    if metric not in run.test:
        return f"a {metric_title(metric)} that was not recorded"
    interval = run.test[metric]
    return f"{metric_title(metric)} {number(interval.value, 2)} {bracket(interval, 2)}".rstrip()
