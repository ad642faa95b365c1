"""One npz file for many bags: the classical form of multiple-instance data.

::

    X         (instance, feature)  the vectors
    bag       (instance)           number or name of each one's bag
    y         (bag)                labels; optional. By bag number, or by sorted name
    image_id  (bag)                names of the bags, ordered as y; optional
    coords    (instance, 2)        x and y in level-0 pixels; optional
    tissue    (instance)           share of tissue; optional
    encoder   ()                   name of what made the vectors; optional

Bags without names are called after the file: ``musk1-0``. Where the rows of a bag lie
together, they are read alone; a file that scatters its bags is read whole.
"""

from __future__ import annotations

import io
import math
import zipfile
from contextlib import ExitStack
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.damage import DAMAGE, unsound
from histostore.bridges.listing import find_files, nothing_found
from histostore.bridges.values import Facts, Listing, SourceImage, checked_rows
from histostore.build.pipeline import Failure
from histostore.errors import FormatError, HistostoreError, OptionError
from histostore.files import filesystem, local_path, public_url, stat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.bridges.outgoing import ExportJob
    from histostore.bridges.values import Rows

__all__ = ["list_images", "write_images"]


def list_images(source: str, storage_options: Mapping[str, Any]) -> Listing:
    """List the bags of an npz file, or of all npz files below a folder.

    Raises
    ------
    FormatError
        If there is none, or the only one is damaged or not of this form.
    StorageError
        If the source cannot be read.
    """
    found = find_files(source, storage_options)
    files = {name: url for name, url in found.items() if name.endswith(".npz")}
    if not files:
        raise nothing_found(source, ".npz file", found)
    images: list[SourceImage] = []
    tables: list[_Table] = []
    failed: list[Failure] = []
    labels: dict[str, str] = {}
    for relative, url in files.items():
        table = _Table(url, storage_options)
        try:
            ids, names = table.bags(relative.removesuffix(".npz"))
        except FormatError as error:
            if len(files) == 1:
                raise
            failed.append(Failure(image_id=relative, url=url, reason=str(error)))
            continue
        seen = stat(url, storage_options)
        images += [
            SourceImage(image_id=image_id, source=seen, read=partial(table.read, number))
            for number, image_id in enumerate(ids)
        ]
        labels.update(names)
        tables.append(table)

    def close() -> None:
        for table in tables:
            table.close()

    return Listing(images=tuple(images), failed=tuple(failed), labels=labels, close=close)


