"""Weights of members, and the two ways to pool probabilities with them.

A linear pool is an average of probabilities, p_k = Σ_m w_m p_mk; a logarithmic pool one of
their logarithms, p_k ∝ Π_m p_mk^{w_m} (Genest & Zidek 1986, *Statistical Science* 1:114).
:func:`simplex_weights` learns for the first, :func:`stack_weights` for the second; both minimise
the log loss, which no prediction but the truth's own probabilities can lower in expectation
(Gneiting & Raftery 2007).

Members differ little and images are few, so what is learned leans on the plain average, which
is hard to beat then (Clemen 1989, *Int. J. Forecasting* 5:559): weights start there, and are
drawn there by as much as some images would say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["linear_pool", "log_pool", "on_simplex", "simplex_weights", "stack_weights"]

PRIOR_IMAGES = 3.0
"""Images that the plain average counts as, in :func:`simplex_weights`."""

RIDGE = 10.0
"""Strength of the pull to the plain average, in :func:`stack_weights`."""

FLOOR = 1e-3
"""Least probability in a logarithmic pool. A member that says 0 would have a veto, and no cohort
of hundreds can tell odds beyond a thousand to one apart."""

_EPS = float(np.finfo(np.float64).eps)
_SCALES = (-7.0, 3.0)
"""Bounds of the logarithm of a learned scale."""
_PRECISE = {"ftol": 1e-14, "gtol": 1e-8, "maxiter": 500}


def linear_pool(weights: NDArray[np.float64], prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average probabilities.

    Parameters
    ----------
    weights
        ``(member,)``, sum 1.
    prob
        ``(member, image, class)``.

    Returns
    -------
    prob
        ``(image, class)``.

    Examples
    --------
    >>> linear_pool(np.array([0.5, 0.5]), np.array([[[1.0, 0.0]], [[0.5, 0.5]]])).tolist()
    [[0.75, 0.25]]
    """
    return np.asarray(np.tensordot(weights, prob, axes=1))


