"""HDF5 files of others: read with suspicion, written whole."""

from __future__ import annotations

import io
import math
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.damage import DAMAGE, unsound
from histostore.bridges.values import MOST_BYTES
from histostore.errors import FormatError, HistostoreError, MissingExtra
from histostore.files import filesystem, local_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["attributes", "number", "opened", "packed", "read_array", "require_h5py", "whole"]

_CHUNK_BYTES = 2**20


def require_h5py() -> Any:
    """Import h5py.

    Raises
    ------
    MissingExtra
        If it is not installed.
    """
    try:
        import h5py
    except ModuleNotFoundError:
        raise MissingExtra.named("h5py", extra="bridges") from None
    return h5py


@contextmanager
def opened(url: str, storage_options: Mapping[str, Any]) -> Iterator[Any]:
    """Open an HDF5 file for reading, on a disk or in a bucket.

    Raises
    ------
    FormatError
        If it is not one, or turns out to be damaged inside the block.
    StorageError
        If it cannot be read.
    """
    h5py = require_h5py()
    path = local_path(url)
    try:
        with ExitStack() as stack:
            handle: Any = path
            if path is None:
                fs, remote = filesystem(url, storage_options)
                handle = stack.enter_context(fs.open(remote, "rb"))
            yield stack.enter_context(h5py.File(handle, "r"))
    except HistostoreError:
        raise
    except DAMAGE as error:
        raise unsound(url, "HDF5 file", error) from error


def read_array(file: Any, *names: str) -> NDArray[Any] | None:
    """Read the first of some data sets that is there; None where none is.

    A data set that points to other files (external or virtual storage, links) is refused:
    a file must not decide what else is read.

    Raises
    ------
    FormatError
        If it is no data set of its own, or larger than any image.
    """
    h5py = require_h5py()
    name = next((each for each in names if each in file), None)
    if name is None:
        return None
    dataset = file[name] if isinstance(file.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise FormatError(f"{name} is not a data set that lies in the file itself")
    if math.prod(dataset.shape or ()) * dataset.dtype.itemsize > MOST_BYTES:
        raise FormatError(f"{name} says it is {dataset.dtype} {dataset.shape}: too large")
    if dataset.dtype.hasobject:
        raise FormatError(f"{name} is {dataset.dtype}, not numbers")
    return np.asarray(dataset[()])


def attributes(owner: Any) -> dict[str, Any]:
    """Give the attributes of a file or data set as JSON values; others are left out."""
    found: dict[str, Any] = {}
    for name, value in owner.attrs.items():
        if isinstance(value, bytes):
            found[name] = value.decode(errors="replace")
        elif isinstance(value, str | int | float | bool):
            found[name] = value
        elif isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
            found[name] = value.tolist()
    return found


def whole(value: object) -> int | None:
    """Take a whole number, None for anything else.

    Examples
    --------
    >>> whole(256), whole(256.0), whole("256"), whole("None"), whole(None)
    (256, 256, 256, None, None)
    """
    found = number(value)
    return int(found) if found is not None and found.is_integer() else None


def number(value: object) -> float | None:
    """Take a finite number, None for anything else.

    Examples
    --------
    >>> number(0.5), number("20"), number(float("nan")), number([1])
    (0.5, 20.0, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def packed(
    arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Mapping[str, Any]] | None = None
) -> bytes:
    """Give the bytes of an HDF5 file.

    Parameters
    ----------
    arrays
        Name to array; cut along the first axis into chunks of about 1 MiB.
    attrs
        Attributes by name of the array.
    """
    h5py = require_h5py()
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for name, array in arrays.items():
            row_bytes = max(1, array.nbytes // max(1, len(array)))
            rows = max(1, min(len(array), _CHUNK_BYTES // row_bytes))
            dataset = file.create_dataset(
                name, data=array, chunks=(rows, *array.shape[1:]), maxshape=(None, *array.shape[1:])
            )
            dataset.attrs.update((attrs or {}).get(name, {}))
    return buffer.getvalue()
