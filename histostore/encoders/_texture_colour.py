"""From RGB to the seven channels that are described: stains, LAB, grey."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._texture_names import CHANNELS
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CHANNELS", "channels", "rescale"]


_DARKEST = 1e-6
"""Least transmittance, so that black has a finite optical density (scikit-image's value)."""

_SHARE = np.arange(256) / 255
_DENSITY = np.log(np.maximum(_SHARE, _DARKEST)) / np.log(_DARKEST)
"""Optical density of an 8-bit value, in units of the darkest one."""

_LINEAR = np.where(_SHARE > 0.04045, ((_SHARE + 0.055) / 1.055) ** 2.4, _SHARE / 12.92)
"""Light of an 8-bit sRGB value (IEC 61966-2-1)."""

_STAINS = np.linalg.inv(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]]))
"""Densities to haematoxylin, eosin, DAB (Ruifrok and Johnston 2001)."""

_XYZ = np.array(
    [
        [0.412453, 0.357580, 0.180423],
        [0.212671, 0.715160, 0.072169],
        [0.019334, 0.119193, 0.950227],
    ]
) / np.array([[0.95047], [1.0], [1.08883]])
"""Light to CIE XYZ, relative to the white point D65, 2° observer."""

_GREY = np.array([0.2125, 0.7154, 0.0721]) / 255
_GREY_10K = np.array([2125, 7154, 721])
"""Weights of rgb2gray, in ten thousandths: rounding to 8 bits is then exact."""


@compiled()
def _cube_root(value: float) -> float:
    """Take the cube root of a value in 0..2, to about 1e-14.

    A third of the exponent as first guess (within 4 %), then two steps of Halley's method,
    each of which triples the number of right digits. Unlike a call of ``cbrt`` it vectorises.
    """
    bits = np.float32(value).view(np.int32)
    root = np.float64(np.int32(bits * (1.0 / 3.0) + 709_921_077.0).view(np.float32))
    for _ in range(2):
        cube = root * root * root
        root *= (cube + 2.0 * value) / (2.0 * cube + value)
    return root


@compiled()
def _lightness(value: float) -> float:
    """Give the response f of CIELAB, with scikit-image's rounded constants."""
    return _cube_root(value) if value > 0.008856 else 7.787 * value + 16.0 / 116.0


@compiled()
def channels(patch: NDArray[np.uint8], out: NDArray[np.float64], grey: NDArray[np.uint8]) -> None:
    """Fill ``out`` with the channels of a patch.

    Parameters
    ----------
    patch
        ``(y, x, 3)``, RGB.
    out
        ``(7, y * x)``: as in :data:`CHANNELS`; stains as ``skimage.color.rgb2hed``, LAB as
        ``rgb2lab``, grey as ``rgb2gray``.
    grey
        ``(y, x)``: grey again, rounded to 8 bits (halves upwards).
    """
    pixels = patch.reshape(-1, 3)
    flat = grey.reshape(-1)
    for i in range(pixels.shape[0]):
        red, green, blue = pixels[i, 0], pixels[i, 1], pixels[i, 2]
        for k in range(3):
            stain = (
                _DENSITY[red] * _STAINS[0, k]
                + _DENSITY[green] * _STAINS[1, k]
                + _DENSITY[blue] * _STAINS[2, k]
            )
            out[k, i] = max(stain, 0.0)
            # XYZ for the moment; the next loop turns it into LAB.
            out[3 + k, i] = (
                _LINEAR[red] * _XYZ[k, 0] + _LINEAR[green] * _XYZ[k, 1] + _LINEAR[blue] * _XYZ[k, 2]
            )
        out[6, i] = red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]
        total = red * _GREY_10K[0] + green * _GREY_10K[1] + blue * _GREY_10K[2]
        flat[i] = np.uint8(np.uint32(total + 5000) // np.uint32(10_000))
    for i in range(pixels.shape[0]):
        x, y, z = _lightness(out[3, i]), _lightness(out[4, i]), _lightness(out[5, i])
        out[3, i] = 116.0 * y - 16.0
        out[4, i] = 500.0 * (x - y)
        out[5, i] = 200.0 * (y - z)


@compiled()
def rescale(values: NDArray[np.float64], low: float, high: float, out: NDArray[np.uint8]) -> None:
    """Stretch ``low``..``high`` over 8 bits; what lies outside is clipped.

    Parameters
    ----------
    values
        ``(y * x)``.
    low, high
        Become 0 and 255. Where they are equal, everything becomes 0.
    out
        ``(y, x)``.
    """
    flat = out.reshape(-1)
    scale = 255.0 / (high - low) if high > low else 0.0
    for i in range(values.shape[0]):
        flat[i] = np.uint8(min(max((values[i] - low) * scale, 0.0), 255.0) + 0.5)
