"""Run a build: plan it, hand its units to Dask, report what came of them."""

from __future__ import annotations

import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from histostore.build.allocator import share_one_heap
from histostore.build.cluster import run_on_cluster
from histostore.build.options import BuildOptions
from histostore.build.pipeline import Failure, ImageJob
from histostore.build.plan import plan_build
from histostore.build.reembed import find_stale
from histostore.build.report import BuildReport, Counter
from histostore.build.specify import settle_stain, specify
from histostore.build.unit import UnitTask, build_unit
from histostore.cohort import Cohort
from histostore.errors import OptionError
from histostore.files import Source
from histostore.provenance import versions
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histostore.build.pipeline import EncodedImage
    from histostore.build.report import Progress
    from histostore.build.unit import UnitResult
    from histostore.spec import FeatureSpec
    from histostore.store import FeatureSet

__all__ = ["build"]

UNITS_AT_ONCE = 2
"""Units in work on one machine: one reads and writes while the other is encoded."""


def build(
    cohort: Cohort | str | os.PathLike[str],
    store_url: str | os.PathLike[str],
    options: BuildOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    reembed_changed: bool = False,
) -> BuildReport:
    """Embed what a store lacks of a cohort.

    What is committed is never computed again: a second call does nothing, a call after a
    crash does the rest. Images that fail are recorded, with the reason, and tried again by
    the next call.

    Parameters
    ----------
    cohort
        The images, or the URL of their table.
    store_url
        Where the store is, or shall be: a path or any fsspec URL.
    options
        Encoder, grid, tissue filter, views and stored type.
    storage_options
        For the storage driver (endpoint, credentials), of the images and of the store.
    workers
        Number of processes on this machine, one thread each; default: threads in this one.
    scheduler
        Address of a running ``dask.distributed`` scheduler to hand the work to.
    progress
        Called now and then, from any thread, one call at a time.
    reembed_changed
        Embed again the images whose files have changed since, or the files that say where their
        patches lie, or the scale that the cohort gives; else they are reported, their old rows
        stay, and views that they lack fail.

    Returns
    -------
    report
        What was done, and which images failed.

    Raises
    ------
    CohortError
        If the table is wrong; nothing was done.
    EncoderError
        If the encoder is unknown or its weights do not fit.
    StorageError
        If the store cannot be written; what was committed stays.
    """
    share_one_heap()  # before there are threads that have heaps of their own
    began = time.monotonic()
    store_url = os.fspath(store_url)
    options = _checked(options or BuildOptions(), store_url, workers, scheduler)
    storage = dict(storage_options or {})
    if not isinstance(cohort, Cohort):
        cohort = Cohort.read(cohort, storage_options=storage)
    options, _ = settle_stain(options, cohort, store_url, storage_options=storage)
    spec = specify(options)  # before a store is made: an encoder that is not there makes none
    store = open_store(store_url, storage_options=storage, mode="a")
    features = store.create_feature_set(spec)
    now = _seen(cohort, spec, storage)
    plan = plan_build(
        cohort.image_ids,
        {view: features.index.of_view(view) for view in options.views},
        options.views,
        sources=now,
        recorded=features.sources.documents,
        renewed=reembed_changed,
    )
    task = partial(
        UnitTask,
        build_id=uuid.uuid4().hex,
        store_url=store_url,
        feature_set=features.name,
        encoder=options.encoder,
        storage_options=storage,
    )
    tasks = [task(views=unit.views, jobs=_jobs(cohort, now, unit.rows)) for unit in plan.units]
    stale = find_stale(features, cohort.image_ids, now) if reembed_changed else []
    tasks += [
        task(
            views=record.augmentations,
            jobs=_jobs(cohort, now, rows),
            replaces=record.fragment_id,
        )
        for record, rows in stale
    ]
    counter = Counter(plan.n_todo + sum(len(rows) for _, rows in stale), progress)
    if tasks and (workers is not None or scheduler is not None):
        results = _on_cluster(tasks, counter, workers=workers, scheduler=scheduler)
    else:
        results = _on_threads(tasks, features, counter)
    again = {image_id for result in results for image_id in result.reembedded}
    report = BuildReport(
        feature_set=features.name,
        n_images=plan.n_images,
        n_done=plan.n_done + sum(result.n_found for result in results),
        n_embedded=sum(result.n_embedded for result in results),
        failed=tuple(failure for result in results for failure in result.failed)
        + _stuck(cohort, plan.stuck),
        changed=tuple(image_id for image_id in plan.changed if image_id not in again),
        n_patches=sum(result.n_patches for result in results),
        n_flagged=sum(result.n_flagged for result in results),
        n_reembedded=len(again),
        seconds=time.monotonic() - began,
    )
    if tasks or plan.stuck:
        features.record_build({"cohort": cohort.url, **report.to_json(), "versions": versions()})
    return report


