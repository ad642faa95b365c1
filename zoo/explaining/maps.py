"""The picture of one image: what was predicted, the weight of every patch, and who says so.

::

    image id, prediction, class                                  probabilities, with spread
    the image, patches that stand out  |  the weights, over the image in grey  |  colour bar
    the heaviest patches               |  the lightest patches
    who weighed what, and how far heads agree

Drawn on a thumbnail, which a slide gives from its pyramid, so memory does not grow with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.images.preview import plain_letters
from zoo.explaining.colours import Scale, choose_scale
from zoo.explaining.importance import ATTENTION
from zoo.explaining.page import FAINT, GAP, INK, MARGIN, Page, length_of_bar
from zoo.explaining.patches import read_patch, standing_out

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL import Image

    from histostore.images.readers import Reader
    from zoo.explaining.explanation import Explanation

__all__ = [
    "OPACITY",
    "PANEL_PX",
    "draw",
    "marked",
    "on_picture",
    "overlay",
    "thumbnail",
    "value_map",
]

PANEL_PX = 640
"""Longest side of either picture of the image."""

_LEAST_COLUMN, _BAR_PX, _TILES = 460, 150, 5
_FINE_PX = 7  # patches smaller than this on the picture have no outline of their own
_MARK_PX = 12  # those that stand out are marked at this size at least
_ROOMY_PX = 40  # from here on a number has its place inside the patch
OPACITY = 0.6
"""Of the colours over the image."""
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def draw(told: Explanation, reader: Reader) -> Image.Image:
    """Draw an explanation.

    Parameters
    ----------
    told
        What to draw.
    reader
        The open image.

    Returns
    -------
    picture
        RGB, about 1,500 px wide.

    Raises
    ------
    ImageError
        If the image is damaged.
    """
    pixels = thumbnail(reader)
    boxes = on_picture(told.boxes(), told.width_px, told.height_px, pixels)
    is_attention = told.method == ATTENTION
    scale = choose_scale(told.value, diverging=not is_attention)
    top, bottom = standing_out(told.value, _TILES)
    column = max(pixels.shape[1], _LEAST_COLUMN)
    tile = (column - (_TILES - 1) * 8) // _TILES
    texts = list(_footer(told))
    head = 40 + max(42, 20 * min(len(told.classes), 5))
    strip_y = MARGIN + head + pixels.shape[0] + (28 if told.mpp else 0) + GAP
    height = strip_y + 24 + tile + 26 + GAP + 20 * len(texts) + MARGIN
    page = Page(2 * column + GAP + _BAR_PX + 2 * MARGIN, height)
    left, right = MARGIN, MARGIN + column + GAP
    _draw_head(page, told)
    at = MARGIN + head
    page.paste(marked(pixels, boxes, top, bottom, scale), left, at)
    coloured, ground = overlay(pixels, boxes, told.value, scale)
    page.paste(coloured, right, at)
    _draw_scale(page, told, left, at + pixels.shape[0] + 10, pixels.shape[1])
    bar_x = right + pixels.shape[1] + 20
    _draw_bar(page, told, scale, ground, box=(bar_x, at + 8, bar_x + 18, at + pixels.shape[0] - 8))
    names = ("Most attended", "Least attended")
    if not is_attention:
        names = (f"Most in favour of {told.prediction}", f"Least in favour of {told.prediction}")
    for x, name, chosen, first in ((left, names[0], top, 1), (right, names[1], bottom, None)):
        page.text(x, strip_y, plain_letters(name), size=15)
        _draw_tiles(page, told, reader, chosen, x=x, y=strip_y + 24, tile=tile, first=first)
    for number, text in enumerate(texts):
        page.text(MARGIN, height - MARGIN - 20 * (len(texts) - number), text, colour=FAINT)
    return page.image


def value_map(
    boxes: NDArray[np.int64], value: NDArray[np.float64], width: int, height: int
) -> NDArray[np.float64]:
    """Spread the values of patches over pixels; where patches overlap, their mean.

    Parameters
    ----------
    boxes
        ``(patch, 4)``: left, top, right, bottom in pixels of the map.
    value
        ``(patch,)``.
    width, height
        Size of the map.

    Returns
    -------
    map
        ``(height, width)``, NaN where no patch lies.

    Examples
    --------
    >>> value_map(np.array([[0, 0, 2, 1], [1, 0, 3, 1]]), np.array([1.0, 3.0]), 4, 1).tolist()
    [[1.0, 2.0, 3.0, nan]]
    """
    total, count = np.zeros((height, width)), np.zeros((height, width))
    for (left, top, right, bottom), one in zip(boxes.tolist(), value.tolist(), strict=True):
        place = np.s_[top : max(bottom, top + 1), left : max(right, left + 1)]
        total[place] += one
        count[place] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def thumbnail(reader: Reader) -> NDArray[np.uint8]:
    """Give the image with :data:`PANEL_PX` along its longest side, ``(y, x, 3)``, uint8."""
    from PIL import Image

    pixels = reader.thumbnail(PANEL_PX)
    longest = max(pixels.shape[:2])
    if longest < PANEL_PX:
        size = tuple(max(1, round(side * PANEL_PX / longest)) for side in pixels.shape[1::-1])
        pixels = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return pixels


def on_picture(
    boxes: NDArray[np.int64], width_px: int, height_px: int, pixels: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Bring boxes ``(patch, 4)`` from level 0, of such a size, to a picture of the image."""
    height, width = pixels.shape[:2]
    share = np.array([width / width_px, height / height_px] * 2)
    corners: NDArray[np.int64] = np.rint(boxes * share).astype(np.int64)
    return corners


