"""Power in rings of spatial frequency."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import scipy.fft

from histostore.encoders._texture_names import N_BANDS
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["N_BANDS", "log_power", "rings"]


_NOISE = 1 / 12
"""Power of rounding to 8 bits, in squared grey values: the floor of what can be told."""


@lru_cache(maxsize=8)
def rings(size: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Say which ring each coefficient of a real two-dimensional transform belongs to.

    Parameters
    ----------
    size
        Edge of the patch in px.

    Returns
    -------
    ring
        ``(size, size // 2 + 1)``: 0..11, or 12 for the constant and for the corners.
    coefficients
        ``(12)``: how many a ring has, those counted twice that stand for two. Patches of
        less than 24 px leave some rings empty.

    Examples
    --------
    >>> ring, coefficients = rings(104)
    >>> ring[0, :6].tolist(), int(coefficients[0])
    ([12, 0, 0, 0, 0, 1], 60)
    """
    # In whole numbers, so that what lies on the outer edge of a ring belongs to it on every
    # machine: 12 · radius / (size / 2) in (k, k + 1], where radius² = row² + column².
    row = np.minimum(np.arange(size), size - np.arange(size))[:, None]
    column = np.arange(size // 2 + 1)[None, :]
    radius2 = row**2 + column**2
    outer2 = (np.arange(1, N_BANDS + 1) * size) ** 2  # of (2 · 12 · radius)²
    ring = np.searchsorted(outer2, (2 * N_BANDS) ** 2 * radius2, side="left").astype(np.uint8)
    ring[0, 0] = N_BANDS
    twice = np.full(column.shape, 2)
    twice[0, 0] = 1
    if size % 2 == 0:
        twice[0, -1] = 1
    coefficients = [(twice * (ring == k)).sum() for k in range(N_BANDS)]
    return ring, np.array(coefficients, np.int64)


@compiled()
def _centre(image: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Remove the mean."""
    total = np.int64(0)
    for value in image.flat:
        total += value
    mean = total / image.size
    for r in range(image.shape[0]):
        for c in range(image.shape[1]):
            out[r, c] = image[r, c] - mean


@compiled()
def _gather(
    spectrum: NDArray[np.complex64], ring: NDArray[np.uint8], power: NDArray[np.float64]
) -> None:
    """Add up the squares of each ring; all columns but the outer ones stand for two."""
    rows, columns = ring.shape
    even = rows % 2 == 0
    for r in range(rows):
        for c in range(columns):
            value = spectrum[r, c]
            square = np.float64(value.real) ** 2 + np.float64(value.imag) ** 2
            single = c == 0 or (even and c == columns - 1)
            power[ring[r, c]] += square if single else 2.0 * square


def log_power(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Give the logarithm of the mean power density of each ring.

    The density |F|²/(y·x) of a texture does not depend on the size of the patch, nor do the
    rings, which are relative to Nyquist. The noise of 8 bits is added: a flat patch, and a
    ring without a coefficient, give log(1/12).

    Parameters
    ----------
    images
        ``(image, y, x)``, square.

    Returns
    -------
    log_power
        ``(image, 12)``, natural logarithm of squared 8-bit grey values.
    """
    ring, coefficients = rings(images.shape[1])
    centred = np.empty(images.shape, np.float32)
    for image, out in zip(images, centred, strict=True):
        _centre(image, out)
    spectrum = scipy.fft.rfft2(centred, workers=1)
    power = np.zeros((len(images), N_BANDS + 1))
    for one, sums in zip(spectrum, power, strict=True):
        _gather(one, ring, sums)
    density = power[:, :N_BANDS] / np.maximum(coefficients, 1) / images[0].size
    log: NDArray[np.float64] = np.log(density + _NOISE)
    return log
