"""Which parts of an image are tissue.

``hsv``
    A pixel is tissue if its saturation is at least 0.07 and its value at least 0.1. White
    glass and grey dust have no saturation, black borders no value. Saturation tells stain
    from glass in CLAM (Lu et al., Nature Biomedical Engineering 5, 2021), which takes 8 of
    255 (0.03) after a median filter of 7 px; a higher threshold does without the filter and
    leaves out the tint of the lamp and the noise of JPEG. A grey picture has no saturation
    at all: take ``otsu`` or ``none`` for it.
``otsu``
    A pixel is tissue if it is darker than the threshold of Otsu (IEEE Transactions on
    Systems, Man, and Cybernetics 9, 1979) on luminance, and than 220 of 255, so that an
    empty slide is not divided in two. A picture full of tissue is divided in two, though.
``none``
    Every pixel is tissue.

The numbers decide which patches are kept, and so belong to what a feature set's digest
stands for: other numbers need another method name.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.grid import Placement

__all__ = ["METHODS", "TissueFilter", "tissue_mask", "tissue_shares"]

METHODS = ("hsv", "otsu", "none")
"""Names of the methods."""

_LEAST_SATURATION_PERCENT = 7
_LEAST_VALUE = 26  # 0.1 of 255, rounded up
_WHITE_GREY = 220


@dataclass(frozen=True, slots=True)
class TissueFilter:
    """Which patches of an image are worth keeping.

    Examples
    --------
    >>> TissueFilter(top_k=12).to_json()
    {'method': 'hsv', 'min_tissue': 0.1, 'top_k': 12}
    """

    method: str = "hsv"
    """How tissue is told: one of :data:`METHODS`."""

    min_tissue: float = 0.1
    """Least share of tissue in a patch that is kept, 0 to 1."""

    top_k: int | None = None
    """Keep so many patches at most, those with the most tissue; None keeps all."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise OptionError(f"unknown tissue filter {self.method!r}; known: {', '.join(METHODS)}")
        share: object = self.min_tissue
        top_k: object = self.top_k
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 <= float(share) <= 1:
            raise OptionError(f"min_tissue={share!r}: give a share from 0 to 1")
        object.__setattr__(self, "min_tissue", float(share))
        if top_k is None:
            return
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or int(top_k) < 1:
            raise OptionError(f"top_k={top_k!r}: give a whole number, 1 or more")
        object.__setattr__(self, "top_k", int(top_k))

    def to_json(self) -> dict[str, Any]:
        """Give the filter as JSON values; equal filters give equal values."""
        return {"method": self.method, "min_tissue": self.min_tissue, "top_k": self.top_k}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TissueFilter:
        """Invert :meth:`to_json`.

        Raises
        ------
        OptionError
            If a value makes no sense.
        """
        return cls(document["method"], document["min_tissue"], document["top_k"])


def tissue_mask(rgb: NDArray[np.uint8], method: str) -> NDArray[np.bool_]:
    """Tell for every pixel whether it is tissue.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, uint8.
    method
        One of :data:`METHODS`.

    Returns
    -------
    mask
        ``(y, x)``, True where there is tissue.

    Raises
    ------
    OptionError
        If the method is unknown.

    Examples
    --------
    >>> white, pink = [255, 255, 255], [230, 150, 190]
    >>> tissue_mask(np.array([[white, pink]], np.uint8), "hsv").tolist()
    [[False, True]]
    """
    if method == "none":
        return np.ones(rgb.shape[:2], np.bool_)
    if method == "hsv":
        return _saturated(rgb)
    if method == "otsu":
        return _dark(rgb)
    raise OptionError(f"unknown tissue filter {method!r}; known: {', '.join(METHODS)}")


def _saturated(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    value = np.maximum(np.maximum(red, green), blue)
    least = np.minimum(np.minimum(red, green), blue)
    # Saturation is (value − least) / value; in whole numbers, no division and no 0 / 0.
    spread = (value - least).astype(np.uint16) * np.uint16(100)
    enough = value.astype(np.uint16) * np.uint16(_LEAST_SATURATION_PERCENT)
    mask: NDArray[np.bool_] = (spread >= enough) & (value >= _LEAST_VALUE)
    return mask


def _dark(rgb: NDArray[np.uint8]) -> NDArray[np.bool_]:
    from skimage import filters

    # ITU-R BT.601 luma in 16 fractional bits.
    weights = np.array([19595, 38470, 7471], np.uint32)
    grey = ((rgb @ weights) >> np.uint32(16)).astype(np.uint8)
    # A picture of one grey has no two classes; its threshold is that grey, and nothing darker.
    threshold = int(filters.threshold_otsu(grey))  # type: ignore[no-untyped-call]
    highest_dark = min(threshold, _WHITE_GREY - 1)
    mask: NDArray[np.bool_] = grey <= highest_dark
    return mask if grey.min() < grey.max() else np.zeros_like(mask)


def tissue_shares(
    mask: NDArray[np.bool_], placement: Placement, width_px: int, height_px: int
) -> NDArray[np.float32]:
    """Give every patch's share of tissue.

    Only the part of a patch inside the image counts. A mask smaller than the image is
    stretched over it, and a mask pixel that a patch cuts counts by the area inside.

    Parameters
    ----------
    mask
        ``(y, x)``, of the whole image at any scale.
    placement
        Where the patches lie, in level-0 pixels.
    width_px, height_px
        Size of level 0.

    Returns
    -------
    share
        ``(patch,)``, float32, 0 to 1.

    Examples
    --------
    >>> from histostore.grid import PatchGrid
    >>> mask = np.array([[True, False, True]])
    >>> tissue_shares(mask, PatchGrid(2).place(3, 1), 3, 1).tolist()
    [0.5, 1.0]
    """
    integral = _integral(mask)
    scale_y, scale_x = mask.shape[0] / height_px, mask.shape[1] / width_px
    left, top = placement.x * scale_x, placement.y * scale_y
    # int64: an origin near 2^31 plus an edge would not fit otherwise.
    right = np.minimum(placement.x.astype(np.int64) + placement.edge_px, width_px) * scale_x
    bottom = np.minimum(placement.y.astype(np.int64) + placement.edge_px, height_px) * scale_y
    tissue = (
        _sum_before(integral, bottom, right)
        - _sum_before(integral, top, right)
        - _sum_before(integral, bottom, left)
        + _sum_before(integral, top, left)
    )
    area = (right - left) * (bottom - top)
    share: NDArray[np.float32] = np.clip(tissue / area, 0, 1).astype(np.float32)
    return share


def _integral(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count the tissue above and left of every corner of a pixel (Crow 1984)."""
    integral = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int64)
    np.cumsum(mask, axis=0, out=integral[1:, 1:])
    np.cumsum(integral[1:, 1:], axis=1, out=integral[1:, 1:])
    return integral


def _sum_before(
    integral: NDArray[np.int64], y: NDArray[np.float64], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Interpolate the counts between corners, which weighs cut pixels by their area."""
    row = np.minimum(y.astype(np.int64), integral.shape[0] - 2)
    column = np.minimum(x.astype(np.int64), integral.shape[1] - 2)
    down, along = y - row, x - column
    upper = integral[row, column] * (1 - along) + integral[row, column + 1] * along
    lower = integral[row + 1, column] * (1 - along) + integral[row + 1, column + 1] * along
    total: NDArray[np.float64] = upper * (1 - down) + lower * down
    return total
