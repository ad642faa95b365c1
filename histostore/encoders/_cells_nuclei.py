"""From a patch to its nuclei: where they lie, how large they are, how dark.

1. Haematoxylin (:mod:`._cells_stain`), smoothed with a standard deviation of 0.7 px.
2. A pixel is nucleus where it reaches 75 % of Otsu's threshold of the patch, never less than a
   density of 0.5, and 95 % of the mean of its surroundings, 25 px wide, by which a dense sheet
   of nuclei falls apart. Threads one pixel wide go, and holes of vesicular nuclei fill up. Where
   haematoxylin hardly varies there are no nuclei.
3. Touching nuclei are parted between the hills of a landscape: depth inside the mask, and how
   much haematoxylin there is beyond the mean of the surroundings. That is measured at two scales,
   as differences of means, and at each place the one counts that varies more about there: a sheet
   of small nuclei varies from nucleus to nucleus, a large vesicular one as a whole more than by
   its grains and its rim. (Scales by their strongest response: Lindeberg 1998, *Feature detection
   with automatic scale selection*; with depth, for nuclei: Al-Kofahi et al. 2010, *Improved
   automatic detection and segmentation of cell nuclei in histopathology images*.)
4. What is too small or too large for a nucleus goes, and what is small beside those of the patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders import _cells_mask as masks
from histostore.encoders import _cells_split as split
from histostore.encoders._cells_shapes import SHAPES, measure
from histostore.encoders._cells_stain import UNIT, separate, smooth

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["SETTINGS", "Nuclei", "find_nuclei"]

_FLOOR = 0.25  # least haematoxylin of a nucleus, natural optical density
_CONTRAST = 0.3  # least range of it in a patch that has nuclei: more than noise
_SHARE_OF_OTSU = 0.75
_SHARE_OF_MEAN = 0.8
_REACH = 8  # px, of the surroundings whose mean that is
_LARGEST_HOLE = 40  # px²
_NEAR = 3  # px, of the surroundings from which small nuclei stand out
_BLOB, _FAR = 2, 8  # px: averaged over, and of the surroundings, where large ones stand out
_ABOUT = 18  # px, within which the two scales are weighed
_RELIEF = 2.0  # px of depth that one deviation of haematoxylin counts for
_DEEPEST = 8  # px
_SCALE = 1024  # steps of the landscape per px: few ties
_SADDLE = 0.96  # share of the lower summit
_LEAST_AREA, _MOST_AREA = 8, 1500  # px²
_SHARE_OF_TYPICAL = 0.1  # of the area of the patch's typical nucleus: less is a speck

SETTINGS = {
    "floor": _FLOOR,
    "contrast": _CONTRAST,
    "otsu": _SHARE_OF_OTSU,
    "mean": [_SHARE_OF_MEAN, _REACH],
    "hole": _LARGEST_HOLE,
    "relief": [_RELIEF, _NEAR, _BLOB, _FAR, _ABOUT],
    "depth": _DEEPEST,
    "saddle": _SADDLE,
    "area": [_LEAST_AREA, _MOST_AREA, _SHARE_OF_TYPICAL],
}
"""The numbers above, as JSON values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Nuclei:
    """The nuclei of one patch; numbers of pixels are the patch's own."""

    label: NDArray[np.int32]
    """``(y, x)``: number of the nucleus from 1, 0 for none."""

    table: NDArray[np.float64]
    """``(nucleus, column)``, as in :data:`._cells_shapes.SHAPES`."""

    haematoxylin: NDArray[np.int32]
    """``(y, x)``, in 1/1024 of natural optical density."""

    eosin: NDArray[np.int32]
    """``(y, x)``, likewise."""

    def __len__(self) -> int:
        return len(self.table)

    def column(self, name: str) -> NDArray[np.float64]:
        """Give one measure of every nucleus, ``(nucleus,)``."""
        return self.table[:, SHAPES.index(name)]

    @property
    def centres(self) -> NDArray[np.float64]:
        """Centres of gravity, ``(nucleus, 2)``: x and y in px; (0, 0) is the first pixel's middle."""
        return self.table[:, :2]


