"""Arrays as the objects of a Zarr v3 array: the only module of the store that writes zarr.

zarr-python encodes into memory, shard by shard; the objects themselves are put by
:mod:`~histostore.store.backend`, whose puts are durable and whose order is ours.
"""

from __future__ import annotations

import json
import threading
import warnings
from contextlib import contextmanager
from itertools import product
from typing import TYPE_CHECKING, Any

from histostore.store.layout import (
    ARRAYS,
    ChunkPlan,
    join,
    metadata_path,
    plan_chunks,
    plan_column,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import zarr
    from numpy.typing import NDArray

    from histostore.store.fragment import Fragment
    from histostore.store.layout import Encoding

__all__ = ["ArrayEncoder", "encoders"]

_filters = threading.Lock()


@contextmanager
def _unspecified_strings() -> Iterator[None]:
    """Keep zarr's warning about its string type from users: format 1 has chosen that type.

    Warning filters are the interpreter's, not the thread's, hence the lock.
    """
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        yield


class ArrayEncoder:
    """One array on its way to its objects.

    Parameters
    ----------
    name
        One of :data:`~histostore.store.layout.ARRAYS`.
    values
        The whole array; texts as an object array.
    encoding
        How to cut and pack it.
    """

    def __init__(self, name: str, values: NDArray[Any], encoding: Encoding) -> None:
        from zarr.storage import MemoryStore

        self.name = name
        self._values = values
        self._memory: dict[str, Any] = {}
        self._plan = _plan(values, encoding)
        with _unspecified_strings():
            self._array = _create(MemoryStore(self._memory), name, values, self._plan, encoding)
        self.metadata: dict[str, Any] = json.loads(self._take(metadata_path()))

    def objects(self) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of each object, metadata first; one shard is held at a time."""
        yield metadata_path(self.name), json.dumps(self.metadata).encode()
        steps = self._plan.shard
        starts = (range(0, n, step) for n, step in zip(self._values.shape, steps, strict=True))
        for corner in product(*starts):
            region = tuple(slice(at, at + step) for at, step in zip(corner, steps, strict=True))
            self._array[region] = self._values[region]
            for path in list(self._memory):
                yield join(self.name, path), self._take(path)

    def _take(self, path: str) -> bytes:
        content: bytes = self._memory.pop(path).to_bytes()
        return content


def _plan(values: NDArray[Any], encoding: Encoding) -> ChunkPlan:
    if values.ndim == 3:
        views, patches, features = values.shape
        return plan_chunks((views, patches, features), values.itemsize, encoding)
    return plan_column(values.shape[0], values.itemsize, encoding)


def _create(
    memory: Any, name: str, values: NDArray[Any], plan: ChunkPlan, encoding: Encoding
) -> zarr.Array[Any]:
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, VLenUTF8Codec, ZstdCodec

    checksum = Crc32cCodec()
    serialiser: Any = VLenUTF8Codec() if values.dtype == object else BytesCodec()
    codecs: list[Any] = [checksum]
    if values.ndim == 3:
        packing = [] if encoding.codec == "none" else [ZstdCodec(level=1)]
        serialiser = ShardingCodec(
            chunk_shape=plan.chunk,
            codecs=[serialiser, *packing, checksum],
            index_codecs=[BytesCodec(), checksum],
            index_location="start",
        )
        codecs = []
    schema = ARRAYS[name]
    return zarr.create_array(
        memory,
        shape=values.shape,
        dtype=str if values.dtype == object else values.dtype,
        chunks=plan.shard,
        serializer=serialiser,
        compressors=codecs,
        filters=None,
        fill_value=schema.fill,
        dimension_names=schema.dimensions,
        # One folder per array, none per chunk: fewer folders to flush.
        chunk_key_encoding={"name": "default", "separator": "."},
        zarr_format=3,
    )


def encoders(fragment: Fragment, encoding: Encoding) -> Iterator[ArrayEncoder]:
    """Yield an encoder for each array of a fragment, the large one first.

    Parameters
    ----------
    fragment
        What to store.
    encoding
        How to cut and pack the arrays.
    """
    import numpy as np

    yield ArrayEncoder("embedding", fragment.embedding, encoding)
    yield ArrayEncoder("augmentation", np.array(fragment.augmentations, dtype=object), encoding)
    yield ArrayEncoder("image_id", np.array(fragment.image_ids, dtype=object), encoding)
    for name in ("offset", "y", "x", "tissue"):
        yield ArrayEncoder(name, getattr(fragment, name), encoding)
