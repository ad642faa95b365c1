"""Reports: what runs achieved, as one page, one Markdown file and one JSON file."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from histostore.errors import HistostoreError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from histostore.cohort import Cohort
    from histostore.store import FeatureSet
    from zoo.report.model import Example, PatchCounts, ReportData
    from zoo.run import Run

__all__ = ["N_FULL", "collect", "write_report"]

N_FULL = 10
"""Runs that are shown in full; of more, the best."""

_PAGE = "index.html"


def write_report(
    run_paths: Iterable[str | Path],
    out_dir: str | Path,
    *,
    cohort: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    metric: str | None = None,
    external: Iterable[str | Path] = (),
    n_full: int = N_FULL,
) -> Path:
    """Report on runs and ensembles of one task.

    Writes ``index.html`` (one file, nothing else to load), ``report.md`` (for a pull
    request) and ``report.json`` (the same numbers for programs). The same runs give the
    same bytes.

    Parameters
    ----------
    run_paths
        Run and ensemble directories.
    out_dir
        Folder to write to; made if needed, earlier reports in it are replaced.
    cohort
        Table with the images, where it has moved since the runs were made.
    storage_options
        For cohorts, images and stores in a bucket.
    metric
        By which runs are ranked and compared; the first of their task where left out.
    external
        Tables that ``zoo predict`` wrote for cohorts with labels: the external test.
    n_full
        So many runs, the best, are shown in full; all stand in the tables.

    Returns
    -------
    path
        Of ``index.html``.

    Raises
    ------
    RunError
        If there are no runs, a directory is not one, tasks differ, or predictions are of a run
        that is not here.
    OptionError
        If the task has no such metric, nothing would be shown in full, or the folder holds a page
        of something else.
    StorageError
        If the folder cannot be written.

    Notes
    -----
    Where the store or images cannot be read, the report says which and why, and goes on.
    """
    from zoo.report.html import to_html
    from zoo.report.markdown import to_markdown
    from zoo.report.model import to_json

    out = Path(out_dir)
    if (out / "run.json").exists():
        raise OptionError(f"{out} is a run: give the report a directory of its own")
    if (out / _PAGE).exists() and not (out / "report.json").exists():
        raise OptionError(f"{out / _PAGE} is of no report: give the report a directory of its own")
    data = collect(
        run_paths,
        out_dir=str(out_dir),
        cohort=cohort,
        storage_options=storage_options,
        metric=metric,
        external=external,
        n_full=n_full,
    )
    document = json.dumps(to_json(data), indent=1, ensure_ascii=False, allow_nan=False)
    parts = {"report.json": document + "\n", "report.md": to_markdown(data), _PAGE: to_html(data)}
    with ExitStack() as stack:  # all are written before the first takes its name
        for name, text in parts.items():
            stack.enter_context(atomic(out / name)).write_text(text, encoding="utf-8")
    return out / _PAGE


def collect(
    run_paths: Iterable[str | Path],
    *,
    out_dir: str = "report",
    cohort: str | Path | None = None,
    storage_options: dict[str, Any] | None = None,
    metric: str | None = None,
    external: Iterable[str | Path] = (),
    n_full: int = N_FULL,
) -> ReportData:
    """Gather everything that :func:`write_report` writes; ``out_dir`` is named in a command."""
    from zoo.report import gather, ranking, reproduce, standing
    from zoo.report.experiment import find_experiment
    from zoo.report.external import read_external
    from zoo.report.images import choose_examples
    from zoo.report.model import ReportData

    if n_full < 1:
        raise OptionError(f"{n_full} runs in full: show 1 at least")
    tables = [str(path) for path in external]
    runs, name = gather.load_runs(run_paths, metric)
    judged = [run.test_probabilities() for run in runs]
    views = gather.views(runs, judged, name, n_full)
    facts = standing.facts(runs, name)
    experiment = find_experiment(runs)
    told_ranks, ranks_note = ranking.ranks(runs, name)
    alike = [mine for mine in judged[:n_full] if ranking.same_images(mine, judged[0])]
    patches, examples, image_notes = _patches(
        runs, choose_examples(runs[0], alike), cohort=cohort, storage_options=storage_options
    )
    return ReportData(
        title=standing.title(len(runs), facts.cohort_url, experiment),
        subtitle=standing.subtitle(facts),
        summary=standing.summary(views, facts),
        facts=facts,
        experiment=experiment,
        runs=views,
        n_full=min(n_full, len(views)),
        groups=ranking.groups(views, runs),
        ranks=told_ranks,
        ranks_note=ranks_note,
        pairs=ranking.pairs(runs, judged, name),
        external=read_external(tables, runs),
        patches=patches,
        examples=examples,
        notes=standing.notes(runs, experiment),
        image_notes=image_notes,
        commands=reproduce.commands(runs, out_dir, metric=metric, external=tables),
        digests=reproduce.digests(runs, experiment),
        versions=reproduce.versions(runs),
    )


def _patches(
    runs: Sequence[Run],
    examples: tuple[Example, ...],
    *,
    cohort: str | Path | None,
    storage_options: dict[str, Any] | None,
) -> tuple[tuple[PatchCounts, ...], tuple[Example, ...], tuple[str, ...]]:
    """Read stores and images; what cannot be read becomes a note."""
    from zoo.report.images import illustrate, patch_counts

    notes: list[str] = []
    opened: dict[tuple[str, str], FeatureSet] = {}
    counts = []
    for run in runs:
        store = run.document.get("store") or {}
        key = (str(store.get("url") or ""), str(store.get("feature_set") or ""))
        if key in opened:
            continue
        if not all(key):
            notes.append(f"{run.name} does not record its store, so its patches are not shown")
            continue
        try:
            opened[key] = _feature_set(*key, storage_options)
        except (HistostoreError, OSError) as error:
            notes.append(f"Patches of {key[1]} are not shown, the store cannot be read: {error}")
            continue
        ids = tuple(dict.fromkeys(str(i) for i in run.predictions["image_id"]))
        found = patch_counts(opened[key], ids, _augmentation(run))
        counts += [found] if found else []
    if not opened:
        return (), examples, tuple(dict.fromkeys(notes))
    try:
        images = _cohort(runs[0], cohort, storage_options)
    except (HistostoreError, OSError) as error:
        notes.append(f"No image is shown, the cohort cannot be read: {error}")
        return tuple(counts), examples, tuple(notes)
    first = next(iter(opened.values()))
    drawn, failed = illustrate(
        examples, images, first,
        augmentation=_augmentation(runs[0]), storage_options=storage_options,
    )  # fmt: skip
    return tuple(counts), drawn, (*notes, *failed)


def _augmentation(run: Run) -> str:
    return str(run.document.get("augmentation") or "identity")


def _feature_set(url: str, name: str, storage_options: dict[str, Any] | None) -> FeatureSet:
    from histostore.store import open_store

    return open_store(url, storage_options).feature_set(name)


def _cohort(run: Run, cohort: str | Path | None, storage_options: dict[str, Any] | None) -> Cohort:
    from histostore.cohort import Cohort

    url = str(cohort) if cohort else str((run.document.get("cohort") or {}).get("url") or "")
    return Cohort.read(url, storage_options, check_files=False)
