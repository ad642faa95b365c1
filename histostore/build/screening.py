"""The quality of whole images: which of a cohort are sharp enough and full enough to count."""

from __future__ import annotations

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.build.pipeline import prefetch
from histostore.errors import ImageError, MissingExtra, StorageError
from histostore.images.patches import THUMBNAIL_PX
from histostore.images.quality import COLUMNS, DARK_SHARE, SHARPNESS, QualityFilter, patch_quality
from histostore.images.readers import open_image

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.cohort import Cohort

__all__ = ["ImageQuality", "Screening", "screen"]

_THREADS = 2
_AHEAD = 6
_SHOWN = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageQuality:
    """One image."""

    image_id: str
    quality: Mapping[str, float] = field(default_factory=dict)
    """By the names of :data:`~histostore.images.quality.COLUMNS`; empty if it cannot be read."""
    passes: bool = False
    reason: str = ""
    """Why it cannot be read."""

    def to_json(self) -> dict[str, Any]:
        """Give the row of a table: None where there is no number."""
        values = {name: self.quality.get(name) for name in COLUMNS}
        return {"image_id": self.image_id, **values, "passes": self.passes, "reason": self.reason}


@dataclass(frozen=True, kw_only=True, slots=True)
class Screening:
    """A cohort's images, in its order, and what was asked of them."""

    wanted: QualityFilter
    images: tuple[ImageQuality, ...]

    @property
    def failed(self) -> tuple[ImageQuality, ...]:
        """Those that cannot be read."""
        return tuple(image for image in self.images if image.reason)

    def to_json(self) -> dict[str, Any]:
        """Give all as JSON values."""
        return {
            "wanted": self.wanted.to_json(),
            "n_images": len(self.images),
            "n_passed": sum(image.passes for image in self.images),
            "images": [image.to_json() for image in self.images],
        }

    def to_text(self) -> str:
        """Say how many pass, and which cannot be read."""
        wanted = ", ".join(f"{name} {value:g}" for name, value in self.wanted.to_json().items())
        n_passed = sum(image.passes for image in self.images)
        lines = [f"{n_passed:,} of {len(self.images):,} images pass ({wanted or 'nothing asked'})"]
        lines += [f"  failed  {image.image_id}: {image.reason}" for image in self.failed[:_SHOWN]]
        more = len(self.failed) - _SHOWN
        return "\n".join([*lines, f"  and {more:,} more"] if more > 0 else lines)

    def write(self, path: str) -> None:
        """Write a CSV table with one row per image.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        rows = [image.to_json() for image in self.images]
        text = io.StringIO()
        table = csv.DictWriter(
            text, ["image_id", *COLUMNS, "passes", "reason"], lineterminator="\n"
        )
        table.writeheader()
        table.writerows({**row, "passes": str(row["passes"]).lower()} for row in rows)
        Path(path).write_text(text.getvalue(), encoding="utf-8")


def screen(
    cohort: Cohort,
    wanted: QualityFilter | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Screening:
    """Measure every image of a cohort as a whole.

    An image of up to 2,048 px is measured as it is; a larger one on a thumbnail of that size,
    where sharpness says little about focus: take the columns of its patches in a store.

    Parameters
    ----------
    cohort
        The images.
    wanted
        What an image must have; the default is a sharpness of 75 and a dark share of 0.4.
    storage_options
        For the storage driver.
    progress
        Told how many images are measured, of how many.

    Returns
    -------
    screening
        One entry per image, also for those that cannot be read.
    """
    wanted = wanted or QualityFilter(min_sharpness=SHARPNESS, min_dark_share=DARK_SHARE)
    work = partial(_screen_one, cohort, wanted, dict(storage_options or {}))
    images = []
    with ThreadPoolExecutor(_THREADS) as threads:
        for image in prefetch(threads, work, range(len(cohort)), depth=_AHEAD):
            images.append(image)
            if progress is not None:
                progress(len(images), len(cohort))
    return Screening(wanted=wanted, images=tuple(images))


def _screen_one(
    cohort: Cohort, wanted: QualityFilter, storage_options: dict[str, Any], row: int
) -> ImageQuality:
    image_id = cohort.image_ids[row]
    try:
        reader = open_image(cohort.urls[row], storage_options, cohort.mpp[row])
        with closing(reader):
            found = patch_quality(reader.thumbnail(THUMBNAIL_PX)[None])
    except (ImageError, StorageError, MissingExtra) as error:
        return ImageQuality(image_id=image_id, reason=str(error))
    quality = {name: round(float(values[0]), 4) for name, values in found.items()}
    return ImageQuality(image_id=image_id, quality=quality, passes=bool(wanted.passes(found)[0]))
