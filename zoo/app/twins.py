"""Recognising an image that a run was trained on, by what the store recorded of it.

The same file has the same size in bytes, the same patches and, to rounding, the same vectors. Where
the file of the training can still be read, its bytes decide; where it has gone, the vectors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import HistostoreError
from histostore.files import read_bytes
from zoo.app.preprocessing import UPLOAD

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.store import FeatureSet
    from zoo.run import Run

__all__ = ["Twin", "find_twin"]

_AT_ONCE = 64
_TOLERANCE = 0.01
"""Distance of two vectors, by their length, up to which they may be one: half precision, and
another machine's rounding, stay well below; with a trained encoder, other pictures lie far above."""

_MOST_BYTES = 64 * 2**20
"""Largest file that is read to compare it; larger ones have too many patches to be mistaken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Twin:
    """The image of the training that an upload is."""

    image_id: str
    seen: frozenset[tuple[str, int, int]]
    """Heads that learned or watched it: the run's directory, fold and seed."""

    def is_seen_by(self, run: Run, fold: int, seed: int) -> bool:
        """Tell whether a head learned from it, or watched it to know when to stop."""
        return (str(run.path), fold, seed) in self.seen


def find_twin(
    path: str | os.PathLike[str],
    upload: FeatureSet,
    known: FeatureSet,
    runs: Sequence[Run],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Twin | None:
    """Find the image of the training that an upload is.

    Parameters
    ----------
    path
        The file.
    upload
        Holds the vectors of the upload.
    known
        The same feature set with those of the training.
    runs
        Who may have learned from it.
    storage_options
        For the storage of the training's images.

    Returns
    -------
    twin
        None where no run knows it.
    """
    n_bytes = Path(path).stat().st_size
    learned = {str(image) for run in runs for image in run.predictions["image_id"]}
    alike = [
        image_id
        for image_id, source in known.sources.documents.items()
        if image_id in learned and source["size"] in (n_bytes, None)
    ]
    shared = [view for view in upload.augmentations if view in known.augmentations]
    if not alike or not shared:
        return None
    view = shared[0]
    mine = upload.bag(UPLOAD, augmentation=view)
    alike = [image_id for image_id in alike if (image_id, view) in known.index]
    for image_id, vectors, coords in _bags(known, alike, view):
        if (
            np.array_equal(coords, mine.coords)
            and _is_same(vectors, mine.embedding)
            and _may_be_file(path, known.sources[image_id].url, storage_options)
        ):
            seen = frozenset(each for run in runs for each in _seen(run, image_id))
            return Twin(image_id=image_id, seen=seen)
    return None


def _bags(
    known: FeatureSet, image_ids: Sequence[str], view: str
) -> Iterator[tuple[str, NDArray[np.floating], NDArray[np.int32]]]:
    for start in range(0, len(image_ids), _AT_ONCE):
        loaded = known.load(image_ids[start : start + _AT_ONCE], view)
        for k, image_id in enumerate(loaded.image_ids):
            rows = slice(int(loaded.offset[k]), int(loaded.offset[k + 1]))
            yield image_id, loaded.embedding[rows], loaded.coords[rows]


def _is_same(a: NDArray[np.floating], b: NDArray[np.floating]) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.astype(np.float64), b.astype(np.float64)
    return bool(np.linalg.norm(a - b) <= _TOLERANCE * np.linalg.norm(b))


def _may_be_file(
    path: str | os.PathLike[str], url: str, storage_options: Mapping[str, Any] | None
) -> bool:
    """Compare two files of one size; what can no longer be read, may be the same."""
    if Path(path).stat().st_size > _MOST_BYTES:
        return True
    try:
        there = read_bytes(url, storage_options)
    except HistostoreError:
        return True
    return there == Path(path).read_bytes()


def _seen(run: Run, image_id: str) -> Iterator[tuple[str, int, int]]:
    rows = run.predictions
    mine = rows[(rows["image_id"].astype(str) == image_id) & (rows["role"] != "test")]
    for fold, seed in mine[["fold", "seed"]].to_numpy():
        yield str(run.path), int(fold), int(seed)
