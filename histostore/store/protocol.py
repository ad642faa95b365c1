"""What the store asks of a storage: the protocol that every backend fulfils."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Backend", "Entry", "StoredBytes"]


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

    def walk(self, folder: str) -> list[Entry]:
        """List all objects below a folder, hidden ones too, with what is known of each."""

    def remove(self, path: str) -> None:
        """Remove an object for good; none there is well too."""

    def prune(self, folder: str) -> None:
        """Remove a folder, and those in it, where nothing but folders is left."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One object in a listing."""

    path: str
    """Where it lies, relative to the URL of the storage."""

    n_bytes: int
    """Its length."""

    modified: float | None
    """Seconds since 1970 by the clock of the storage, None where it does not say."""
