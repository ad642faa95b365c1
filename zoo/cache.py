"""Embeddings that do not fit into memory, as a local file that is mapped instead.

A store is read by whole chunks, from wherever it lies; a training loop asks for bags in random
order, again and again. Where a cohort fits into the memory budget it is loaded once. Where it
does not, its rows are copied once, part by part, into one flat local file, and every process
maps that file: bags are then slices, and the operating system keeps in memory what is in use.

One folder per cohort, view and moment of the store, under a name that is a digest of these. It
is filled under a hidden name and renamed when it is whole and flushed, so that it exists whole
or not at all; several processes may fill at once, and the first one wins. Every image has a
checksum, verified when the folder is opened; one that fails is filled again.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zoo.filling import COORDS, DOCUMENT, EMBEDDING, PART_BYTES, Filling, single_precision
from zoo.memory import memory_budget

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.store import FeatureSet

__all__ = ["CacheEntry", "Rows", "cache_entries", "cache_folder", "map_rows", "read_rows"]

_LEAST_PART_BYTES = 8 * 2**20
_COORDS_BYTES = 16
"""A row's place while it is read: two columns, and both as one."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """The rows of some images, one image after the other."""

    embedding: NDArray[np.float32]
    """``(patch, feature)``; read-only where it is a mapped file."""
    offset: NDArray[np.int64]
    """``(image + 1)``: rows of image *i* are ``offset[i]:offset[i + 1]``."""
    coords: NDArray[np.int32]
    """``(patch, 2)``: x and y."""
    folder: Path | None
    """Where the mapped file lies; None where the rows are in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheEntry:
    """One cohort in one view, as it lies in the cache folder."""

    path: Path
    """Its folder; to remove it is to remove the entry."""
    n_bytes: int
    """Space it takes."""
    n_images: int
    """Images in it."""
    feature_set: str
    """Name of the feature set."""
    augmentation: str
    """The view."""
    snapshot: str
    """The store's snapshot it was read from; a store that has grown has another."""


def cache_folder(folder: str | os.PathLike[str] | None = None) -> Path:
    """Say where cached files lie.

    Parameters
    ----------
    folder
        Taken as it is; else ``$HISTOSTORE_CACHE``, else ``histostore`` in the user's own folder
        for caches.
    """
    if folder is not None:
        return Path(folder).expanduser()
    told = os.environ.get("HISTOSTORE_CACHE")
    if told:
        return Path(told).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", "~")).expanduser() / "histostore" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "histostore"


def read_rows(
    features: FeatureSet,
    image_ids: Sequence[str],
    augmentation: str,
    *,
    memory_limit: int | None = None,
    folder: str | os.PathLike[str] | None = None,
    times: int = 1,
) -> Rows:
    """Read images from the store: into memory if they fit, else into a mapped local file.

    Parameters
    ----------
    features
        Feature set of an open store; it holds every image in the view.
    image_ids
        Images in the order of the rows.
    augmentation
        View.
    memory_limit
        Bytes that the rows may take in memory; :func:`~zoo.memory.memory_budget` where left out, 0 for a
        file always.
    folder
        Where local files are kept; see :func:`cache_folder`.
    times
        So many arrays as this one are to share the memory: they fit together, or not.

    Raises
    ------
    StorageError
        If the local file does not fit on its disk, or cannot be written.
    NotFound, CorruptError
        As the store has it.
    """
    limit = memory_budget() if memory_limit is None else memory_limit
    offset = _offset(features, image_ids, augmentation)
    spec = features.spec
    stored = np.dtype(spec.dtype).itemsize
    # Half precision is converted: for a moment both are there.
    per_row = spec.n_features * (4 if stored == 4 else 4 + stored) + _COORDS_BYTES
    if times * int(offset[-1]) * per_row <= limit:
        loaded = features.load(image_ids, augmentation)
        embedding = single_precision(loaded.embedding)
        return Rows(embedding=embedding, offset=offset, coords=loaded.coords, folder=None)
    filling = Filling(
        features,
        tuple(image_ids),
        augmentation,
        offset,
        home=cache_folder(folder),
        part_bytes=min(max(limit // 4, _LEAST_PART_BYTES), PART_BYTES),
    )
    filled = filling.folder()
    embedding, coords = map_rows(filled)
    return Rows(embedding=embedding, offset=offset, coords=coords, folder=filled)


def map_rows(folder: Path) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Map the files of a folder that was verified before: embedding and coords, read-only."""
    # Plain arrays over the mapping: slices of memmap objects are slow to make.
    embedding, coords = (
        np.load(folder / name, mmap_mode="r", allow_pickle=False).view(np.ndarray)
        for name in (EMBEDDING, COORDS)
    )
    return embedding, coords


def _offset(features: FeatureSet, image_ids: Sequence[str], augmentation: str) -> NDArray[np.int64]:
    """Count rows from the commit records alone; what is missing is left for the store to say."""
    index = features.index
    bounds = [
        index[image, augmentation][1] for image in image_ids if (image, augmentation) in index
    ]
    if len(bounds) < len(image_ids):
        features.load(image_ids, augmentation)
    return np.cumsum([0, *(rows.stop - rows.start for rows in bounds)], dtype=np.int64)


def cache_entries(folder: str | os.PathLike[str] | None = None) -> list[CacheEntry]:
    """List what is cached, largest first; remove an entry by removing its folder."""
    entries = []
    for path in cache_folder(folder).glob("[!.]*"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            facts = json.loads((path / DOCUMENT).read_bytes())["facts"]
            entries.append(
                CacheEntry(
                    path=path,
                    n_bytes=sum(file.stat().st_size for file in path.iterdir()),
                    n_images=facts["n_images"],
                    feature_set=facts["feature_set"],
                    augmentation=facts["augmentation"],
                    snapshot=facts["snapshot"],
                )
            )
    return sorted(entries, key=lambda entry: (-entry.n_bytes, entry.path))