def log_pool(weights: NDArray[np.float64], prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average logarithms of probabilities, none of them below :data:`FLOOR`.

    Parameters and return value are those of :func:`linear_pool`; weights need not sum to 1.

    Examples
    --------
    >>> log_pool(np.array([2.0]), np.array([[[0.25, 0.75]]])).round(3).tolist()
    [[0.1, 0.9]]
    """
    return _softmax(np.tensordot(weights, _logs(prob), axes=1))


def simplex_weights(
    prob: NDArray[np.float64], y_true: NDArray[np.int64], *, prior: float = PRIOR_IMAGES
) -> NDArray[np.float64]:
    """Find the weights of the linear pool with the least log loss.

    Weights are at least 0 and sum to 1, as in stacking (Wolpert 1992; Breiman 1996, who found
    that constraint to be what makes it work). What is minimised,

        − Σ_i log Σ_m w_m p_{m,i,y_i} − (prior / M) Σ_m log w_m,

    is strictly convex: a Dirichlet prior that counts as ``prior`` images which all members
    explain alike. So equal members get equal weights, and without images all do.

    Parameters
    ----------
    prob
        ``(member, image, class)``.
    y_true
        ``(image,)``.
    prior
        Above 0.

    Returns
    -------
    weights
        ``(member,)``.

    Examples
    --------
    >>> prob = np.array([[[0.9, 0.1]] * 20, [[0.5, 0.5]] * 20])
    >>> simplex_weights(prob, np.zeros(20, np.int64)).round(2).tolist()
    [0.87, 0.13]
    """
    likelihood = np.maximum(_likelihood(prob, y_true), _EPS)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        pooled = likelihood @ weights
        return -float(np.log(pooled).sum()), -(likelihood / pooled[:, None]).sum(axis=0)

    return on_simplex(loss, len(prob), prior)


def on_simplex(
    loss: Callable[[NDArray[np.float64]], tuple[float, NDArray[np.float64]]],
    n_members: int,
    prior: float = PRIOR_IMAGES,
    *,
    is_scaled: bool = False,
) -> NDArray[np.float64]:
    """Minimise loss(w) − (prior / M) Σ_m log w_m over weights of at least 0 that sum to 1.

    Parameters
    ----------
    loss
        Gives its value and its slope ``(member,)`` where it is asked.
    n_members
        M.
    prior
        Above 0.
    is_scaled
        Ask for the loss of b·w instead, where the scale b above 0 is learned as well, with ½ b²
        added: for a loss that knows a scale of its own.

    Returns
    -------
    weights
        ``(member,)``.
    """
    from scipy.optimize import minimize

    share = prior / n_members

    def total(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # With w = softmax(free) there is nothing left to constrain.
        log_w = free[:n_members] - np.logaddexp.reduce(free[:n_members])
        weights, scale = np.exp(log_w), float(np.exp(free[n_members:].sum()))
        value, slope = loss(scale * weights)
        along = float(weights @ slope)
        down = scale * weights * (slope - along) - share * (1 - n_members * weights)
        value -= share * float(log_w.sum())
        if not is_scaled:
            return value, down
        return value + 0.5 * scale**2, np.append(down, scale * along + scale**2)

    start = np.zeros(n_members + is_scaled)
    bounds = [(None, None)] * n_members + [_SCALES] * is_scaled
    found = minimize(total, start, jac=True, method="L-BFGS-B", bounds=bounds, options=_PRECISE)
    free = found.x[:n_members]
    return np.asarray(np.exp(free - np.logaddexp.reduce(free)))


def stack_weights(
    prob: NDArray[np.float64],
    y_true: NDArray[np.int64],
    *,
    ridge: float = RIDGE,
    centre: float | None = None,
) -> NDArray[np.float64]:
    """Find the exponents of the logarithmic pool with the least log loss.

    A multinomial logistic model on the members' log-probabilities, with one coefficient per
    member, which all classes share, none below 0 (Ting & Witten 1999), and no intercept. So
    one member alone is rescaled, never overruled. What is minimised is convex:

        − Σ_i log softmax_k(Σ_m w_m log p_{m,i,k})[y_i] + (ridge / 2) Σ_m (w_m − centre)².

    Parameters
    ----------
    prob, y_true
        As for :func:`simplex_weights`.
    ridge
        At least 0.
    centre
        Where weights are drawn to; 1 / M, the geometric mean, where left out.

    Returns
    -------
    weights
        ``(member,)``; their sum is above 1 where the members err independently or are too
        cautious, and below where they are too sure.

    Examples
    --------
    >>> prob = np.array([[[0.9, 0.1]] * 20, [[0.5, 0.5]] * 20])
    >>> stack_weights(prob, np.zeros(20, np.int64)).round(2).tolist()
    [0.97, 0.5]
    """
    from scipy.optimize import minimize

    logs = _logs(prob)
    aim = np.full(len(prob), 1.0 / len(prob) if centre is None else centre)
    rows = np.arange(len(y_true))
    # Σ_i log p of the truth is linear in the weights: only the normalisation is not.
    truth = logs[:, rows, y_true].sum(axis=1)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        scores = np.tensordot(weights, logs, axes=1)
        norm = np.logaddexp.reduce(scores, axis=1)
        off = weights - aim
        slope = (np.exp(scores - norm[:, None]) * logs).sum(axis=(1, 2)) - truth + ridge * off
        return float(norm.sum() - truth @ weights + 0.5 * ridge * off @ off), slope

    bounds = [(0.0, None)] * len(prob)
    found = minimize(loss, aim, jac=True, method="L-BFGS-B", bounds=bounds, options=_PRECISE)
    weights: NDArray[np.float64] = found.x
    return weights


def _likelihood(prob: NDArray[np.float64], y_true: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give each member's probability of the truth, ``(image, member)``."""
    return np.asarray(prob[:, np.arange(len(y_true)), y_true].T)


def _logs(prob: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(prob, FLOOR)))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
