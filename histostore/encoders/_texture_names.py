"""What the texture encoder measures, in words: nothing here computes, or loads what does."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CHANNELS",
    "CIRCLES",
    "DISTANCES",
    "FEATURE_NAMES",
    "IMAGES",
    "MOMENTS",
    "N_BANDS",
    "PERCENTILES",
    "PREPROCESSING",
    "PROPERTIES",
]

CHANNELS = ("H", "E", "D", "L", "a", "b", "grey")
"""Colour channels, in the order of their features."""

MOMENTS = ("mean", "sd", "skewness", "kurtosis")
"""Moments of each channel."""

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
"""Percentiles of each channel; the outermost two only stretch the haematoxylin image."""

IMAGES = ("grey", "H")
"""The images in which texture is measured."""

CIRCLES = ((8, 1), (16, 2), (24, 4))
"""Points and radii of the local binary patterns."""

DISTANCES = (1, 2, 4, 8)
"""Distances of the co-occurrences, px."""

PROPERTIES = ("contrast", "homogeneity", "energy", "correlation", "dissimilarity")
"""What is told of each co-occurrence."""

N_BANDS = 12
"""Rings of spatial frequency."""


def _names() -> tuple[str, ...]:
    """Name every feature, in order."""
    shown = [*MOMENTS, *(f"p{percent:02d}" for percent in PERCENTILES[1:-1])]
    colour = [f"colour.{channel}.{what}" for channel in CHANNELS for what in shown]
    patterns = [
        f"lbp.{image}.r{radius}.{kind}"
        for image in IMAGES
        for points, radius in CIRCLES
        for kind in (*(f"ones{ones}" for ones in range(points + 1)), "other")
    ]
    pairs = [
        f"glcm.{image}.d{distance}.{what}.{over}"
        for image in IMAGES
        for distance in DISTANCES
        for what in PROPERTIES
        for over in ("mean", "sd")
    ]
    power = [f"power.{image}.ring{ring}" for image in IMAGES for ring in range(N_BANDS)]
    return (*colour, *patterns, *pairs, *power)


FEATURE_NAMES: tuple[str, ...] = _names()
"""``family.image.detail`` of each feature, as in ``glcm.grey.d2.contrast.mean``."""

PREPROCESSING: dict[str, Any] = {
    "version": 1,
    "colour": {
        "channels": list(CHANNELS),
        "moments": list(MOMENTS),
        "percentiles": list(PERCENTILES[1:-1]),
    },
    "images": {"grey": "8 bit", "H": "8 bit between percentiles 1 and 99"},
    "lbp": {"circles": [list(circle) for circle in CIRCLES], "method": "uniform"},
    "glcm": {
        "levels": 16,
        "distances": list(DISTANCES),
        "angles": [0, 45, 90, 135],
        "properties": list(PROPERTIES),
    },
    "power": {"rings": N_BANDS},
}