class _Table:
    """An npz file: its small arrays in memory, its X read row by row."""

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._url = url
        self._storage = storage_options
        self._rows: list[NDArray[np.int64]] = []  # of each bag
        self._small: dict[str, NDArray[Any]] = {}
        self._matrix: _Matrix | None = None

    def bags(self, prefix: str) -> tuple[list[str], dict[str, str]]:
        """Read all but X; give the ids of the bags, and the labels there are.

        Raises
        ------
        FormatError
            If it is damaged, or not of this form.
        """
        try:
            self._read_small()
        except HistostoreError:
            raise
        except DAMAGE as error:
            raise unsound(self._url, "npz file", error) from error
        bag = self._small["bag"]
        if bag.ndim != 1 or bag.dtype.kind not in "iuU" or not len(bag):
            raise FormatError(
                f"{public_url(self._url)}: bag is {bag.dtype} {bag.shape}, not one whole number"
                " or text per instance"
            )
        values, inverse = np.unique(bag, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        self._rows = np.split(order, np.flatnonzero(np.diff(inverse[order])) + 1)
        ids = self._per_bag("image_id", values) or [
            str(value) if bag.dtype.kind == "U" else f"{prefix}-{value}" for value in values
        ]
        labels = self._per_bag("y", values)
        return ids, dict(zip(ids, labels, strict=True)) if labels else {}

    def _read_small(self) -> None:
        with (
            _opened(self._url, self._storage) as file,
            # np.load would advise to load what is no zip file as a pickle.
            np.lib.npyio.NpzFile(file, allow_pickle=False) as arrays,
        ):
            if missing := {"X", "bag"} - set(arrays.files):
                raise FormatError(
                    f"{public_url(self._url)} has no array {' and '.join(sorted(missing))};"
                    f" it has {', '.join(arrays.files) or 'none'}"
                )
            wanted = {"bag", "y", "image_id", "coords", "tissue", "encoder"} & set(arrays.files)
            self._small = {name: np.asarray(arrays[name]) for name in wanted}

    def _per_bag(self, name: str, values: NDArray[Any]) -> list[str]:
        """Take an array with one entry per bag, as text; nothing where it is not there."""
        array = self._small.get(name)
        if array is None:
            return []
        n_bags = array.shape[0] if array.ndim == 1 else -1
        numbered = values.dtype.kind in "iu" and values[0] >= 0 and n_bags > values[-1]
        if not (numbered or n_bags == len(values)):
            raise FormatError(
                f"{public_url(self._url)}: {name} has shape {array.shape} for {len(values)} bags"
            )
        return [_text(entry) for entry in (array[values] if numbered else array).tolist()]

    def close(self) -> None:
        """Close X, if it was opened."""
        if self._matrix is not None:
            self._matrix.close()
            self._matrix = None

    def read(self, number: int) -> Rows:
        """Read one bag."""
        rows = self._rows[number]
        try:
            if self._matrix is None:
                self._matrix = _Matrix(self._url, self._storage)
            features = self._matrix.take(rows, n_rows=len(self._small["bag"]))
        except HistostoreError:
            raise
        except DAMAGE as error:
            raise unsound(self._url, "npz file", error) from error
        return self._checked(rows, features)

    def _checked(self, rows: NDArray[np.int64], features: NDArray[Any]) -> Rows:
        coords, tissue, encoder = (self._small.get(k) for k in ("coords", "tissue", "encoder"))
        for name, column in (("coords", coords), ("tissue", tissue)):
            if column is not None and len(column) != len(self._small["bag"]):
                raise FormatError(f"{name} has {len(column)} rows, bag {len(self._small['bag'])}")
        facts = Facts(
            encoder=str(encoder) if encoder is not None and encoder.dtype.kind == "U" else None,
            preprocessing={} if coords is not None else {"coords": "row number"},
        )
        return checked_rows(
            features,
            facts,
            coords=None if coords is None else coords[rows],
            tissue=None if tissue is None else tissue[rows],
        )


def _text(entry: object) -> str:
    """Write a name or a label as text, empty where it is missing."""
    if isinstance(entry, float):
        return "" if math.isnan(entry) else str(int(entry) if entry.is_integer() else entry)
    return entry.decode(errors="replace") if isinstance(entry, bytes) else str(entry)


def _opened(url: str, storage_options: Mapping[str, Any]) -> IO[bytes]:
    path = local_path(url)
    if path is not None:
        return open(path, "rb")  # noqa: PTH123 - a str path, closed by the caller
    fs, remote = filesystem(url, storage_options)
    file: IO[bytes] = fs.open(remote, "rb")
    return file


class _Matrix:
    """``X.npy`` in an npz file: rows are read where they lie, without the rest.

    The member stays open between bags, as going back in a compressed one starts it anew.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        with ExitStack() as stack:
            file = stack.enter_context(_opened(url, storage_options))
            self._member = stack.enter_context(
                stack.enter_context(zipfile.ZipFile(file)).open("X.npy")
            )
            self._read_header(url)
            self._all: NDArray[Any] | None = None
            self.close = stack.pop_all().close

    def _read_header(self, url: str) -> None:
        version = np.lib.format.read_magic(self._member)
        readers = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }
        if version not in readers:
            raise FormatError(f"{public_url(url)}: X is of npy version {version}")
        self.shape, self._by_column, self._kind = readers[version](self._member)
        if self._kind.hasobject or len(self.shape) != 2:
            raise FormatError(
                f"{public_url(url)}: X is {self._kind} {self.shape}, not numbers by instance and feature"
            )
        self._start = self._member.tell()

    def take(self, rows: NDArray[np.int64], *, n_rows: int) -> NDArray[Any]:
        """Read some rows, in order."""
        if self.shape[0] != n_rows:
            raise FormatError(f"X has {self.shape[0]} rows, bag {n_rows}")
        together = rows[-1] - rows[0] + 1 == len(rows)
        if self._all is None and (self._by_column or not together):
            self._all = self._read(0, n_rows)
        if self._all is not None:
            return self._all[rows]
        return self._read(int(rows[0]), int(rows[-1]) + 1)

    def _read(self, start: int, stop: int) -> NDArray[Any]:
        width = self.shape[1]
        self._member.seek(self._start + start * width * self._kind.itemsize)
        n_bytes = (stop - start) * width * self._kind.itemsize
        content = self._member.read(n_bytes)
        if len(content) != n_bytes:
            raise EOFError("X ends early")
        rows = np.frombuffer(content, self._kind)
        if self._by_column:
            return rows.reshape(width, stop - start).T
        return rows.reshape(stop - start, width)


def write_images(job: ExportJob) -> int:
    """Write one npz file, X as a stream; give the number of files."""
    ids = [*job.n_rows]
    if unfit := [image_id for image_id in ids if "\0" in image_id]:
        raise OptionError(f"image id {unfit[0]!r} holds a zero, which npz cannot; use parquet")
    spec = job.features.spec
    coords, tissue = [], []
    header = {
        "descr": np.dtype(spec.dtype).newbyteorder("<").str,
        "fortran_order": False,
        "shape": (job.n_patches, spec.n_features),
    }
    with job.target.stream() as file, zipfile.ZipFile(file, "w", allowZip64=True) as archive:
        with archive.open("X.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for loaded in job.batches():
                member.write(np.ascontiguousarray(loaded.embedding).data.cast("B"))
                coords.append(loaded.coords)
                tissue.append(loaded.tissue)
        small = {
            "bag": np.repeat(np.arange(len(ids)), [*job.n_rows.values()]),
            "image_id": np.array(ids, dtype=np.str_),
            "tissue": np.concatenate(tissue),
            "encoder": np.array(job.features.name),
        }
        if job.places == "pixels":
            small["coords"] = np.concatenate(coords)
        for name, array in small.items():
            archive.writestr(f"{name}.npy", _npy(array))
    return 1


def _npy(array: NDArray[Any] | Sequence[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()
