"""Fragments read object by object, held against every digest in their commit record.

Readers check the CRC32C of the chunks they touch, which says that a chunk is sound, but not
that it is the one that was written: a chunk of another fragment in its place would pass. Who
verifies a fragment, or copies rows out of it for good, asks for the SHA-256 of each object.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np

from histostore.errors import CorruptError, FormatError
from histostore.store.fragment import Fragment
from histostore.store.layout import fragment_folder, join
from histostore.store.shards import ShardRead, fill_rows, plan_reads

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from histostore.store.protocol import Backend
    from histostore.store.record import ArrayLayout, Record, StoredObject

__all__ = [
    "Chunk",
    "arrange",
    "check_object",
    "chunks_of",
    "images_between",
    "n_bytes_of",
    "read_fragment",
    "read_texts",
    "row_chunks",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """One chunk of an array of numbers: where it lies, and which rows it holds."""

    path: str
    """Path of its object in the fragment."""

    position: int
    """Number of the chunk in its object."""

    view: int
    """Position on the first axis of an embedding, 0 of a column."""

    start: int
    """First row."""

    stop: int
    """Row after the last."""

    def read(self, content: bytes, fragment_id: str, layout: ArrayLayout) -> NDArray[Any]:
        """Take the rows out of the object's bytes, its checksum verified.

        Raises
        ------
        CorruptError
            If the object is short, or a checksum fails; names fragment, array and chunk.
        """
        rows = np.empty((self.stop - self.start, *layout.shape[2:]), layout.kind)
        runs = ((self.start, self.stop, 0),)
        wanted = ShardRead(path=self.path, chunks=((self.position, self.start, runs),))
        fill_rows(_Held(content), fragment_id, layout, wanted, rows)
        return rows


class _Held:
    """An object that is in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = memoryview(content)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._content.release()

    def fetch(self, start: int, stop: int | None) -> None:
        """Do nothing: it is here."""

    def read_into(self, start: int, target: memoryview) -> int:
        part = self._content[start : start + len(target)]
        target[: len(part)] = part
        return len(part)


def chunks_of(name: str, layout: ArrayLayout) -> Iterator[Chunk]:
    """Yield the chunks of an array of numbers."""
    wide = len(layout.shape) == 3
    rows = layout.shape[1] if wide else layout.shape[0]
    for view in range(layout.shape[0] if wide else 1):
        for read in plan_reads(name, layout, view if wide else None, [(0, rows, 0)]):
            for position, _, [(start, stop, _)] in read.chunks:
                yield Chunk(path=read.path, position=position, view=view, start=start, stop=stop)


def row_chunks(record: Record, path: str) -> list[Chunk]:
    """List the chunks of rows in an object; none where it holds no rows, as names and bounds."""
    name, _, leaf = path.partition("/")
    numbers = ("embedding", "y", "x", "tissue", *record.columns)
    if name not in numbers or leaf == "zarr.json":
        return []
    return [chunk for chunk in chunks_of(name, record.arrays[name]) if chunk.path == path]


def check_object(content: bytes | None, expected: StoredObject) -> str:
    """Say what is wrong with an object's bytes; nothing if they are those that were written."""
    if content is None:
        return "its object is missing"
    if len(content) != expected.n_bytes:
        return f"its object holds {len(content):,} bytes of {expected.n_bytes:,}"
    if hashlib.sha256(content).hexdigest() != expected.sha256:
        return "its object fails its SHA-256"
    return ""


def read_texts(content: bytes, layout: ArrayLayout) -> tuple[str, ...]:
    """Decode an object of an array of texts: Zarr's ``vlen-utf8``, and a CRC32C.

    Raises
    ------
    CorruptError
        If its checksum fails.
    FormatError
        If it is anything else.
    """
    body = content[:-4]
    if google_crc32c.value(body) != int.from_bytes(content[-4:], "little"):
        raise CorruptError("it fails its CRC32C")
    texts, at = [], 4
    try:
        for _ in range(min(int.from_bytes(body[:4], "little"), layout.shape[0])):
            length = int.from_bytes(body[at : at + 4], "little")
            texts.append(body[at + 4 : at + 4 + length].decode())
            at += 4 + length
    except UnicodeDecodeError as error:
        raise FormatError(f"it is not UTF-8: {error}") from error
    return tuple(texts)


