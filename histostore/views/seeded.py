"""Views that are drawn at random, by a hash of the patch's key.

The numbers of a draw are the 64 bytes of a BLAKE2b digest: no generator has a state that
could depend on the batch, and no library's stream can change under a store. The names of
the views stand for these ranges and formulas; others need other names.
"""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from histostore.colour import luma, map_density, map_rgb
from histostore.views.warp import warp

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.views import PatchKey

__all__ = ["draw", "draw_view"]

_STRENGTH = 0.2
_TURN = math.radians(10.0)
_SHEAR = math.radians(10.0)
_ZOOM = 0.1
_SHIFT = 0.1

_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
"""Densities of haematoxylin, eosin and DAB (Ruifrok and Johnston 2001), one per row."""

_GREY = np.array([0.299, 0.587, 0.114])


def draw(name: str, key: PatchKey) -> NDArray[np.float64]:
    """Draw eight numbers, evenly from −1 to 1.

    Parameters
    ----------
    name
        Name of the view, with its number.
    key
        The patch.

    Returns
    -------
    numbers
        ``(8,)``, float64.
    """
    # The id comes last: whatever is in it, two keys never give one text.
    text = f"{name}\n{key.x}\n{key.y}\n{key.image_id}"
    words = np.frombuffer(blake2b(text.encode()).digest(), "<u8")
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def draw_view(patches: NDArray[np.uint8], name: str, keys: Sequence[PatchKey]) -> NDArray[np.uint8]:
    """Give the view of every patch, each drawn for itself.

    Parameters
    ----------
    patches
        ``(patch, y, x, 3)``, uint8 RGB.
    name
        As ``jitter-1``, ``stain-jitter-1``, ``affine-1``.
    keys
        One per patch.

    Returns
    -------
    patches
        As given, uint8.
    """
    change = {"jitter": _jitter, "stain-jitter": _jitter_stain, "affine": _move}
    family = change[name.rpartition("-")[0]]
    out = np.empty(patches.shape, np.uint8)
    for patch, key, changed in zip(patches, keys, out, strict=True):
        changed[:] = family(patch, draw(name, key))
    return out


def _jitter(patch: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Change brightness, then contrast about the mean grey, then saturation: one linear map."""
    brightness, contrast, saturation = 1 + _STRENGTH * drawn[:3]
    mean = float(luma(patch).mean())
    matrix = saturation * np.eye(3) + (1 - saturation) * _GREY  # rows sum to one
    return map_rgb(
        patch,
        brightness * contrast * matrix,
        np.full(3, brightness * (1 - contrast) * mean),
    )


def _jitter_stain(patch: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Change the amount of each stain by a factor (Tellez et al., IEEE TMI 37, 2018).

    NOTE[DIFF]: no amount is added, as the paper does beside: glass stays white.
    """
    change = np.linalg.inv(_STAINS) @ np.diag(1 + _STRENGTH * drawn[:3]) @ _STAINS
    return map_density(patch, np.ascontiguousarray(change.T), np.zeros(3))


def _move(patch: NDArray[np.uint8], drawn: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Turn, scale, shear and shift about the middle; what lies outside is reflected in."""
    angle, zoom = _TURN * drawn[0], 1 + _ZOOM * drawn[1]
    cos, sin, shear = math.cos(angle), math.sin(angle), math.tan(_SHEAR * drawn[2])
    forth = zoom * np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, 0.0], [shear, 1.0]])
    shift = _SHIFT * drawn[3:5] * patch.shape[:2]
    # Each pixel of the result asks where it comes from.
    back = np.linalg.inv(forth)
    return warp(patch, back, -back @ shift)
