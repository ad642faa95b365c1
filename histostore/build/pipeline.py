"""One work unit: read, cut, encode, hand over fragments.

Reading runs ahead on a few threads, by a bounded number of blocks; the encoder sees full
batches that reach across images and views; so the encoder never waits for one small image,
and memory depends on the settings here, not on the size of an image.
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from histostore.errors import ImageError, OptionError, StorageError
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.store.fragment import Fragment
from histostore.views import apply_view

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from histostore.encoders.base import Encoder
    from histostore.files import Source
    from histostore.images.patches import Selection
    from histostore.images.readers import Reader
    from histostore.spec import FeatureSpec

__all__ = ["EncodedImage", "Failure", "ImageJob", "encode_images", "gather_fragments", "prefetch"]

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_PATCHES = 64
"""Patches read in one go; the unit of reading ahead."""

READ_AHEAD = 6
"""Blocks, and opened images, that may wait for the encoder."""

FRAGMENT_BYTES = 64 * 2**20
"""A fragment is committed once it holds this much, …"""

FRAGMENT_SECONDS = 60.0
"""… or is this old, so that a crash costs a minute of work at most (and one image)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageJob:
    """One image to embed."""

    image_id: str
    source: Source
    mpp: float | None = None
    """The cohort's own word on µm per pixel, if it has one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One image that could not be embedded."""

    image_id: str
    url: str
    reason: str


@dataclass(kw_only=True, slots=True, eq=False)
class EncodedImage:
    """One image on its way: rows fill up as batches come back from the encoder."""

    job: ImageJob
    reader: Reader
    selection: Selection
    embedding: NDArray[np.float32]  # (augmentation, patch, feature)
    pending: int
    """Vectors still to come."""

    @property
    def n_patches(self) -> int:
        """How many patches were kept."""
        return len(self.selection.kept)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Some patches of one image on their way from the reader to the encoder."""

    image: EncodedImage | Failure
    start: int = 0
    pixels: NDArray[np.uint8] | None = None  # (patch, y, x, channel)
    failure: Failure | None = None
    """Why there are no pixels, where reading them failed."""


@dataclass(slots=True)
class _Batch:
    """Patches gathered for the encoder, and where their vectors belong."""

    size: int
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    targets: list[tuple[EncodedImage, int, int, int]] = field(default_factory=list)
    n: int = 0

    def add(self, image: EncodedImage, view: int, start: int, pixels: NDArray[np.uint8]) -> None:
        self.pixels.append(pixels)
        self.targets.append((image, view, start, len(pixels)))
        self.n += len(pixels)

    def encode(self, encoder: Encoder) -> None:
        """Encode what was gathered and put every vector into its image's row."""
        if not self.n:
            return
        vectors = encoder.encode(np.concatenate(self.pixels))
        at = 0
        for image, view, start, count in self.targets:
            image.embedding[view, start : start + count] = vectors[at : at + count]
            image.pending -= count
            at += count
        self.pixels, self.targets, self.n = [], [], 0


