"""Objects at a URL: the one part of the store that deals with storage drivers.

The protocol of the store asks little of a storage: list a folder, read an object or a part
of it, put an object by one plain put. No locks, no conditional writes, no renaming of
folders. Object stores promise that a put is atomic and durable; on a local disk it is made
so by hand, because neither zarr's nor fsspec's local store flushes anything: after a loss of
power, a committed fragment could name empty files.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from histostore.errors import StorageError
from histostore.files import driver_errors, filesystem, local_path, public_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Backend", "LocalBackend", "RemoteBackend", "StoredBytes", "open_backend"]

_ABSENT = (FileNotFoundError, NotADirectoryError)
_READ_BATCH = 32


class StoredBytes(Protocol):
    """One object, open for reading; used by one thread at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def fetch(self, start: int, stop: int | None) -> None:
        """Bring the bytes from ``start`` to ``stop`` near by one request; the end is None."""

    def read_into(self, start: int, target: memoryview) -> int:
        """Fill ``target`` with the bytes from ``start`` on; give how many there were."""


class Backend(Protocol):
    """Objects below a URL; paths are relative to it, with ``/``. Safe to share by threads."""

    @property
    def url(self) -> str:
        """Where it lies, fit for a message."""

    @property
    def threads(self) -> int:
        """How many requests are worth having under way at once."""

    def read(self, path: str) -> bytes | None:
        """Read an object whole; None where there is none."""

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, concurrently; None where there is none."""

    def names(self, folder: str) -> list[str]:
        """List what lies directly in a folder, sorted; nothing where there is no folder."""

    def open(self, path: str) -> StoredBytes | None:
        """Open an object for reading in parts; None where there is none, now or later."""

    def write(self, path: str, content: bytes) -> None:
        """Write an object that nobody may read before :meth:`settle` and a later put."""

    def settle(self, paths: Iterable[str]) -> None:
        """Make sure that the objects written at ``paths`` survive a loss of power."""

    def put(self, path: str, content: bytes) -> None:
        """Put an object: readers see it whole or not at all, and from here on it survives."""

    def discard(self, paths: Iterable[str]) -> None:
        """Remove objects that were written in vain, as far as the storage lets us."""


def open_backend(url: str, storage_options: Mapping[str, Any] | None = None) -> Backend:
    """Open the storage of a URL; nothing is read or written yet.

    Parameters
    ----------
    url
        Local path, or any URL that fsspec knows.
    storage_options
        Handed to the fsspec driver.

    Raises
    ------
    StorageError
        If the driver refuses.
    MissingExtra
        If the driver is not installed.
    """
    path = local_path(url)
    return RemoteBackend(url, storage_options) if path is None else LocalBackend(path)


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


class RemoteBackend:
    """Objects behind an fsspec driver: S3, Google, Azure, memory and others.

    Its puts are atomic where the driver's are, as those of object stores.

    Examples
    --------
    >>> backend = RemoteBackend("memory://doctest-backend")
    >>> backend.put("a/b.json", b"{}")
    >>> backend.names("a"), backend.read("a/b.json"), backend.read("a/c.json")
    (['b.json'], b'{}', None)
    """

    threads = 8

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = public_url(url).rstrip("/")
        self._options = dict(storage_options or {})
        self._fs, root = filesystem(url, storage_options)
        self._root = root.rstrip("/")

    def read(self, path: str) -> bytes | None:
        """Read an object whole; None where there is none."""
        return self.read_many([path])[0]

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, as many at once as the driver likes; None where there is none."""
        if not paths:
            return []
        with self._errors(paths[0] if len(paths) == 1 else ""):
            answers = self._fs.cat_ranges(
                [self._path(path) for path in paths], None, None, on_error="return"
            )
            return [_content(answer) for answer in answers]

    def names(self, folder: str) -> list[str]:
        """List a folder afresh, whatever the driver remembers of it."""
        path = self._path(folder)
        with self._errors(folder):
            self._fs.invalidate_cache(path)
            try:
                found = self._fs.ls(path, detail=False)
            except FileNotFoundError:
                return []
        names = {str(name).rstrip("/") for name in found} - {path, path.lstrip("/")}
        return sorted(name.rpartition("/")[2] for name in names)

    def open(self, path: str) -> StoredBytes | None:
        """Open an object; whether there is one, its first read tells."""
        return _RemoteObject(self, path)

    def write(self, path: str, content: bytes) -> None:
        """Put an object: there is no lesser way."""
        self.put(path, content)

    def settle(self, paths: Iterable[str]) -> None:
        """Do nothing: what an object store has accepted survives."""

    def put(self, path: str, content: bytes) -> None:
        """Put an object by one request, or a multipart one where it is large."""
        with self._errors(path):
            try:
                self._fs.pipe_file(self._path(path), content)
            except FileNotFoundError as error:
                # Object stores have no folders: only the bucket itself can be absent.
                raise StorageError(f"{self.url}: no such bucket; create it first") from error

    def discard(self, paths: Iterable[str]) -> None:
        """Remove objects; those that will not go are left to ``gc``."""
        for path in paths:
            with contextlib.suppress(Exception):
                self._fs.rm_file(self._path(path))

    def read_range(self, path: str, start: int, stop: int | None) -> bytes:
        """Read a part of an object; nothing where there is none."""
        with self._errors(path):
            try:
                content: bytes = self._fs.cat_file(self._path(path), start=start, end=stop)
            except FileNotFoundError:
                return b""
        return content

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return driver_errors(f"{self.url}/{path}".rstrip("/"), self._options)


def _content(answer: bytes | Exception) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, Exception):
        raise answer
    return answer


class _RemoteObject:
    """An object read by ranges; what :meth:`fetch` brought is not asked for again."""

    def __init__(self, backend: RemoteBackend, path: str) -> None:
        self._backend = backend
        self._path = path
        self._start = 0
        self._near = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._near = b""

    def fetch(self, start: int, stop: int | None) -> None:
        self._start = start
        self._near = self._backend.read_range(self._path, start, stop)

    def read_into(self, start: int, target: memoryview) -> int:
        first = start - self._start
        if first < 0 or first + len(target) > len(self._near):
            part = self._backend.read_range(self._path, start, start + len(target))
        else:
            part = self._near[first : first + len(target)]
        target[: len(part)] = part
        return len(part)
