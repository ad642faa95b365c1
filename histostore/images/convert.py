"""Any pixels to RGB uint8.

========================  ================================================================
grey, one bit, palette    spread over the three channels, or looked up
more than 8 bits          the high byte: inverts the usual widening (times 257) exactly
fewer than 8 bits         times 255 / (2^bits − 1), rounded down
transparency              composited on white, the colour of the empty slide
CMYK                      Pillow's formula, R = (255 − C)(255 − K) / 255
ICC profiles              ignored: encoders were trained on pixels as stored
floating, complex, signed refused: they are measurements, not pictures
========================  ================================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histostore.errors import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cmyk_to_rgb", "composite", "image_to_rgb", "scale_to_bytes", "spread", "ycbcr_to_rgb"]

_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L", "I;16N")


def image_to_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Convert a decoded Pillow image, transparency and palette included.

    Returns
    -------
    rgb
        ``(y, x, 3)``, uint8.

    Raises
    ------
    ImageError
        If its pixels are no colours (floating or 32-bit integers).

    Examples
    --------
    >>> image_to_rgb(Image.new("LA", (1, 1), (0, 0))).tolist()
    [[[255, 255, 255]]]
    """
    mode = image.mode
    if mode in _SIXTEEN_BITS:
        samples = np.asarray(image).astype(np.uint16)
        opaque = samples != image.info.get("transparency", -1)
        return composite(spread(scale_to_bytes(samples, 16)), scale_to_bytes(opaque, 1))
    if mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        rgba = np.asarray(image if mode == "RGBA" else image.convert("RGBA"))
        return composite(rgba[..., :3], rgba[..., 3])
    if mode not in ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr"):
        raise ImageError(f"has pixels of type {mode}, which are no colours; convert it to RGB")
    return np.array(image if mode == "RGB" else image.convert("RGB"))


def scale_to_bytes(samples: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """Bring unsigned samples of ``bits`` bits to 8.

    Raises
    ------
    ImageError
        If the samples are not unsigned integers of at most 16 bits.

    Examples
    --------
    >>> scale_to_bytes(np.array([0, 257, 65535], np.uint16), 16).tolist()
    [0, 1, 255]
    >>> scale_to_bytes(np.array([0, 1], np.uint8), 1).tolist()
    [0, 255]
    """
    if samples.dtype == np.bool_:
        return samples.astype(np.uint8) * np.uint8(255)
    if samples.dtype.kind != "u" or not 1 <= bits <= 16:
        raise ImageError(
            f"has {bits}-bit {samples.dtype} samples, which are no colours; convert it to 8-bit RGB"
        )
    if bits == 8:
        return samples.astype(np.uint8, copy=False)
    wide = samples.astype(np.uint16)
    if bits > 8:
        return (wide >> np.uint16(bits - 8)).astype(np.uint8)
    return (wide * np.uint16(255) // np.uint16(2**bits - 1)).astype(np.uint8)


def spread(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give a grey image ``(y, x)`` three equal channels ``(y, x, 3)``."""
    return np.repeat(grey[..., None], 3, axis=2)


def composite(
    rgb: NDArray[np.uint8], alpha: NDArray[np.uint8], *, premultiplied: bool = False
) -> NDArray[np.uint8]:
    """Lay colours over white.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, uint8.
    alpha
        ``(y, x)``, uint8; 255 is opaque.
    premultiplied
        Whether the colours were multiplied by alpha before (TIFF's associated alpha).

    Returns
    -------
    rgb
        ``(y, x, 3)``, uint8, rounded.

    Examples
    --------
    >>> composite(np.zeros((1, 1, 3), np.uint8), np.full((1, 1), 127, np.uint8)).tolist()
    [[[128, 128, 128]]]
    """
    if (alpha == 255).all():
        return np.array(rgb)
    cover = alpha[..., None].astype(np.uint16)
    white = np.uint16(255) * (np.uint16(255) - cover)
    colour = rgb.astype(np.uint16) * (np.uint16(255) if premultiplied else cover)
    # A premultiplied colour above its alpha is damaged; the least of it is cut off.
    total = np.minimum(colour.astype(np.uint32) + white + 127, 255 * 255)
    over: NDArray[np.uint8] = (total // 255).astype(np.uint8)
    return over


def cmyk_to_rgb(cmyk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert inks ``(y, x, 4)`` to ``(y, x, 3)`` as Pillow does; 255 is full ink."""
    height, width = cmyk.shape[:2]
    image = Image.frombytes("CMYK", (width, height), np.ascontiguousarray(cmyk).tobytes())
    return np.array(image.convert("RGB"))


def ycbcr_to_rgb(ycbcr: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Convert full-range BT.601 ``(y, x, 3)``, as in JPEG files, to RGB as Pillow does."""
    height, width = ycbcr.shape[:2]
    image = Image.frombytes("YCbCr", (width, height), np.ascontiguousarray(ycbcr).tobytes())
    return np.array(image.convert("RGB"))
