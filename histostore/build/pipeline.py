"""One work unit: read, cut, encode, hand over fragments.

Reading runs ahead on a few threads, by a bounded number of blocks; the encoder has a thread of
its own and sees full batches that reach across images and views, the next of which is gathered
while one is encoded; so the encoder never waits for one small image, nor for views to be turned,
and memory depends on the settings here, not on the size of an image.
"""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from histostore.build.prepare import candidates, check_stain, sift, stain_of
from histostore.build.rows import HELD_BYTES, HeldRows, to_stored
from histostore.errors import ImageError, MissingExtra, StorageError
from histostore.images.annotations import read_places
from histostore.images.patches import read_patches, select_patches
from histostore.images.quality import COLUMNS, patch_quality
from histostore.images.readers import open_image
from histostore.views import PatchKey, apply_view, is_seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Executor, Future

    from numpy.typing import NDArray

    from histostore.cohort import Given
    from histostore.encoders.base import Encoder
    from histostore.files import Source
    from histostore.images.patches import Selection
    from histostore.images.readers import Reader
    from histostore.images.stain import StainMap
    from histostore.spec import FeatureSpec
    from histostore.store.streaming import FragmentStream

__all__ = [
    "EncodedImage",
    "Failure",
    "ImageJob",
    "encode_images",
    "prefetch",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

BLOCK_PATCHES = 64
"""Patches read in one go; the unit of reading ahead."""

READ_AHEAD = 6
"""Blocks, and opened images, that may wait for the encoder, where two threads read."""

ENCODE_AHEAD = 1
"""Batches with the encoder while the next one is gathered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageJob:
    """One image to embed."""

    image_id: str
    source: Source
    mpp: float | None = None
    """The cohort's own word on µm per pixel, if it has one."""

    given: Given | None = None
    """The file that says where patches lie, instead of the grid."""


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
    rows: HeldRows | FragmentStream
    """Where its vectors go."""
    dtype: str
    """What is stored of them."""
    pending: int
    """Vectors still to come."""
    columns: dict[str, NDArray[np.float32]]  # (patch,)
    """What is measured of every patch; filled up as blocks are read."""
    stain: StainMap | None = None
    """How the pixels are changed before they are encoded."""
    sound: bool = True
    """Whether all vectors so far are numbers."""

    def take(self, view: int, start: int, vectors: NDArray[np.float32]) -> None:
        """Put some vectors of a view where they belong."""
        self.pending -= len(vectors)
        self.sound = self.sound and bool(np.isfinite(vectors).all())
        if self.sound:
            self.rows.put(view, start, to_stored(vectors, self.dtype))

    @property
    def n_patches(self) -> int:
        """How many patches were kept."""
        return len(self.selection.kept)

    def look(self, start: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Measure patches as they were read, and change their colours if that is asked for."""
        for name, values in patch_quality(pixels).items():
            self.columns[name][start : start + len(pixels)] = values
        return pixels if self.stain is None else self.stain.apply(pixels)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """Some patches of one image on their way from the reader to the encoder."""

    image: EncodedImage | Failure
    start: int = 0
    pixels: NDArray[np.uint8] | None = None  # (patch, y, x, channel)
    failure: Failure | None = None
    """Why there are no pixels, where reading them failed."""


_Target = tuple[EncodedImage, int, int, int]
"""Where some vectors belong: image, view, first row, number of rows."""


@dataclass(slots=True)
class _Batch:
    """Patches gathered for the encoder, and those that it has."""

    encoder: Encoder
    thread: Executor
    """One thread, so that batches come back in the order they went."""
    pixels: list[NDArray[np.uint8]] = field(default_factory=list)
    targets: list[_Target] = field(default_factory=list)
    n: int = 0
    in_work: deque[tuple[Future[NDArray[np.float32]], list[_Target]]] = field(default_factory=deque)
    broken: bool = False
    """Whether the encoder is in a call, or a call of it has failed."""

    def add(self, image: EncodedImage, view: int, start: int, pixels: NDArray[np.uint8]) -> None:
        """Gather patches, a full batch at a time."""
        size = self.encoder.batch_size
        while len(pixels):
            taken = pixels[: size - self.n]
            self.pixels.append(taken)
            self.targets.append((image, view, start, len(taken)))
            self.n += len(taken)
            start, pixels = start + len(taken), pixels[len(taken) :]
            if self.n == size:
                self.send()

    def send(self) -> None:
        """Hand over what was gathered, and wait for what went before."""
        if self.n:
            vectors = self.thread.submit(self._encode, np.concatenate(self.pixels))
            self.in_work.append((vectors, self.targets))
            self.pixels, self.targets, self.n = [], [], 0
        self.settle(ENCODE_AHEAD)

    def _encode(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Encode, on the thread; after a failure, which is heard of first, nothing more."""
        if self.broken:
            raise CancelledError
        self.broken = True
        vectors = self.encoder.encode(pixels)
        self.broken = False
        return vectors

    def settle(self, left: int) -> None:
        """Put vectors into their images' rows, until no more than so many batches are in work."""
        while len(self.in_work) > left or (self.in_work and self.in_work[0][0].done()):
            encoded, targets = self.in_work.popleft()
            vectors, at = encoded.result(), 0
            for image, view, start, count in targets:
                image.take(view, start, vectors[at : at + count])
                at += count


def encode_images(
    jobs: Iterable[ImageJob],
    spec: FeatureSpec,
    encoder: Encoder,
    views: tuple[str, ...],
    *,
    pool: Executor,
    storage_options: dict[str, object] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    stream: Callable[[tuple[int, int, int]], FragmentStream] | None = None,
    read_ahead: int = READ_AHEAD,
) -> Iterator[EncodedImage | Failure]:
    """Embed images one after the other, reading ahead on ``pool``.

    Parameters
    ----------
    jobs, spec, encoder, views
        What to embed, and how.
    pool
        Threads to read on.
    storage_options
        For the storage driver of the images.
    stopped
        Asked between blocks; what is not finished once it says yes is dropped.
    stream
        Opens a place in the store for an embedding of a given shape that is too large to be
        held; without it, all are held in memory.
    read_ahead
        Blocks, and opened images, that may wait for the encoder; more than ``pool`` has threads.

    Yields
    ------
    image
        In the order of ``jobs``: the finished image, or why there is none.

    """
    check_stain(spec)
    waiting: deque[EncodedImage | Failure] = deque()
    begin = partial(_begin, spec=spec, views=views, storage=storage_options, stream=stream)
    # On the stack are readers of images that failed half-way.
    with ExitStack() as spoilt, _dropped(waiting), ThreadPoolExecutor(1) as thread:
        batch = _Batch(encoder=encoder, thread=thread)
        for block in _read_blocks(jobs, begin, spec, pool=pool, depth=read_ahead):
            if stopped():
                return
            image = block.image
            if block.start == 0:
                spoilt.close()  # blocks come in order: nobody reads earlier images any more
                waiting.append(image)
            if isinstance(image, EncodedImage):
                if block.failure is not None and image in waiting:
                    waiting[waiting.index(image)] = block.failure
                    image.rows.discard()
                    spoilt.callback(image.reader.close)
                if block.pixels is not None:
                    _feed(batch, image, block.start, block.pixels, views)
            batch.settle(ENCODE_AHEAD)
            while waiting and (isinstance(waiting[0], Failure) or waiting[0].pending == 0):
                yield _finish(waiting.popleft())
        batch.send()
        batch.settle(0)
        while waiting:
            yield _finish(waiting.popleft())


@contextmanager
def _dropped(waiting: Iterable[EncodedImage | Failure]) -> Iterator[None]:
    """Leave nothing in the store of images that were not finished."""
    try:
        yield
    finally:
        for image in waiting:
            if isinstance(image, EncodedImage):
                image.rows.discard()


def _finish(image: EncodedImage | Failure) -> EncodedImage | Failure:
    """Let go of the pixels, and refuse vectors that are no numbers."""
    if isinstance(image, Failure):
        return image
    image.reader.close()
    if image.sound:
        return image
    image.rows.discard()
    return _failure(image.job, "the encoder gave values that are not finite")


def _feed(
    batch: _Batch,
    image: EncodedImage,
    start: int,
    pixels: NDArray[np.uint8],
    views: tuple[str, ...],
) -> None:
    """Give every view of a block to the encoder."""
    keys = _keys(image, start, len(pixels)) if any(map(is_seeded, views)) else None
    for number, view in enumerate(views):
        batch.add(image, number, start, apply_view(pixels, view, keys))


def _keys(image: EncodedImage, start: int, count: int) -> list[PatchKey]:
    """Name some patches of an image, for views that are drawn by patch."""
    kept = image.selection.kept[start : start + count]
    placement = image.selection.placement
    x, y = placement.x[kept].tolist(), placement.y[kept].tolist()
    return [PatchKey(image.job.image_id, *corner) for corner in zip(x, y, strict=True)]


def _begin(
    job: ImageJob,
    *,
    spec: FeatureSpec,
    views: tuple[str, ...],
    storage: dict[str, object] | None,
    stream: Callable[[tuple[int, int, int]], FragmentStream] | None,
) -> EncodedImage | Failure:
    """Open an image and choose its patches; make room for their vectors."""
    try:
        reader = open_image(job.source.url, storage_options=storage, mpp=job.mpp)
    # A format that wants an extra fails its own images, not the whole build.
    except (ImageError, StorageError, MissingExtra) as error:
        return _failure(job, str(error))
    try:
        places = read_places(job.given, storage) if job.given else None
        selection = select_patches(reader, spec.grid, candidates(spec), places)
        selection = sift(reader, selection, spec)
        stain, flags = stain_of(reader, spec)
    except (ImageError, StorageError, MissingExtra) as error:
        reader.close()
        return _failure(job, str(error))
    shape = (len(views), len(selection.kept), spec.n_features)
    n_bytes = math.prod(shape) * np.dtype(spec.dtype).itemsize
    return EncodedImage(
        job=job,
        reader=reader,
        selection=replace(selection, flags=(*selection.flags, *flags)),
        rows=HeldRows(shape, spec.dtype)
        if stream is None or n_bytes <= HELD_BYTES
        else stream(shape),
        dtype=spec.dtype,
        pending=shape[0] * shape[1],
        columns={name: np.empty(len(selection.kept), np.float32) for name in COLUMNS},
        stain=stain,
    )


def _read_blocks(
    jobs: Iterable[ImageJob],
    begin: Callable[[ImageJob], EncodedImage | Failure],
    spec: FeatureSpec,
    *,
    pool: Executor,
    depth: int,
) -> Iterator[_Block]:
    """Open images and read their patches ahead of whoever asks, in order."""

    def blocks() -> Iterator[_Block]:
        for image in prefetch(pool, begin, jobs, depth=depth):
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
        return replace(block, pixels=image.look(block.start, pixels))

    return prefetch(pool, read, blocks(), depth=depth)


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