def read_fragment(
    backend: Backend, feature_set: str, record: Record, images: Sequence[int] | None = None
) -> Fragment:
    """Read a fragment, or some images of it, and vouch for every byte that is used.

    One object is held at a time, besides the result.

    Parameters
    ----------
    backend, feature_set
        Where it lies.
    record
        Its commit record.
    images
        Positions of the images wanted, rising; all if None.

    Raises
    ------
    CorruptError
        If an object that holds wanted rows is not what was written; names it.
    StorageError
        If the storage refuses.
    """
    chosen = range(len(record.image_ids)) if images is None else images
    bounds = np.concatenate(([0], np.cumsum(record.n_patches, dtype=np.int64)))
    wanted = np.concatenate([np.arange(bounds[at], bounds[at + 1]) for at in chosen])
    arrays = {
        name: _read_array(
            backend, fragment_folder(feature_set, record.fragment_id), record, name, wanted
        )
        for name in ("embedding", "y", "x", "tissue", *record.columns)
    }
    return Fragment(
        columns={name: arrays.pop(name) for name in record.columns},
        **arrays,
        augmentations=record.augmentations,
        image_ids=tuple(record.image_ids[at] for at in chosen),
        offset=np.concatenate(
            ([0], np.cumsum([record.n_patches[at] for at in chosen], dtype=np.int64))
        ),
        sources=tuple(record.source(at) for at in chosen),
        flags=tuple(record.flags[at] for at in chosen),
    )


def _read_array(
    backend: Backend, folder: str, record: Record, name: str, wanted: NDArray[np.int64]
) -> NDArray[Any]:
    """Read the wanted rows of one array; objects that hold none of them are not read."""
    layout = record.arrays[name]
    wide = len(layout.shape) == 3
    shape = (layout.shape[0], len(wanted), layout.shape[2]) if wide else (1, len(wanted))
    target = np.empty(shape, layout.kind)
    ordered = sorted(chunks_of(name, layout), key=lambda chunk: chunk.path)
    for path, chunks in groupby(ordered, key=lambda chunk: chunk.path):
        parts = [(chunk, *np.searchsorted(wanted, [chunk.start, chunk.stop])) for chunk in chunks]
        parts = [part for part in parts if part[1] < part[2]]
        if not parts:
            continue
        content = backend.read(join(folder, path))
        problem = check_object(content, record.objects[path])
        if problem or content is None:
            raise CorruptError(f"fragment {record.fragment_id}, {path}: {problem}")
        for chunk, first, last in parts:
            rows = chunk.read(content, record.fragment_id, layout)
            target[chunk.view, first:last] = rows[wanted[first:last] - chunk.start]
    return target if wide else target[0]


def arrange(parts: Iterable[Fragment], image_ids: Sequence[str]) -> Fragment:
    """Lay images of some fragments end to end, in the order asked for.

    Parameters
    ----------
    parts
        Fragments of one feature set, of the same views in the same order. Where several hold
        an image, the first one's rows are taken. Columns are kept that all of them hold.
    image_ids
        Images, each of which a part holds.

    Examples
    --------
    >>> from histostore.testing import fragment_of
    >>> one, other = fragment_of(["a", "b"], counts=[1, 2]), fragment_of(["c"], counts=4)
    >>> both = arrange([one, other], ["c", "a"])
    >>> both.image_ids, both.offset.tolist(), bool((both.embedding[:, 4] == one.embedding[:, 0]).all())
    (('c', 'a'), [0, 4, 5], True)
    """
    places: dict[str, tuple[Fragment, int]] = {}
    for part in parts:
        for at, image_id in enumerate(part.image_ids):
            places.setdefault(image_id, (part, at))
    chosen = [places[image_id] for image_id in image_ids]
    rows = [(part, slice(*part.offset[at : at + 2].tolist())) for part, at in chosen]

    def join_rows(name: str) -> NDArray[Any]:
        return np.concatenate([getattr(part, name)[bounds] for part, bounds in rows])

    held = [name for name in chosen[0][0].columns if all(name in part.columns for part, _ in rows)]
    counts = [bounds.stop - bounds.start for _, bounds in rows]
    return Fragment(
        embedding=np.concatenate([part.embedding[:, bounds] for part, bounds in rows], axis=1),
        augmentations=chosen[0][0].augmentations,
        image_ids=tuple(image_ids),
        offset=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
        y=join_rows("y"),
        x=join_rows("x"),
        tissue=join_rows("tissue"),
        sources=tuple(part.sources[at] for part, at in chosen),
        flags=tuple(part.flags[at] for part, at in chosen),
        columns={
            name: np.concatenate([part.columns[name][bounds] for part, bounds in rows])
            for name in held
        },
    )


def images_between(record: Record, start: int, stop: int) -> range:
    """Give the positions of the images of which rows ``start:stop`` hold a part."""
    bounds = np.concatenate(([0], np.cumsum(record.n_patches, dtype=np.int64)))
    first = int(np.searchsorted(bounds, start, side="right")) - 1
    last = int(np.searchsorted(bounds, stop, side="left"))
    return range(first, last)


def n_bytes_of(record: Record) -> int:
    """Give the bytes of an embedding, uncompressed."""
    layout = record.arrays["embedding"]
    return math.prod(layout.shape) * np.dtype(layout.kind).itemsize
