"""Metrics of predicted numbers.

R² is 1 − Σ(y − ŷ)² / Σ(y − mean y)², with the mean of the resample. R² and the correlations are
NaN where the truth, and the correlations also where the prediction, is the same throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from histostore.errors import OptionError
from zoo.metrics.classes import ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["NUMBER_METRICS", "NumberScorer"]

NUMBER_METRICS = ("mae", "rmse", "r2", "pearson", "spearman")
"""Names of the metrics, in the order of reports."""

_ROUNDING = 1e-20
"""Share of a sample's variance below which that of a resample is rounding."""


class NumberScorer:
    """All metrics of one set of predictions, for any number of resamples.

    Parameters
    ----------
    truth, values
        ``(image, 1)``.

    Raises
    ------
    OptionError
        If shapes do not fit, or a number is not finite.

    Examples
    --------
    >>> scorer = NumberScorer([[1.0], [2.0], [3.0]], [[1.0], [2.0], [4.0]])
    >>> {name: round(float(v[0]), 3) for name, v in scorer(np.ones((1, 3))).items()}
    {'mae': 0.333, 'rmse': 0.577, 'r2': 0.5, 'pearson': 0.982, 'spearman': 1.0}
    """

    __slots__ = ("_orders", "_pair", "n_images")

    names: ClassVar[tuple[str, ...]] = NUMBER_METRICS

    def __init__(self, truth: ArrayLike, values: ArrayLike) -> None:
        real, told = np.asarray(truth, np.float64), np.asarray(values, np.float64)
        if real.ndim != 2 or real.shape[1:] != (1,) or real.shape != told.shape or not len(real):
            msg = f"need truth and values (image, 1), seen {real.shape}, {told.shape}"
            raise OptionError(msg)
        if not (np.isfinite(real).all() and np.isfinite(told).all()):
            raise OptionError("truth and predicted numbers must be finite")
        self.n_images = len(real)
        self._pair = (real[:, 0], told[:, 0])
        self._orders = tuple(_Order(column) for column in self._pair)

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Map weights ``(resample, image)`` to metric name and ``(resample,)`` values."""
        total = weights.sum(axis=1)
        truth, told = self._pair
        off = told - truth
        squares = weights @ off**2
        spread = (weights * _centred(weights, truth) ** 2).sum(axis=1)
        ranks = [order.ranks(weights) for order in self._orders]
        return {
            "mae": weights @ np.abs(off) / total,
            "rmse": np.sqrt(squares / total),
            "r2": 1.0 - ratio(squares, _real(spread, truth), np.nan),
            "pearson": _correlation(weights, truth, told),
            "spearman": _correlation(weights, *ranks),
        }


class _Order:
    """Ranks of a column in any resample, the middle one where values are tied."""

    __slots__ = ("_group", "_order", "_starts")

    def __init__(self, column: NDArray[np.float64]) -> None:
        self._order = np.argsort(column, kind="stable")
        _, self._starts, group = np.unique(
            column[self._order], return_index=True, return_inverse=True
        )
        self._group = np.empty(len(column), np.int64)
        self._group[self._order] = group

    def ranks(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the rank of each image, ``(resample, image)``."""
        drawn = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        middle = drawn.cumsum(axis=1) - drawn / 2
        return middle[:, self._group]


def _centred(weights: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Subtract the mean of each resample, ``(resample, image)``."""
    mean = (weights * column).sum(axis=1) / weights.sum(axis=1)
    centred: NDArray[np.float64] = column - mean[:, None]
    return centred


def _real(spread: NDArray[np.float64], column: NDArray[np.float64]) -> NDArray[np.float64]:
    """Put 0 where a sum of squares is nothing but rounding."""
    return np.where(spread > _ROUNDING * np.square(column).sum(axis=-1), spread, 0.0)


def _correlation(
    weights: NDArray[np.float64], first: NDArray[np.float64], second: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Correlate two columns, ``(image,)`` or ``(resample, image)``, in each resample."""
    a, b = _centred(weights, first), _centred(weights, second)
    spread_a = _real((weights * a * a).sum(axis=1), first)
    spread_b = _real((weights * b * b).sum(axis=1), second)
    return ratio((weights * a * b).sum(axis=1), np.sqrt(spread_a * spread_b), np.nan)