def overlay(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    value: NDArray[np.float64],
    scale: Scale,
) -> tuple[Image.Image, float]:
    """Lay colours over the image in grey; give the mean grey under them too."""
    from PIL import Image, ImageDraw

    height, width = pixels.shape[:2]
    grey = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)
    values = value_map(boxes, value, width, height)
    covered = np.isfinite(values)
    shown = np.repeat((255 - (255 - grey) * 0.45)[..., None], 3, axis=2)
    colours = scale.colours(values[covered])
    shown[covered] = OPACITY * colours + (1 - OPACITY) * grey[covered, None]
    picture = Image.fromarray(np.rint(shown).astype(np.uint8))
    if int((boxes[:, 2] - boxes[:, 0]).max()) >= _FINE_PX:
        draw = ImageDraw.Draw(picture, "RGBA")
        for left, top, right, bottom in boxes.tolist():
            corner = min(right, width - 1), min(bottom, height - 1)
            draw.rectangle((left, top, *corner), outline=(255, 255, 255, 90))
    return picture, float(grey[covered].mean())


def marked(
    pixels: NDArray[np.uint8],
    boxes: NDArray[np.int64],
    top: NDArray[np.int64],
    bottom: NDArray[np.int64],
    scale: Scale,
) -> Image.Image:
    """Outline the patches that stand out, the heaviest with their number."""
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(14)
    high, low = (tuple(c.tolist()) for c in scale.colours(np.array([scale.high, scale.low])))
    marks = [(k, low, _WHITE, "") for k in bottom.tolist()]
    marks += [(k, high, _BLACK, str(number)) for number, k in enumerate(top.tolist(), start=1)]
    for k, colour, casing, label in marks:
        x0, y0, x1, y1 = _at_least(boxes[k], picture.size)
        draw.rectangle((x0, y0, x1, y1), outline=casing, width=5)
        draw.rectangle((x0 + 1, y0 + 1, x1 - 1, y1 - 1), outline=colour, width=3)
        if label:
            inside = x1 - x0 >= _ROOMY_PX
            x = x0 + 4 if inside else (x1 + 2 if x1 + 20 < picture.width else x0 - 18)
            y = y0 + 4 if inside else max(0, min(y0 - 3, picture.height - 18))
            draw.rectangle((x, y, x + 15, y + 17), fill=colour)
            ink = _BLACK if sum(colour) > 380 else _WHITE
            draw.text((x + 8, y + 9), label, fill=ink, font=font, anchor="mm")
    return picture


