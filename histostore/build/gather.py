"""Joining finished images into fragments."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.build.rows import HeldRows
from histostore.images.quality import COLUMNS
from histostore.store.fragment import Fragment, Patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.build.pipeline import EncodedImage

__all__ = ["gather_fragments", "patches_of"]

FRAGMENT_BYTES = 64 * 2**20
"""A fragment is committed once it holds this much, …"""

FRAGMENT_SECONDS = 60.0
"""… or is this old, so that a crash costs a minute of work at most (and one image)."""


def gather_fragments(
    images: Iterable[EncodedImage],
    views: tuple[str, ...],
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Fragment]:
    """Join finished images, held in memory, into fragments of a size and an age worth it."""
    gathered: list[EncodedImage] = []
    held: list[NDArray[Any]] = []
    n_bytes, began = 0, clock()
    for image in images:
        if not isinstance(image.rows, HeldRows):
            raise TypeError(f"image {image.job.image_id} is not in memory")
        gathered.append(image)
        held.append(image.rows.values)
        n_bytes += held[-1].nbytes
        if n_bytes >= FRAGMENT_BYTES or clock() - began >= FRAGMENT_SECONDS:
            yield _join(gathered, held, views)
            gathered, held, n_bytes, began = [], [], 0, clock()
    if gathered:
        yield _join(gathered, held, views)


def _join(
    images: Sequence[EncodedImage], held: Sequence[NDArray[Any]], views: tuple[str, ...]
) -> Fragment:
    """Lay images end to end."""
    embedding = np.concatenate(held, axis=1) if len(held) > 1 else held[0]
    return patches_of(images, views).with_embedding(embedding)


def patches_of(images: Sequence[EncodedImage], views: tuple[str, ...]) -> Patches:
    """Give what is stored of some images, laid end to end, beside their vectors."""
    chosen = [(image.selection.placement, image.selection.kept) for image in images]
    return Patches(
        augmentations=views,
        image_ids=tuple(image.job.image_id for image in images),
        offset=np.cumsum([0, *(image.n_patches for image in images)], dtype=np.int64),
        y=np.concatenate([placement.y[kept] for placement, kept in chosen]),
        x=np.concatenate([placement.x[kept] for placement, kept in chosen]),
        tissue=np.concatenate([image.selection.tissue[image.selection.kept] for image in images]),
        sources=tuple(image.job.source for image in images),
        flags=tuple(image.selection.flags for image in images),
        columns={
            name: np.concatenate([image.columns[name] for image in images]) for name in COLUMNS
        },
    )
