"""Weights of members, and the two ways to pool probabilities with them.

A linear pool is an average of probabilities, p_k = Σ_m w_m p_mk; a logarithmic pool one of
their logarithms, p_k ∝ Π_m p_mk^{w_m} (Genest & Zidek 1986, *Statistical Science* 1:114).
:func:`simplex_weights` and :func:`greedy_weights` learn for the first, :func:`stack_weights`
for the second; all three minimise the log loss, which no prediction but the truth's own
probabilities can lower in expectation (Gneiting & Raftery 2007).

Members differ little and images are few, so what is learned leans on the plain average, which
is hard to beat then (Clemen 1989, *Int. J. Forecasting* 5:559): weights start there, and are
drawn there by as much as some images would say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "bagged_greedy_weights",
    "greedy_weights",
    "linear_pool",
    "log_pool",
    "simplex_weights",
    "stack_weights",
]

PRIOR_IMAGES = 3.0
"""Images that the plain average counts as, in :func:`simplex_weights`."""

RIDGE = 10.0
"""Strength of the pull to the plain average, in :func:`stack_weights`."""

ROUNDS = 25
"""Members that are picked one by one, in :func:`greedy_weights`."""

BAGS = 20
"""Resamples of patients, in :func:`bagged_greedy_weights`."""

FLOOR = 1e-3
"""Least probability in a logarithmic pool. A member that says 0 would have a veto, and no cohort
of hundreds can tell odds beyond a thousand to one apart."""

_EPS = float(np.finfo(np.float64).eps)
_TIED = 1e-12
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
    from scipy.optimize import minimize

    logs = np.log(np.maximum(_likelihood(prob, y_true), _EPS))
    share = prior / len(prob)

    def loss(free: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # With w = softmax(free) there is nothing left to constrain.
        log_w = free - np.logaddexp.reduce(free)
        joint = logs + log_w
        total = np.logaddexp.reduce(joint, axis=1, keepdims=True)
        slope = np.exp(joint - total).sum(axis=0) + share
        value = -float(total.sum()) - share * float(log_w.sum())
        return value, (len(logs) + prior) * np.exp(log_w) - slope

    found = minimize(loss, np.zeros(len(prob)), jac=True, method="L-BFGS-B", options=_PRECISE)
    return np.asarray(np.exp(found.x - np.logaddexp.reduce(found.x)))


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


def greedy_weights(
    prob: NDArray[np.float64], y_true: NDArray[np.int64], *, rounds: int = ROUNDS
) -> NDArray[np.float64]:
    """Pick members one by one, with replacement, each time the one that lowers the log loss most.

    Ensemble selection (Caruana et al. 2004, *ICML*) with sorted initialisation: it starts
    from the best so many members, and ends where the loss was least on the way. Members that
    are tied are picked together, in equal parts, so their order plays no part.

    Parameters
    ----------
    prob, y_true
        As for :func:`simplex_weights`.
    rounds
        Members to pick after the first ones.

    Returns
    -------
    weights
        ``(member,)``, shares of the picks, sum 1.
    """
    return np.asarray(_greedy(_likelihood(prob, y_true), np.ones((1, len(y_true))), rounds)[0])


def bagged_greedy_weights(
    prob: NDArray[np.float64],
    y_true: NDArray[np.int64],
    patient_ids: NDArray[np.object_],
    *,
    rounds: int = ROUNDS,
    bags: int = BAGS,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Average :func:`greedy_weights` over resamples of patients.

    Caruana et al. 2004 (§2.3) draw members for each bag; they had thousands. A handful leaves
    nothing to draw from, so here patients are drawn, with replacement.

    Parameters
    ----------
    prob, y_true, rounds
        As for :func:`greedy_weights`.
    patient_ids
        ``(image,)``; drawn whole, and numbered by name, so the order of rows plays no part.
    bags
        Resamples; 0 for none.
    seed
        Decides the draws.
    """
    if bags == 0:
        return greedy_weights(prob, y_true, rounds=rounds)
    names, place = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=bags)
    counts = drawn[:, place].astype(np.float64)
    return np.asarray(_greedy(_likelihood(prob, y_true), counts, rounds).mean(axis=0))


def _greedy(
    likelihood: NDArray[np.float64], counts: NDArray[np.float64], rounds: int
) -> NDArray[np.float64]:
    """Select members for several resamples at once.

    Parameters
    ----------
    likelihood
        Each member's probability of the truth, ``(image, member)``.
    counts
        How often each image was drawn, ``(resample, image)``.
    rounds
        Members to pick after the first ones.

    Returns
    -------
    weights
        ``(resample, member)``.
    """
    picks = _first_picks(likelihood, counts)
    best, least = picks, _loss(picks @ likelihood.T / _sums(picks), counts)
    for _ in range(rounds):
        total = picks @ likelihood.T
        joined = (total[:, None] + likelihood.T) / (_sums(picks)[:, None] + 1)
        losses = _loss(joined, counts[:, None])
        tied = losses <= losses.min(axis=1, keepdims=True) + _TIED
        picks = picks + tied / _sums(tied)
        now = _loss(picks @ likelihood.T / _sums(picks), counts)
        better = now < least - _TIED
        best, least = np.where(better[:, None], picks, best), np.where(better, now, least)
    return best / _sums(best)


def _first_picks(
    likelihood: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Take the best so many members, one pick each, ``(resample, member)``."""
    losses = _loss(likelihood.T, counts[:, None])
    sets = losses[:, None, :] <= losses[:, :, None] + _TIED  # as good as each, or better
    means = _loss(sets @ likelihood.T / _sums(sets), counts[:, None])
    tied = means <= means.min(axis=1, keepdims=True) + _TIED
    largest = np.where(tied, sets.sum(axis=2), 0).argmax(axis=1)
    return np.asarray(sets[np.arange(len(sets)), largest].astype(np.float64))


def _loss(likelihood: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average the log loss over the last axis, each image as often as it was drawn."""
    logs = np.log(np.maximum(likelihood, _EPS))
    loss: NDArray[np.float64] = -(logs * counts).sum(axis=-1) / counts.sum(axis=-1)
    return loss


def _sums(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.sum(axis=-1, keepdims=True), dtype=np.float64)


def _likelihood(prob: NDArray[np.float64], y_true: NDArray[np.int64]) -> NDArray[np.float64]:
    """Give each member's probability of the truth, ``(image, member)``."""
    return np.asarray(prob[:, np.arange(len(y_true)), y_true].T)


def _logs(prob: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.log(np.maximum(prob, FLOOR)))


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return shares
