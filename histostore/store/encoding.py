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

import numpy as np

from histostore.store.layout import (
    ARRAYS,
    COLUMN,
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

    from histostore.store.fragment import Patches
    from histostore.store.layout import Encoding

__all__ = ["ArrayEncoder", "encode_embedding", "encode_patches"]

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
        One of :data:`~histostore.store.layout.ARRAYS`, or a column's.
    shape
        Of the whole array.
    dtype
        Of its elements; object where they are texts.
    plan
        How to cut it.
    encoding
        How to pack it.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        *,
        plan: ChunkPlan,
        encoding: Encoding,
    ) -> None:
        from zarr.storage import MemoryStore

        self.name = name
        self.plan = plan
        self._memory: dict[str, Any] = {}
        with _unspecified_strings():
            self._array = _create(MemoryStore(self._memory), name, (shape, dtype), plan, encoding)
        self.metadata: dict[str, Any] = json.loads(self._take(metadata_path()))

    @property
    def head(self) -> tuple[str, bytes]:
        """Path and content of the array's own ``zarr.json``."""
        return metadata_path(self.name), json.dumps(self.metadata).encode()

    def encode(self, corner: tuple[int, ...], values: NDArray[Any]) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of the shard whose first element lies at ``corner``."""
        region = tuple(
            slice(at, at + length) for at, length in zip(corner, values.shape, strict=True)
        )
        self._array[region] = values
        for path in list(self._memory):
            yield join(self.name, path), self._take(path)

    def objects(self, values: NDArray[Any]) -> Iterator[tuple[str, bytes]]:
        """Yield path and content of each object, metadata first; one shard is held at a time."""
        yield self.head
        steps = self.plan.shard
        starts = (range(0, n, step) for n, step in zip(values.shape, steps, strict=True))
        for corner in product(*starts):
            region = tuple(slice(at, at + step) for at, step in zip(corner, steps, strict=True))
            yield from self.encode(corner, values[region])

    def _take(self, path: str) -> bytes:
        content: bytes = self._memory.pop(path).to_bytes()
        return content


def _create(
    memory: Any,
    name: str,
    elements: tuple[tuple[int, ...], np.dtype[Any]],
    plan: ChunkPlan,
    encoding: Encoding,
) -> zarr.Array[Any]:
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, VLenUTF8Codec, ZstdCodec

    shape, dtype = elements
    checksum = Crc32cCodec()
    serialiser: Any = VLenUTF8Codec() if dtype.hasobject else BytesCodec()
    codecs: list[Any] = [checksum]
    if len(shape) == 3:
        packing = [] if encoding.codec == "none" else [ZstdCodec(level=1)]
        serialiser = ShardingCodec(
            chunk_shape=plan.chunk,
            codecs=[serialiser, *packing, checksum],
            index_codecs=[BytesCodec(), checksum],
            index_location="start",
        )
        codecs = []
    schema = ARRAYS.get(name, COLUMN)
    return zarr.create_array(
        memory,
        shape=shape,
        dtype=str if dtype.hasobject else dtype,
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


def encode_embedding(
    embedding: NDArray[Any], encoding: Encoding
) -> tuple[ArrayEncoder, NDArray[Any]]:
    """Give an embedding with its encoder."""
    views, patches, features = embedding.shape
    plan = plan_chunks((views, patches, features), embedding.itemsize, encoding)
    encoder = ArrayEncoder(
        "embedding", embedding.shape, embedding.dtype, plan=plan, encoding=encoding
    )
    return encoder, embedding


def encode_patches(
    patches: Patches, encoding: Encoding
) -> Iterator[tuple[ArrayEncoder, NDArray[Any]]]:
    """Yield each array of a fragment but the embedding, with its encoder."""
    arrays: dict[str, NDArray[Any]] = {
        "augmentation": np.array(patches.augmentations, dtype=object),
        "image_id": np.array(patches.image_ids, dtype=object),
        **{name: getattr(patches, name) for name in ("offset", "y", "x", "tissue")},
        **patches.columns,
    }
    for name, values in arrays.items():
        plan = plan_column(len(values), values.itemsize, encoding)
        encoder = ArrayEncoder(name, values.shape, values.dtype, plan=plan, encoding=encoding)
        yield encoder, values
