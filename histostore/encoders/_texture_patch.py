"""One patch after the other through the kernels of the texture encoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders import _texture_glcm as glcm
from histostore.encoders import _texture_lbp as lbp
from histostore.encoders import _texture_spectrum as spectrum
from histostore.encoders._texture_colour import channels, rescale
from histostore.encoders._texture_moments import summaries
from histostore.encoders._texture_names import CHANNELS, CIRCLES, DISTANCES, IMAGES, MOMENTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["encode_some"]

_DISTANCES = np.array(DISTANCES, np.int64)
_CIRCLES = np.array([points for points, _ in CIRCLES], np.int64)


def _encode_patch(
    patch: NDArray[np.uint8], planes: NDArray[np.float64], images: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Describe one contiguous patch ``(y, x, 3)``; 275 values in the order of their names.

    ``planes`` ``(7, y * x)`` and ``images`` ``(2, y, x)`` are scratch space.
    """
    channels(patch, planes, images[0])
    summary = summaries(planes)  # (channel, moments + percentiles)
    n_moments = len(MOMENTS)
    rescale(planes[0], summary[0, n_moments], summary[0, -1], images[1])
    corner, weight = lbp.sampling()
    patterns = np.empty((len(IMAGES), sum(lbp.N_PATTERNS)))
    for image, out in zip(images, patterns, strict=True):
        lbp.histograms(image, corner, weight, _CIRCLES, out)
    shown = np.delete(summary, [n_moments, summary.shape[1] - 1], axis=1)
    pairs = [glcm.properties(image, _DISTANCES).ravel() for image in images]
    return np.concatenate(
        [shown.ravel(), patterns.ravel(), *pairs, spectrum.log_power(images).ravel()]
    )


def encode_some(patches: NDArray[np.uint8], out: NDArray[np.float32]) -> None:
    """Fill the rows ``out`` with the features of ``patches``."""
    size = patches.shape[1]
    planes = np.empty((len(CHANNELS), size * size))
    images = np.empty((len(IMAGES), size, size), np.uint8)
    for patch, row in zip(patches, out, strict=True):
        # A copy always: kernels are compiled for contiguous, writable arrays alone.
        row[:] = _encode_patch(np.array(patch, np.uint8, order="C"), planes, images)
