"""PNG, JPEG, BMP, GIF and WebP: decoded whole, through Pillow; most JPEG by simplejpeg."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from histostore.errors import ImageError
from histostore.images.convert import image_to_rgb
from histostore.images.formats import MAX_PIXELS
from histostore.images.jpeg import decode_jpeg, is_usual
from histostore.images.memory import MemoryReader
from histostore.images.orientation import read_exif, split_jpeg_exif

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.images.formats import Format

__all__ = ["check_pixels", "decode_raster", "open_raster"]

# The plugins themselves, not Image.open: it warns where a size exceeds a global setting of
# Pillow's, and tries formats that nobody asked for.
_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
_warnings_lock = threading.Lock()
# Where a PNG file says its bits per sample; its kind of colour follows.
_PNG_DEPTH = 24


def open_raster(data: bytes, form: Format, *, mpp: float | None) -> MemoryReader:
    """Decode a whole file and give its reader; the file's own resolution is not a scale."""
    return MemoryReader(decode_raster(data, form), mpp=mpp)


def decode_raster(data: bytes, form: Format) -> NDArray[np.uint8]:
    """Decode a whole file, upright, to RGB.

    Parameters
    ----------
    data
        The file.
    form
        Its format, as :func:`~histostore.images.formats.recognise` told it.

    Returns
    -------
    rgb
        ``(y, x, 3)``, uint8, contiguous.

    Raises
    ------
    ImageError
        If it is damaged in a way we look for ourselves, too large, or has several frames.
    Exception
        Whatever a decoder raises on damaged bytes; the caller turns it into an ImageError.
    """
    exif = b""
    if form.name == "PNG":
        check_png(data)
    elif form.name == "JPEG":
        data, exif = split_jpeg_exif(data)
    # A GIF whose first frame is larger than its screen makes Pillow warn about its size.
    quietly = _warnings_are_errors() if form.name == "GIF" else nullcontext()
    with quietly, _PLUGINS[form.name](io.BytesIO(data)) as image:
        check_pixels(*image.size)
        if getattr(image, "n_frames", 1) > 1:
            raise ImageError("has several frames; give one picture per file")
        if isinstance(image, JpegImagePlugin.JpegImageFile) and is_usual(image):
            rgb = decode_jpeg(data, grey=image.mode == "L")
        else:
            image.load()
            if form.name == "PNG" and "transparency" in image.info:
                _scale_key(image, depth=data[_PNG_DEPTH], colour=data[_PNG_DEPTH + 1])
            rgb = image_to_rgb(image)
        upright = read_exif(exif or _bytes(image.info.get("exif")))
        return np.ascontiguousarray(upright.apply(rgb), dtype=np.uint8)


def check_pixels(width_px: int, height_px: int, *, what: str = "the image") -> None:
    """Refuse to decode a piece without pixels or with too many.

    Raises
    ------
    ImageError
        With the size and the limit.
    """
    if width_px < 1 or height_px < 1:
        raise ImageError(f"{what} has no pixels ({width_px}×{height_px})")
    if width_px * height_px > MAX_PIXELS:
        raise ImageError(
            f"{what} has {width_px}×{height_px} pixels, more than the {MAX_PIXELS:,} that are"
            " decoded in one piece; convert it to a tiled TIFF"
        )


def check_png(data: bytes) -> None:
    """Check that a PNG file is whole: the checksum of every critical chunk, and its end.

    Pillow checks neither for pixel data, so that a flipped bit might become a wrong pixel.

    Raises
    ------
    ImageError
        If it ends early, a checksum fails or it is an animation.
    """
    at = len(b"\x89PNG\r\n\x1a\n")
    view = memoryview(data)
    kind = b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ImageError("is truncated: ends before its last chunk; copy it again")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        if end > len(data):
            raise ImageError("is truncated: ends within a chunk; copy it again")
        (checksum,) = struct.unpack_from(">I", data, end - 4)
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[at + 4 : end - 4]) != checksum:
            raise ImageError(f"is damaged: checksum of chunk {kind!r} fails; copy it again")
        if kind == b"acTL":
            raise ImageError("has several frames; give one picture per file")
        at = end


def _scale_key(image: ImageFile.ImageFile, *, depth: int, colour: int) -> None:
    """Bring the colour that stands for transparent to the scale of the samples as Pillow has them.

    Raises
    ------
    ImageError
        If the samples have lost the bits that tell this colour from others.
    """
    if colour == 0 and depth in {2, 4}:
        image.info["transparency"] *= 255 // (2**depth - 1)
    elif colour == 2 and depth == 16:
        raise ImageError("has one of its 16-bit colours transparent; convert it to 8-bit RGBA")


def _bytes(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


@contextmanager
def _warnings_are_errors() -> Iterator[None]:
    """Raise what would be warned about; one thread at a time, for the filters are those of the process."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
