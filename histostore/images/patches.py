"""Choosing and reading the patches of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.images.levels import read_square
from histostore.images.tissue import tissue_mask, tissue_shares

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.grid import PatchGrid, Placement
    from histostore.images.annotations import Places
    from histostore.images.readers import Reader
    from histostore.images.tissue import TissueFilter

__all__ = [
    "NO_TISSUE",
    "SMALL_IMAGE",
    "THUMBNAIL_PX",
    "Selection",
    "read_patches",
    "select_patches",
]

THUMBNAIL_PX = 2048
"""Longest side of the thumbnail that tissue is looked for on."""

NO_TISSUE = "no-tissue"
"""Flag: no patch has enough tissue; the best one was kept all the same."""

SMALL_IMAGE = "small-image"
"""Flag: the image is narrower or lower than a patch, which was filled up by reflection."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Selection:
    """Which patches of an image are kept."""

    placement: Placement
    """Where all patches lie, kept or not."""

    kept: NDArray[np.int64]
    """``(kept,)``, numbers of the kept ones in the placement, ascending, at least one."""

    tissue: NDArray[np.float32]
    """``(patch,)``, share of tissue of all patches, 0 to 1."""

    flags: tuple[str, ...] = ()
    """:data:`NO_TISSUE`, :data:`SMALL_IMAGE`, and the flag of given places, where they apply."""


def select_patches(
    reader: Reader, grid: PatchGrid, tissue: TissueFilter, places: Places | None = None
) -> Selection:
    """Choose the patches of an image.

    Kept are those with a share of tissue of at least ``tissue.min_tissue``; of these, if
    asked for, the ``tissue.top_k`` with the most, the first of equal ones. If none has
    enough, the one with the most is kept, or the most central one of an image without any.

    Parameters
    ----------
    reader
        The open image.
    grid
        Where patches may lie.
    tissue
        Which are kept.
    places
        What says where patches lie, instead of the grid or within it.

    Returns
    -------
    selection
        At least one patch, in the order of the grid, or of ``places``.

    Raises
    ------
    ImageError
        If the image is damaged, or lacks the scale that the grid needs.

    Examples
    --------
    >>> from histostore.grid import PatchGrid
    >>> from histostore.images.memory import MemoryReader
    >>> from histostore.images.tissue import TissueFilter
    >>> picture = np.full((8, 16, 3), 255, np.uint8)
    >>> picture[:, :4] = (200, 100, 150)
    >>> selection = select_patches(MemoryReader(picture), PatchGrid(8), TissueFilter())
    >>> selection.kept.tolist(), selection.tissue.tolist()
    ([0], [0.5, 0.0])
    """
    size = (reader.width_px, reader.height_px)
    if places is None:
        placement = grid.place(*size, reader.mpp)
    else:
        placement = places.place(grid, *size, reader.mpp)
    if tissue.method == "none":
        # Every pixel counts as tissue: nothing to look for.
        shares = np.ones(len(placement), np.float32)
    else:
        mask = tissue_mask(reader.thumbnail(THUMBNAIL_PX), tissue.method)
        shares = tissue_shares(mask, placement, *size)
    flags = [] if places is None else [places.flag]
    if min(size) < placement.edge_px:
        flags.append(SMALL_IMAGE)
    if places is not None and places.keeps_all:
        kept = np.arange(len(placement))
        return Selection(placement=placement, kept=kept, tissue=shares, flags=tuple(flags))
    # Compared as float32 on both sides: a share of just 0.1 is enough for 0.1.
    kept = np.flatnonzero(shares >= np.float32(tissue.min_tissue))
    if len(kept) == 0:
        flags.append(NO_TISSUE)
        kept = _best(shares, placement, *size)
    elif tissue.top_k is not None:
        most = np.argsort(-shares[kept], kind="stable")[: tissue.top_k]
        kept = np.sort(kept[most])
    return Selection(placement=placement, kept=kept, tissue=shares, flags=tuple(flags))


def _best(
    shares: NDArray[np.float32], placement: Placement, width_px: int, height_px: int
) -> NDArray[np.int64]:
    """Choose one patch: with the most tissue, or without any the most central, the first of equals."""
    best = int(np.argmax(shares))
    if shares[best] == 0:
        # Twice the distance between the centres, in whole pixels.
        from_x = 2 * placement.x.astype(np.int64) + placement.edge_px - width_px
        from_y = 2 * placement.y.astype(np.int64) + placement.edge_px - height_px
        best = int(np.argmin(from_x**2 + from_y**2))
    return np.array([best], np.int64)


def read_patches(reader: Reader, selection: Selection, patch_size: int) -> NDArray[np.uint8]:
    """Read the kept patches.

    One that hangs over the border is filled up, and where the grid asked for another scale
    each is brought to it, as :func:`~histostore.images.levels.read_square` says.

    Parameters
    ----------
    reader
        The open image.
    selection
        Which patches; for a part of them, replace ``kept`` by a part of it.
    patch_size
        Edge of the result, in pixels.

    Returns
    -------
    patches
        ``(kept, patch_size, patch_size, 3)``, uint8.

    Raises
    ------
    ImageError
        If the image is damaged.
    """
    placement = selection.placement
    patches = np.empty((len(selection.kept), patch_size, patch_size, 3), np.uint8)
    for number, patch in zip(selection.kept, patches, strict=True):
        x, y = int(placement.x[number]), int(placement.y[number])
        patch[:] = read_square(reader, x, y, placement.edge_px, patch_size)
    return patches
