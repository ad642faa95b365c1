"""Where patches lie on an image: a regular grid of squares, planned without a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ImageError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["MAX_EDGE_PX", "MAX_ENLARGEMENT", "MAX_POSITIONS", "MIN_MPP", "PatchGrid", "Placement"]

MAX_EDGE_PX = 8192
"""Longest edge of a patch in level-0 pixels (200 MB of RGB): beyond it an mpp is wrong."""

MAX_ENLARGEMENT = 8
"""Most pixels of a patch per pixel of level 0, along an edge: beyond it there is nothing to see,
and nearly every pixel would be a patch of its own."""

MIN_MPP = 0.01
"""Least scale of a grid in micrometres per pixel; light resolves 0.2 µm at best."""

MAX_POSITIONS = 50_000_000
"""Most patches on one image: beyond it the stride is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Placement:
    """Where the patches of one image lie: squares of one size, row by row."""

    x: NDArray[np.int32]
    """``(patch,)``, left edges in level-0 pixels, all inside the image."""

    y: NDArray[np.int32]
    """``(patch,)``, top edges in level-0 pixels, all inside the image."""

    edge_px: int
    """Edge of every patch in level-0 pixels; the last of a row may hang over the border."""

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True, slots=True)
class PatchGrid:
    """A regular grid of square patches, of a size in pixels and, where given, a scale.

    Examples
    --------
    >>> len(PatchGrid(104).place(417, 312))
    12
    >>> PatchGrid(256, mpp=0.5).place(2220, 2967, mpp=0.25).edge_px
    512
    """

    patch_size: int = 256
    """Edge of a patch as an encoder sees it, in pixels."""

    stride: int | None = None
    """Distance of neighbours at the same scale, in pixels; ``patch_size`` where left out, and
    never None once constructed, so that equal grids are equal documents."""

    mpp: float | None = None
    """Scale in micrometres per pixel that patches are brought to; None takes level 0 as it is."""

    min_annotated: float | None = None
    """Least share of a patch that lies in the annotations of an image that has some; where None,
    its centre does."""

    def __post_init__(self) -> None:
        stride = self.patch_size if self.stride is None else self.stride
        object.__setattr__(self, "patch_size", _positive_integer("patch_size", self.patch_size))
        object.__setattr__(self, "stride", _positive_integer("stride", stride))
        if self.patch_size > MAX_EDGE_PX:
            raise OptionError(f"patch_size={self.patch_size}: give at most {MAX_EDGE_PX}")
        if self.mpp is not None:
            object.__setattr__(self, "mpp", _positive_number("mpp", self.mpp))
            if self.mpp < MIN_MPP:
                raise OptionError(
                    f"mpp={self.mpp:g}: give at least {MIN_MPP} µm per pixel; 0.25 to 2 is usual"
                )

        share = self.min_annotated
        if share is not None and not 0 < share <= 1:
            raise OptionError(f"min_annotated={share!r}: give a share above 0, at most 1")

    def place(self, width_px: int, height_px: int, mpp: float | None = None) -> Placement:
        """Place the patches on an image.

        Patches are numbered row by row from the top-left corner. One that hangs over the
        right or lower border is kept if at least half of it, along each axis, lies inside.
        The first is always kept, so an image smaller than a patch has one.

        Parameters
        ----------
        width_px, height_px
            Size of level 0, in pixels.
        mpp
            Micrometres per pixel of level 0, where known; needed if the grid has a scale.

        Returns
        -------
        placement
            Positions in level-0 pixels. If the grid has a scale, edge and stride are its
            own times ``grid.mpp / mpp``, each rounded to whole pixels.

        Raises
        ------
        ImageError
            If the grid has a scale and the image has none, or one that makes no sense, or is
            too coarse for it; or if there would be too many patches.

        Examples
        --------
        >>> placement = PatchGrid(104).place(417, 312)
        >>> placement.x[:5].tolist(), placement.y[:5].tolist()
        ([0, 104, 208, 312, 0], [0, 0, 0, 0, 104])
        """
        if width_px < 1 or height_px < 1:
            raise ImageError(f"the image has no pixels ({width_px}×{height_px})")
        edge_px, stride_px = self._edge_and_stride(mpp)
        columns = _origins(width_px, edge_px, stride_px)
        rows = _origins(height_px, edge_px, stride_px)
        if columns * rows > MAX_POSITIONS:
            raise ImageError(
                f"{columns * rows:,} patches of {edge_px} px every {stride_px} px on"
                f" {width_px}×{height_px} px; give a larger stride"
            )
        x = np.arange(columns, dtype=np.int64) * stride_px
        y = np.arange(rows, dtype=np.int64) * stride_px
        return Placement(
            x=np.tile(x, rows).astype(np.int32),
            y=np.repeat(y, columns).astype(np.int32),
            edge_px=edge_px,
        )

    def _edge_and_stride(self, mpp: float | None) -> tuple[int, int]:
        """Give edge and stride in level-0 pixels of an image with this ``mpp``."""
        stride = self.patch_size if self.stride is None else self.stride
        if self.mpp is None:
            return self.patch_size, stride
        if mpp is None:
            raise ImageError(
                f"the grid asks for {self.mpp:g} µm per pixel and the image does not say its own;"
                " give it in the cohort's mpp column"
            )
        if not (math.isfinite(mpp) and mpp > 0):
            raise ImageError(
                f"the image's {mpp=} makes no sense; give it in the cohort's mpp column"
            )
        scale = self.mpp / mpp
        if self.patch_size * scale > MAX_EDGE_PX:
            raise ImageError(
                f"a patch of {self.patch_size} px at {self.mpp:g} µm per pixel would take more than"
                f" {MAX_EDGE_PX} px of an image at {mpp:g} µm per pixel; check the cohort's mpp column"
            )
        edge_px = max(1, round(self.patch_size * scale))
        if edge_px * MAX_ENLARGEMENT < self.patch_size:
            raise ImageError(
                f"a patch of {self.patch_size} px at {self.mpp:g} µm per pixel would be {edge_px} px"
                f" of an image at {mpp:g} µm per pixel; ask for a coarser mpp, or check the cohort's"
                " mpp column"
            )
        return edge_px, max(1, round(stride * scale))

    def edge_px(self, mpp: float | None = None) -> int:
        """Give the edge of a patch in level-0 pixels of an image with this ``mpp``.

        Raises
        ------
        ImageError
            As :meth:`place` does.

        Examples
        --------
        >>> PatchGrid(256, mpp=1.0).edge_px(0.25)
        1024
        """
        return self._edge_and_stride(mpp)[0]

    def to_json(self) -> dict[str, Any]:
        """Give the grid as JSON values, the least annotated share only where there is one.

        Examples
        --------
        >>> PatchGrid(224).to_json()
        {'patch_size': 224, 'stride': 224, 'mpp': None}
        """
        document: dict[str, Any] = {
            "patch_size": self.patch_size,
            "stride": self.stride,
            "mpp": self.mpp,
        }
        if self.min_annotated is not None:
            document["min_annotated"] = float(self.min_annotated)
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> PatchGrid:
        """Invert :meth:`to_json`.

        Raises
        ------
        OptionError
            If a value makes no sense.
        """
        return cls(
            patch_size=document["patch_size"],
            stride=document["stride"],
            mpp=document["mpp"],
            min_annotated=document.get("min_annotated"),
        )


def _origins(length_px: int, edge_px: int, stride_px: int) -> int:
    """Count the positions along one axis: ``stride * i`` with half an edge or more inside."""
    last = length_px - (edge_px + 1) // 2
    return max(0, last // stride_px) + 1


def _positive_integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not 0 < int(value) < 2**31:
        raise OptionError(f"{name}={value!r}: give a whole number of pixels, 1 or more")
    return int(value)


def _positive_number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise OptionError(f"{name}={value!r}: give a number of µm per pixel above 0")
    return float(value)
