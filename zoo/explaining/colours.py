"""Colours for values, without a drawing library, and scales that say what a colour means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["Scale", "choose_scale"]

_VIRIDIS = (
    "440154 481769 472a7a 433d84 3d4e8a 355e8d 2e6d8e 297b8e 23898e "
    "1f978b 21a585 2eb37c 46c06f 65cb5e 89d548 b0dd2f d8e219 fde725"
)
"""Every 15th colour of viridis (Smith & van der Walt 2015, CC0), perceptually uniform, also to
readers who do not see red and green apart."""

_COOLWARM = (
    "3b4cc0 4c66d6 5f7fe8 7396f5 88abfd 9dbdff b1cbfc c4d5f3 d5dbe5 "
    "e4d9d2 f0cdbb f6bea4 f7aa8c f39475 e97a5f dc5d4a ca3b37 b40426"
)
"""The diverging map of Moreland (2009), every 15th colour: blue below 0, red above."""

_LEAST_SHOWN = 2.0
"""A scale of attention reaches twice uniform at least, so that even weights look even."""


def _anchors(text: str) -> NDArray[np.float64]:
    rows = [[int(word[k : k + 2], 16) for k in (0, 2, 4)] for word in text.split()]
    return np.array(rows, dtype=np.float64)


_MAPS = {False: _anchors(_VIRIDIS), True: _anchors(_COOLWARM)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """A linear scale from values to colours."""

    low: float
    high: float
    diverging: bool
    """Whether 0 lies in the middle and has a colour of its own."""

    def colours(self, values: NDArray[np.float64]) -> NDArray[np.uint8]:
        """Give the colour of each value, ``(…, 3)`` uint8; what lies beyond the ends gets theirs.

        Examples
        --------
        >>> Scale(low=0.0, high=1.0, diverging=False).colours(np.array([0.0, 1.0])).tolist()
        [[68, 1, 84], [253, 231, 37]]
        """
        anchors = _MAPS[self.diverging]
        share = (np.asarray(values) - self.low) / (self.high - self.low)
        place = np.clip(share, 0.0, 1.0) * (len(anchors) - 1)
        known = np.arange(len(anchors))
        channels = [np.interp(place, known, anchors[:, k]) for k in range(3)]
        return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)

    def ticks(self) -> list[float]:
        """Choose four to nine round numbers on the scale.

        Examples
        --------
        >>> Scale(low=0.0, high=7.0, diverging=False).ticks()
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
        """
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 4))
        step = max(s * power for s in (1, 2, 2.5, 5) if s * power <= span / 4)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(k * step, 10) + 0.0 for k in range(first, last + 1)]


def choose_scale(values: NDArray[np.float64], *, diverging: bool) -> Scale:
    """Make the scale of some values: from 0 to the largest, or as far to both sides of 0.

    Examples
    --------
    >>> choose_scale(np.array([0.5, 4.0]), diverging=False)
    Scale(low=0.0, high=4.0, diverging=False)
    >>> choose_scale(np.array([0.5, -4.0]), diverging=True)
    Scale(low=-4.0, high=4.0, diverging=True)
    """
    most = float(np.abs(values).max(initial=0.0))
    if diverging:
        most = most or 1.0
        return Scale(low=-most, high=most, diverging=True)
    return Scale(low=0.0, high=max(most, _LEAST_SHOWN), diverging=False)