def _at_least(box: NDArray[np.int64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Widen a small box around its middle, inside the picture."""
    left, top, right, bottom = box.tolist()
    wide, high = max(0, _MARK_PX - (right - left)) // 2, max(0, _MARK_PX - (bottom - top)) // 2
    return (
        max(0, left - wide),
        max(0, top - high),
        min(size[0] - 1, right + wide),
        min(size[1] - 1, bottom + high),
    )


def _draw_head(page: Page, told: Explanation) -> None:
    """Name the image and what was predicted, with a bar for each class."""
    k = int(told.prob.argmax())
    page.text(MARGIN, MARGIN, plain_letters(told.image_id), size=24)
    line = f"predicted {plain_letters(told.prediction)}, probability {told.prob[k]:.2f}"
    if np.isfinite(told.prob_sd[k]):
        line += f" ± {told.prob_sd[k]:.2f}"
    if told.target is not None:
        line += f" · labelled {plain_letters(told.target)}"
    page.text(MARGIN, MARGIN + 36, line, size=17)
    shown = np.argsort(-told.prob, kind="stable")[:5]
    full, right = 200, page.width - MARGIN - 110
    for row, c in enumerate(shown.tolist()):
        y, p, sd = MARGIN + 2 + 20 * row, float(told.prob[c]), float(told.prob_sd[c])
        page.text(right - full - 10, y + 8, plain_letters(told.classes[c]), anchor="rm")
        page.box(right - full, y + 2, right, y + 14, fill=(236, 238, 242))
        page.box(right - full, y + 2, right - full + round(p * full), y + 14, fill=(70, 110, 160))
        label = f"{p:.2f}"
        if np.isfinite(sd):
            low, high = (right - full + round(min(max(v, 0), 1) * full) for v in (p - sd, p + sd))
            page.box(low, y + 7, high, y + 9, fill=INK)
            label += f" ± {sd:.2f}"
        page.text(right + 8, y + 8, label, anchor="lm", colour=FAINT)


def _draw_scale(page: Page, told: Explanation, x: int, y: int, width: int) -> None:
    """Draw the scale bar of the image, where its scale is known."""
    if told.mpp:
        length, label = length_of_bar(told.mpp * told.width_px / width, width // 4)
        page.box(x, y + 4, x + length, y + 8, fill=INK)
        page.text(x + length + 8, y + 6, label, anchor="lm")


def _draw_bar(
    page: Page,
    told: Explanation,
    scale: Scale,
    ground: float,
    *,
    box: tuple[int, int, int, int],
) -> None:
    """Draw the colour bar, in the colours as they look over the image's mean grey."""
    left, top, right, bottom = box
    values = np.linspace(scale.high, scale.low, bottom - top)
    column = OPACITY * scale.colours(values).astype(np.float64) + (1 - OPACITY) * ground
    page.pixels(np.repeat(column[:, None], right - left, axis=1), left, top)
    page.frame(left, top, right, bottom)
    for value in scale.ticks():
        y = bottom - round((value - scale.low) / (scale.high - scale.low) * (bottom - top))
        page.box(right, y, right + 4, y, fill=INK)
        page.text(right + 8, y, f"{value:g}", anchor="lm")
    if told.method == ATTENTION:
        y = bottom - round((1 - scale.low) / (scale.high - scale.low) * (bottom - top))
        page.box(left, y, right + 4, y, fill=_WHITE)
        is_tick = 1.0 in scale.ticks()
        page.text(right + 26, y, "uniform" if is_tick else "1, uniform", anchor="lm", colour=FAINT)
    title = "attention x patches" if told.method == ATTENTION else "change of log odds"
    page.upright(title, right + (92 if told.method == ATTENTION else 62), top, bottom)


def _draw_tiles(
    page: Page,
    told: Explanation,
    reader: Reader,
    chosen: NDArray[np.int64],
    *,
    x: int,
    y: int,
    tile: int,
    first: int | None,
) -> None:
    boxes = told.boxes()
    for number, k in enumerate(chosen.tolist()):
        left = x + number * (tile + 8)
        page.paste(read_patch(reader, boxes[k], told.edge_px, tile), left, y)
        page.frame(left, y, left + tile - 1, y + tile - 1)
        value = f"{told.value[k]:.2g}" if told.method == ATTENTION else f"{told.value[k]:+.2g}"
        label = value if first is None else f"{first + number}:  {value}"
        page.text(left + tile // 2, y + tile + 12, label, anchor="mm", colour=FAINT)


def _footer(told: Explanation) -> Iterator[str]:
    n = len(told.value)
    by = f"mean over {told.n_weighing} heads" if told.n_weighing > 1 else "one head"
    agreed = ""
    if told.agreement is not None:
        agreed = f"; pairs of heads agree with a mean Spearman correlation of {told.agreement:.2f}"
    if told.method == ATTENTION:
        yield f"Attention times the number of patches, 1 is uniform; {by}{agreed}."
    else:
        what = plain_letters(told.prediction)
        yield (
            f"Leave-one-patch-out, no attention: how much each patch adds to the log odds of {what}"
            f"; {by}{agreed}."
        )
    edge = f"{told.edge_px} px" + (f" ({told.edge_px * told.mpp:.0f} um)" if told.mpp else "")
    yield plain_letters(
        f"{n:,} patches of {edge} · {told.feature_set} · run {told.run_name}"
        + (f" ({told.head_name})" if told.head_name not in ("", told.run_name) else "")
    )
    if told.n_trained:
        were = "was" if told.n_trained == 1 else "were"
        yield f"{told.n_trained} of the {told.n_heads} heads {were} trained with this image."
    yield from (plain_letters(f"Note: {note}") for note in told.notes)
