"""Pictures of what a build would take of a cohort, and a page that shows them all.

To be looked at before an hour of embedding: is the glass left out, is the tissue in, are the
patches of a sensible size?
"""

from __future__ import annotations

import html
import re
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import ImageError, MissingExtra, StorageError
from histostore.files import public_url
from histostore.images.annotations import read_places
from histostore.images.patches import select_patches
from histostore.images.preview import draw_preview, plain_letters
from histostore.images.readers import open_image
from histostore.text import failures

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from PIL import Image

    from histostore.cohort import Cohort
    from histostore.grid import PatchGrid
    from histostore.images.tissue import TissueFilter

__all__ = ["PreviewReport", "Previewed", "preview_cohort"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Previewed:
    """One image of a preview."""

    image_id: str
    url: str
    file: str = ""
    """Name of its picture; empty if there is none."""
    n_kept: int = 0
    n_patches: int = 0
    """Patches kept, of how many places."""
    mpp: float | None = None
    flags: tuple[str, ...] = ()
    reason: str = ""
    """Why there is no picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreviewReport:
    """What was drawn."""

    path: str
    """The page that shows all pictures."""
    images: tuple[Previewed, ...]

    @property
    def failed(self) -> tuple[Previewed, ...]:
        """Images without a picture."""
        return tuple(image for image in self.images if image.reason)

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        names = ("image_id", "url", "file", "n_kept", "n_patches", "mpp", "flags", "reason")
        return {
            "path": self.path,
            "n_images": len(self.images),
            "n_failed": len(self.failed),
            "images": [
                {**{name: getattr(image, name) for name in names}, "flags": list(image.flags)}
                for image in self.images
            ],
        }

    def to_text(self) -> str:
        """Say in a few lines what was drawn."""
        drawn = [image for image in self.images if not image.reason]
        kept, places = (sum(getattr(i, name) for i in drawn) for name in ("n_kept", "n_patches"))
        lines = [
            f"{self.path}: {len(drawn):,} of {len(self.images):,} images,"
            f" {kept:,} of {places:,} patches kept"
        ]
        if self.failed:
            lines += failures([(image.image_id, image.reason) for image in self.failed])
        return "\n".join(lines)


def preview_cohort(
    cohort: Cohort,
    out: str | os.PathLike[str],
    grid: PatchGrid,
    tissue: TissueFilter,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> PreviewReport:
    """Draw every image of a cohort, and write a page that shows them all.

    Parameters
    ----------
    cohort
        The images.
    out
        Local folder; made if needed, earlier previews in it are replaced.
    grid, tissue
        As the build would have them.
    storage_options
        Handed to the fsspec driver of the images.
    progress
        Told how many images are done, of how many.

    Returns
    -------
    report
        One entry per image; one that cannot be read has its reason.

    Raises
    ------
    StorageError
        If the folder cannot be written.
    """
    folder = Path(out)
    images = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image_id in enumerate(cohort.image_ids):
            try:
                image, picture = _draw_one(cohort, number, grid, tissue, storage_options)
            except (ImageError, MissingExtra, StorageError) as error:
                url = public_url(cohort.urls[number])
                images.append(Previewed(image_id=image_id, url=url, reason=str(error)))
            else:
                picture.save(folder / image.file)
                images.append(image)
            progress(number + 1, len(cohort))
        page = folder / "index.html"
        page.write_text(_page(images), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{folder}: {error.strerror or error}") from error
    return PreviewReport(path=str(page), images=tuple(images))


def _draw_one(
    cohort: Cohort,
    number: int,
    grid: PatchGrid,
    tissue: TissueFilter,
    storage_options: Mapping[str, Any] | None,
) -> tuple[Previewed, Image.Image]:
    """Open one image, choose its patches and draw them."""
    url, given = cohort.urls[number], cohort.given[number]
    with closing(open_image(url, storage_options, mpp=cohort.mpp[number])) as reader:
        places = read_places(given, storage_options) if given else None
        selection = select_patches(reader, grid, tissue, places)
        picture = draw_preview(
            reader, selection, patch_size=grid.patch_size, title=cohort.image_ids[number]
        )
        image = Previewed(
            image_id=cohort.image_ids[number],
            url=public_url(url),
            file=f"{number + 1:05d}-{_slug(cohort.image_ids[number])}.png",
            n_kept=len(selection.kept),
            n_patches=len(selection.placement),
            mpp=reader.mpp,
            flags=selection.flags,
        )
    return image, picture


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain_letters(name)).strip("-.")[:80] or "image"


def _page(images: Sequence[Previewed]) -> str:
    """Write the page that shows all pictures: no script, nothing to load but they."""
    drawn = [image for image in images if not image.reason]
    kept, places = (sum(getattr(i, name) for i in drawn) for name in ("n_kept", "n_patches"))
    head = f"{len(drawn):,} of {len(images):,} images, {kept:,} of {places:,} patches kept"
    return _PAGE.format(
        head=html.escape(head),
        failed="".join(
            f"<li><b>{html.escape(image.image_id)}</b> {html.escape(image.reason)}</li>"
            for image in images
            if image.reason
        ),
        cards="".join(
            f'<a href="{html.escape(image.file)}"><img loading="lazy" src="{html.escape(image.file)}"'
            f' alt="{html.escape(image.image_id)}: {image.n_kept} of {image.n_patches} patches'
            f' kept"><span>{html.escape(image.image_id)} · {image.n_kept:,} of'
            f" {image.n_patches:,}{' · ' if image.flags else ''}"
            f"{html.escape(', '.join(image.flags))}</span></a>"
            for image in drawn
        ),
    )


_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Preview of patches</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem; color: #181a20; background: #f4f5f7 }}
ul {{ color: #9c1c28; padding-left: 1.2rem }}
main {{ display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(18rem, 1fr)) }}
a {{ background: #fff; border: 1px solid #dcdee4; border-radius: 6px; overflow: hidden;
  color: inherit; text-decoration: none; display: flex; flex-direction: column }}
img {{ width: 100%; height: 18rem; object-fit: contain; background: #fff }}
span {{ padding: .5rem .8rem; border-top: 1px solid #dcdee4; overflow-wrap: anywhere }}
</style>
<h1>Preview of patches</h1>
<p>{head}. Bright is kept; dark is left out.</p>
<ul>{failed}</ul>
<main>{cards}</main>
</html>
"""
