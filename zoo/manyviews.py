"""Bags in several stored views: drawn from in training, averaged over in predicting.

A store may hold the same patches in several views. Each view is read as any other: into memory, or
into the local file of its own that :mod:`zoo.cache` keeps, where a run with other views finds it
again. A network's batch takes every patch's row from one of the training views, drawn anew each
time. A head that is fitted to whole bags is given each image once per training view. What is
watched while training and what is predicted is the view of the bags, or where test views are
named, the average of what is predicted in each.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import shutil
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from histostore.errors import NotFound, OptionError
from histostore.views import parse_views
from zoo.bagtable import BagTable
from zoo.cache import map_rows, read_rows
from zoo.filling import COORDS, EMBEDDING
from zoo.labels import named
from zoo.memory import memory_budget

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.store import FeatureSet
    from zoo.bags import Bags

__all__ = [
    "R7",
    "Stacked",
    "all_views",
    "as_extra_bags",
    "in_view",
    "predict_views",
    "spilled",
    "training_views",
    "view_names",
    "views_told",
    "with_views",
]

R7 = ("identity", "flip-h", "flip-v", "rot180", "rot90", "rot270")
"""The views published for test-time augmentation as "identity, both flips, their combination,
rotations by 90, 180 and 270"; both flips together are the half turn, which counts once here."""


class Predictor(Protocol):
    """A fitted head, as far as it is needed here."""

    def predict(self, bags: Bags) -> NDArray[np.float64]:
        """Predict each bag, ``(bag, column)``."""


def view_names(
    told: str | Sequence[str], features: FeatureSet, image_ids: Sequence[str]
) -> tuple[str, ...]:
    """Read the value of ``--train-views`` or ``--test-views``, and see that all images have them.

    Parameters
    ----------
    told
        Names; or a text as :func:`histostore.views.parse_views` reads it, ``all`` for every view
        that all images have, or ``r7`` for :data:`R7`. None where empty.
    features
        Feature set of an open store.
    image_ids
        Images that are to have the views.

    Raises
    ------
    NotFound
        If an image lacks a view; the message lists the views that all images have.
    OptionError
        If a name is unknown or given twice.
    """
    index = features.index
    if told == "all":
        return tuple(
            view
            for view in features.augmentations
            if all((image, view) in index for image in image_ids)
        )
    names = R7 if told == "r7" else parse_views(told) if told and isinstance(told, str) else told
    if len(set(names)) < len(names):
        raise OptionError(f"a view is named twice in {', '.join(names)}; name each once")
    for view in names:
        lacking = [image for image in image_ids if (image, view) not in index]
        if lacking:
            there = ", ".join(view_names("all", features, image_ids)) or "none"
            raise NotFound(
                f"{named(lacking)} without view {view!r} in feature set {features.name}; all of "
                f"{len(image_ids)} have {there}: use these, or run histostore build --augment {view}"
            )
    return tuple(names)


def with_views(
    bags: Bags,
    features: FeatureSet,
    *,
    train: str | Sequence[str] = (),
    test: str | Sequence[str] = (),
    memory_limit: int | None = None,
    cache: str | os.PathLike[str] | None = None,
) -> Bags:
    """Read further views of bags, to train on and to be tested in.

    Parameters
    ----------
    bags
        Read from ``features`` in one view. These, or a choice of them, can be given to any head.
    features
        Feature set of an open store.
    train
        Views that training draws from; those of the bags where left out. See :func:`view_names`.
    test
        Views whose predictions are averaged by :func:`predict_views`; those of the bags where
        left out.
    memory_limit
        Bytes that the further views may take in memory, all together; beyond, each is kept in a
        local file. Half of the memory that is still available where left out.
    cache
        Folder for such files; that of the bags, if they are mapped, or see
        :func:`zoo.cache.cache_folder`.

    Raises
    ------
    NotFound, OptionError
        As :func:`view_names`.
    OptionError
        If an image has other patches in one view than in another, or the bags are not of
        ``features``.
    """
    table = bags.table
    images = [str(image) for image in table.image_ids]
    train, test = (view_names(told, features, images) for told in (train, test))
    wanted = [view for view in dict.fromkeys((*train, *test)) if view != bags.augmentation]
    limit = memory_budget() if memory_limit is None else memory_limit
    if cache is None and bags.folder is not None:
        cache = bags.folder.parent
    others = {}
    for view in wanted:
        rows = read_rows(
            features, images, view, memory_limit=limit, folder=cache, times=len(wanted)
        )
        problem = _problem(table, rows.embedding, rows.offset, rows.coords)
        if problem:
            raise OptionError(
                f"feature set {features.name}: {problem} in view {view} than in view "
                f"{bags.augmentation}: the views must be of the same patches, in one order"
            )
        # A table of its own: of one view, whatever was read before.
        others[view] = dataclasses.replace(
            table,
            embedding=rows.embedding,
            folder=rows.folder,
            others={},
            train_views=(),
            test_views=(),
        )
    return _over(
        bags, dataclasses.replace(table, others=others, train_views=train, test_views=test)
    )


