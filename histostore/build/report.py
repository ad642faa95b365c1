"""What a build says of itself, while it runs and after."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.build.pipeline import Failure

__all__ = ["BuildReport", "Counter", "Progress"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far a build is."""

    n_images: int
    """Images finished or failed so far, of …"""
    n_total: int
    """… those that had to be done."""
    n_patches: int
    """Patches embedded so far."""
    n_failed: int
    """Images failed so far."""


class Counter:
    """Counts what units report, and tells whoever listens.

    Parameters
    ----------
    n_total
        Images to be done.
    listener
        Called after every change, by one thread at a time.
    """

    def __init__(self, n_total: int, listener: Callable[[Progress], None] | None) -> None:
        self._lock = Lock()
        self._listener = listener
        self._now = Progress(n_images=0, n_total=n_total, n_patches=0, n_failed=0)

    def add(self, *, n_images: int, n_patches: int, n_failed: int) -> None:
        """Add to the counts."""
        with self._lock:
            now = self._now
            self._now = Progress(
                n_images=now.n_images + n_images,
                n_total=now.n_total,
                n_patches=now.n_patches + n_patches,
                n_failed=now.n_failed + n_failed,
            )
            if self._listener:
                self._listener(self._now)


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildReport:
    """What a build did."""

    feature_set: str
    n_images: int
    """Images in the cohort, or in this shard of it."""
    n_done: int
    """Images that were there already."""
    n_embedded: int
    """Images embedded now."""
    failed: tuple[Failure, ...]
    """Images that failed now, and why."""
    changed: tuple[str, ...]
    """Images whose source is no longer the one that was embedded."""
    n_patches: int
    """Patches embedded now."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "feature_set": self.feature_set,
            "n_images": self.n_images,
            "n_done": self.n_done,
            "n_embedded": self.n_embedded,
            "n_failed": len(self.failed),
            "failed": [
                {"image_id": item.image_id, "url": item.url, "reason": item.reason}
                for item in self.failed
            ],
            "changed": list(self.changed),
            "n_patches": self.n_patches,
            "seconds": round(self.seconds, 3),
        }
