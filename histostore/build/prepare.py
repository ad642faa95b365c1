"""What is done to the patches of one image between choosing and encoding them.

Where patches are filtered by quality, their pixels are read twice: once to choose, once to
encode. So memory depends on the block, not on the slide, and it is known before the first
vector how many patches an image has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError
from histostore.images.patches import THUMBNAIL_PX, read_patches
from histostore.images.quality import COLUMNS, keep_passing, patch_quality
from histostore.images.stain import NO_STAIN, StainTarget, map_onto

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.images.patches import Selection
    from histostore.images.readers import Reader
    from histostore.images.stain import StainMap
    from histostore.images.tissue import TissueFilter
    from histostore.spec import FeatureSpec

__all__ = ["candidates", "check_stain", "sift", "stain_of"]

_BLOCK = 64


def candidates(spec: FeatureSpec) -> TissueFilter:
    """Give the tissue filter to choose patches by, before their quality is looked at.

    The ``top_k`` with most tissue are taken of those that pass, not the other way about.
    """
    return replace(spec.tissue, top_k=None) if spec.quality else spec.tissue


def sift(reader: Reader, selection: Selection, spec: FeatureSpec) -> Selection:
    """Drop the patches that are not good enough, if the specification asks for it.

    Parameters
    ----------
    reader
        The open image.
    selection
        Patches chosen by :func:`candidates`.
    spec
        What is wanted.

    Raises
    ------
    ImageError
        If the image is damaged.
    """
    if not spec.quality:
        return selection
    found: dict[str, NDArray[np.float32]] = {
        name: np.empty(len(selection.kept), np.float32) for name in COLUMNS
    }
    for start in range(0, len(selection.kept), _BLOCK):
        block = replace(selection, kept=selection.kept[start : start + _BLOCK])
        pixels = read_patches(reader, block, spec.grid.patch_size)
        for name, values in patch_quality(pixels).items():
            found[name][start : start + _BLOCK] = values
    return keep_passing(selection, found, spec.quality, spec.tissue.top_k)


def stain_of(reader: Reader, spec: FeatureSpec) -> tuple[StainMap | None, tuple[str, ...]]:
    """Find how the pixels of an image are to be changed.

    Parameters
    ----------
    reader
        The open image.
    spec
        What its colours are made to look like.

    Returns
    -------
    change, flags
        None where nothing is to be changed; flagged where that is for lack of stain.

    Raises
    ------
    ImageError
        If the image is damaged.
    """
    if not isinstance(spec.stain, StainTarget):
        return None, ()
    change = map_onto(spec.stain, reader.thumbnail(THUMBNAIL_PX))
    return change, () if change is not None else (NO_STAIN,)


def check_stain(spec: FeatureSpec) -> None:
    """Refuse to embed where the target of stain normalisation is not known.

    Raises
    ------
    OptionError
        With the name of the method.
    """
    if isinstance(spec.stain, str) and spec.stain != "none":
        raise OptionError(
            f"{spec.name} was normalised by {spec.stain!r} to a target that is not recorded: "
            "nothing can be added to it; build another feature set"
        )
