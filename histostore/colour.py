"""8-bit RGB to lightness, CIELAB and optical density, and maps that work there.

``luma``
    Grey of ITU-R BT.601, rounded: what OpenCV calls grey, to one level.
LAB
    CIELAB of sRGB under D65, in 8-bit units as OpenCV has them: L * 255 / 100, a + 128,
    b + 128. White is (255, 128, 128). Here not rounded.
density
    Natural optical density, −ln(value / 255): the amounts of stain in a pixel add up in it
    (Beer and Lambert). White is 0; 0 counts as 1, so that black has a density.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["WHITE_GREY", "densities", "grey_sums", "lab_sums", "luma", "map_density", "map_lab", "map_rgb", "to_lab"]  # fmt: skip

WHITE_GREY = 220
"""Pixels at least this light are glass to quality control and stain normalisation."""

_SHARE = np.arange(256) / 255
_LINEAR = np.where(_SHARE > 0.04045, ((_SHARE + 0.055) / 1.055) ** 2.4, _SHARE / 12.92)
"""Light of an 8-bit sRGB value (IEC 61966-2-1)."""

_STEPS = 65535
_LIGHT = np.arange(_STEPS + 1) / _STEPS
_SRGB = (
    255 * np.where(_LIGHT > 0.0031308, 1.055 * _LIGHT ** (1 / 2.4) - 0.055, 12.92 * _LIGHT)
).astype(np.float32)
"""8-bit sRGB value of light in 65,535ths; a step is at most 0.05 of a level."""

_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# Relative to white: rows sum to one, so that every grey has a = b = 0.
_TO_XYZ /= _TO_XYZ.sum(axis=1, keepdims=True)
_FROM_XYZ = np.linalg.inv(_TO_XYZ)

_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255)
_DARKEST = float(_DENSITY[0])
_TRANSMITTED = (255 * np.exp(-_LIGHT * _DARKEST)).astype(np.float32)
"""8-bit value of a density in 65,535ths of the darkest; a step is at most 0.03 of a level."""

_BLOCK = 1024
"""Pixels whose LAB is held at a time: little enough to stay in the fastest cache."""

_RAMP = 256 - WHITE_GREY
"""Levels from tissue to white over which a map in LAB fades out."""


@compiled()
def _grey(red: np.int64, green: np.int64, blue: np.int64) -> np.int64:
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


@compiled()
def _response(value: float) -> float:
    """Give the response f of CIELAB.

    The cube root starts from a third of the exponent (within 4 %) and takes two steps of
    Halley's method, each of which triples the number of right digits.
    """
    bits = np.float32(value).view(np.int32)
    root = np.float64(np.int32(bits * (1.0 / 3.0) + 709_921_077.0).view(np.float32))
    for _ in range(2):
        cube = root * root * root
        root *= (cube + 2.0 * value) / (2.0 * cube + value)
    # Both are computed and one is taken: without a branch, loops become vector code.
    return root if value > (6.0 / 29.0) ** 3 else value * (841.0 / 108.0) + 4.0 / 29.0


@compiled()
def _light(response: float) -> float:
    cube = response * response * response
    return cube if response > 6.0 / 29.0 else (response - 4.0 / 29.0) * (108.0 / 841.0)


@compiled()
def _lab(pixels: NDArray[np.uint8], out: NDArray[np.float64]) -> None:
    """Fill ``out``, ``(3, pixel)``, with LAB of ``(pixel, 3)``, in 8-bit units."""
    for i in range(len(pixels)):
        red, green, blue = _LINEAR[pixels[i, 0]], _LINEAR[pixels[i, 1]], _LINEAR[pixels[i, 2]]
        for k in range(3):
            # XYZ for the moment; the next loop, which has no table to look into, is vector code.
            out[k, i] = red * _TO_XYZ[k, 0] + green * _TO_XYZ[k, 1] + blue * _TO_XYZ[k, 2]
    for i in range(len(pixels)):
        x, y, z = _response(out[0, i]), _response(out[1, i]), _response(out[2, i])
        out[0, i] = (116.0 * y - 16.0) * 2.55
        out[1, i] = 500.0 * (x - y) + 128.0
        out[2, i] = 200.0 * (y - z) + 128.0


@compiled()
def _to_lab(pixels: NDArray[np.uint8], out: NDArray[np.float64]) -> None:
    lab = np.empty((3, _BLOCK))
    for start in range(0, len(pixels), _BLOCK):
        block = pixels[start : start + _BLOCK]
        _lab(block, lab)
        for i in range(len(block)):
            for k in range(3):
                out[start + i, k] = lab[k, i]


@compiled()
def _sums(pixels: NDArray[np.uint8], out: NDArray[np.float64]) -> int:
    n = 0
    lab = np.empty((3, _BLOCK))
    for start in range(0, len(pixels), _BLOCK):
        block = pixels[start : start + _BLOCK]
        _lab(block, lab)
        for i in range(len(block)):
            if _grey(np.int64(block[i, 0]), np.int64(block[i, 1]), np.int64(block[i, 2])) >= (
                WHITE_GREY
            ):
                continue
            n += 1
            for k in range(3):
                # About mid-grey, so that the sum of squares keeps its digits.
                value = lab[k, i] - 128.0
                out[0, k] += value
                out[1, k] += value * value
    return n


@compiled()
def _map_lab(
    pixels: NDArray[np.uint8],
    scale: NDArray[np.float64],
    shift: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    lab = np.empty((3, _BLOCK))
    for start in range(0, len(pixels), _BLOCK):
        block = pixels[start : start + _BLOCK]
        _lab(block, lab)
        for i in range(len(block)):
            y = ((lab[0, i] * scale[0] + shift[0]) / 2.55 + 16.0) / 116.0
            x = y + (lab[1, i] * scale[1] + shift[1] - 128.0) / 500.0
            z = y - (lab[2, i] * scale[2] + shift[2] - 128.0) / 200.0
            x, y, z = _light(x), _light(y), _light(z)
            for k in range(3):
                lab[k, i] = x * _FROM_XYZ[k, 0] + y * _FROM_XYZ[k, 1] + z * _FROM_XYZ[k, 2]
        for i in range(len(block)):
            grey = _grey(np.int64(block[i, 0]), np.int64(block[i, 1]), np.int64(block[i, 2]))
            share = min(1.0, (255.0 - grey) / _RAMP)
            for k in range(3):
                mapped = _SRGB[np.int64(min(max(lab[k, i], 0.0), 1.0) * _STEPS + 0.5)]
                out[start + i, k] = np.uint8(block[i, k] + share * (mapped - block[i, k]) + 0.5)


@compiled()
def _map_density(
    pixels: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    shift: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    for i in range(len(pixels)):
        red, green, blue = _DENSITY[pixels[i, 0]], _DENSITY[pixels[i, 1]], _DENSITY[pixels[i, 2]]
        for k in range(3):
            density = red * matrix[k, 0] + green * matrix[k, 1] + blue * matrix[k, 2] + shift[k]
            step = np.int64(min(max(density / _DARKEST, 0.0), 1.0) * _STEPS + 0.5)
            out[i, k] = np.uint8(_TRANSMITTED[step] + np.float32(0.5))


@compiled()
def _map_rgb(
    pixels: NDArray[np.uint8],
    matrix: NDArray[np.float64],
    shift: NDArray[np.float64],
    out: NDArray[np.uint8],
) -> None:
    for i in range(len(pixels)):
        red, green, blue = pixels[i, 0], pixels[i, 1], pixels[i, 2]
        for k in range(3):
            value = red * matrix[k, 0] + green * matrix[k, 1] + blue * matrix[k, 2] + shift[k]
            out[i, k] = np.uint8(min(max(value, 0.0), 255.0) + 0.5)


@compiled()
def _fill_grey(patch: NDArray[np.uint8], out: NDArray[np.int32]) -> None:
    for y in range(patch.shape[0]):
        for x in range(patch.shape[1]):
            out[y, x] = _grey(
                np.int64(patch[y, x, 0]), np.int64(patch[y, x, 1]), np.int64(patch[y, x, 2])
            )


@compiled()
def _grey_sums(grey: NDArray[np.int32], out: NDArray[np.int64]) -> None:
    height, width = grey.shape
    for y in range(height):
        # Reflected about the last row and column; a single one is its own neighbour.
        above = grey[y - 1 if y else min(1, height - 1)]
        below = grey[y + 1 if y + 1 < height else max(height - 2, 0)]
        row = grey[y]
        for x in range(width):
            left = row[x - 1] if x else row[min(1, width - 1)]
            right = row[x + 1] if x + 1 < width else row[max(width - 2, 0)]
            laplacian = np.int64(above[x] + below[x] + left + right - 4 * row[x])
            out[0] += laplacian
            out[1] += laplacian * laplacian
            out[2] += row[x]
            out[3] += row[x] < WHITE_GREY


def _rows(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Lay pixels in one line, ``(pixel, 3)``, contiguous."""
    return np.ascontiguousarray(pixels).reshape(-1, 3)


