"""Weights of members that predict a number or a risk.

The same ideas as in :mod:`zoo.blending.pools`, with the loss that belongs to the task: squared
error for numbers, Cox's partial likelihood for risks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.blending.pools import PRIOR_IMAGES, RIDGE, on_simplex

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["cox_weights", "slope_weights", "squares_weights"]

_LEAST_NOISE = 1e-6
"""Share of the truth's variance below which errors are not believed."""


def squares_weights(
    values: NDArray[np.float64], truth: NDArray[np.float64], *, prior: float = PRIOR_IMAGES
) -> NDArray[np.float64]:
    """Find the weights of an average of numbers with the least squared error.

    Weights are at least 0 and sum to 1 (stacked regressions: Breiman 1996). What is minimised is
    strictly convex:

        Σ_i (y_i − Σ_m w_m x_{m,i})² / (2 s²) − (prior / M) Σ_m log w_m,

    with s² the mean squared error of the best member. The prior is that of
    :func:`~zoo.blending.pools.simplex_weights`.

    Parameters
    ----------
    values
        ``(member, image)``.
    truth
        ``(image,)``.
    prior
        Above 0.

    Returns
    -------
    weights
        ``(member,)``.

    Examples
    --------
    >>> truth = np.arange(20.0)
    >>> squares_weights(np.stack([truth + 1, 2 * truth]), truth).round(2).tolist()
    [0.99, 0.01]
    """
    noise = _noise(truth, values - truth)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        off = weights @ values - truth
        return float(off @ off) / (2 * noise), values @ off / noise

    return on_simplex(loss, len(values), prior)


def slope_weights(
    values: NDArray[np.float64], truth: NDArray[np.float64], *, ridge: float = RIDGE
) -> NDArray[np.float64]:
    """Find the slopes, none below 0, of a linear model of the truth on members' numbers.

    With numbers and truth less their means over images, what is minimised is

        Σ_i (y_i − Σ_m w_m x_{m,i})² / (2 s²) + (ridge / 2) Σ_m (w_m − 1 / M)²,

    with s² the least variance of a member's errors. So one member alone is rescaled and shifted.

    Parameters
    ----------
    values, truth
        As for :func:`squares_weights`.
    ridge
        Above 0.

    Returns
    -------
    weights
        ``(member,)``; their sum is above 1 where the members are too cautious, and below where
        they spread too far.

    Examples
    --------
    >>> truth = np.arange(200.0)
    >>> slope_weights(truth[None] / 2, truth).round(2).tolist()
    [1.95]
    """
    from scipy.optimize import nnls

    x, y = values - values.mean(axis=1, keepdims=True), truth - truth.mean()
    sd, pull = np.sqrt(_noise(y, x - y)), np.sqrt(ridge)
    design = np.concatenate([x.T / sd, pull * np.eye(len(x))])
    aim = np.concatenate([y / sd, np.full(len(x), pull / len(x))])
    return np.asarray(nnls(design, aim)[0])


def cox_weights(
    values: NDArray[np.float64], truth: NDArray[np.float64], *, prior: float = PRIOR_IMAGES
) -> NDArray[np.float64]:
    """Find the weights of an average of risks that make the order of events most likely.

    Cox's partial likelihood with Breslow's ties, of b · Σ_m w_m z_m as logarithm of the hazard
    (risks combined so: Golmakani & Polley 2020, *Int. J. Biostatistics* 16), where weights are at
    least 0 and sum to 1, and b above 0 is learned with them:

        − log PL(b w) + ½ b² − (prior / M) Σ_m log w_m.

    Parameters
    ----------
    values
        Risks of one scale, ``(member, image)``.
    truth
        Time and event, ``(image, 2)``.
    prior
        Above 0.

    Returns
    -------
    weights
        ``(member,)``.

    Examples
    --------
    >>> time = np.arange(40.0)
    >>> risks = np.stack([-(time - 19.5) / 11.5, np.cos(time)])
    >>> cox_weights(risks, np.stack([time, np.ones(40)], axis=1)).round(2).tolist()
    [0.97, 0.03]
    """
    order = np.argsort(-truth[:, 0], kind="stable")
    z, time, event = values[:, order], truth[order, 0], truth[order, 1] > 0
    # At risk at each time is everyone up to the last that shares it.
    last = np.searchsorted(-time, -time[event], side="right") - 1

    def loss(slopes: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        risk = slopes @ z
        top = risk.max()
        hazard = np.exp(risk - top)
        total, moved = hazard.cumsum()[last], (hazard * z).cumsum(axis=1)[:, last]
        value = float((np.log(total) + top - risk[event]).sum())
        return value, (moved / total - z[:, event]).sum(axis=1)

    return on_simplex(loss, len(values), prior, is_scaled=True)


def _noise(truth: NDArray[np.float64], errors: NDArray[np.float64]) -> float:
    """Give the mean squared error of the best member, ``errors (member, image)``."""
    least = _LEAST_NOISE * (float(truth.var()) or 1.0)
    return max(float((errors**2).mean(axis=1).min()), least)
