"""Loading many images at once: plan which rows come from where, then read whole chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.store.layout import COLUMN, fragment_folder, is_column_name
from histostore.store.shards import plan_reads, read_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from histostore.store.backend import Backend
    from histostore.store.record import Record
    from histostore.store.shards import Run
    from histostore.store.snapshot import Snapshot

__all__ = ["Bag", "Columns", "LoadPlan", "Loaded", "load_array", "plan_load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPlan:
    """Which rows of which fragments make up a result, in order."""

    image_ids: tuple[str, ...]
    """Images in the order of the result."""

    offset: NDArray[np.int64]
    """``(image + 1)``: rows of image *i* of the result are ``offset[i]:offset[i + 1]``."""

    parts: tuple[tuple[Record, tuple[Run, ...]], ...]
    """Fragments, each with the rows to take and where they go."""

    augmentation: str
    """The view."""

    template: Record
    """A fragment that has the view: what the arrays are like, where no row is wanted."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns per patch that at least one of the fragments holds."""
        return tuple(dict.fromkeys(name for record, _ in self.parts for name in record.columns))


def plan_load(snapshot: Snapshot, image_ids: Sequence[str], augmentation: str) -> LoadPlan:
    """Say where the rows of some images lie; pure.

    Parameters
    ----------
    snapshot
        What is committed.
    image_ids
        Images, each of which has the view.
    augmentation
        The view; at least one image has it.
    """
    places = snapshot.places(augmentation)
    found = np.array([places[image_id] for image_id in image_ids], np.int64).reshape(-1, 2)
    start = np.empty(len(found), np.int64)
    stop = np.empty(len(found), np.int64)
    order = np.lexsort((found[:, 1], found[:, 0]))
    bounds = np.searchsorted(found[order, 0], np.arange(len(snapshot) + 1))
    groups = {
        at: order[bounds[at] : bounds[at + 1]]
        for at in range(len(snapshot))
        if bounds[at] < bounds[at + 1]
    }
    for at, members in groups.items():
        offset = snapshot.offsets[at]
        start[members] = offset[found[members, 1]]
        stop[members] = offset[found[members, 1] + 1]
    offset = np.concatenate(([0], np.cumsum(stop - start)))
    parts = tuple(
        (snapshot.records[at], _runs(start[members], stop[members], offset[:-1][members]))
        for at, members in groups.items()
    )
    return LoadPlan(
        image_ids=tuple(image_ids),
        offset=offset,
        parts=parts,
        augmentation=augmentation,
        template=snapshot.records[next(iter(places.values()))[0]],
    )


def _runs(
    start: NDArray[np.int64], stop: NDArray[np.int64], target: NDArray[np.int64]
) -> tuple[Run, ...]:
    """Join neighbours that stay neighbours; an image asked for twice starts a new run."""
    fresh = np.ones(len(start), bool)
    fresh[1:] = (start[1:] != stop[:-1]) | (start[1:] - start[:-1] != target[1:] - target[:-1])
    first = np.flatnonzero(fresh)
    last = np.append(first[1:], len(start)) - 1
    rows = zip(start[first].tolist(), stop[last].tolist(), target[first].tolist(), strict=True)
    return tuple(rows)


def load_array(backend: Backend, feature_set: str, plan: LoadPlan, name: str) -> NDArray[Any]:
    """Read the rows of a plan from one array of each fragment, concurrently.

    Parameters
    ----------
    backend, feature_set
        Where the fragments lie.
    plan
        What to read.
    name
        ``embedding``, ``y``, ``x``, ``tissue``, or a column per patch.

    Returns
    -------
    rows
        ``(patch, feature)`` of the embedding, ``(patch,)`` of the others; stored dtype. NaN
        in those rows of a column of which the fragment does not hold it.

    Raises
    ------
    CorruptError
        If a checksum fails; names fragment, array and chunk.
    StorageError
        If the storage refuses.
    """
    n_rows = int(plan.offset[-1])
    if is_column_name(name):
        result: NDArray[Any] = np.full(n_rows, COLUMN.fill, COLUMN.kind)
    else:
        template = plan.template.arrays[name]
        result = np.empty((n_rows, *template.shape[2:]), template.kind)
    jobs = []
    for record, runs in plan.parts:
        if is_column_name(name) and name not in record.columns:
            continue
        layout = record.arrays[name]
        folder = fragment_folder(feature_set, record.fragment_id)
        wide = len(layout.shape) == 3
        view = record.augmentations.index(plan.augmentation) if wide else None
        jobs += [(folder, layout, read) for read in plan_reads(name, layout, view, runs)]

    def carry_out(number: int) -> None:
        folder, layout, read = jobs[number]
        read_rows(backend, folder, layout, read, result)

    _run(carry_out, len(jobs), backend.threads)
    return result


def _run(job: Callable[[int], None], n_jobs: int, threads: int) -> None:
    """Do the jobs on some threads; the first error ends it."""
    if n_jobs < 2:
        for number in range(n_jobs):
            job(number)
        return
    pool = ThreadPoolExecutor(min(threads, n_jobs))
    try:
        _exhaust(pool.map(job, range(n_jobs)))
    finally:
        pool.shutdown(cancel_futures=True)


def _exhaust(results: Iterable[None]) -> None:
    for _ in results:
        pass


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bag:
    """One image's patches as a head sees them."""

    image_id: str
    """Which image."""

    embedding: NDArray[Any]
    """``(patch, feature)``, in the stored dtype."""

    coords: NDArray[np.int32]
    """``(patch, 2)`` int32: x and y of the top-left corner in level-0 pixels."""

    tissue: NDArray[np.float32]
    """``(patch,)`` float32: share of tissue, 0 to 1."""

    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """What else was stored of each patch: name to ``(patch,)`` float32."""

    def __len__(self) -> int:
        return len(self.embedding)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """Rows of many images in memory; places are read when they are first asked for."""

    embedding: NDArray[Any]
    """``(patch, feature)``, in the stored dtype."""

    offset: NDArray[np.int64]
    """``(image + 1)``: rows of image *i* are ``offset[i]:offset[i + 1]``."""

    image_ids: tuple[str, ...]
    """In the order of the rows."""

    read_column: Callable[[str], NDArray[Any]]
    """Reads ``y``, ``x``, ``tissue`` or a column of the same rows."""

    column_names: tuple[str, ...] = ()
    """Columns per patch that were stored with at least one of the images."""

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def coords(self) -> NDArray[np.int32]:
        """``(patch, 2)`` int32: x and y of the top-left corner in level-0 pixels."""
        return np.stack([self.read_column("x"), self.read_column("y")], axis=1)

    @cached_property
    def tissue(self) -> NDArray[np.float32]:
        """``(patch,)`` float32: share of tissue, 0 to 1."""
        return self.read_column("tissue")

    @cached_property
    def columns(self) -> Columns:
        """What else was stored of each patch, by name; NaN in rows of which it was not."""
        return Columns(self.column_names, self.read_column)


class Columns(Mapping[str, "NDArray[np.float32]"]):
    """Columns per patch, ``(patch,)`` float32 each, by name; read when first asked for."""

    def __init__(self, names: Sequence[str], read: Callable[[str], NDArray[Any]]) -> None:
        self._names = dict.fromkeys(names)
        self._read = read
        self._held: dict[str, NDArray[np.float32]] = {}

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        if name not in self._held:
            if name not in self._names:
                raise KeyError(name)
            self._held[name] = self._read(name)
        return self._held[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