def _problem(
    table: BagTable,
    embedding: NDArray[np.float32],
    offset: NDArray[np.int64],
    coords: NDArray[np.int32],
) -> str:
    """Say what differs between two views, if anything: the number of patches, or a place."""
    uneven = np.flatnonzero(np.diff(offset) != np.diff(table.offset))
    if len(uneven):
        image = uneven[0]
        counts = (np.diff(rows)[image] for rows in (offset, table.offset))
        return "image {!r} has {} patches, not {},".format(table.image_ids[image], *counts)
    if embedding.shape != table.embedding.shape:
        return f"embeddings have {embedding.shape[1]} features, not {table.embedding.shape[1]},"
    for image in range(len(offset) - 1):
        rows = slice(int(offset[image]), int(offset[image + 1]))
        if not np.array_equal(coords[rows], table.coords[rows]):
            return f"image {table.image_ids[image]!r} has patches at other places"
    return ""


def _over(bags: Bags, table: BagTable) -> Bags:
    """Give the same choice of bags over another table of the same images."""
    found = copy.copy(bags)
    found._table, found._embedding = table, None  # noqa: SLF001 (our own, just made)
    return found


def in_view(bags: Bags, view: str) -> Bags:
    """Give the same bags in one of the views that were read.

    Raises
    ------
    OptionError
        If it was not read; the message lists those that were.
    """
    if view == bags.augmentation:
        return bags
    if view not in bags.table.others:
        read = ", ".join((bags.augmentation, *bags.table.others))
        raise OptionError(f"view {view!r} was not read with these bags; there are {read}")
    found = _over(bags, bags.table.others[view])
    found.augmentation = view
    return found


def all_views(bags: Bags) -> tuple[Bags, ...]:
    """Give the bags in every view that was read, their own first."""
    return (bags, *(in_view(bags, view) for view in bags.table.others))


def training_views(bags: Bags) -> tuple[str, ...]:
    """Name the views that training draws from: the bags' own where none was named."""
    return bags.table.train_views or (bags.augmentation,)


def views_told(bags: Bags) -> dict[str, list[str]]:
    """Give what a run records of views: ``train_views`` and ``test_views``, where named."""
    told = {"train_views": bags.table.train_views, "test_views": bags.table.test_views}
    return {key: list(views) for key, views in told.items() if views}


def predict_views(
    head: Predictor, bags: Bags, views: Sequence[str] | None = None
) -> NDArray[np.float64]:
    """Average what a head predicts in several views.

    Parameters
    ----------
    head
        A fitted head.
    bags
        What to predict.
    views
        Of those that were read; the bags' test views where left out, or their own view where
        none was named.

    Returns
    -------
    values
        ``(bag, column)`` float64, as ``head.predict`` gives them.

    Raises
    ------
    OptionError
        If a view was not read.
    """
    names = (bags.table.test_views if views is None else tuple(views)) or (bags.augmentation,)
    average: NDArray[np.float64] = np.mean(
        [head.predict(in_view(bags, view)) for view in names], axis=0
    )
    return average


