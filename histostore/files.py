"""Source files wherever they lie: a disk, a bucket, memory; anything that fsspec opens.

Errors of the drivers come out as :class:`~histostore.errors.StorageError` with the URL and
the driver's reason in one line. Storage options and the user-info of a URL may be
credentials: they never appear in a message.
"""

from __future__ import annotations

import errno
import os
import re
import stat as stat_bits
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, MissingExtra, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "Source",
    "driver_errors",
    "filesystem",
    "local_path",
    "public_url",
    "read_bytes",
    "stat",
    "stat_many",
]

_DRIVERS = {
    "s3": ("s3fs", "s3"),
    "s3a": ("s3fs", "s3"),
    "gs": ("gcsfs", "gcs"),
    "gcs": ("gcsfs", "gcs"),
    "az": ("adlfs", "azure"),
    "abfs": ("adlfs", "azure"),
    "abfss": ("adlfs", "azure"),
    "adl": ("adlfs", "azure"),
}
_VERSION_KEYS = ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated", "created")
_CONCURRENT_REQUESTS = 16
_USER_INFO = re.compile(r"(?<=://)[^/@\s]+@")
_QUERY = re.compile(r"(?<=[\w/])\?[^\s'\"]*=[^\s'\"]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One source file as it was seen: enough to tell later that it has changed."""

    url: str
    """Where it lies, as it was asked for."""

    size: int | None
    """Bytes, or None where the storage does not say."""

    version: str | None
    """ETag, or the modification time (nanoseconds of a local file, else ISO 8601)."""

    places: str | None = None
    """Size and version of the file that says where patches lie; None where a grid does."""

    scale: str | None = None
    """Micrometres per pixel of level 0, where the grid asks for a scale: the cohort's number,
    or ``file`` for the file's own."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel that the cohort said, None where it said none."""
        return None if self.scale is None or self.scale == "file" else float(self.scale)

    def scaled_by(self, mpp: float | None) -> Source:
        """Give the same source, of which the cohort, or else the file, says the scale."""
        return replace(self, scale="file" if mpp is None else repr(mpp))

    def placed_by(self, file: Source) -> Source:
        """Give the same source, of which a file says where patches lie."""
        return replace(self, places=f"{file.size} {file.version}")

    def differs(self, then: Mapping[str, Any]) -> bool:
        """Compare with what :meth:`to_json` gave earlier; moving a file is no change.

        Examples
        --------
        >>> now = Source(url="b.png", size=3, version="7")
        >>> now.differs({"url": "a.png", "size": 3, "version": "7"})
        False
        >>> now.placed_by(Source(url="b.csv", size=9, version="1")).differs(now.to_json())
        True
        >>> now.scaled_by(0.25).differs(now.scaled_by(0.5).to_json())
        True
        """
        return (self.size, self.version, self.places, self.scale) != (
            then["size"],
            then["version"],
            then.get("places"),
            then.get("scale", self.scale),  # older stores do not say
        )

    def to_json(self) -> dict[str, Any]:
        """Give the source as JSON values."""
        seen = {"places": self.places, "scale": self.scale}
        document = {"url": self.url, "size": self.size, "version": self.version}
        return document | {key: value for key, value in seen.items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Source:
        """Invert :meth:`to_json`.

        Examples
        --------
        >>> source = Source(url="memory://a.png", size=3, version="7")
        >>> Source.from_json(source.to_json()) == source
        True
        """
        return cls(
            url=document["url"],
            size=document["size"],
            version=document["version"],
            places=document.get("places"),
            scale=document.get("scale"),
        )


def local_path(url: str) -> str | None:
    """Give the path of a URL on this machine's own file system, None of any other URL.

    Examples
    --------
    >>> local_path("file:///data/a.png"), local_path("/data/a.png"), local_path("s3://b/a.png")
    ('/data/a.png', '/data/a.png', None)
    """
    if "://" not in url:
        return os.path.expanduser(url) if url.startswith("~") else url  # noqa: PTH111 - hot path
    if url.startswith(("file://", "local://")) and "::" not in url:
        from fsspec.implementations.local import LocalFileSystem

        return str(LocalFileSystem._strip_protocol(url))  # noqa: SLF001 - fsspec's own recipe
    return None


def public_url(url: str) -> str:
    """Give a URL without what may be secret in it: user-info and query.

    Examples
    --------
    >>> public_url("https://me:secret@host/a.png?signature=1")
    'https://host/a.png'
    """
    return _QUERY.sub("", _USER_INFO.sub("", url)) if "://" in url else url


@contextmanager
def driver_errors(url: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Turn whatever a storage driver raises inside the block into one of our errors.

    Raises
    ------
    StorageError
        With the URL and the driver's reason, in one line, without credentials.
    MissingExtra
        If the driver's library is not installed and one of our extras brings it.
    """
    try:
        yield
    except HistostoreError:
        raise
    except ImportError as error:
        scheme = url.split("://", 1)[0].rsplit("::", 1)[-1]
        if scheme in _DRIVERS:
            library, extra = _DRIVERS[scheme]
            raise MissingExtra.named(library, extra=extra) from error
        raise StorageError(f"{public_url(url)}: {_reason(error, storage_options)}") from error
    # Drivers share no base class (botocore, google.auth, azure.core, aiohttp, OSError, …).
    except Exception as error:
        raise StorageError(f"{public_url(url)}: {_reason(error, storage_options)}") from error


def _reason(error: Exception, storage_options: Mapping[str, Any] | None) -> str:
    """Say in one line, without credentials, why a driver failed."""
    if isinstance(error, FileNotFoundError):
        return "no such file or folder"
    reason = _said(error) or _answered(error) or type(error).__name__
    # Longest first: one secret may be a part of another.
    for secret in sorted(set(_secrets(storage_options or {})), key=len, reverse=True):
        reason = reason.replace(secret, "***")
    return _QUERY.sub("", _USER_INFO.sub("", reason))


def _said(error: Exception) -> str:
    """Give an error's own words in one line; nothing where it has none."""
    strerror = error.strerror if isinstance(error, OSError) else None
    words = " ".join(str(strerror or error).split())
    words = words.partition(" Debug source:")[0]  # obstore repeats itself there
    # Ceph's gateway leaves the message of a refusal empty, and s3fs hands on a None.
    return "" if words == "None" else words


def _answered(error: BaseException | None) -> str:
    """Give the code that a service answered with, from wherever in the chain of causes it is."""
    while error is not None:
        response = getattr(error, "response", None)  # botocore's
        if isinstance(response, dict) and (code := response.get("Error", {}).get("Code")):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return f"the service answers {code}" + (f" ({status})" if status else "")
        error = error.__cause__
    return ""


def _secrets(options: Mapping[str, Any]) -> Iterator[str]:
    """Yield every text in the options, however deep, that is long enough to give one away."""
    for value in options.values():
        if isinstance(value, dict):
            yield from _secrets(value)
        elif isinstance(value, str) and len(value) > 3:
            yield value


def filesystem(url: str, storage_options: Mapping[str, Any] | None = None) -> tuple[Any, str]:
    """Open the file system of a URL.

    Parameters
    ----------
    url
        Local path or any URL that fsspec knows.
    storage_options
        Handed to the fsspec driver: credentials, endpoint, …

    Returns
    -------
    (fs, path)
        The fsspec file system, and the path of ``url`` on it.

    Raises
    ------
    StorageError
        If the driver refuses; with its reason.
    MissingExtra
        If the driver is not installed.

    Examples
    --------
    >>> fs, path = filesystem("memory://slides/a.png")
    >>> type(fs).__name__, path
    ('MemoryFileSystem', '/slides/a.png')
    """
    with driver_errors(url, storage_options):
        from fsspec.core import url_to_fs

        fs, path = url_to_fs(url, **dict(storage_options or {}))
    return fs, str(path)


def read_bytes(url: str, storage_options: Mapping[str, Any] | None = None) -> bytes:
    """Read a whole file.

    Raises
    ------
    StorageError
        If it is missing or cannot be read.
    """
    path = local_path(url)
    with driver_errors(url, storage_options):
        if path is not None:
            with open(path, "rb") as file:  # noqa: PTH123 - a str path, and often
                return file.read()
        fs, path = filesystem(url, storage_options)
        content: bytes = fs.cat_file(path)
        return content


def stat(url: str, storage_options: Mapping[str, Any] | None = None) -> Source:
    """Ask for size and version of one file.

    Raises
    ------
    StorageError
        If there is no such file, or it is a folder, or the storage refuses.
    """
    local = local_path(url)
    if local is not None:
        source = _stat_local(url, local)
    else:
        fs, path = filesystem(url, storage_options)
        with driver_errors(url, storage_options):
            fs.invalidate_cache(path)
            source = _source(url, fs.info(path))
    if source is None:
        raise StorageError(f"{public_url(url)}: no such file")
    return source


def stat_many(
    urls: Iterable[str], storage_options: Mapping[str, Any] | None = None
) -> dict[str, Source | None]:
    """Ask for size and version of many files at once.

    In a bucket each parent folder is listed once, so the number of requests grows with the
    folders, not with the files. HTTP has no listing, and is asked file by file.

    Parameters
    ----------
    urls
        Files; a URL given twice is asked for once.
    storage_options
        Handed to the fsspec driver.

    Returns
    -------
    sources
        One entry per distinct URL, in the order given; None where there is no such file.

    Raises
    ------
    StorageError
        If a storage refuses for another reason than a missing file or folder.
    """
    found: dict[str, Source | None] = dict.fromkeys(urls)
    folders: dict[str, list[str]] = {}
    for url in found:
        path = local_path(url)
        if path is not None:
            found[url] = _stat_local(url, path)
        else:
            # HTTP and chained URLs stand alone; the rest share their folder's listing.
            alone = url.startswith(("http://", "https://")) or "::" in url
            folders.setdefault(url if alone else _parent(url), []).append(url)
    ask = partial(_stat_folder, storage_options=storage_options)
    if len(folders) < 2:
        answers = [ask(*folder) for folder in folders.items()]
    else:
        with ThreadPoolExecutor(_CONCURRENT_REQUESTS) as pool:
            answers = list(pool.map(ask, folders, folders.values()))
    found.update(chain.from_iterable(answers))
    return found


def _parent(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('/')[0]}"


def _stat_local(url: str, path: str) -> Source | None:
    try:
        entry = os.stat(path)  # noqa: PTH116 - 100,000 times
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            return None
        raise StorageError(f"{url}: {error.strerror or error}") from error
    if not stat_bits.S_ISREG(entry.st_mode):
        return None
    return Source(url=url, size=entry.st_size, version=str(entry.st_mtime_ns))


def _stat_folder(
    folder: str, urls: list[str], *, storage_options: Mapping[str, Any] | None
) -> list[tuple[str, Source | None]]:
    """Ask for the files of one folder by one listing, or for one file that stands alone."""
    fs, path = filesystem(folder, storage_options)
    with driver_errors(folder, storage_options):
        fs.invalidate_cache(path)
        try:
            if urls == [folder]:
                return [(folder, _source(folder, fs.info(path)))]
            listing = fs.ls(path, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return []
    by_name = {info["name"].rsplit("/", 1)[-1]: info for info in listing}
    infos = ((url, by_name.get(url.rsplit("/", 1)[-1])) for url in urls)
    return [(url, _source(url, info)) for url, info in infos if info is not None]


def _source(url: str, info: Mapping[str, Any]) -> Source | None:
    if info.get("type", "file") != "file":
        return None
    seen = next((info[key] for key in _VERSION_KEYS if info.get(key) is not None), None)
    # One file's time may come as a number in a listing and as a date on inquiry (memory://).
    time = datetime.fromtimestamp(seen, UTC) if isinstance(seen, int | float) else seen
    version = time.astimezone(UTC).isoformat() if isinstance(time, datetime) else seen
    return Source(
        url=url,
        size=None if info.get("size") is None else int(info["size"]),
        version=None if version is None else str(version).strip('"'),
    )
