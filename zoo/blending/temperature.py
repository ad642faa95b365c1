"""Temperature scaling: one number that says how much to believe of what is said."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cooled", "find_temperature"]

_EPS = float(np.finfo(np.float64).eps)
_WIDEST = 3.0
"""Temperatures are sought from exp(−3) to exp(3)."""


def cooled(prob: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Raise probabilities to 1 / temperature and scale rows to sum 1.

    Parameters
    ----------
    prob
        ``(image, class)``.
    temperature
        Above 0; more than 1 makes predictions less sure, and none changes the most likely class.

    Examples
    --------
    >>> cooled(np.array([[0.9, 0.1]]), 2.0).round(3).tolist()
    [[0.75, 0.25]]
    """
    if temperature == 1.0:
        return prob
    logs = np.log(np.maximum(prob, _EPS)) / temperature
    powers = np.exp(logs - logs.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def find_temperature(
    prob: NDArray[np.float64], y_true: NDArray[np.int64], *, n_cells: int = 1
) -> float:
    """Find the temperature with the least log loss (Guo et al. 2017, *ICML*, §4.2).

    Where every image is told right, the least log loss lies at temperature 0, and the first
    error elsewhere would cost without bound. So ½ (log T)² is added to the sum of losses: a
    standard normal prior of log T, which a few dozen images outweigh.

    Parameters
    ----------
    prob
        ``(image, class)``.
    y_true
        ``(image,)``.
    n_cells
        Rows that count as one image against the prior.

    Examples
    --------
    >>> right, wrong = [0] * 15, [1] * 5  # sure as 19 of 20, right in 15
    >>> round(find_temperature(np.array([[0.95, 0.05]] * 20), np.array(right + wrong)), 1)
    2.3
    """
    from scipy.optimize import minimize_scalar

    logs = np.log(np.maximum(prob, _EPS))
    rows = np.arange(len(y_true))

    def loss(log_t: float) -> float:
        scaled = logs * np.exp(-log_t)
        told = np.logaddexp.reduce(scaled, axis=1) - scaled[rows, y_true]
        return float(told.sum() + 0.5 * n_cells * log_t**2)

    found = minimize_scalar(
        loss, bounds=(-_WIDEST, _WIDEST), method="bounded", options={"xatol": 1e-8}
    )
    return float(np.exp(found.x))