def find_nuclei(patch: NDArray[np.uint8]) -> Nuclei:
    """Find the nuclei of a patch stained with haematoxylin.

    Parameters
    ----------
    patch
        ``(y, x, 3)``, uint8 RGB. Nuclei should be 8 to 20 px across.

    Returns
    -------
    nuclei
        None at all, in an empty patch.

    Examples
    --------
    >>> patch = np.full((32, 32, 3), 240, np.uint8)
    >>> patch[10:18, 12:20] = (90, 60, 140)
    >>> find_nuclei(patch).centres.round(1).tolist()
    [[15.5, 13.5]]
    """
    haematoxylin = np.empty(patch.shape[:2], np.int32)
    eosin = np.empty(patch.shape[:2], np.int32)
    # A copy always: kernels are compiled for contiguous, writable arrays alone.
    separate(np.array(patch, np.uint8, order="C"), haematoxylin, eosin)
    image = smooth(haematoxylin, 1) // np.int32(16)
    least = max(int(_SHARE_OF_OTSU * masks.otsu(image, UNIT // 64)), int(_FLOOR * UNIT))
    if np.ptp(image) < _CONTRAST * UNIT:
        least = np.iinfo(np.int32).max  # evenly dark: blood, ink, nothing
    around = _SHARE_OF_MEAN * masks.surroundings(image, _REACH)
    mask = ((image >= least) & (image >= around)).astype(np.uint8)
    mask = masks.opened(mask)
    masks.fill_holes(mask, _LARGEST_HOLE)
    hill = split.hills(_landscape(haematoxylin, mask), mask, _SADDLE)
    label, _ = split.numbered(hill, _LEAST_AREA, _MOST_AREA)
    least_area = max(_LEAST_AREA, int(_SHARE_OF_TYPICAL * _typical_area(label)))
    label, n_nuclei = split.numbered(hill, least_area, _MOST_AREA)
    return Nuclei(
        label=label,
        table=measure(label, n_nuclei, haematoxylin),
        haematoxylin=haematoxylin,
        eosin=eosin,
    )


def _landscape(haematoxylin: NDArray[np.int32], mask: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Give heights, ``(y, x)``, in 1/1024 px: see the module, step 3."""
    depth = smooth(split.depth(mask, _DEEPEST, _SCALE), 2) // np.int32(256)
    sharp = smooth(haematoxylin, 1)  # 16-fold, as both reliefs
    soft = smooth(haematoxylin, 3) // np.int32(256)
    fine = soft - masks.surroundings(haematoxylin * np.int32(16), _NEAR)
    blob = masks.surroundings(masks.surroundings(sharp, _BLOB), _BLOB)
    coarse = blob - masks.surroundings(sharp, _FAR)
    relief = split.weighed(
        fine,
        coarse,
        masks.surroundings(split.squares(fine, mask), _ABOUT),
        masks.surroundings(split.squares(coarse, mask), _ABOUT),
    )
    # Sums of whole numbers: the same in any order.
    inside = (relief[mask > 0] // np.int32(16)).astype(np.int64)
    deviation = 16 * math.sqrt((inside @ inside) / max(inside.size, 1)) + UNIT  # never 0
    height = depth + np.floor(relief * (_RELIEF * _SCALE / deviation)).astype(np.int32)
    return np.where(mask > 0, np.maximum(height, 0), np.int32(0))


def _typical_area(label: NDArray[np.int32]) -> int:
    """Give the area, px², of the nucleus to which the middle one of all their pixels belongs."""
    areas = np.sort(np.bincount(label.reshape(-1))[1:])
    if areas.size == 0:
        return 0
    return int(areas[np.searchsorted(np.cumsum(areas), areas.sum() / 2)])
