"""What an import and an export say of themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.build.pipeline import Failure

__all__ = ["ExportReport", "ImportReport"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportReport:
    """What an import did."""

    layout: str
    source: str
    """Address of what was read."""
    feature_sets: tuple[str, ...]
    """Where its images are; several if the source was made in several ways."""
    n_images: int
    """Images that the source holds, unsound ones included."""
    n_done: int
    """Images that were there already."""
    n_imported: int
    """Images imported now."""
    failed: tuple[Failure, ...]
    """Images that could not be imported, and why."""
    changed: tuple[str, ...]
    """Images whose file is no longer the one that was imported."""
    n_patches: int
    """Patches imported now."""
    cohort: str | None
    """Table of images that was written, if one was asked for."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            **asdict(self),
            "feature_sets": list(self.feature_sets),
            "n_failed": len(self.failed),
            "failed": [asdict(failure) for failure in self.failed],
            "changed": list(self.changed),
            "seconds": round(self.seconds, 3),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export did."""

    layout: str
    target: str
    """Address of what was written."""
    feature_set: str
    augmentation: str
    n_images: int
    """Images written."""
    n_left_out: int
    """Images that the feature set holds in other views only."""
    n_patches: int
    n_files: int
    """Files written; an AnnData or Zarr group counts as one."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {**asdict(self), "seconds": round(self.seconds, 3)}
