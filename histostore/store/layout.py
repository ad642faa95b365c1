"""Where things lie in a store, and how arrays are cut; pure functions of format 1.

::

    zarr.json                                   attributes.histostore = {"format": 1}
    <feature set>/zarr.json                     attributes: canonical spec, full digest
    <feature set>/builds/<id>.json              what one build could not embed, and why
    <feature set>/fragments/<id>/zarr.json      the commit record, put last
    <feature set>/fragments/<id>/<array>/zarr.json
    <feature set>/fragments/<id>/<array>/c.<i>.<j>.<k>
"""

from __future__ import annotations

import math
import re
import secrets
import time
from dataclasses import dataclass
from typing import Any

from histostore.errors import OptionError

__all__ = [
    "ARRAYS",
    "CHUNK_BYTES",
    "CODECS",
    "COLUMN",
    "FORMAT",
    "SHARD_BYTES",
    "STREAM_BYTES",
    "ArraySchema",
    "ChunkPlan",
    "Encoding",
    "build_path",
    "builds_folder",
    "fragment_folder",
    "fragments_folder",
    "id_seconds",
    "is_column",
    "is_column_name",
    "is_id",
    "join",
    "metadata_path",
    "new_id",
    "plan_chunks",
    "plan_column",
    "plan_stream",
]

FORMAT = 1
"""The version of the store format that this package writes, and the newest it reads."""

CHUNK_BYTES = 4 * 2**20
"""An embedding chunk, the unit of reading and of checksums, holds at most about this much."""

SHARD_BYTES = 64 * 2**20
"""An embedding shard, one object in a bucket, holds at most about this much."""

STREAM_BYTES = 8 * 2**20
"""A shard of an embedding that is written while it is computed holds at most about this much:
a handful of them are in memory at a time."""

CODECS = ("none", "zstd")
"""What may stand between the bytes of an embedding's chunk and their checksum."""

