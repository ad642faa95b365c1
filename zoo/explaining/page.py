"""A white page to draw on, in the manner of :mod:`histostore.images.preview`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL import Image

__all__ = ["FAINT", "GAP", "INK", "MARGIN", "Page", "length_of_bar"]

INK, FAINT, PAPER = (24, 26, 32), (96, 100, 112), (255, 255, 255)
MARGIN, GAP = 24, 24

Colour = tuple[int, int, int]


class Page:
    """A page, its pen and its font."""

    def __init__(self, width: int, height: int) -> None:
        from PIL import Image, ImageDraw

        self.image = Image.new("RGB", (width, height), PAPER)
        self.width = width
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self, x: int, y: int, text: str, *, size: int = 14, colour: Colour = INK, anchor: str = "la"
    ) -> None:
        """Write one line, cut to the page."""
        from PIL import ImageFont

        # Pillow's own font, which has little beyond ASCII, but is the same everywhere.
        font = ImageFont.load_default(size)
        room = self.width - MARGIN // 2 - x if anchor.startswith("l") else self.width
        while len(text) > 1 and self._draw.textlength(text, font=font) > room:
            text = text.rstrip("…")[:-1] + "…"
        self._draw.text((x, y), text, fill=colour, font=font, anchor=anchor)

    def box(self, left: int, top: int, right: int, bottom: int, *, fill: Colour) -> None:
        """Fill a rectangle, both corners included."""
        self._draw.rectangle((left, top, max(left, right), max(top, bottom)), fill=fill)

    def frame(self, left: int, top: int, right: int, bottom: int) -> None:
        """Draw a thin line around something."""
        self._draw.rectangle((left, top, right, bottom), outline=FAINT)

    def paste(self, picture: Image.Image, x: int, y: int) -> None:
        """Put a picture on the page."""
        self.image.paste(picture, (x, y))

    def pixels(self, values: NDArray[np.float64], x: int, y: int) -> None:
        """Put colours ``(y, x, 3)`` from 0 to 255 on the page."""
        from PIL import Image

        self.paste(Image.fromarray(np.rint(values).astype(np.uint8)), x, y)

    def upright(self, text: str, x: int, top: int, bottom: int) -> None:
        """Write one line from below to above, in the middle between two heights."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(14)
        width = int(self._draw.textlength(text, font=font)) + 2
        line = Image.new("RGB", (width, 20), PAPER)
        ImageDraw.Draw(line).text((1, 10), text, fill=INK, font=font, anchor="lm")
        self.paste(line.rotate(90, expand=True), x, (top + bottom - width) // 2)


def length_of_bar(um_per_px: float, most_px: int) -> tuple[int, str]:
    """Choose the longest scale bar of 1, 2 or 5 times a power of ten that fits: px and label.

    Examples
    --------
    >>> length_of_bar(0.5, 250)
    (200, '100 um')
    """
    most = um_per_px * max(most_px, 1)
    power = 10.0 ** np.floor(np.log10(most))
    um = max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))
    label = f"{um / 1000:g} mm" if um >= 1000 else f"{um:g} um"
    return round(um / um_per_px), label
