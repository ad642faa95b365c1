"""What an import and an export say of themselves."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from histostore.text import failures

if TYPE_CHECKING:
    from collections.abc import Callable

    from histostore.build.pipeline import Failure
    from histostore.build.report import Progress
    from histostore.progress import Show

__all__ = ["ExportReport", "ImportReport", "beside_patches"]

_SHOWN = 3


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

    def to_text(self) -> str:
        """Say in a few lines what was done; long lists are cut.

        Examples
        --------
        >>> report = ImportReport(
        ...     layout="trident",
        ...     source="/data/job",
        ...     feature_sets=("import-trident-uni_v1-1a2b3c4d",),
        ...     n_images=12,
        ...     n_done=10,
        ...     n_imported=2,
        ...     failed=(),
        ...     changed=("slide-7",),
        ...     n_patches=100,
        ...     cohort="cohort.csv",
        ...     seconds=2.0,
        ... )
        >>> print(report.to_text())
        /data/job: 2 of 12 images imported (100 patches, 2.0 s), 10 were there
          in import-trident-uni_v1-1a2b3c4d
          1 changed since it was imported (slide-7): the old embeddings stay
          table of images: cohort.csv
        """
        lines = [
            f"{self.source}: {self.n_imported:,} of {self.n_images:,} images imported"
            f" ({self.n_patches:,} patches, {self.seconds:.1f} s), {self.n_done:,} were there"
        ]
        lines += [f"in {name}" for name in self.feature_sets]
        if self.changed:
            named = ", ".join(self.changed[:_SHOWN]) + (", …" * (len(self.changed) > _SHOWN))
            lines.append(
                f"{len(self.changed):,} changed since it was imported ({named}):"
                " the old embeddings stay"
            )
        if self.cohort is not None:
            lines.append(f"table of images: {self.cohort}")
        if self.failed:
            lines.append(f"{len(self.failed):,} failed; the next import tries them again")
            lines += failures([(each.image_id, each.reason) for each in self.failed])
        return "\n  ".join(lines)


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

    def to_text(self) -> str:
        """Say in a line or two what was written.

        Examples
        --------
        >>> report = ExportReport(
        ...     layout="clam",
        ...     target="/data/feats",
        ...     feature_set="texture-1a2b3c4d",
        ...     augmentation="identity",
        ...     n_images=12,
        ...     n_left_out=1,
        ...     n_patches=1200,
        ...     n_files=24,
        ...     seconds=0.5,
        ... )
        >>> print(report.to_text())
        /data/feats: 12 images of texture-1a2b3c4d (1,200 patches, 24 files, 0.5 s)
          1 have no view identity: left out
        """
        text = (
            f"{self.target}: {self.n_images:,} images of {self.feature_set}"
            f" ({self.n_patches:,} patches, {self.n_files:,} files, {self.seconds:.1f} s)"
        )
        if self.n_left_out:
            text += f"\n  {self.n_left_out:,} have no view {self.augmentation}: left out"
        return text


def beside_patches(show: Show) -> Callable[[Progress], None]:
    """Tell of images done and, beside them, of patches.

    Examples
    --------
    >>> from histostore.build import Progress
    >>> now = Progress(n_images=2, n_total=9, n_patches=1200, n_failed=0)
    >>> beside_patches(lambda *told: print(*told))(now)
    2 9 1,200 patches
    """
    return lambda now: show(now.n_images, now.n_total, f"{now.n_patches:,} patches")
