"""What is the same of every object store, whichever driver speaks to it."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from histostore.store.protocol import StoredBytes

__all__ = ["ObjectBackend"]

_READ_ON = 64 * 2**10
"""Bytes read beyond what was asked for, where a request has to be made anyway."""


class ObjectBackend(ABC):
    """Objects below a prefix of a bucket: a put is atomic and durable, and there are no folders."""

    threads = 8

    def read(self, path: str) -> bytes | None:
        """Read an object whole; None where there is none."""
        return self.read_many([path])[0]

    @abstractmethod
    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Read objects whole, concurrently; None where there is none."""

    @abstractmethod
    def read_range(self, path: str, start: int, stop: int | None) -> bytes | memoryview:
        """Read a part of an object; nothing where there is none."""

    @abstractmethod
    def put(self, path: str, content: bytes) -> None:
        """Put an object by one request, or a multipart one where it is large."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Remove an object; none there is well too."""

    def open(self, path: str) -> StoredBytes | None:
        """Open an object; whether there is one, its first read tells."""
        return _RemoteObject(self, path)

    def write(self, path: str, content: bytes) -> None:
        """Put an object: there is no lesser way."""
        self.put(path, content)

    def settle(self, paths: Iterable[str]) -> None:  # noqa: B027 - no storage has to
        """Do nothing: what an object store has accepted survives."""

    def discard(self, paths: Iterable[str]) -> None:
        """Remove objects; from the first on that will not go, they are left to ``gc``."""
        # A storage that refuses once, after all of the driver's tries, refuses them all.
        with contextlib.suppress(Exception):
            for path in paths:
                self.remove(path)

    def prune(self, folder: str) -> None:  # noqa: B027 - no storage has to
        """Do nothing: object stores have no folders."""


class _RemoteObject:
    """An object read by ranges; what one request brought near is not asked for again."""

    def __init__(self, backend: ObjectBackend, path: str) -> None:
        self._backend = backend
        self._path = path
        self._start = 0
        self._near: bytes | memoryview = b""

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
            # What follows, a checksum or the first chunks, is nearly always asked for next.
            self.fetch(start, start + len(target) + _READ_ON)
            first = 0
        part = self._near[first : first + len(target)]
        target[: len(part)] = part
        return len(part)