_METADATA = "zarr.json"
_ID = re.compile(r"[0-9a-f]{12}-[0-9a-f]{16}")
_COLUMN_NAME = re.compile(r"[a-z][a-z0-9-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ArraySchema:
    """What format 1 says of one array of a fragment."""

    dimensions: tuple[str, ...]
    """Names of its axes."""

    kind: str
    """Zarr data type, or ``spec`` where the feature set decides."""

    fill: Any
    """Reads where a chunk is absent: a value that no committed array holds, so that an
    object that was lost can never pass for data."""


ARRAYS = {
    "embedding": ArraySchema(
        dimensions=("augmentation", "patch", "feature"), kind="spec", fill=math.nan
    ),
    "augmentation": ArraySchema(dimensions=("augmentation",), kind="string", fill=""),
    "image_id": ArraySchema(dimensions=("image",), kind="string", fill=""),
    "offset": ArraySchema(dimensions=("image_bound",), kind="int64", fill=-1),
    "y": ArraySchema(dimensions=("patch",), kind="int32", fill=-1),
    "x": ArraySchema(dimensions=("patch",), kind="int32", fill=-1),
    "tissue": ArraySchema(dimensions=("patch",), kind="float32", fill=math.nan),
}
"""The arrays of a fragment, by name. ``offset`` has one entry more than there are images,
hence an axis of its own."""

COLUMN = ArraySchema(dimensions=("patch",), kind="float32", fill=math.nan)
"""A column per patch, of which a fragment may hold any number beside :data:`ARRAYS`."""

_TAKEN = ARRAYS.keys() | {axis for schema in ARRAYS.values() for axis in schema.dimensions}


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """How an embedding is cut and packed; readers take it from the metadata.

    Raises
    ------
    OptionError
        If the codec is not one of :data:`CODECS`, or a size is not positive.
    """

    codec: str = "none"
    """``none``, or ``zstd``: a tenth smaller, several times slower to read."""

    chunk_bytes: int = CHUNK_BYTES
    """A chunk, the unit of reading and of checksums, holds at most about this much."""

    shard_bytes: int = SHARD_BYTES
    """A shard, one object, holds at most about this much."""

    def __post_init__(self) -> None:
        if self.codec not in CODECS:
            raise OptionError(f"codec={self.codec!r} is not known; use {' or '.join(CODECS)}")
        if min(self.chunk_bytes, self.shard_bytes) < 1:
            raise OptionError("chunk_bytes and shard_bytes must be positive")


@dataclass(frozen=True, kw_only=True, slots=True)
class ChunkPlan:
    """How one array is cut into chunks, and those into shards."""

    chunk: tuple[int, ...]
    """Shape of a chunk."""

    shard: tuple[int, ...]
    """Shape of a shard, whole chunks along every axis."""


def plan_chunks(
    shape: tuple[int, int, int], itemsize: int, encoding: Encoding | None = None
) -> ChunkPlan:
    """Cut an embedding into chunks of one view each, and chunks into few shards.

    Chunks are of like size, so that the last one carries almost no padding. A shard spans
    all views where they fit, then as many as do; more than one chunk of rows only where it
    holds one view or all of them.

    Parameters
    ----------
    shape
        ``(augmentation, patch, feature)``, all at least 1.
    itemsize
        Bytes of one element.
    encoding
        Sizes to aim at; one row is never split, however wide.

    Returns
    -------
    plan
        Shapes of chunk and shard.

    Examples
    --------
    >>> plan_chunks((1, 768, 384), 4)
    ChunkPlan(chunk=(1, 768, 384), shard=(1, 768, 384))
    >>> plan_chunks((8, 768, 384), 4)
    ChunkPlan(chunk=(1, 768, 384), shard=(8, 768, 384))
    >>> plan_chunks((1, 200_000, 1024), 2)
    ChunkPlan(chunk=(1, 2041, 1024), shard=(1, 28574, 1024))
    """
    n_views, n_patches, n_features = shape
    encoding = encoding or Encoding()
    row_bytes = n_features * itemsize
    n_chunks = math.ceil(n_patches / max(1, encoding.chunk_bytes // row_bytes))
    rows = math.ceil(n_patches / n_chunks)
    n_chunks = math.ceil(n_patches / rows)
    budget = max(1, encoding.shard_bytes // (rows * row_bytes))  # chunks that one shard may hold
    if n_chunks >= budget:
        views, per_view = 1, _even(n_chunks, budget)
    else:
        views, per_view = _even(n_views, budget // n_chunks), n_chunks
    return ChunkPlan(chunk=(1, rows, n_features), shard=(views, rows * per_view, n_features))


def plan_stream(
    shape: tuple[int, int, int],
    itemsize: int,
    *,
    chunk_bytes: int = CHUNK_BYTES,
    shard_bytes: int = STREAM_BYTES,
) -> ChunkPlan:
    """Cut an embedding whose rows come one after the other, all views of each together.

    A shard spans all views, so that it is complete once its last row is.

    Parameters
    ----------
    shape
        ``(augmentation, patch, feature)``, all at least 1.
    itemsize
        Bytes of one element.
    chunk_bytes, shard_bytes
        Sizes to aim at.

    Examples
    --------
    >>> plan_stream((1, 150_000, 1024), 2)
    ChunkPlan(chunk=(1, 2028, 1024), shard=(1, 4056, 1024))
    >>> plan_stream((8, 150_000, 1024), 2)
    ChunkPlan(chunk=(1, 512, 1024), shard=(8, 512, 1024))
    """
    n_views, n_patches, n_features = shape
    row_bytes = n_features * itemsize
    limit = max(1, min(chunk_bytes, shard_bytes // n_views) // row_bytes)
    rows = _even(n_patches, limit)
    n_chunks = math.ceil(n_patches / rows)
    per_shard = _even(n_chunks, max(1, shard_bytes // (n_views * rows * row_bytes)))
    return ChunkPlan(chunk=(1, rows, n_features), shard=(n_views, rows * per_shard, n_features))


def _even(total: int, limit: int) -> int:
    """Give the part size, at most ``limit``, that cuts ``total`` into equal parts."""
    return math.ceil(total / math.ceil(total / min(limit, total)))


def plan_column(n_rows: int, itemsize: int, encoding: Encoding | None = None) -> ChunkPlan:
    """Cut a one-dimensional array: one chunk in one object, unless it outgrows a shard.

    Examples
    --------
    >>> plan_column(1000, 4), plan_column(20_000_000, 4)
    (ChunkPlan(chunk=(1000,), shard=(1000,)), ChunkPlan(chunk=(10000000,), shard=(10000000,)))
    """
    rows = _even(n_rows, max(1, (encoding or Encoding()).shard_bytes // itemsize))
    return ChunkPlan(chunk=(rows,), shard=(rows,))


def join(*parts: str) -> str:
    """Join the parts of a path inside a store; empty parts vanish.

    Examples
    --------
    >>> join("", "a-12345678", "zarr.json")
    'a-12345678/zarr.json'
    """
    return "/".join(part for part in parts if part)


def metadata_path(folder: str = "") -> str:
    """Give the path of a group's or an array's metadata; of the store's own without argument."""
    return join(folder, _METADATA)


def fragments_folder(feature_set: str) -> str:
    """Give the folder that holds the fragments of a feature set."""
    return join(feature_set, "fragments")


def fragment_folder(feature_set: str, fragment_id: str) -> str:
    """Give the folder of one fragment."""
    return join(fragments_folder(feature_set), fragment_id)


def builds_folder(feature_set: str) -> str:
    """Give the folder that holds the records of builds."""
    return join(feature_set, "builds")


def build_path(feature_set: str, build_id: str) -> str:
    """Give the path of one build's record."""
    return join(builds_folder(feature_set), f"{build_id}.json")


def new_id(time_ns: int | None = None) -> str:
    """Make an id for a fragment or a build: unique, and sorting by creation time.

    Twelve hexadecimal digits count milliseconds since 1970, sixteen are random.

    Examples
    --------
    >>> new_id(0)[:13], is_id(new_id())
    ('000000000000-', True)
    """
    now = time.time_ns() if time_ns is None else time_ns
    return f"{now // 1_000_000:012x}-{secrets.token_hex(8)}"


def id_seconds(name: str) -> float:
    """Give the time at which an id was made, in seconds since 1970, by its maker's clock.

    Examples
    --------
    >>> id_seconds(new_id(5_000_000_000))
    5.0
    """
    return int(name.partition("-")[0], 16) / 1000


def is_column_name(name: str) -> bool:
    """Say whether a column per patch may have a name: no array's of the seven, no axis's.

    Examples
    --------
    >>> is_column_name("sharpness"), is_column_name("tissue"), is_column_name("Sharp/ness")
    (True, False, False)
    """
    return _COLUMN_NAME.fullmatch(name) is not None and name not in _TAKEN


def is_column(name: str, kind: str, shape: tuple[int, ...]) -> bool:
    """Say whether an array beside :data:`ARRAYS` is a column per patch."""
    return is_column_name(name) and kind == COLUMN.kind and len(shape) == 1


def is_id(name: str) -> bool:
    """Say whether a name is one that :func:`new_id` makes."""
    return _ID.fullmatch(name) is not None
