"""A folder on this machine's file systems as the storage of a store.

Neither zarr's nor fsspec's local store flushes anything: after a loss of power, a committed
fragment could name empty files. Here everything is flushed before it is named.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

from histostore.files import driver_errors
from histostore.store.protocol import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from histostore.store.protocol import StoredBytes

__all__ = ["LocalBackend"]

_ABSENT = (FileNotFoundError, NotADirectoryError)
_READ_BATCH = 32


class LocalBackend:
    """A folder on this machine's file systems, with no driver in between.

    Examples
    --------
    >>> import tempfile
    >>> backend = LocalBackend(tempfile.mkdtemp())
    >>> backend.put("a/b.json", b"{}")
    >>> backend.names("a"), backend.read("a/b.json"), backend.read("a/c.json")
    (['b.json'], b'{}', None)
    """

    threads = 4

    def __init__(self, root: str) -> None:
        self.url = root
        self._root = Path(root).absolute()

    def read(self, path: str) -> bytes | None:
        """Read an object whole; None where there is none."""
        with self._errors(path):
            return self._read(path)

    def _read(self, path: str) -> bytes | None:
        try:
            with open(self._root / path, "rb", buffering=0) as file:  # noqa: PTH123 - hot
                return file.read()
        except _ABSENT:
            return None

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, a batch of them per thread; None where there is none."""
        batches = [paths[at : at + _READ_BATCH] for at in range(0, len(paths), _READ_BATCH)]
        with self._errors(""), ThreadPoolExecutor(self.threads) as pool:
            read = pool.map(lambda batch: [self._read(path) for path in batch], batches)
            return [content for batch in read for content in batch]

    def names(self, folder: str) -> list[str]:
        """List a folder, without what is hidden, as half-made puts are."""
        with self._errors(folder):
            try:
                names = os.listdir(self._root / folder)  # noqa: PTH208 - names, not paths
            except FileNotFoundError:
                return []
            except NotADirectoryError:
                if not folder:
                    raise
                return []  # somebody's file beside the feature sets
            return sorted(name for name in names if not name.startswith("."))

    def open(self, path: str) -> StoredBytes | None:
        """Open a file; None where there is none."""
        with self._errors(path):
            try:
                return _LocalFile(self._root / path)
            except _ABSENT:
                return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file and flush it to the disk."""
        with self._errors(path):
            target = self._root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_flushed(target, content)

    def settle(self, paths: Iterable[str]) -> None:
        """Flush the folders in which the files lie, and those in which these lie."""
        with self._errors(""):
            inner = {(self._root / path).parent for path in paths}
            folders = inner | {above for folder in inner for above in folder.parents}
            for folder in sorted(folders, key=lambda path: -len(path.parts)):
                if self._root.parent in (folder, *folder.parents):
                    _flush_folder(folder)

    def put(self, path: str, content: bytes) -> None:
        """Write a hidden file, flush it, name it by one rename, flush the folders."""
        with self._errors(path):
            target = self._root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            hidden = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
            try:
                _write_flushed(hidden, content)
                hidden.replace(target)
            except BaseException:
                hidden.unlink(missing_ok=True)
                raise
        self.settle([path])

    def discard(self, paths: Iterable[str]) -> None:
        """Remove files, and the folders that this leaves empty."""
        targets = [self._root / path for path in paths]
        for target in targets:
            with contextlib.suppress(OSError):
                target.unlink(missing_ok=True)
        inner = {target.parent for target in targets}
        for folder in [*inner, *{folder.parent for folder in inner}]:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def walk(self, folder: str) -> list[Entry]:
        """List all files below a folder; a file changed under our feet may be left out."""
        top = self._root / folder
        with self._errors(folder):
            return [
                entry
                for inner, _, names in os.walk(top)
                for name in names
                if (entry := self._entry(Path(inner, name))) is not None
            ]

    def _entry(self, path: Path) -> Entry | None:
        try:
            status = path.lstat()
        except _ABSENT:
            return None
        # Copying tools set the time of modification back to that of the original; no tool
        # sets that of the change of status.
        return Entry(
            path=path.relative_to(self._root).as_posix(),
            n_bytes=status.st_size,
            modified=max(status.st_mtime, status.st_ctime),
        )

    def remove(self, path: str) -> None:
        """Remove a file and flush its folder; none there is well too."""
        with self._errors(path):
            target = self._root / path
            try:
                target.unlink()
            except _ABSENT:
                return
            _flush_folder(target.parent)

    def prune(self, folder: str) -> None:
        """Remove a folder, and those in it, where nothing but folders is left."""
        for inner, _, _ in os.walk(self._root / folder, topdown=False):
            with contextlib.suppress(OSError):
                Path(inner).rmdir()

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return driver_errors(f"{self.url}/{path}".rstrip("/"))


def _write_flushed(target: Path, content: bytes) -> None:
    with target.open("wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Flush a folder's entries; Windows has no such call, and flushes them with the files."""
    if os.name == "nt":
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder above the store that we may pass but not list
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _LocalFile:
    """A file opened without a buffer, so that bytes go straight to where they are wanted."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: PTH123, SIM115 - see __exit__

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def fetch(self, start: int, stop: int | None) -> None:
        """Do nothing: the page cache reads ahead."""

    def read_into(self, start: int, target: memoryview) -> int:
        self._file.seek(start)
        done = 0
        while done < len(target):
            count = self._file.readinto(target[done:])
            if not count:
                break
            done += count
        return done