def _checked(
    options: BuildOptions, store_url: str, workers: int | None, scheduler: str | None
) -> BuildOptions:
    """Refuse what cannot work, and give each of several processes one thread."""
    if workers is not None and scheduler is not None:
        raise OptionError("give a number of workers or the address of a scheduler, not both")
    if workers is not None and workers < 1:
        raise OptionError(f"workers is {workers}: give 1 or more, or leave it out")
    if workers is None and scheduler is None:
        return options
    if store_url.startswith("memory://"):
        raise OptionError(f"{store_url} exists in this process alone: workers cannot reach it")
    return replace(options, encoder=replace(options.encoder, threads=options.encoder.threads or 1))


def _seen(
    cohort: Cohort, spec: FeatureSpec, storage: Mapping[str, Any]
) -> dict[str, Source | None]:
    """Say by image id what decides its pixels: its files, and its scale where one is asked for."""
    now = cohort.seen(storage)
    if spec.grid.mpp is None:
        return now
    scaled = zip(now.items(), cohort.mpp, strict=True)
    return {name: source and source.scaled_by(mpp) for (name, source), mpp in scaled}


def _stuck(cohort: Cohort, rows: Sequence[int]) -> tuple[Failure, ...]:
    """List images that have changed as failed, for the views that they lack."""
    reason = (
        "has changed since its other views were embedded, and views of one image must be of the"
        " same pixels; embed all of them again: --reembed-changed"
    )
    return tuple(
        Failure(image_id=cohort.image_ids[row], url=cohort.urls[row], reason=reason) for row in rows
    )


def _jobs(
    cohort: Cohort, now: Mapping[str, Source | None], rows: Sequence[int]
) -> tuple[ImageJob, ...]:
    """Join some rows of the cohort with what their sources are now."""
    urls = cohort.urls
    return tuple(
        ImageJob(
            image_id=cohort.image_ids[row],
            # A file that is gone fails when it is read, with its reason.
            source=now[cohort.image_ids[row]] or Source(url=urls[row], size=None, version=None),
            mpp=cohort.mpp[row],
            given=cohort.given[row],
        )
        for row in rows
    )


def _on_threads(
    tasks: Sequence[UnitTask], features: FeatureSet, counter: Counter
) -> Sequence[UnitResult]:
    """Run units on Dask's threads; when one fails or Ctrl-C comes, the others end early."""
    if not tasks:  # to import Dask would take longer than to find that out
        return ()
    from dask.base import compute
    from dask.delayed import delayed

    stop = Event()

    def on_image(image: EncodedImage | Failure) -> None:
        if isinstance(image, Failure):
            counter.add(n_images=1, n_patches=0, n_failed=1)
        else:
            counter.add(n_images=1, n_patches=image.n_patches, n_failed=0)

    work = [
        delayed(
            partial(build_unit, task, features=features, on_image=on_image, stopped=stop.is_set)
        )()
        for task in tasks
    ]
    with ThreadPoolExecutor(UNITS_AT_ONCE) as pool:
        try:
            results: Sequence[UnitResult] = compute(  # type: ignore[no-untyped-call]
                *work, scheduler="threads", pool=pool
            )
        finally:
            # The pool waits for what is in work: once Python ends, no thread can commit.
            stop.set()
    return results


def _on_cluster(
    tasks: Sequence[UnitTask], counter: Counter, *, workers: int | None, scheduler: str | None
) -> Sequence[UnitResult]:
    """Run units on Dask workers, and count whole units."""

    def on_result(result: UnitResult) -> None:
        counter.add(
            n_images=result.n_images,
            n_patches=result.n_patches,
            n_failed=len(result.failed),
        )

    return run_on_cluster(tasks, on_result, workers=workers, scheduler=scheduler)