class Stacked:
    """Arrays of one shape as if they lay one below the other, none copied: the rows of views.

    Examples
    --------
    >>> rows = Stacked([np.array([[1.0], [2.0]]), np.array([[3.0], [4.0]])])
    >>> rows.shape, rows[1:3].ravel().tolist(), rows.take([3, 0]).ravel().tolist()
    ((4, 1), [2.0, 3.0], [4.0, 1.0])
    """

    ndim = 2

    def __init__(self, arrays: Sequence[NDArray[Any]]) -> None:
        self._arrays = tuple(arrays)
        self._n_rows = len(arrays[0])
        self.dtype = arrays[0].dtype
        self.shape: tuple[int, int] = (len(arrays) * self._n_rows, arrays[0].shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Give rows; those of a slice are copied only where they lie in several arrays."""
        if not isinstance(rows, slice):
            return self.take(rows)
        start, stop, _ = rows.indices(len(self))
        firsts = range(0, len(self), self._n_rows)
        parts = [
            array[max(start - first, 0) : max(stop - first, 0)]
            for first, array in zip(firsts, self._arrays, strict=True)
        ]
        filled = [part for part in parts if len(part)] or parts[:1]
        return filled[0] if len(filled) == 1 else np.concatenate(filled)

    def take(self, where: Sequence[int] | NDArray[np.int64], axis: int = 0) -> NDArray[Any]:
        """Give the rows ``where``, ``(row, column)``, in new memory; ``axis`` is 0."""
        view, row = np.divmod(np.asarray(where), self._n_rows)
        found = np.empty((len(row), self.shape[1]), self.dtype)
        for number, array in enumerate(self._arrays):
            mine = np.flatnonzero(view == number)
            found[mine] = array.take(row[mine], axis=axis)
        return found


def as_extra_bags(bags: Bags) -> Bags:
    """Give each bag once per training view, one view after the other; nothing is copied.

    Labels and patients are those of the bag, so that folds inside a fit keep a patient whole. The
    bags themselves where there is one training view.
    """
    seen = [in_view(bags, view) for view in training_views(bags)]
    if len(seen) == 1:
        return seen[0]
    tables = [one.table for one in seen]
    first, count = tables[0], len(tables)
    shifts = np.arange(count) * len(first.coords)
    table = BagTable(
        # A table asks its arrays for rows, type and shape only, which these give as well.
        embedding=cast("NDArray[np.float32]", Stacked([one.embedding for one in tables])),
        coords=cast("NDArray[np.int32]", Stacked([first.coords] * count)),
        offset=np.append(np.add.outer(shifts, first.offset[:-1]), count * len(first.coords)),
        image_ids=np.tile(first.image_ids, count),
        patient_ids=np.tile(first.patient_ids, count),
        labels=np.tile(first.labels, count),
        truth=None if first.truth is None else np.tile(first.truth, (count, 1)),
        folder=next((one.folder for one in tables if one.folder is not None), None),
    )
    extra = _over(bags, table)
    choice = bags._choice  # noqa: SLF001 (our own)
    every = np.add.outer(np.arange(count) * len(first.labels), choice)
    extra._choice = every.ravel()  # noqa: SLF001
    return extra


@contextlib.contextmanager
def spilled(bags: Bags, folder: Path) -> Iterator[Bags]:
    """Give bags whose views all lie in files, which other processes map, for the time of a block.

    What is mapped already stays where it is.
    """
    made: list[Path] = []

    def mapped(one: Bags) -> BagTable:
        table = one.table
        if table.folder is not None:
            return table
        made.append(folder / f"rows-{len(made)}")
        made[-1].mkdir(exist_ok=True)
        np.save(made[-1] / EMBEDDING, table.embedding, allow_pickle=False)
        np.save(made[-1] / COORDS, table.coords, allow_pickle=False)
        embedding, coords = map_rows(made[-1])
        return dataclasses.replace(table, embedding=embedding, coords=coords, folder=made[-1])

    try:
        own, *rest = map(mapped, all_views(bags))
        others = dict(zip(bags.table.others, rest, strict=True))
        yield _over(bags, dataclasses.replace(own, others=others))
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
