"""One picture of what a build would take of an image: kept patches bright, the rest dark.

Drawn on a thumbnail, which a slide gives from its pyramid, so memory does not grow with it.
"""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from histostore.images.patches import Selection
    from histostore.images.readers import Reader

__all__ = ["PREVIEW_PX", "draw_preview", "plain_letters"]

PREVIEW_PX = 1024
"""Longest side of a picture, without its caption."""

_LEAST_PX = 512  # small images are enlarged to about this
_SHADE = np.array([38, 42, 56], np.uint8)
_KEPT, _REJECTED = (0, 190, 140), (90, 95, 112)
_INK, _FAINT, _PAPER = (24, 26, 32), (96, 100, 112), (255, 255, 255)
_FINE_PX = 7  # patches smaller than this on the picture are outlined together
_MARGIN, _LINE = 12, 20


def draw_preview(
    reader: Reader,
    selection: Selection,
    *,
    patch_size: int | None = None,
    max_px: int = PREVIEW_PX,
    title: str = "",
) -> Image.Image:
    """Draw an image with its kept patches outlined, all else dark, and a caption below.

    Parameters
    ----------
    reader
        The open image.
    selection
        Its patches, as :func:`~histostore.images.patches.select_patches` chose them.
    patch_size
        Edge of a patch as the encoder sees it, for the caption.
    max_px
        Longest side of the picture without its caption.
    title
        First line of the caption.

    Returns
    -------
    picture
        RGB; higher than the image by its caption.

    Raises
    ------
    ImageError
        If the image is damaged.

    Examples
    --------
    >>> from histostore.grid import PatchGrid
    >>> from histostore.images.memory import MemoryReader
    >>> from histostore.images.patches import select_patches
    >>> from histostore.images.tissue import TissueFilter
    >>> reader = MemoryReader(np.full((300, 600, 3), (220, 120, 170), np.uint8), mpp=0.5)
    >>> draw_preview(reader, select_patches(reader, PatchGrid(100), TissueFilter())).size
    (600, 364)
    """
    from PIL import Image

    pixels = reader.thumbnail(max_px)
    longest = max(pixels.shape[:2])
    if (factor := min(_LEAST_PX, max_px) // longest) > 1:
        size = (pixels.shape[1] * factor, pixels.shape[0] * factor)
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    boxes = _boxes(reader, selection, pixels.shape[1], pixels.shape[0])
    picture = _with_patches(pixels, boxes, selection.kept)
    um_per_px = reader.mpp * reader.width_px / picture.width if reader.mpp else None
    lines = (title, *_caption(reader, selection, patch_size))
    return _with_caption(picture, [line for line in lines if line], um_per_px)


def _boxes(reader: Reader, selection: Selection, width: int, height: int) -> NDArray[np.int64]:
    """Give left, top, right, bottom of all patches on the picture, ``(patch, 4)``."""
    placement = selection.placement
    x, y = placement.x.astype(np.int64), placement.y.astype(np.int64)
    right = np.minimum(x + placement.edge_px, reader.width_px)
    bottom = np.minimum(y + placement.edge_px, reader.height_px)
    by_x, by_y = width / reader.width_px, height / reader.height_px
    corners = np.stack([x * by_x, y * by_y, right * by_x, bottom * by_y], axis=1)
    return np.rint(corners).astype(np.int64)


def _with_patches(
    pixels: NDArray[np.uint8], boxes: NDArray[np.int64], kept: NDArray[np.int64]
) -> Image.Image:
    """Darken what no kept patch covers, and outline patches."""
    from PIL import Image, ImageDraw

    height, width = pixels.shape[:2]
    covered = np.zeros((height, width), np.bool_)
    for left, top, right, bottom in boxes[kept].tolist():
        covered[top : max(bottom, top + 1), left : max(right, left + 1)] = True
    dark = (pixels.astype(np.uint16) * 3 + _SHADE.astype(np.uint16) * 5) >> 3
    shown = np.where(covered[..., None], pixels, dark.astype(np.uint8))
    edge = int((boxes[:, 2] - boxes[:, 0]).max())
    if edge < _FINE_PX:
        shown[_rim(covered)] = _KEPT
        return Image.fromarray(shown)
    picture = Image.fromarray(shown)
    draw = ImageDraw.Draw(picture)
    is_kept = np.zeros(len(boxes), np.bool_)
    is_kept[kept] = True
    for colour, chosen in ((_REJECTED, boxes[~is_kept]), (_KEPT, boxes[is_kept])):
        for left, top, right, bottom in chosen.tolist():
            draw.rectangle(
                (left, top, min(right, width - 1), min(bottom, height - 1)), outline=colour
            )
    return picture


def _rim(covered: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which covered pixels have a neighbour that is not."""
    padded = np.pad(covered, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    rim: NDArray[np.bool_] = covered & ~inner
    return rim


def _caption(reader: Reader, selection: Selection, patch_size: int | None) -> Iterator[str]:
    kept, places = len(selection.kept), len(selection.placement)
    edge = selection.placement.edge_px
    size = f"{edge} px of level 0"
    if patch_size is not None and patch_size != edge:
        size += f" as {patch_size} px"
    yield f"{kept:,} of {places:,} patches kept · {size}"
    scale = f"{reader.mpp:.4g} um per px" if reader.mpp else "no scale (mpp) known"
    yield f"{reader.width_px:,} x {reader.height_px:,} px · {scale}"
    yield ", ".join(selection.flags)


def _with_caption(
    picture: Image.Image, lines: Sequence[str], um_per_px: float | None
) -> Image.Image:
    """Put lines of text and a scale bar below a picture."""
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font, which has little beyond ASCII, but is the same everywhere.
    font = ImageFont.load_default(14)
    width, strip = picture.width, 2 * _MARGIN + len(lines) * _LINE
    page = Image.new("RGB", (width, picture.height + strip), _PAPER)
    page.paste(picture)
    draw = ImageDraw.Draw(page)
    top, room = picture.height + _MARGIN, width - 2 * _MARGIN
    bar = _bar(um_per_px, room // 4) if um_per_px else None
    if bar is not None:
        length, label = bar
        right, at = width - _MARGIN, page.height - _MARGIN - 4
        draw.rectangle((right - length, at - 3, right, at), fill=_INK)
        draw.text((right, at - 8), label, fill=_INK, font=font, anchor="rs")
    taken = max(bar[0], int(draw.textlength(bar[1], font=font))) + _MARGIN if bar else 0
    for number, line in enumerate(lines):
        text = _fitting(plain_letters(line), room - (taken if number else 0), draw, font)
        colour = _INK if number == 0 else _FAINT
        draw.text((_MARGIN, top + number * _LINE), text, fill=colour, font=font)
    return page


def _bar(um_per_px: float, most_px: int) -> tuple[int, str] | None:
    """Choose the longest scale bar of 1, 2 or 5 times a power of ten that fits: px and label.

    Examples
    --------
    >>> _bar(0.5, 250)
    (200, '100 um')
    """
    most = um_per_px * most_px
    if most_px < 1 or not 1e-3 < most < 1e7:
        return None
    power = 10.0 ** np.floor(np.log10(most))
    um = max(step * power for step in (1, 2, 5) if step * power <= most)
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"
    return round(um / um_per_px), label


def plain_letters(text: str) -> str:
    """Bring text to the letters that Pillow's own font has."""
    apart = unicodedata.normalize("NFKD", text)
    letters = (letter for letter in apart if not unicodedata.combining(letter))
    return "".join(letter if letter in "·…" or " " <= letter <= "~" else "?" for letter in letters)


def _fitting(text: str, room: int, draw: Any, font: Any) -> str:
    if draw.textlength(text, font=font) <= room:
        return text
    while text and draw.textlength(f"{text}…", font=font) > room:
        text = text[:-1]
    return f"{text}…"
