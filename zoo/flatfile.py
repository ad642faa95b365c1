"""Arrays of rows in plain ``.npy`` files: written in any order, checked without being mapped."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any, Self

import google_crc32c
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["FlatFile", "extended", "flush", "header_of"]

_READ_BYTES = 4 * 2**20


class FlatFile:
    """One array on its way into a ``.npy`` file, rows in any order; nothing is mapped."""

    def __init__(self, path: Path, shape: tuple[int, int], kind: str) -> None:
        self._file = path.open("wb", buffering=0)
        self._start = self._file.write(header_of(shape, kind))
        self._row_bytes = shape[1] * np.dtype(kind).itemsize
        self._file.truncate(self._start + shape[0] * self._row_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._file:
            if kind is None:
                os.fsync(self._file.fileno())

    def put(self, row: int, rows: NDArray[Any], checksum: int) -> int:
        """Write rows at their place; give ``checksum`` extended by their bytes."""
        content = rows.reshape(-1).view(np.uint8)
        self._file.seek(self._start + row * self._row_bytes)
        rest = memoryview(content.data)
        while rest:
            rest = rest[self._file.write(rest) :]
        return int(google_crc32c.extend(checksum, content))


def header_of(shape: tuple[int, int], kind: str) -> bytes:
    """Give what a ``.npy`` file of this shape and type begins with."""
    header = io.BytesIO()
    document = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(kind)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(header, document)
    return header.getvalue()


def extended(checksum: int, file: Any, n_bytes: int) -> int:
    """Extend a CRC32C by the next bytes of a file; by fewer if it ends before."""
    buffer = np.empty(min(n_bytes, _READ_BYTES), np.uint8)
    while n_bytes:
        count = file.readinto(buffer[:n_bytes])
        if not count:
            break
        checksum = int(google_crc32c.extend(checksum, buffer[:count]))
        n_bytes -= count
    return checksum


def flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a loss of power."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
