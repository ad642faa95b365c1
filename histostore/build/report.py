"""What a build says of itself, while it runs and after."""

from __future__ import annotations

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any

from histostore.text import failures

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.build.pipeline import Failure

__all__ = ["BuildReport", "Counter", "Progress"]

_SHOWN_CHANGES = 3


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
    """Images whose source is no longer the one that was embedded, and whose old rows stay."""
    n_patches: int
    """Patches embedded now."""
    seconds: float
    """How long it took."""
    n_flagged: int = 0
    """Images embedded now that carry a flag: without tissue, or smaller than a patch."""
    n_reembedded: int = 0
    """Images that were there, had changed, and were embedded again because that was asked for."""

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "feature_set": self.feature_set,
            "n_images": self.n_images,
            "n_done": self.n_done,
            "n_embedded": self.n_embedded,
            "n_flagged": self.n_flagged,
            "n_reembedded": self.n_reembedded,
            "n_failed": len(self.failed),
            "failed": [
                {"image_id": item.image_id, "url": item.url, "reason": item.reason}
                for item in self.failed
            ],
            "changed": list(self.changed),
            "n_patches": self.n_patches,
            "seconds": round(self.seconds, 3),
        }

    def to_text(self) -> str:
        """Say in a few lines what was done; long lists are cut.

        Examples
        --------
        >>> print(
        ...     BuildReport(
        ...         feature_set="texture-1a2b3c4d",
        ...         n_images=12,
        ...         n_done=10,
        ...         n_embedded=2,
        ...         failed=(),
        ...         changed=("image-7",),
        ...         n_patches=100,
        ...         seconds=2.0,
        ...     ).to_text()
        ... )
        texture-1a2b3c4d: 12 of 12 images are there
          embedded now   2, 100 patches in 2.0 s (50/s)
          there before  10
          changed        1 since embedded (image-7): the old embeddings stay; --reembed-changed
        """
        there = self.n_done + self.n_embedded
        failed = failures([(item.image_id, item.reason) for item in self.failed])
        return "\n".join(
            [
                f"{self.feature_set}: {there:,} of {self.n_images:,} images are there",
                *self._counts(len(f"{self.n_images:,}")),
                *(f"  {line}" for line in failed),
            ]
        )

    def _counts(self, width: int) -> list[str]:
        """Line up the counts; a count of nothing is worth a line only for what was asked."""
        rate = self.n_patches / self.seconds if self.seconds else 0.0
        pace = f", {self.n_patches:,} patches in {self.seconds:.1f} s ({rate:,.0f}/s)"
        named = ", ".join(self.changed[:_SHOWN_CHANGES])
        more = ", …" if len(self.changed) > _SHOWN_CHANGES else ""
        counts = (
            ("embedded now", self.n_embedded, pace if self.n_embedded else ""),
            ("there before", self.n_done, ""),
            ("re-embedded", self.n_reembedded, " of these: their images had changed"),
            ("flagged", self.n_flagged, " with something to know of: histostore ls"),
            (
                "changed",
                len(self.changed),
                f" since embedded ({named}{more}): the old embeddings stay; --reembed-changed",
            ),
            ("failed", len(self.failed), "; the next build tries them again"),
        )
        return [
            f"  {name:<13}{count:>{width + 1},}{rest}"
            for name, count, rest in counts
            if count or name == "embedded now"
        ]