def encode_images(
    jobs: Iterable[ImageJob],
    spec: FeatureSpec,
    encoder: Encoder,
    views: tuple[str, ...],
    *,
    pool: Executor,
    storage_options: dict[str, object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[EncodedImage | Failure]:
    """Embed images one after the other, reading ahead on ``pool``.

    Yields
    ------
    image
        In the order of ``jobs``: the finished image, or why there is none.

    """
    batch = _Batch(size=encoder.batch_size)
    waiting: deque[EncodedImage | Failure] = deque()
    with ExitStack() as spoilt:  # readers of images that failed half-way
        for block in _read_blocks(jobs, spec, views, pool=pool, storage_options=storage_options):
            if stopped():
                return
            image = block.image
            if block.start == 0:
                spoilt.close()  # blocks come in order: nobody reads earlier images any more
                waiting.append(image)
            if isinstance(image, EncodedImage):
                if block.failure is not None and image in waiting:
                    waiting[waiting.index(image)] = block.failure
                    spoilt.callback(image.reader.close)
                if block.pixels is not None:
                    _feed(batch, encoder, image, block.start, block.pixels, views)
            while waiting and (isinstance(waiting[0], Failure) or waiting[0].pending == 0):
                yield _finish(waiting.popleft())
    batch.encode(encoder)
    yield from map(_finish, waiting)


def _finish(image: EncodedImage | Failure) -> EncodedImage | Failure:
    """Let go of the pixels, and refuse vectors that are no numbers."""
    if isinstance(image, Failure):
        return image
    image.reader.close()
    if np.isfinite(image.embedding).all():
        return image
    return _failure(image.job, "the encoder gave values that are not finite")


def _feed(
    batch: _Batch,
    encoder: Encoder,
    image: EncodedImage,
    start: int,
    pixels: NDArray[np.uint8],
    views: tuple[str, ...],
) -> None:
    """Give every view of a block to the encoder, a full batch at a time."""
    for number, view in enumerate(views):
        turned = apply_view(pixels, view)
        at = 0
        while at < len(turned):
            taken = turned[at : at + batch.size - batch.n]
            batch.add(image, number, start + at, taken)
            at += len(taken)
            if batch.n == batch.size:
                batch.encode(encoder)


def _read_blocks(
    jobs: Iterable[ImageJob],
    spec: FeatureSpec,
    views: tuple[str, ...],
    *,
    pool: Executor,
    storage_options: dict[str, object] | None,
) -> Iterator[_Block]:
    """Open images and read their patches ahead of whoever asks, in order."""

    def begin(job: ImageJob) -> EncodedImage | Failure:
        try:
            reader = open_image(job.source.url, storage_options=storage_options, mpp=job.mpp)
        except (ImageError, StorageError) as error:
            return _failure(job, str(error))
        try:
            selection = select_patches(reader, spec.grid, spec.tissue)
        except (ImageError, StorageError) as error:
            reader.close()
            return _failure(job, str(error))
        embedding = np.empty((len(views), len(selection.kept), spec.n_features), np.float32)
        return EncodedImage(
            job=job,
            reader=reader,
            selection=selection,
            embedding=embedding,
            pending=embedding.shape[0] * embedding.shape[1],
        )

    def blocks() -> Iterator[_Block]:
        for image in prefetch(pool, begin, jobs, depth=READ_AHEAD):
            n_patches = 1 if isinstance(image, Failure) else image.n_patches
            for start in range(0, n_patches, BLOCK_PATCHES):
                yield _Block(image=image, start=start)

    def read(block: _Block) -> _Block:
        image = block.image
        if isinstance(image, Failure):
            return block
        kept = image.selection.kept[block.start : block.start + BLOCK_PATCHES]
        part = replace(image.selection, kept=kept)
        try:
            pixels = read_patches(image.reader, part, spec.grid.patch_size)
        except (ImageError, StorageError) as error:
            return replace(block, failure=_failure(image.job, str(error)))
        return replace(block, pixels=pixels)

    return prefetch(pool, read, blocks(), depth=READ_AHEAD)


def _failure(job: ImageJob, reason: str) -> Failure:
    return Failure(image_id=job.image_id, url=job.source.url, reason=reason)


def prefetch(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], *, depth: int
) -> Iterator[Result]:
    """Map in order, ``depth`` calls ahead of the consumer.

    Examples
    --------
    >>> from concurrent.futures import ThreadPoolExecutor
    >>> with ThreadPoolExecutor(2) as pool:
    ...     list(prefetch(pool, abs, [-1, -2, 3], depth=2))
    [1, 2, 3]
    """
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= depth:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def gather_fragments(
    images: Iterable[EncodedImage],
    views: tuple[str, ...],
    dtype: str,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Fragment]:
    """Join finished images into fragments of a size and an age worth committing."""
    gathered: list[EncodedImage] = []
    n_bytes, began = 0, clock()
    for image in images:
        gathered.append(image)
        n_bytes += image.embedding.nbytes
        if n_bytes >= FRAGMENT_BYTES or clock() - began >= FRAGMENT_SECONDS:
            yield _join(gathered, views, dtype)
            gathered, n_bytes, began = [], 0, clock()
    if gathered:
        yield _join(gathered, views, dtype)


def _join(images: list[EncodedImage], views: tuple[str, ...], dtype: str) -> Fragment:
    """Lay images end to end."""
    chosen = [(image.selection.placement, image.selection.kept) for image in images]
    return Fragment(
        embedding=_cast(np.concatenate([image.embedding for image in images], axis=1), dtype),
        augmentations=views,
        image_ids=tuple(image.job.image_id for image in images),
        offset=np.cumsum([0, *(image.n_patches for image in images)], dtype=np.int64),
        y=np.concatenate([placement.y[kept] for placement, kept in chosen]),
        x=np.concatenate([placement.x[kept] for placement, kept in chosen]),
        tissue=np.concatenate([image.selection.tissue[image.selection.kept] for image in images]),
        sources=tuple(image.job.source for image in images),
        flags=tuple(image.selection.flags for image in images),
    )


def _cast(embedding: NDArray[np.float32], dtype: str) -> NDArray[np.floating]:
    """Convert to the stored type, which must hold every value."""
    limit = float(np.finfo(dtype).max)
    largest = float(np.abs(embedding).max())
    if largest > limit:
        raise OptionError(
            f"an embedding reaches {largest:.3g}, {dtype} ends at {limit:.3g}: use --dtype float32"
        )
    return embedding.astype(dtype, copy=False)
