"""Run a build: plan it, hand its units to Dask, report what came of them."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from threading import Event
from typing import TYPE_CHECKING, Any

from histostore.build.cluster import run_on_cluster
from histostore.build.options import BuildOptions
from histostore.build.pipeline import Failure, ImageJob
from histostore.build.plan import plan_build
from histostore.build.report import BuildReport, Counter
from histostore.build.unit import UnitTask, build_unit, encoder_of
from histostore.cohort import Cohort
from histostore.errors import OptionError
from histostore.files import Source, stat_many
from histostore.provenance import versions
from histostore.spec import FeatureSpec
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histostore.build.pipeline import EncodedImage
    from histostore.build.report import Progress
    from histostore.build.unit import UnitResult
    from histostore.store import FeatureSet

__all__ = ["build"]

UNITS_AT_ONCE = 2
"""Units in work on one machine: one reads and writes while the other is encoded."""


def build(
    cohort: Cohort | str,
    store_url: str,
    options: BuildOptions | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Progress], None] | None = None,
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
    began = time.monotonic()
    options = _checked(options or BuildOptions(), store_url, workers, scheduler)
    storage = dict(storage_options or {})
    if isinstance(cohort, str):
        cohort = Cohort.read(cohort, storage_options=storage)
    features = _feature_set(store_url, options, storage)
    jobs = _jobs(cohort, storage)
    plan = plan_build(
        cohort.image_ids,
        features.index.keys(),
        options.views,
        sources={job.image_id: job.source for job in jobs},
        recorded=features.sources,
    )
    build_id = uuid.uuid4().hex
    tasks = [
        UnitTask(
            build_id=build_id,
            store_url=store_url,
            feature_set=features.name,
            encoder=options.encoder,
            views=unit.views,
            jobs=tuple(jobs[row] for row in unit.rows),
            storage_options=storage,
        )
        for unit in plan.units
    ]
    counter = Counter(plan.n_todo, progress)
    if plan.units and (workers is not None or scheduler is not None):
        results = _on_cluster(tasks, counter, workers=workers, scheduler=scheduler)
    else:
        results = _on_threads(tasks, features, counter)
    report = BuildReport(
        feature_set=features.name,
        n_images=plan.n_images,
        n_done=plan.n_done + sum(result.n_found for result in results),
        n_embedded=sum(result.n_embedded for result in results),
        failed=tuple(failure for result in results for failure in result.failed),
        changed=plan.changed,
        n_patches=sum(result.n_patches for result in results),
        n_flagged=sum(result.n_flagged for result in results),
        seconds=time.monotonic() - began,
    )
    if plan.units:
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


def _feature_set(store_url: str, options: BuildOptions, storage: dict[str, Any]) -> FeatureSet:
    """Find or make the feature set that these options mean."""
    encoder = encoder_of(options.encoder)
    spec = FeatureSpec(
        encoder=encoder.identity,
        n_features=encoder.n_features,
        grid=options.grid,
        tissue=options.tissue,
        dtype=options.dtype,
    )
    return open_store(store_url, storage_options=storage, mode="a").create_feature_set(spec)


def _jobs(cohort: Cohort, storage: dict[str, Any]) -> list[ImageJob]:
    """Join the cohort's rows with what its sources are now."""
    sources = cohort.sources or stat_many(cohort.urls, storage)
    return [
        ImageJob(
            image_id=image_id,
            # A file that is gone fails when it is read, with its reason.
            source=sources.get(url) or Source(url=url, size=None, version=None),
            mpp=mpp,
        )
        for image_id, url, mpp in zip(cohort.image_ids, cohort.urls, cohort.mpp, strict=True)
    ]


def _on_threads(
    tasks: Sequence[UnitTask], features: FeatureSet, counter: Counter
) -> Sequence[UnitResult]:
    """Run units on Dask's threads; when one fails or Ctrl-C comes, the others end early."""
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
