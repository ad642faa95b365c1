"""Objects at a URL: the one part of the store that deals with storage drivers.

The protocol of the store asks little of a storage: list a folder, read an object or a part
of it, put an object by one plain put. No locks, no conditional writes, no renaming of
folders. Object stores promise that a put is atomic and durable; on a local disk it is made
so by hand, because neither zarr's nor fsspec's local store flushes anything: after a loss of
power, a committed fragment could name empty files.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from histostore.errors import StorageError
from histostore.files import driver_errors, filesystem, local_path, public_url
from histostore.store.disk import LocalBackend
from histostore.store.objects import ObjectBackend
from histostore.store.obstore import PREFIX, ObstoreBackend
from histostore.store.protocol import Backend, Entry, StoredBytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Backend", "Entry", "LocalBackend", "RemoteBackend", "StoredBytes", "open_backend"]

_TIME_KEYS = ("LastModified", "last_modified", "mtime", "updated", "created")


def open_backend(url: str, storage_options: Mapping[str, Any] | None = None) -> Backend:
    """Open the storage of a URL; nothing is read or written yet.

    Parameters
    ----------
    url
        Local path, any URL that fsspec knows, or ``obstore+`` and the URL of a bucket.
    storage_options
        Handed to the driver.

    Raises
    ------
    StorageError
        If the driver refuses.
    MissingExtra
        If the driver is not installed.
    """
    if url.startswith(PREFIX):
        return ObstoreBackend(url, storage_options)
    path = local_path(url)
    return RemoteBackend(url, storage_options) if path is None else LocalBackend(path)


class RemoteBackend(ObjectBackend):
    """Objects behind an fsspec driver: S3, Google, Azure, memory and others.

    Its puts are atomic where the driver's are, as those of object stores.

    Examples
    --------
    >>> backend = RemoteBackend("memory://doctest-backend")
    >>> backend.put("a/b.json", b"{}")
    >>> backend.names("a"), backend.read("a/b.json"), backend.read("a/c.json")
    (['b.json'], b'{}', None)
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = public_url(url).rstrip("/")
        self._options = dict(storage_options or {})
        self._fs, root = filesystem(url, storage_options)
        self._root = root.rstrip("/")
        # At the root of an archive (zip://) no path begins with a slash, on a server each does.
        self._above = f"{self._root}/" if root else ""

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, as many at once as the driver likes; None where there is none."""
        if not paths:
            return []
        with self._errors(paths[0] if len(paths) == 1 else ""):
            # From 0 on, not from None: s3fs then asks for the size first, by a request of its own.
            answers = self._fs.cat_ranges(
                [self._path(path) for path in paths], 0, None, on_error="return"
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

    def put(self, path: str, content: bytes) -> None:
        """Put an object by one request, or a multipart one where it is large."""
        with self._errors(path):
            try:
                self._fs.pipe_file(self._path(path), content)
            except Exception as error:
                # Object stores have no folders: only the bucket itself can be absent. Azure's
                # driver hands on what the service says, the others raise FileNotFoundError.
                azure = getattr(error, "error_code", None) == "ContainerNotFound"
                if not (azure or isinstance(error, FileNotFoundError)):
                    raise
                raise StorageError(f"{self.url}: no such bucket; create it first") from error

    def walk(self, folder: str) -> list[Entry]:
        """List all objects below a prefix, afresh."""
        path = self._path(folder)
        with self._errors(folder):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(path, detail=True)
            except FileNotFoundError:
                return []
        above = self._root.lstrip("/") + "/"
        return [
            Entry(
                path=str(name).lstrip("/").removeprefix(above),
                n_bytes=int(info.get("size") or 0),
                modified=_modified(info),
            )
            for name, info in found.items()
        ]

    def remove(self, path: str) -> None:
        """Remove an object; none there is well too."""
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._path(path))

    def read_range(self, path: str, start: int, stop: int | None) -> bytes:
        """Read a part of an object; nothing where there is none."""
        with self._errors(path):
            try:
                content: bytes = self._fs.cat_file(self._path(path), start=start, end=stop)
            except FileNotFoundError:
                return b""
            except Exception as error:
                if _past_the_end(error):
                    return b""
                raise
        return content

    def _path(self, path: str) -> str:
        return f"{self._above}{path}" if path else self._root

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return driver_errors(f"{self.url}/{path}".rstrip("/"), self._options)


def _modified(info: Mapping[str, Any]) -> float | None:
    """Find the time of an object among the names that drivers have for it."""
    times = (info.get(key) for key in _TIME_KEYS)
    seen = next((time for time in times if time is not None), None)
    if isinstance(seen, str):
        try:
            seen = datetime.fromisoformat(seen)
        except ValueError:
            return None
    if isinstance(seen, datetime):
        return (seen if seen.tzinfo else seen.replace(tzinfo=UTC)).timestamp()
    return float(seen) if isinstance(seen, int | float) else None


def _content(answer: bytes | Exception) -> bytes | None:
    if isinstance(answer, FileNotFoundError):
        return None
    if isinstance(answer, Exception):
        if _past_the_end(answer):
            return b""
        raise answer
    return answer


def _past_the_end(error: Exception) -> bool:
    """Tell whether a service answered that an object ends before what was asked for (416)."""
    response = getattr(error.__cause__ or error, "response", None)  # botocore's
    if isinstance(response, dict):
        return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 416)
    return 416 in (getattr(error, "status_code", None), getattr(error, "code", None))
