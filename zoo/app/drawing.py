"""The pictures of an answer, as URLs that hold their own data: nothing is left on the server."""

from __future__ import annotations

from base64 import b64encode
from contextlib import closing
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from histostore.images.readers import open_image
from zoo.explaining.colours import choose_scale
from zoo.explaining.importance import ATTENTION, boxes_of
from zoo.explaining.maps import OPACITY, marked, on_picture, overlay, thumbnail
from zoo.explaining.page import length_of_bar
from zoo.explaining.patches import read_patch, standing_out

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray
    from PIL import Image

    from histostore.images.readers import Reader
    from zoo.app.answers import Answer
    from zoo.explaining.colours import Scale

__all__ = ["MOST_TILES", "Illustration", "Legend", "Picture", "Tile", "illustrate"]

MOST_TILES = 60
"""Patches that are shown; of more, the heaviest and some of the lightest."""

_LIGHTEST = 12
_TILE_PX = 128
_NUMBERED = 5
_STOPS = 17


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture in a URL."""

    url: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One patch."""

    picture: Picture
    x: int
    y: int
    """Top-left corner, level-0 pixels."""
    number: int | None
    """As it stands in the image, of those that stand out."""
    value: str
    """Its weight in words; empty where there is none."""
    colour: str
    """Of its weight, as CSS writes it; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Legend:
    """What the colours over the image mean."""

    is_attention: bool
    stops: tuple[str, ...]
    """Colours from the lowest to the highest, as they look over the image's mean grey."""
    ticks: tuple[tuple[float, str], ...]
    """Place from 0 to 100, and label."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Illustration:
    """All pictures of an answer."""

    image: Picture
    """The image, with the patches that stand out in frames."""
    overlay: Picture | None
    """The weights in colour over it."""
    legend: Legend | None
    tiles: tuple[Tile, ...]
    """Patches, the heaviest first."""
    n_left_out: int
    """Patches that are not shown."""
    bar: tuple[float, str] | None
    """Length of a scale bar in per cent of the image's width, and label."""


def illustrate(answer: Answer, path: str | os.PathLike[str]) -> Illustration:
    """Draw what was found in an image.

    Parameters
    ----------
    answer
        What was found.
    path
        The image, still there.

    Raises
    ------
    ImageError
        If pixels cannot be read.
    """
    from PIL import Image

    size = answer.width_px, answer.height_px
    level0 = boxes_of(answer.coords, answer.edge_px, *size)
    with closing(open_image(str(path), mpp=answer.mpp)) as reader:
        pixels = thumbnail(reader)
        boxes = on_picture(level0, *size, pixels)
        if answer.weighed is None:
            plain = _picture(Image.fromarray(pixels))
            order = np.arange(min(len(boxes), MOST_TILES))
            tiles = _tiles(reader, answer, level0, order, None)
            shown, scale, ground = None, None, 0.0
        else:
            value = answer.weighed.value
            scale = choose_scale(value, diverging=answer.weighed.method != ATTENTION)
            top, bottom = standing_out(value, _NUMBERED)
            plain = _picture(marked(pixels, boxes, top, bottom, scale))
            coloured, ground = overlay(pixels, boxes, value, scale)
            shown = _picture(coloured)
            tiles = _tiles(reader, answer, level0, _chosen(value), scale, n_numbered=len(top))
    return Illustration(
        image=plain,
        overlay=shown,
        legend=_legend(answer, scale, ground) if scale else None,
        tiles=tiles,
        n_left_out=len(boxes) - len(tiles),
        bar=_bar(answer),
    )


def _chosen(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order patches from the heaviest to the lightest, and leave out some in between."""
    order = np.argsort(-value, kind="stable")
    if len(order) <= MOST_TILES:
        return order
    return np.concatenate([order[: MOST_TILES - _LIGHTEST], order[-_LIGHTEST:]])


def _tiles(
    reader: Reader,
    answer: Answer,
    boxes: NDArray[np.int64],
    order: NDArray[np.int64],
    scale: Scale | None,
    *,
    n_numbered: int = 0,
) -> tuple[Tile, ...]:
    tiles = []
    for place, k in enumerate(order.tolist()):
        value, colour = "", ""
        if answer.weighed is not None and scale is not None:
            weight = float(answer.weighed.value[k])
            is_attention = answer.weighed.method == ATTENTION
            value = f"{weight:.2f}×" if is_attention else f"{weight:+.2f}"
            colour = _css(scale.colours(np.array([weight]))[0])
        tiles.append(
            Tile(
                picture=_picture(read_patch(reader, boxes[k], answer.edge_px, _TILE_PX)),
                x=int(boxes[k][0]),
                y=int(boxes[k][1]),
                number=place + 1 if place < n_numbered else None,
                value=value,
                colour=colour,
            )
        )
    return tuple(tiles)


def _legend(answer: Answer, scale: Scale, ground: float) -> Legend:
    values = np.linspace(scale.low, scale.high, _STOPS)
    colours = OPACITY * scale.colours(values).astype(np.float64) + (1 - OPACITY) * ground
    span = scale.high - scale.low
    return Legend(
        is_attention=answer.weighed is not None and answer.weighed.method == ATTENTION,
        stops=tuple(_css(colour) for colour in colours),
        ticks=tuple((100 * (tick - scale.low) / span, f"{tick:g}") for tick in scale.ticks()),
    )


def _bar(answer: Answer) -> tuple[float, str] | None:
    if not answer.mpp:
        return None
    px, label = length_of_bar(answer.mpp, answer.width_px // 4)
    return 100 * px / answer.width_px, label.replace("um", "µm")


def _css(colour: NDArray[np.uint8] | NDArray[np.float64]) -> str:
    return "#" + "".join(f"{round(channel):02x}" for channel in colour.tolist())


def _picture(image: Image.Image) -> Picture:
    buffer = BytesIO()
    image.save(buffer, format="WEBP", quality=88)
    data = b64encode(buffer.getvalue()).decode("ascii")
    return Picture(url=f"data:image/webp;base64,{data}", width=image.width, height=image.height)