def luma(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Give the grey of pixels.

    Parameters
    ----------
    pixels
        ``(…, 3)``, uint8 RGB.

    Returns
    -------
    grey
        ``(…)``, uint8.

    Examples
    --------
    >>> luma(np.array([[255, 255, 255], [255, 0, 0]], np.uint8)).tolist()
    [255, 76]
    """
    weights = np.array([19595, 38470, 7471], np.uint32)
    return ((pixels @ weights + np.uint32(32768)) >> np.uint32(16)).astype(np.uint8)


def to_lab(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Give the LAB values of pixels, in 8-bit units.

    Parameters
    ----------
    pixels
        ``(…, 3)``, uint8 RGB.

    Returns
    -------
    lab
        ``(…, 3)``, float64: L in 0..255, a and b about 128.

    Examples
    --------
    >>> to_lab(np.array([255, 255, 255], np.uint8)).round(3).tolist()
    [255.0, 128.0, 128.0]
    """
    out = np.empty(pixels.shape, np.float64)
    _to_lab(_rows(pixels), out.reshape(-1, 3))
    return out


def lab_sums(
    pixels: NDArray[np.uint8],
) -> tuple[int, NDArray[np.float64], NDArray[np.float64]]:
    """Add up LAB, less 128, over the pixels darker than :data:`WHITE_GREY`.

    Parameters
    ----------
    pixels
        ``(…, 3)``, uint8 RGB.

    Returns
    -------
    n, total, squares
        How many pixels; ``(3,)`` sums of values; ``(3,)`` sums of their squares.
    """
    sums = np.zeros((2, 3), np.float64)
    n = _sums(_rows(pixels), sums)
    return n, sums[0], sums[1]


def grey_sums(patch: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Add up over the grey of a patch, in whole numbers, without rounding.

    Parameters
    ----------
    patch
        ``(y, x, 3)``, uint8 RGB.

    Returns
    -------
    sums
        ``(4,)``: of the Laplacian, of its square, of the grey, and how many pixels are darker
        than :data:`WHITE_GREY`.
    """
    grey = np.empty(patch.shape[:2], np.int32)
    _fill_grey(np.ascontiguousarray(patch), grey)
    sums = np.zeros(4, np.int64)
    _grey_sums(grey, sums)
    return sums


def densities(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Give the optical densities of pixels, ``(…, 3)`` float64, of ``(…, 3)`` uint8 RGB."""
    return _DENSITY[pixels]


def map_lab(
    pixels: NDArray[np.uint8], scale: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Multiply and shift LAB, of tissue; glass is left as it is.

    From :data:`WHITE_GREY` upwards the change fades out and white does not change at all: a
    map that suits tissue would give glass a tint.

    Parameters
    ----------
    pixels
        ``(…, 3)``, uint8 RGB.
    scale, shift
        ``(3,)``, float64, in 8-bit units of LAB: value * scale + shift.

    Returns
    -------
    pixels
        As given, uint8; what no screen can show is clipped.

    Examples
    --------
    >>> pixels = np.array([[255, 255, 255], [200, 120, 180]], np.uint8)
    >>> map_lab(pixels, np.ones(3), np.array([-40.0, 0.0, 0.0])).tolist()
    [[255, 255, 255], [156, 80, 138]]
    """
    out = np.empty(pixels.shape, np.uint8)
    _map_lab(_rows(pixels), scale, shift, out.reshape(-1, 3))
    return out


def map_density(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Map optical densities linearly.

    Parameters
    ----------
    pixels
        ``(…, 3)``, uint8 RGB.
    matrix, shift
        ``(3, 3)`` and ``(3,)``, float64: density becomes matrix · density + shift.

    Returns
    -------
    pixels
        As given, uint8; densities below white and beyond black are clipped.

    Examples
    --------
    >>> map_density(np.array([[255, 51, 51]], np.uint8), np.diag([1.0, 2.0, 0.5]), np.zeros(3)).tolist()
    [[255, 10, 114]]
    """
    out = np.empty(pixels.shape, np.uint8)
    _map_density(_rows(pixels), matrix, shift, out.reshape(-1, 3))
    return out


def map_rgb(
    pixels: NDArray[np.uint8], matrix: NDArray[np.float64], shift: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Map RGB values linearly: ``(…, 3)`` uint8, matrix ``(3, 3)`` and shift ``(3,)``; clipped."""
    out = np.empty(pixels.shape, np.uint8)
    _map_rgb(_rows(pixels), matrix, shift, out.reshape(-1, 3))
    return out
