"""What all choices from one set of bags share: the rows, and a line per image."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from zoo.cache import map_rows, read_rows
from zoo.errors import EmptyBag
from zoo.labels import named

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.store import FeatureSet

__all__ = ["Bag", "BagTable", "read_table"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Bag:
    """One image's patches."""

    embedding: NDArray[np.float32]
    """Embeddings, ``(patch, feature)`` float32; read-only where they are mapped."""
    coords: NDArray[np.int32]
    """Top-left corners ``(patch, 2)``, x then y, in level-0 pixels."""
    label: int
    """Index into ``Bags.classes``, or −1 where the image has no label."""
    image_id: str
    """The image's name in the cohort."""
    truth: NDArray[np.float64] | None = None
    """``(column,)`` of tasks whose target is no class; else None."""

    def __len__(self) -> int:
        return len(self.embedding)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BagTable:
    """Rows of all bags one after the other, and what is known of each bag.

    Handed to another process, a table in memory is copied and a mapped one is mapped again.

    Raises
    ------
    OptionError
        If the arrays do not fit each other.
    EmptyBag
        If a bag has no row.
    """

    embedding: NDArray[np.float32]
    """``(patch, feature)``."""
    offset: NDArray[np.int64]
    """``(bag + 1,)``."""
    coords: NDArray[np.int32]
    """``(patch, 2)``."""
    image_ids: NDArray[np.object_]
    """``(bag,)``."""
    patient_ids: NDArray[np.object_]
    """``(bag,)``."""
    labels: NDArray[np.int64]
    """``(bag,)``, −1 where there is none."""
    truth: NDArray[np.float64] | None = None
    """``(bag, column)`` of tasks whose target is no class."""
    folder: Path | None = None
    """Where the mapped file lies; None where the rows are in memory."""
    others: Mapping[str, BagTable] = dataclasses.field(default_factory=dict)
    """The same patches in further views, by name (:mod:`zoo.manyviews`)."""
    train_views: tuple[str, ...] = ()
    """Views that training draws each patch from; none: this table's own."""
    test_views: tuple[str, ...] = ()
    """Views whose predictions are averaged; none: this table's own."""

    def __post_init__(self) -> None:
        n, rows = len(self.offset) - 1, len(self.embedding)
        flat = self.embedding.ndim == 2 and self.offset.ndim == 1 and n >= 0
        if not flat or self.offset[0] != 0 or self.offset[-1] != rows:
            msg = (
                "embedding must be (patch, feature) and offset run from 0 to its length, "
                f"seen {self.embedding.shape=}, offset {self.offset.ravel()[:: max(n, 1)].tolist()}"
            )
            raise OptionError(msg)
        expected = {"coords": rows, "image_ids": n, "patient_ids": n, "labels": n}
        expected = expected if self.truth is None else {"truth": n, **expected}
        for name, length in expected.items():
            if len(getattr(self, name)) != length:
                msg = f"{name} has {len(getattr(self, name))} entries where {length} are needed"
                raise OptionError(msg)
        empty = self.image_ids[np.diff(self.offset) <= 0]
        if len(empty):
            msg = f"{named(empty)} without any patch: leave out or build again"
            raise EmptyBag(msg)

    def __reduce__(self) -> tuple[Any, ...]:
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.folder is not None:
            del fields["embedding"], fields["coords"]
        return _rebuilt, (fields,)

    def finite(self) -> BagTable:
        """Give this table, or refuse rows that hold NaN or infinity.

        Raises
        ------
        OptionError
            With the first bags that have such a row.
        """
        with np.errstate(invalid="ignore"):  # infinities of both signs
            sums = self.embedding.sum(axis=1, dtype=np.float64)
        wrong = np.flatnonzero(~np.isfinite(sums))
        if len(wrong):
            bags = np.unique(np.searchsorted(self.offset, wrong, side="right") - 1)
            n = f"{len(wrong):,} of {len(sums):,} patches"
            raise OptionError(
                f"{n} hold NaN or infinity, in {named(self.image_ids[bags])}: leave them out, or fill "
                "the gaps"
            )
        return self

    def bag(self, row: int) -> Bag:
        """Give one bag; its rows are a slice, not a copy."""
        rows = slice(int(self.offset[row]), int(self.offset[row + 1]))
        return Bag(
            embedding=self.embedding[rows],
            coords=self.coords[rows],
            label=int(self.labels[row]),
            image_id=str(self.image_ids[row]),
            truth=None if self.truth is None else self.truth[row],
        )

    def rows(self, choice: NDArray[np.int64]) -> NDArray[np.int64] | slice:
        """Find the rows of some bags, a slice where they lie in one piece."""
        if len(choice) and np.all(np.diff(choice) == 1):
            return slice(int(self.offset[choice[0]]), int(self.offset[choice[-1] + 1]))
        lengths = np.diff(self.offset)[choice]
        # Row k of bag i is starts[i] + k: repeat what each bag adds to a running count.
        shift = self.offset[choice] - (np.cumsum(lengths) - lengths)
        rows: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(shift, lengths)
        return rows

    def parts(self, choice: NDArray[np.int64], n_bytes: int) -> Iterator[slice]:
        """Cut some bags into runs whose rows take ``n_bytes``, or one bag where that takes more."""
        ends = np.cumsum(np.diff(self.offset)[choice]) * (4 * self.embedding.shape[1])
        start = 0
        while start < len(choice):
            before = ends[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + n_bytes, side="right")))
            yield slice(start, stop)
            start = stop

    def gather(self, choice: NDArray[np.int64]) -> NDArray[np.float32]:
        """Give the embeddings of some bags, ``(patch, feature)`` float32.

        Bags that are neighbours are copied in one piece; one piece in all is not copied.
        """
        breaks = np.flatnonzero(np.diff(choice) != 1) + 1
        first = np.concatenate([[0], breaks])[: len(choice)]
        last = np.concatenate([breaks, [len(choice)]])[: len(first)] - 1
        starts, stops = self.offset[choice[first]], self.offset[choice[last] + 1]
        if len(starts) == 1:
            return self.embedding[int(starts[0]) : int(stops[0])]
        rows = np.empty((int((stops - starts).sum()), self.embedding.shape[1]), np.float32)
        at = 0
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            rows[at : at + stop - start] = self.embedding[start:stop]
            at += stop - start
        return rows


def _rebuilt(fields: dict[str, Any]) -> BagTable:
    if fields["folder"] is not None:
        fields["embedding"], fields["coords"] = map_rows(fields["folder"])
    return BagTable(**fields)


def read_table(
    features: FeatureSet,
    image_ids: NDArray[np.object_],
    *,
    patient_ids: NDArray[np.object_],
    labels: NDArray[np.int64],
    truth: NDArray[np.float64] | None,
    augmentation: str,
    memory_limit: int | None,
    cache: str | os.PathLike[str] | None,
) -> BagTable:
    """Read images in their order from the store.

    Parameters
    ----------
    features, augmentation
        What is read.
    image_ids, patient_ids, labels, truth
        As of :class:`BagTable`.
    memory_limit, cache
        As of :func:`zoo.cache.read_rows`.
    """
    rows = read_rows(
        features, list(image_ids), augmentation, memory_limit=memory_limit, folder=cache
    )
    return BagTable(
        embedding=rows.embedding,
        offset=rows.offset,
        coords=rows.coords,
        image_ids=image_ids,
        patient_ids=patient_ids,
        labels=labels,
        truth=truth,
        folder=rows.folder,
    )
