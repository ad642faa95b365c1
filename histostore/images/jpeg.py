"""JPEG: decoded by libjpeg-turbo with its warnings heard.

A JPEG file holds no checksum. Where bytes in its middle are damaged, the decoder goes on with
whatever colours come out, and merely warns; Pillow keeps the warning to itself. simplejpeg gives
the same pixels (both are libjpeg-turbo at its most accurate) and the warning as an error. It finds
nearly every sector that is lost of a picture, and most of those of a small tile; a flipped bit after
which all codes are still codes, nobody can find.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

import numpy as np
import simplejpeg

from histostore.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray
    from PIL.JpegImagePlugin import JpegImageFile

__all__ = ["decode_jpeg", "is_usual", "whole_stream"]

# Luma's sampling where both chromas have (1, 1): those that simplejpeg knows.
_SAMPLINGS = {(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)}
# The marker by which libjpeg takes three components for red, green and blue.
_ADOBE_RGB = b"Adobe\0\x64\0\0\0\0\0"
# Some cameras add a byte or two at the end, or miscount in a header that decides nothing.
_HARMLESS = re.compile(
    r"Corrupt JPEG data: [12] extraneous bytes before marker 0xd9"
    r"|Invalid SOS parameters for sequential JPEG"
)


def is_usual(image: JpegImageFile) -> bool:
    """Tell from its header whether :func:`decode_jpeg` reads a file.

    That is grey, or colours of a usual sampling, of a version of JFIF that there is. Anything
    else (CMYK, say) has no warnings that we could hear.
    """
    if image.info.get("jfif_version", (1, 1))[0] != 1:
        return False
    if image.mode != "RGB" or image.info.get("adobe_transform", 1) not in {0, 1}:
        return image.mode == "L"
    luma, *chromas = [tuple(part[1:3]) for part in image.layer]
    return luma in _SAMPLINGS and chromas == [(1, 1), (1, 1)]


def whole_stream(
    tile: bytes, tables: bytes | None, *, rgb: bool, n_colours: int, within: tuple[int, int]
) -> bytes | None:
    """Make a file of its own of a tile or strip of a TIFF.

    Parameters
    ----------
    tile
        As it is stored.
    tables
        What all tiles of the page share, and each leaves out.
    rgb
        Whether the page says that its components are red, green and blue; a tile with a JFIF
        header knows better.
    n_colours
        Its components: 1 or 3.
    within
        Rows and columns of a whole tile.

    Returns
    -------
    file
        For :func:`decode_jpeg`; None if the tile has an unusual sampling, or contradicts the page.
    """
    parts = dict(_segments(tile))
    frame = next((parts[marker] for marker in (0xC0, 0xC1, 0xC2) if marker in parts), b"")
    if len(frame) != 6 + 3 * n_colours or frame[0] != 8:
        return None
    height, width = struct.unpack_from(">HH", frame, 1)
    if height > within[0] or width > within[1]:
        return None
    luma, *chromas = [divmod(sampling, 16) for sampling in frame[7::3]]
    if chromas and (luma not in _SAMPLINGS or chromas != [(1, 1), (1, 1)]):
        return None
    said = b""
    if rgb and not parts.get(0xE0, b"").startswith(b"JFIF"):
        if parts.get(0xEE, _ADOBE_RGB)[:12] != _ADOBE_RGB:
            return None
        said = struct.pack(">HH", 0xFFEE, 2 + len(_ADOBE_RGB)) + _ADOBE_RGB
    # Some writers leave out the end; where pixels are missing as well, it comes too early.
    return b"\xff\xd8" + said + (tables or b"")[2:-2] + tile[2:] + b"\xff\xd9"


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of what stands before the pixels."""
    at = 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = struct.unpack_from(">BH", data, at + 1)
        if marker == 0xDA or length < 2:
            return
        yield marker, data[at + 4 : at + 2 + length]
        at += 2 + length


def decode_jpeg(data: bytes, *, grey: bool) -> NDArray[np.uint8]:
    """Decode a whole file.

    Parameters
    ----------
    data
        The file; what follows its first picture does not matter.
    grey
        Whether it has one component, which is spread over the three channels.

    Returns
    -------
    rgb
        ``(y, x, 3)``, uint8.

    Raises
    ------
    ImageError
        If it ends early, or its pixels are damaged.
    """
    space = "GRAY" if grey else "RGB"
    try:
        pixels = simplejpeg.decode_jpeg(data, colorspace=space, strict=True)
    except ValueError as error:
        reason = str(error)
        if reason.startswith("Premature end"):
            raise ImageError("is truncated: ends within its pixels; copy it again") from error
        if not _HARMLESS.match(reason):
            raise ImageError(f"is damaged ({reason}); copy it again") from error
        pixels = simplejpeg.decode_jpeg(data, colorspace=space, strict=False)
    return np.repeat(pixels, 3, axis=2) if grey else pixels
