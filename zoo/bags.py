"""Bags: the patches of each image as a head sees them, with the image's label.

All embeddings of a cohort lie in one flat ``(patch, feature)`` array with offsets, read from
the store once: in memory where they fit, else in a local file that is mapped (:mod:`zoo.cache`).
Choosing some bags (``bags[train]``) copies nothing until the embeddings of the choice are asked
for.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from histostore.files import public_url
from zoo.bagtable import Bag, BagTable, read_table
from zoo.labels import digest_of, encode, objects
from zoo.showing import bags_html, bags_line
from zoo.stored import usable
from zoo.targets import check_truth, cohort_of, read_targets
from zoo.tasks import Task

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import pandas as pd
    from numpy.typing import ArrayLike, NDArray

    from histostore.cohort import Cohort
    from histostore.store import FeatureSet

__all__ = ["Bag", "Bags"]

BLOCK_BYTES = 64 * 2**20
"""Embeddings that :meth:`Bags.blocks` holds at once."""


class Bags:
    """The labelled images of a cohort with their embeddings.

    A sequence: ``bags[7]`` is a :class:`Bag`, ``bags[train]`` with a slice, an index array or a
    boolean mask is again ``Bags``. With ``len`` and an integer index it is a map-style torch
    data set as well (``DataLoader(bags, batch_size=None)`` yields :class:`Bag` by :class:`Bag`).

    Parameters
    ----------
    features
        Feature set of an open store.
    cohort
        Table of images, or its path or data frame. Those without a label are left out and counted in ``n_unlabelled``,
        those that failed in the build in ``n_failed``.
    target
        Column of the cohort that holds the label.
    augmentation
        View whose embeddings are read.
    task
        What is learned; classification of ``target`` where left out.
    levels
        Of task ordinal, the lowest first; numbers in their order where left out.
    memory_limit
        Bytes of rows kept in memory, half of what is free where left out; more go to a local file.
    cache
        Folder for such files; ``$HISTOSTORE_CACHE``, or the user's folder for caches.

    Raises
    ------
    OptionError
        If the cohort has no such column, or it holds what the task cannot learn.
    NotFound
        If labelled images were never built, or none is left.
    EmptyBag
        If an image has no patch.
    """

    __slots__ = (
        "_choice",
        "_embedding",
        "_table",
        "augmentation",
        "classes",
        "n_failed",
        "n_unlabelled",
        "source",
        "target",
        "task",
    )

    _embedding: NDArray[np.float32] | None
    classes: tuple[str, ...]
    """Names of the classes, sorted (levels in their order); ``labels`` index into it."""
    task: Task
    """What is learned of the images."""
    n_unlabelled: int
    """Images of the cohort that were left out because they have no label."""
    n_failed: int
    """Images with a label that were left out because no build could embed them."""
    target: str
    """The cohort's column of labels."""
    augmentation: str
    """The view of the embeddings."""
    source: dict[str, dict[str, Any]]
    """Feature set and cohort as a run records them; empty for arrays."""

    def __init__(
        self,
        features: FeatureSet,
        cohort: Cohort | pd.DataFrame | str | os.PathLike[str],
        target: str = "label",
        augmentation: str = "identity",
        *,
        task: Task | None = None,
        levels: Sequence[str] = (),
        memory_limit: int | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        cohort, task = cohort_of(cohort), task or Task(targets=(target,))
        read = read_targets(cohort, task, levels)
        labelled = np.flatnonzero(read.codes >= 0)
        image_ids = objects(cohort.image_ids)
        kept = labelled[usable(features, image_ids[labelled], augmentation)]
        chosen = read.select(kept)
        table = read_table(
            features,
            image_ids[kept],
            patient_ids=objects(cohort.patient_ids)[kept],
            labels=chosen.codes,
            truth=chosen.truth,
            augmentation=augmentation,
            memory_limit=memory_limit,
            cache=cache,
        )
        self._set(table, chosen.classes, augmentation, task)
        self.n_unlabelled = len(cohort) - len(labelled)
        self.n_failed = len(labelled) - len(kept)
        self.source = {
            "store": {
                "feature_set": features.name,
                "snapshot": features.snapshot,
                "spec": features.spec.to_json(),
            },
            "cohort": {"url": public_url(cohort.url)},
        }

    @classmethod
    def unlabelled(
        cls,
        features: FeatureSet,
        image_ids: Sequence[str] | None = None,
        *,
        classes: Sequence[str] = (),
        augmentation: str = "identity",
        memory_limit: int | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> Bags:
        """Read images that are only to be predicted.

        Parameters
        ----------
        features
            Feature set of an open store.
        image_ids
            Images in the order wanted; all of the feature set where left out.
        classes
            Classes that a head will predict.
        augmentation
            View whose embeddings are read.
        memory_limit, cache
            As of :class:`Bags`.
        """
        chosen = objects(features.image_ids if image_ids is None else image_ids)
        table = read_table(
            features,
            chosen,
            patient_ids=chosen,
            labels=np.full(len(chosen), -1, np.int64),
            truth=None,
            augmentation=augmentation,
            memory_limit=memory_limit,
            cache=cache,
        )
        bags = cls._new(table, tuple(classes), augmentation, Task())
        bags.target = ""
        return bags

    @classmethod
    def from_arrays(
        cls,
        embedding: ArrayLike,
        offset: ArrayLike,
        *,
        labels: Sequence[str | None] | ArrayLike | None = None,
        classes: Sequence[str] | None = None,
        image_ids: Sequence[str] | None = None,
        patient_ids: Sequence[str] | None = None,
        coords: ArrayLike | None = None,
        task: Task | None = None,
        truth: ArrayLike | None = None,
    ) -> Bags:
        """Make bags of arrays in memory.

        Parameters
        ----------
        embedding
            ``(patch, feature)``, turned into float32.
        offset
            ``(bag + 1,)``; rows of bag i are ``offset[i]:offset[i + 1]``.
        labels
            Class names (None: no label), or integers into ``classes`` (−1: no label).
        classes
            Names of the classes; the sorted names that occur where left out.
        image_ids
            Names; ``"0"``, ``"1"``, … where left out.
        patient_ids
            Patients; each image its own where left out.
        coords
            ``(patch, 2)`` x and y in pixels; zeros where left out.
        task
            What is learned; classification where left out.
        truth
            ``(bag, column)``, in place of labels where the task has neither classes nor levels.

        Raises
        ------
        OptionError
            If the arrays do not fit each other, hold NaN, or a label is not among the classes.
        EmptyBag
            If a bag has no row.

        Examples
        --------
        >>> bags = Bags.from_arrays([[1.0], [2.0], [3.0]], [0, 1, 3], labels=["b", "a"])
        >>> bags.classes, bags.labels.tolist(), bags.lengths.tolist()
        (('a', 'b'), [1, 0], [1, 2])
        >>> bags[[1]].embedding.ravel().tolist()
        [2.0, 3.0]
        """
        rows = np.asarray(embedding, dtype=np.float32)
        starts = np.asarray(offset, dtype=np.int64)
        n = len(starts) - 1
        names = objects([str(name) for name in (range(n) if image_ids is None else image_ids)])
        task = Task() if task is None else task
        (codes, known), numbers = encode(labels, classes, n), None
        if not task.one_class:
            (codes, numbers), known = check_truth(task, truth), tuple(classes or ())
        table = BagTable(
            embedding=rows,
            offset=starts,
            coords=np.asarray(np.zeros((len(rows), 2)) if coords is None else coords, np.int32),
            image_ids=names,
            patient_ids=names if patient_ids is None else objects([str(p) for p in patient_ids]),
            labels=codes,
            truth=numbers,
        )
        return cls._new(table.finite(), known, "identity", task)

    @classmethod
    def _new(cls, table: BagTable, classes: tuple[str, ...], augmentation: str, task: Task) -> Bags:
        bags = cls.__new__(cls)
        bags._set(table, classes, augmentation, task)  # noqa: SLF001 (our own, just made)
        return bags

    def _set(
        self, table: BagTable, classes: tuple[str, ...], augmentation: str, task: Task
    ) -> None:
        self._table = table
        self._choice = np.arange(len(table.labels), dtype=np.int64)
        self._embedding = None
        self.classes = classes
        self.n_unlabelled = self.n_failed = 0
        self.task = task
        self.target = ",".join(task.targets)
        self.augmentation = augmentation
        self.source = {}

    @property
    def embedding(self) -> NDArray[np.float32]:
        """Embeddings of all bags one after the other, ``(patch, feature)`` float32.

        Rows of a mapped file may be more than memory holds: :meth:`blocks` gives them in parts.
        """
        if self._embedding is not None:
            return self._embedding
        rows = self._table.gather(self._choice)
        if self._table.folder is None:  # else memory is short: what is copied is not kept
            self._embedding = rows
        return rows

    @property
    def folder(self) -> Path | None:
        """Folder of the mapped file; None where the rows are in memory."""
        return self._table.folder

    @property
    def table(self) -> BagTable:
        """The arrays that all choices of bags share; bags of this choice begin at :attr:`starts`."""
        return self._table

    @property
    def starts(self) -> NDArray[np.int64]:
        """First row of each bag in the arrays of :attr:`table`, ``(bag,)`` int64."""
        return self._table.offset[self._choice]

    def blocks(self, n_bytes: int = BLOCK_BYTES) -> Iterator[Bags]:
        """Give all bags in order, so many at once as take ``n_bytes``, or one that takes more.

        Where the rows are in memory there is nothing to save, and one block holds all.

        Examples
        --------
        >>> bags = Bags.from_arrays([[1.0], [2.0], [3.0]], [0, 1, 3], labels=["b", "a"])
        >>> [len(block) for block in bags.blocks()]
        [2]
        """
        if self._table.folder is None:
            yield self
            return
        yield from (self[part] for part in self._table.parts(self._choice, n_bytes))

    @property
    def offset(self) -> NDArray[np.int64]:
        """Rows of bag i are ``offset[i]:offset[i + 1]``; ``(bag + 1,)`` int64."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Patches per bag, ``(bag,)`` int64."""
        return np.diff(self._table.offset)[self._choice]

    @property
    def coords(self) -> NDArray[np.int32]:
        """Top-left corners ``(patch, 2)`` int32, x then y, level-0 pixels."""
        return self._table.coords[self._table.rows(self._choice)]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index into ``classes`` per bag, −1 where there is no label; ``(bag,)`` int64."""
        return self._table.labels[self._choice]

    @property
    def truth(self) -> NDArray[Any]:
        """What the task learns: ``labels``, or of other tasks ``(bag, column)`` float64."""
        return self.labels if self._table.truth is None else self._table.truth[self._choice]

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Names of the images."""
        return tuple(self._table.image_ids[self._choice])

    @property
    def patient_ids(self) -> tuple[str, ...]:
        """Patients of the images."""
        return tuple(self._table.patient_ids[self._choice])

    @property
    def n_features(self) -> int:
        """Length of one embedding."""
        return int(self._table.embedding.shape[1])

    @property
    def digest(self) -> str:
        """SHA-256 over image, patient and class of every bag, whatever their order."""
        known = (*self.classes, None)
        one = self.task.one_class
        truth = [known[label] for label in self.labels] if one else self.truth.tolist()
        return digest_of(zip(self.image_ids, self.patient_ids, truth, strict=True))

    def __len__(self) -> int:
        return len(self._choice)

    @overload
    def __getitem__(self, key: int) -> Bag: ...

    @overload
    def __getitem__(
        self, key: slice | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]
    ) -> Bags: ...

    def __getitem__(
        self, key: int | slice | Sequence[int] | NDArray[np.integer] | NDArray[np.bool_]
    ) -> Bag | Bags:
        if isinstance(key, (int, np.integer)):
            return self._table.bag(int(self._choice[key]))
        # An empty list would become a float array, which indexes nothing.
        chosen = key if isinstance(key, slice) or len(key) else slice(0, 0)
        bags = copy.copy(self)
        bags._choice = self._choice[chosen]  # noqa: SLF001 (our own, just made)
        bags._embedding = None  # noqa: SLF001
        return bags

    def __iter__(self) -> Iterator[Bag]:
        return (self._table.bag(row) for row in self._choice.tolist())

    def __repr__(self) -> str:
        return bags_line(self.lengths, self.n_features, self.classes)

    def _repr_html_(self) -> str:
        return bags_html(self)
