"""Filling a local file with the rows of a store, so that it exists whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import StorageError
from zoo.flatfile import FlatFile, extended, flush, header_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from histostore.store import FeatureSet

__all__ = ["COORDS", "DOCUMENT", "EMBEDDING", "PART_BYTES", "Filling", "single_precision"]

logger = logging.getLogger(__name__)

EMBEDDING, COORDS, CHECKSUMS = "embedding.npy", "coords.npy", "crc32c.npy"
DOCUMENT = "cache.json"

PART_BYTES = 128 * 2**20
"""The most that is read from the store at once while a file is filled; less where the memory
limit is small, more where one image is larger."""

_WORTH_TORCH_BYTES = 2**25
_FORMAT = 1
_ATTEMPTS = 4


class Filling:
    """One cohort in one view on its way from the store to a local file."""

    def __init__(
        self,
        features: FeatureSet,
        image_ids: tuple[str, ...],
        augmentation: str,
        offset: NDArray[np.int64],
        *,
        home: Path,
        part_bytes: int,
    ) -> None:
        self._features, self._image_ids, self._augmentation = features, image_ids, augmentation
        self._offset = offset
        self._home, self._part_bytes = home, part_bytes
        self._facts: dict[str, Any] = {
            "cache": _FORMAT,
            "feature_set": features.name,
            "spec": features.spec.digest,
            "snapshot": features.snapshot,
            "augmentation": augmentation,
            "n_images": len(image_ids),
            "n_rows": int(offset[-1]),
            "images": _sha256(json.dumps(image_ids).encode()),
        }
        key = _sha256(json.dumps(self._facts, sort_keys=True).encode())
        self._folder = home / f"{features.name}-{key[:32]}"

    def folder(self) -> Path:
        """Give the folder with the whole, sound files; filled first if it is not there."""
        try:
            if not self._is_sound():
                self._fill_and_name()
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"cache {self._home}: {error.strerror or error}") from error
        return self._folder

    def _is_sound(self, *, verify: bool = True) -> bool:
        """Say whether all is there as it was left."""
        if not self._folder.is_dir():
            return False
        try:
            problem = self._problem(verify=verify)
        except (OSError, ValueError, TypeError, KeyError) as error:
            problem = str(error)
        if problem:
            logger.warning("cache %s is not used and made again: %s", self._folder, problem)
        return not problem

    def _problem(self, *, verify: bool) -> str:
        """Say what is wrong with the folder, if anything."""
        document = json.loads((self._folder / DOCUMENT).read_bytes())
        if document["facts"] != self._facts:
            return "it is of something else"
        for name, n_bytes in document["n_bytes"].items():
            if (self._folder / name).stat().st_size != n_bytes:
                return f"{name} has another length than it was left with"
        return self._damage(document["checksums"]) if verify else ""

    def _damage(self, digest: str) -> str:
        """Say which image fails its checksum, if any, without mapping a file."""
        if _sha256((self._folder / CHECKSUMS).read_bytes()) != digest:
            return f"{CHECKSUMS} fails its SHA-256"
        checksums = np.load(self._folder / CHECKSUMS, allow_pickle=False)
        with contextlib.ExitStack() as stack:
            files = []
            for name, (n_columns, kind) in self._columns.items():
                file = stack.enter_context((self._folder / name).open("rb", buffering=0))
                header = header_of((int(self._offset[-1]), n_columns), kind)
                if file.read(len(header)) != header:
                    return f"{name} has another header than it was left with"
                files.append((file, n_columns * np.dtype(kind).itemsize))
            for image, n_rows in enumerate(np.diff(self._offset).tolist()):
                found = 0
                for file, row_bytes in files:
                    found = extended(found, file, n_rows * row_bytes)
                if found != checksums[image]:
                    return f"image {self._image_ids[image]!r} fails its CRC32C"
        return ""

    @property
    def _columns(self) -> dict[str, tuple[int, str]]:
        """Width and type of each file; half precision is converted once, not at every reading."""
        return {EMBEDDING: (self._features.spec.n_features, "float32"), COORDS: (2, "int32")}

    @property
    def _row_bytes(self) -> int:
        return sum(n * np.dtype(kind).itemsize for n, kind in self._columns.values())

    def _fill_and_name(self) -> None:
        """Fill a hidden folder, then give it its name."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        _sweep(self._home)
        needed = int(self._offset[-1]) * self._row_bytes
        free = shutil.disk_usage(self._home).free
        if needed > free:
            raise StorageError(
                f"cache {self._home}: {needed / 1e9:.3f} GB are needed and {free / 1e9:.3f} GB are "
                "free; name another folder by HISTOSTORE_CACHE, or allow more memory"
            )
        hidden = self._hidden()
        hidden.mkdir(mode=0o700)
        try:
            self._fill(hidden)
            self._name(hidden)
        finally:
            shutil.rmtree(hidden, ignore_errors=True)

    def _hidden(self) -> Path:
        mark = f"{_host()}.{os.getpid()}.{secrets.token_hex(4)}"
        return self._home / f".{self._folder.name}.{mark}"

    def _name(self, hidden: Path) -> None:
        """Rename; where another process was faster, take its folder if that is sound."""
        for _ in range(_ATTEMPTS):
            try:
                hidden.rename(self._folder)
            except OSError as error:
                if not self._folder.is_dir():
                    raise
                if self._is_sound():
                    return
                logger.debug("%s: %s", self._folder, error)
                aside = self._hidden()
                with contextlib.suppress(FileNotFoundError):
                    self._folder.rename(aside)
                    shutil.rmtree(aside, ignore_errors=True)
            else:
                flush(self._home)
                if self._is_sound(verify=False):
                    return
        raise StorageError(f"cache {self._folder}: what was written cannot be read back")

    def _fill(self, folder: Path) -> None:
        n_rows = int(self._offset[-1])
        files = {
            name: FlatFile(folder / name, (n_rows, n_columns), kind)
            for name, (n_columns, kind) in self._columns.items()
        }
        checksums = np.zeros(len(self._image_ids), np.uint32)
        with files[EMBEDDING] as embedding, files[COORDS] as coords:
            for part in self._parts():
                loaded = self._features.load([self._image_ids[i] for i in part], self._augmentation)
                bounds = pairwise(loaded.offset.tolist())
                for image, (first, last) in zip(part, bounds, strict=True):
                    at = int(self._offset[image])
                    rows = single_precision(loaded.embedding[first:last])
                    found = embedding.put(at, rows, 0)
                    checksums[image] = coords.put(at, loaded.coords[first:last], found)
                del loaded, rows  # before the next part is read, not after
        np.save(folder / CHECKSUMS, checksums, allow_pickle=False)
        names = (EMBEDDING, COORDS, CHECKSUMS)
        document = {
            "facts": self._facts,
            "n_bytes": {name: (folder / name).stat().st_size for name in names},
            "checksums": _sha256((folder / CHECKSUMS).read_bytes()),
        }
        (folder / DOCUMENT).write_text(json.dumps(document, indent=1), encoding="utf-8")
        for name in (CHECKSUMS, DOCUMENT, ""):
            flush(folder / name)

    def _parts(self) -> Iterator[list[int]]:
        """Give positions of images, fragment by fragment, so that few chunks are read twice.

        A fragment that is larger than a part is cut between images.
        """
        index = self._features.index
        places = []
        for at, image in enumerate(self._image_ids):
            record, rows = index[image, self._augmentation]
            places.append((record.fragment_id, rows.start, at))
        part: list[int] = []
        n_bytes = 0
        for _, _, at in sorted(places):
            n_rows = int(self._offset[at + 1] - self._offset[at])
            more = n_rows * self._row_bytes
            if part and n_bytes + more > self._part_bytes:
                yield part
                part, n_bytes = [], 0
            part.append(at)
            n_bytes += more
        if part:
            yield part


def single_precision(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Widen half precision, exactly; what is float32 already comes back as it is.

    numpy widens number by number. torch does it eight at a time, and is worth its import from
    some size on; its own new memory would cost more page faults than numpy's.
    """
    if rows.dtype == np.float32:
        return rows
    if rows.nbytes < _WORTH_TORCH_BYTES or not rows.flags.writeable:
        return rows.astype(np.float32)
    import torch

    widened = np.empty(rows.shape, np.float32)
    torch.from_numpy(widened).copy_(torch.from_numpy(rows))
    return widened


def _sweep(home: Path) -> None:
    """Remove what processes of this machine that are no more have left half-made."""
    for path in home.glob(f".*.{_host()}.*.*"):
        with contextlib.suppress(ValueError, OSError):
            if not _runs(int(path.name.split(".")[-2])):
                shutil.rmtree(path, ignore_errors=True)


def _host() -> str:
    return _sha256(socket.gethostname().encode())[:8]


def _runs(pid: int) -> bool:
    if sys.platform == "win32":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
