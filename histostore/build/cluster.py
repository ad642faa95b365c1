"""Run units on ``dask.distributed``: on a scheduler that is there, or on processes of our own.

Workers share nothing with this process but the store: what a task needs travels in it, and
what comes back is a count. So a worker may die at any moment; its unit goes to another one,
which does what is left of it.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.build.unit import build_unit
from histostore.errors import HistostoreError, MissingExtra, OptionError, StorageError
from histostore.files import local_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from histostore.build.unit import UnitResult, UnitTask

__all__ = ["run_on_cluster", "seen_from_anywhere"]

logger = logging.getLogger(__name__)

RETRIES = 2
"""How often a unit is tried again that failed for another reason than its worker's death."""

_LEAVE_CTRL_C_TO_PARENT = """
import logging, signal
signal.signal(signal.SIGINT, signal.SIG_IGN)
logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
"""
"""Run by each worker process when it starts: a terminal sends Ctrl-C to all of them at once,
and a task that is cancelled then is nothing to warn of."""

_SETTINGS = {
    # The tasks of 100,000 images are 20 MB, sent once: nothing to warn of.
    "distributed.admin.large-graph-warning-threshold": "1GiB",
}


def seen_from_anywhere(task: UnitTask) -> UnitTask:
    """Give a task in which local paths start at the root: a worker has its own folder.

    Raises
    ------
    OptionError
        If the store or an image lies in the memory of this process.
    """
    urls = [task.store_url, *(job.source.url for job in task.jobs)]
    inside = next((url for url in urls if url.startswith("memory://")), None)
    if inside is not None:
        raise OptionError(f"{inside} exists in this process alone: workers cannot reach it")
    weights = task.encoder.weights
    return replace(
        task,
        store_url=_absolute(task.store_url),
        encoder=replace(task.encoder, weights=weights and _rooted(weights)),
        jobs=tuple(
            replace(job, source=replace(job.source, url=_absolute(job.source.url)))
            for job in task.jobs
        ),
    )


def _rooted(weights: str) -> str:
    """Make every local path absolute in ``[NAME=]PATH[#sha256=HEX]``, several with commas between.

    Examples
    --------
    >>> _rooted("random:0"), _rooted("timm:a=none.npz")
    ('random:0', 'timm:a=none.npz')
    """
    parts = []
    for part in [weights] if Path(weights).exists() else weights.split(","):
        file, mark, digest = part.partition("#sha256=")
        name, equals, path = ("", "", file) if Path(file).exists() else file.partition("=")
        if Path(path).exists() and path:
            file = f"{name}{equals}{Path(path).absolute()}"
        parts.append(f"{file}{mark}{digest}")
    return ",".join(parts)


def _absolute(url: str) -> str:
    path = local_path(url)
    return url if path is None else str(Path(path).absolute())


def run_on_cluster(
    tasks: Sequence[UnitTask],
    on_result: Callable[[UnitResult], None],
    *,
    workers: int | None = None,
    scheduler: str | None = None,
) -> list[UnitResult]:
    """Run units on a cluster, in whatever order.

    Parameters
    ----------
    tasks
        The units.
    on_result
        Told of every unit when it is done, in this thread.
    workers
        Number of processes to start here, one thread each; or …
    scheduler
        … the address of a scheduler that runs.

    Raises
    ------
    StorageError
        If the scheduler does not answer or goes away, or if workers die again and again.
    MissingExtra
        If ``distributed`` is not installed here, or this package not on a worker.
    """
    try:
        import distributed
    except ImportError:
        raise MissingExtra.named("distributed", extra="cluster") from None
    from dask.config import set as configured

    # distributed is not typed.
    library: Any = distributed
    tasks = [seen_from_anywhere(task) for task in tasks]
    with ExitStack() as stack:
        stack.enter_context(configured(_SETTINGS))
        address = scheduler or stack.enter_context(_own_workers(library, workers))
        try:
            client = stack.enter_context(library.Client(address))
        except (OSError, ValueError) as error:
            raise StorageError(f"no Dask scheduler answers at {scheduler}: {error}") from error
        if not client.scheduler_info()["workers"]:
            logger.warning("no worker has joined %s yet: waiting for one", scheduler)
            client.wait_for_workers(1)
        _check_workers(client)
        futures = client.map(build_unit, tasks, pure=False, retries=RETRIES, key="histostore-build")
        results: list[UnitResult] = []
        for future in library.as_completed(futures):
            with _cluster_errors(library, str(scheduler or "this machine")):
                results.append(future.result())
            on_result(results[-1])
        return results


def _own_workers(library: Any, workers: int | None) -> Any:
    """Start worker processes on this machine, and a scheduler for them in this one."""
    try:
        return library.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",  # None would be port 8787, taken or not
            preload=[_LEAVE_CTRL_C_TO_PARENT],
        )
    except RuntimeError as error:
        raise StorageError(
            f"{workers} worker processes could not be started ({error.__cause__ or error}): ask for "
            "fewer; in a script of your own, call build under if __name__ == '__main__'"
        ) from error


def _check_workers(client: Any) -> None:
    """Refuse workers that lack this package or have another version: they would die of a task."""

    # An inner function travels as code, so that it runs where this module is not.
    def probe() -> str:
        from importlib.metadata import version

        import histostore  # noqa: F401 - whether it can be imported

        return version("histostore")

    here = probe()
    for address, found in client.run(probe, on_error="return").items():
        if isinstance(found, ImportError):
            raise MissingExtra(
                f"the worker at {address} cannot import histostore ({found}): install version "
                f"{here} there"
            )
        if found != here:
            raise MissingExtra(
                f"the worker at {address} has histostore {found}, this is {here}: install the "
                "same version there"
            )


@contextmanager
def _cluster_errors(library: Any, where: str) -> Iterator[None]:
    """Turn what Dask raises for a unit into one of our errors."""
    from distributed.client import FutureCancelledError

    try:
        yield
    except HistostoreError:
        raise
    except library.KilledWorker as error:
        raise StorageError(
            "workers died again and again, perhaps for want of memory: run the same again "
            "with fewer; what is finished is kept"
        ) from error
    except (FutureCancelledError, library.comm.CommClosedError) as error:
        raise StorageError(
            f"the Dask scheduler at {where} went away: run the same again; what is finished is kept"
        ) from error
    except Exception as error:
        reason = _import_error(error)
        if reason is None:
            raise
        raise MissingExtra(
            f"the Dask cluster at {where} cannot load this build ({reason}): scheduler and "
            "workers need histostore too, in the version that is installed here"
        ) from error


def _import_error(error: BaseException) -> str | None:
    """Find the failed import behind an error, if there is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, ImportError | AttributeError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return None
