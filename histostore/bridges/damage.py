"""What readers of foreign files raise on damaged bytes, and the one line it becomes."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

from histostore.errors import FormatError
from histostore.files import public_url

__all__ = ["DAMAGE", "unsound"]

DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    tokenize.TokenError,  # numpy parses the header of an array as Python's literals
    zipfile.BadZipFile,
    zlib.error,
)
"""All that h5py, numpy, torch, zarr and zipfile raise on what they were not made for."""


def unsound(url: str, kind: str, error: BaseException) -> FormatError:
    """Say in one line that a file is not what its name says, and why.

    Examples
    --------
    >>> print(unsound("/data/a.h5", "HDF5 file", OSError("file signature not found")))
    /data/a.h5 is no sound HDF5 file: file signature not found
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return FormatError(f"{public_url(url)} is no sound {kind}: {lines[0][:200]}")
