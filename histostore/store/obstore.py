"""Buckets through obstore, a driver written in Rust: asked for as ``obstore+s3://bucket/store``.

The store then speaks to the bucket through obstore alone; images and cohort tables are read as
before, through fsspec, with the same storage options.
"""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingExtra, StorageError
from histostore.files import driver_errors, public_url
from histostore.store.objects import ObjectBackend
from histostore.store.protocol import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["PREFIX", "ObstoreBackend"]

PREFIX = "obstore+"
"""What stands before the URL of a bucket that obstore shall speak to."""

_BUCKETS = ("s3://", "s3a://", "gs://", "az://", "azure://", "abfs://", "abfss://")
"""Where a put is atomic and survives; on a disk obstore flushes nothing."""

_ONE_PUT_BYTES = 64 * 2**20
_S3_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "endpoint_url": "endpoint",
    "region_name": "region",
    "anon": "skip_signature",
}
"""s3fs's names of options, and obstore's of the same."""

_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class ObstoreBackend(ObjectBackend):
    """Objects of a bucket on S3, Google or Azure, through obstore.

    Parameters
    ----------
    url
        ``obstore+`` and the URL of a bucket or a prefix in it.
    storage_options
        obstore's own configuration keys; on S3 also s3fs's ``key``, ``secret``, ``token``,
        ``endpoint_url``, ``anon`` and ``client_kwargs`` with an endpoint or a region.

    Raises
    ------
    StorageError
        If the URL is no bucket's, or obstore does not know an option.
    MissingExtra
        If obstore is not installed.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self.url = public_url(url).rstrip("/")
        self._options = dict(storage_options or {})
        place = url.removeprefix(PREFIX)
        if not place.startswith(_BUCKETS):
            raise StorageError(
                f"{self.url}: obstore is for buckets on s3, gs or az: leave out {PREFIX}"
            )
        with self._errors(""):
            try:
                from obstore.store import from_url
            except ImportError as error:
                raise MissingExtra.named("obstore", extra="obstore") from error
            # One function of many faces; which keys it takes, it says itself.
            opened: Any = from_url
            self._store = opened(
                place,
                config=_config(place, self._options),
                client_options={"allow_http": _is_plain(self._options)},
            )

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, some at once; None where there is none."""
        if len(paths) < 2:
            return [self._get(path) for path in paths]
        with ThreadPoolExecutor(min(self.threads, len(paths))) as pool:
            return list(pool.map(self._get, paths))

    def _get(self, path: str) -> bytes | None:
        with self._errors(path):
            try:
                return bytes(self._store.get(path).bytes())
            except FileNotFoundError:
                return None

    def read_range(self, path: str, start: int, stop: int | None) -> bytes | memoryview:
        """Read a part of an object; nothing where there is none, or it ends before."""
        with self._errors(path):
            try:
                if stop is None:
                    answer = self._store.get(path, options={"range": {"offset": start}}).bytes()
                else:
                    answer = self._store.get_range(path, start=start, end=stop)
            except FileNotFoundError:
                return b""
            except Exception as error:
                if _past_the_end(error):
                    return b""
                raise
        return memoryview(answer)

    def names(self, folder: str) -> list[str]:
        """List what lies directly in a folder, sorted; nothing where there is no folder."""
        with self._errors(folder):
            try:
                found = self._store.list_with_delimiter(folder or None)
            except Exception as error:
                if _without_bucket(error):
                    return []
                raise
        paths = [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths)

    def walk(self, folder: str) -> list[Entry]:
        """List all objects below a prefix."""
        with self._errors(folder):
            try:
                found = [entry for page in self._store.list(folder or None) for entry in page]
            except Exception as error:
                if _without_bucket(error):
                    return []
                raise
        return [
            Entry(
                path=entry["path"],
                n_bytes=entry["size"],
                modified=entry["last_modified"].timestamp(),
            )
            for entry in found
        ]

    def put(self, path: str, content: bytes) -> None:
        """Put an object by one request, or a multipart one where it is large."""
        with self._errors(path):
            try:
                self._store.put(path, content, use_multipart=len(content) > _ONE_PUT_BYTES)
            except FileNotFoundError as error:
                # Object stores have no folders: only the bucket itself can be absent.
                raise StorageError(f"{self.url}: no such bucket; create it first") from error

    def remove(self, path: str) -> None:
        """Remove an object; none there is well too."""
        with self._errors(path), contextlib.suppress(FileNotFoundError):
            self._store.delete(path)

    def _errors(self, path: str) -> contextlib.AbstractContextManager[None]:
        return driver_errors(f"{self.url}/{path}".rstrip("/"), self._options)


def _config(url: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options under obstore's names."""
    if not url.startswith(("s3://", "s3a://")):
        return dict(options)
    flat = {**options, **options.get("client_kwargs", {})}
    flat.pop("client_kwargs", None)
    return {_S3_NAMES.get(name, name): value for name, value in flat.items()}


def _is_plain(options: Mapping[str, Any]) -> bool:
    """Tell whether the endpoint that was given, by an option or the environment, is plain HTTP."""
    asked = {**options, **options.get("client_kwargs", {})}
    given = [asked.get(name) for name in ("endpoint_url", "endpoint")]
    given += [os.environ.get(name) for name in _ENDPOINTS]
    return str(next(filter(None, given), "")).startswith("http://")


def _without_bucket(error: Exception) -> bool:
    """Tell whether a service answered that the bucket of a listing is not there (404)."""
    return isinstance(error, FileNotFoundError) or "404 Not Found" in str(error)


def _past_the_end(error: Exception) -> bool:
    """Tell whether a service answered that an object ends before what was asked for (416)."""
    return "416 Range Not Satisfiable" in str(error)
