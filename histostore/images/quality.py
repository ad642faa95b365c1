"""How sharp, how bright and how full of tissue patches are.

``sharpness``
    Variance of the Laplacian (Pech-Pacheco et al., ICPR 2000) of the grey patch: OpenCV's
    3×3 Laplacian ``[0 1 0; 1 −4 1; 0 1 0]`` of 8-bit grey, borders reflected about the last
    row and column. It grows with the square of contrast and falls with magnification: a
    threshold holds for one scale. 75 is in use for whole images at 20× or more.
``brightness``
    Mean grey, 0 to 255.
``dark-share``
    Share of pixels whose grey is below 220. Unlike the share of the tissue mask it counts
    pixels of the patch itself, at its own scale, ink and dust among them.

All are taken of the pixels as they were read, before any stain normalisation. The numbers
decide which patches are kept, and so belong to what a feature set's digest stands for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import FormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.images.patches import Selection

__all__ = ["COLUMNS", "DARK_SHARE", "LOW_QUALITY", "SHARPNESS", "QualityFilter", "keep_passing", "patch_quality"]  # fmt: skip

COLUMNS = ("sharpness", "brightness", "dark-share")
"""What is measured of every patch."""

SHARPNESS, DARK_SHARE = 75.0, 0.4
"""Thresholds in use for whole images: variance of the Laplacian, share of tissue."""

LOW_QUALITY = "low-quality"
"""Flag: no patch passes; the sharpest was kept all the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QualityFilter:
    """How good a patch must be to be kept.

    Examples
    --------
    >>> QualityFilter(min_sharpness=75).to_json()
    {'min_sharpness': 75.0}
    >>> bool(QualityFilter())
    False
    """

    min_sharpness: float | None = None
    """Least variance of the Laplacian; None lets everything pass."""

    min_dark_share: float | None = None
    """Least share of pixels darker than 220, 0 to 1; None lets everything pass."""

    def __post_init__(self) -> None:
        for name, most in (("min_sharpness", math.inf), ("min_dark_share", 1.0)):
            value: object = getattr(self, name)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Real):
                raise OptionError(f"{name}={value!r}: give a number")
            if not 0 <= float(value) <= most or math.isinf(value):
                raise OptionError(f"{name}={value!r}: give 0 or more, and a share up to 1")
            object.__setattr__(self, name, float(value))

    def __bool__(self) -> bool:
        """Tell whether anything is filtered."""
        return bool(self.to_json())

    def to_json(self) -> dict[str, float]:
        """Give what is set as JSON values; equal filters give equal values."""
        values = {"min_sharpness": self.min_sharpness, "min_dark_share": self.min_dark_share}
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> QualityFilter:
        """Invert :meth:`to_json`.

        Raises
        ------
        FormatError
            If a key is unknown.
        OptionError
            If a value makes no sense.
        """
        unknown = sorted(set(document) - {"min_sharpness", "min_dark_share"})
        if unknown:
            raise FormatError(f"quality filter: {unknown[0]!r} is unknown")
        return cls(**document)

    def passes(self, quality: Mapping[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
        """Tell which patches pass: ``(patch,)`` bool, of what :func:`patch_quality` gives."""
        # Compared as float32 on both sides: a share of just 0.4 is enough for 0.4.
        sharp = quality["sharpness"] >= np.float32(self.min_sharpness or 0)
        full: NDArray[np.bool_] = quality["dark-share"] >= np.float32(self.min_dark_share or 0)
        return sharp & full


def patch_quality(patches: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Measure patches.

    Parameters
    ----------
    patches
        ``(patch, y, x, 3)``, uint8 RGB, of any size.

    Returns
    -------
    quality
        One ``(patch,)`` float32 for each of :data:`COLUMNS`.

    Examples
    --------
    >>> patches = np.full((1, 4, 4, 3), 100, np.uint8)
    >>> {name: values.tolist() for name, values in patch_quality(patches).items()}
    {'sharpness': [0.0], 'brightness': [100.0], 'dark-share': [1.0]}
    """
    from histostore.colour import grey_sums

    sums = np.array([grey_sums(patch) for patch in patches], np.int64).reshape(-1, 4)
    n = patches.shape[1] * patches.shape[2]
    laplacian, squares, grey, dark = (sums / n).T
    values = (squares - laplacian**2, grey, dark)
    return {name: value.astype(np.float32) for name, value in zip(COLUMNS, values, strict=True)}


def keep_passing(
    selection: Selection,
    quality: Mapping[str, NDArray[np.float32]],
    wanted: QualityFilter,
    top_k: int | None,
) -> Selection:
    """Drop the patches that do not pass, and then all but the ``top_k`` with most tissue.

    Parameters
    ----------
    selection
        The patches with enough tissue.
    quality
        Of ``selection.kept``, as :func:`patch_quality` gives it.
    wanted
        What is good enough.
    top_k
        Keep so many patches at most; None keeps all that pass.

    Returns
    -------
    selection
        At least one patch: where none passes the sharpest, flagged :data:`LOW_QUALITY`.
    """
    passing = np.flatnonzero(wanted.passes(quality))
    if len(passing) == 0:
        sharpest = int(np.argmax(quality["sharpness"]))
        flags = (*selection.flags, LOW_QUALITY)
        return replace(selection, kept=selection.kept[[sharpest]], flags=flags)
    kept = selection.kept[passing]
    if top_k is not None:
        most = np.argsort(-selection.tissue[kept], kind="stable")[:top_k]
        kept = np.sort(kept[most])
    return replace(selection, kept=kept)
