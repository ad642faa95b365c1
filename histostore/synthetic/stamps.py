"""Nuclei and vacuoles as small maps of stain, drawn once and pressed into many pictures.

Sizes are in pixels of about 0.5 µm (20×): a lymphocyte is 8 px across, a large tumour nucleus
20 px. Shapes are schematic, after the general look of H&E sections; nothing is copied from an
image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["KINDS", "N_ANGLES", "NucleusKind", "press", "stamps"]

N_ANGLES = 16
"""Directions in which each shape is drawn, over half a turn."""

_SHAPES_PER_ANGLE = 6


@dataclass(frozen=True, kw_only=True, slots=True)
class NucleusKind:
    """How nuclei of one kind look."""

    radius: tuple[float, float]
    """Least and greatest mean radius, px."""

    elongation: float
    """Long axis by short axis."""

    wobble: float
    """How far the outline leaves the ellipse, as a share of the radius."""

    stain: float
    """Haematoxylin inside."""

    chromatin: float
    """Contrast of the coarse grains inside."""

    rim: float = 0.0
    """How much darker the membrane is than the inside: vesicular nuclei."""

    nucleoli: int = 0
    """Dark dots inside."""


KINDS = {
    "epithelial": NucleusKind(
        radius=(5.0, 6.5), elongation=1.35, wobble=0.06, stain=0.85, chromatin=0.35, rim=0.15
    ),
    "fibroblast": NucleusKind(
        radius=(3.8, 5.0), elongation=3.4, wobble=0.05, stain=0.95, chromatin=0.2
    ),
    "lymphocyte": NucleusKind(
        radius=(3.6, 4.2), elongation=1.05, wobble=0.03, stain=1.35, chromatin=0.25
    ),
    "large": NucleusKind(
        radius=(7.5, 12.0),
        elongation=1.3,
        wobble=0.14,
        stain=0.75,
        chromatin=0.5,
        rim=0.6,
        nucleoli=2,
    ),
    "small": NucleusKind(radius=(4.0, 4.8), elongation=1.1, wobble=0.05, stain=1.5, chromatin=0.15),
    "spindle": NucleusKind(
        radius=(4.6, 5.8), elongation=4.2, wobble=0.06, stain=1.2, chromatin=0.25
    ),
    "crescent": NucleusKind(
        radius=(3.2, 4.0), elongation=2.4, wobble=0.05, stain=1.2, chromatin=0.2
    ),
}
"""Normal kinds first, then those of lesions."""


@lru_cache(maxsize=len(KINDS))
def stamps(kind: str) -> tuple[tuple[NDArray[np.float32], ...], ...]:
    """Draw the shapes of one kind: ``[angle][shape]``, each ``(y, x)`` float32, stain 0 … 2.

    They are the same for every seed: variety of a picture comes from which are chosen, where
    and how strongly.
    """
    rng = np.random.default_rng([list(KINDS).index(kind), 0x57A3])
    return tuple(
        tuple(
            _nucleus(KINDS[kind], np.pi * (angle + rng.uniform(-0.5, 0.5)) / N_ANGLES, rng)
            for _ in range(_SHAPES_PER_ANGLE)
        )
        for angle in range(N_ANGLES)
    )


def _nucleus(kind: NucleusKind, angle: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Draw one nucleus with a soft edge, its long axis at ``angle`` to the x axis."""
    from scipy.ndimage import gaussian_filter

    radius = rng.uniform(*kind.radius)
    reach = int(np.ceil(radius * np.sqrt(kind.elongation) * (1 + 2 * kind.wobble))) + 2
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float64)
    along = (x * np.cos(angle) + y * np.sin(angle)) / np.sqrt(kind.elongation)
    across = (y * np.cos(angle) - x * np.sin(angle)) * np.sqrt(kind.elongation)
    turn = np.arctan2(across, along)
    outline = 1 + kind.wobble * sum(
        rng.normal() * np.cos(order * turn + rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4)
    )
    depth = radius * outline - np.hypot(along, across)  # px inside the outline
    inside = np.clip(depth / 1.5 + 0.5, 0, 1)
    grain = gaussian_filter(rng.standard_normal(x.shape), 1.1)
    stain = kind.stain * (1 + kind.chromatin * grain / grain.std() * 0.6)
    stain *= 1 - kind.rim * 0.5 + kind.rim * np.exp(-np.clip(depth - 0.8, 0, None))
    for _ in range(kind.nucleoli):
        far, where = radius * rng.uniform(0, 0.5), rng.uniform(0, 2 * np.pi)
        apart = np.hypot(x - far * np.cos(where), y - far * np.sin(where))
        stain += 0.9 * np.exp(-((apart / rng.uniform(1.2, 2.0)) ** 2))
    stamp: NDArray[np.float32] = (np.clip(stain, 0.15, 2.2) * inside).astype(np.float32)
    return stamp


def press(
    target: NDArray[np.float32], stamp: NDArray[np.float32], x: int, y: int, strength: float
) -> None:
    """Put a stamp's stain on ``target`` (``(y, x)``, changed in place), centred at (x, y).

    Where nuclei overlap the stronger stain shows. What sticks out of the picture is cut off.
    """
    height, width = target.shape
    half_y, half_x = stamp.shape[0] // 2, stamp.shape[1] // 2
    top, left = y - half_y, x - half_x
    y0, y1 = max(top, 0), min(top + stamp.shape[0], height)
    x0, x1 = max(left, 0), min(left + stamp.shape[1], width)
    if y0 >= y1 or x0 >= x1:
        return
    place = target[y0:y1, x0:x1]
    np.maximum(place, stamp[y0 - top : y1 - top, x0 - left : x1 - left] * strength, out=place)
