"""Ensemble selection (Caruana et al. 2004): members picked one by one, by the loss of a task.

==========================  =======================================================
task                        loss of an average of members
==========================  =======================================================
classes, levels, labels     log loss
regression                  squared error
survival                    1 − C-index of an average of standardised risks
==========================  =======================================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Loss = Callable[[NDArray[np.float64]], NDArray[np.float64]]
    """From averages ``(resample, average, image)`` to losses ``(resample, average)``."""

__all__ = ["bagged_greedy_weights", "greedy_weights"]

ROUNDS = 25
"""Members that are picked one by one, in :func:`greedy_weights`."""

BAGS = 20
"""Resamples of patients, in :func:`bagged_greedy_weights`."""

MOST_PAIRS = 10_000
"""Pairs of images by which risks are judged; of more, every so-manieth."""

_EPS = float(np.finfo(np.float64).eps)
_TIED = 1e-12


def greedy_weights(
    prob: NDArray[np.float64],
    y_true: NDArray[Any],
    *,
    rounds: int = ROUNDS,
    kind: str = "classification",
) -> NDArray[np.float64]:
    """Pick members one by one, with replacement, each time the one that lowers the loss most.

    Ensemble selection (Caruana et al. 2004, *ICML*) with sorted initialisation: it starts
    from the best so many members, and ends where the loss was least on the way. Members that
    are tied are picked together, in equal parts, so their order plays no part.

    Parameters
    ----------
    prob
        ``(member, image, class)``; numbers, and risks on one scale, ``(member, image, 1)``.
    y_true
        ``(image,)`` int64; of numbers ``(image, 1)``, of risks time and event ``(image, 2)``.
    rounds
        Members to pick after the first ones.
    kind
        Of task, which decides the loss.

    Returns
    -------
    weights
        ``(member,)``, shares of the picks, sum 1.

    Examples
    --------
    >>> told = np.array([[[1.0], [2.0]], [[9.0], [9.0]]])
    >>> greedy_weights(told, np.array([[1.0], [2.0]]), kind="regression").tolist()
    [1.0, 0.0]
    """
    return np.asarray(_selected(prob, y_true, np.ones((1, len(y_true))), rounds, kind)[0])


def bagged_greedy_weights(
    prob: NDArray[np.float64],
    y_true: NDArray[Any],
    patient_ids: NDArray[np.object_],
    *,
    rounds: int = ROUNDS,
    bags: int = BAGS,
    seed: int = 0,
    kind: str = "classification",
) -> NDArray[np.float64]:
    """Average :func:`greedy_weights` over resamples of patients.

    Caruana et al. 2004 (§2.3) draw members for each bag; they had thousands. A handful leaves
    nothing to draw from, so here patients are drawn, with replacement.

    Parameters
    ----------
    prob, y_true, rounds, kind
        As for :func:`greedy_weights`.
    patient_ids
        ``(image,)``; drawn whole, and numbered by name, so the order of rows plays no part.
    bags
        Resamples; 0 for none.
    seed
        Decides the draws.
    """
    if bags == 0:
        return greedy_weights(prob, y_true, rounds=rounds, kind=kind)
    names, place = np.unique(np.asarray(patient_ids, dtype=str), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=bags)
    counts = drawn[:, place].astype(np.float64)
    return np.asarray(_selected(prob, y_true, counts, rounds, kind).mean(axis=0))


def _selected(
    prob: NDArray[np.float64],
    y_true: NDArray[Any],
    counts: NDArray[np.float64],
    rounds: int,
    kind: str,
) -> NDArray[np.float64]:
    """Select members for several resamples at once, ``(resample, member)``.

    Parameters
    ----------
    counts
        How often each image was drawn, ``(resample, image)``.
    """
    if kind == "survival":
        return _greedy(*_pairs(prob[:, :, 0], y_true, counts), len(counts), rounds)
    if kind == "regression":
        return _greedy(prob[:, :, 0], _squares(y_true[:, 0], counts), len(counts), rounds)
    likelihood = prob[:, np.arange(len(y_true)), y_true]
    return _greedy(likelihood, _log_loss(counts), len(counts), rounds)


def _greedy(
    values: NDArray[np.float64], loss: Loss, n_resamples: int, rounds: int
) -> NDArray[np.float64]:
    """Average rows of ``values (member, image)``, one more in each round.

    Returns
    -------
    weights
        ``(resample, member)``.
    """

    def loss_of(picks: NDArray[np.float64]) -> NDArray[np.float64]:
        return loss((picks @ values / _sums(picks))[:, None])[:, 0]

    best = picks = _first_picks(values, loss, n_resamples)
    least = loss_of(picks)
    for _ in range(rounds):
        total = picks @ values
        losses = loss((total[:, None] + values) / (_sums(picks)[:, None] + 1))
        tied = losses <= losses.min(axis=1, keepdims=True) + _TIED
        picks = picks + tied / _sums(tied)
        now = loss_of(picks)
        better = now < least - _TIED
        best, least = np.where(better[:, None], picks, best), np.where(better, now, least)
    return best / _sums(best)


def _first_picks(values: NDArray[np.float64], loss: Loss, n_resamples: int) -> NDArray[np.float64]:
    """Take the best so many members, one pick each, ``(resample, member)``."""
    losses = loss(np.broadcast_to(values, (n_resamples, *values.shape)))
    sets = losses[:, None, :] <= losses[:, :, None] + _TIED  # as good as each, or better
    means = loss(sets @ values / _sums(sets))
    tied = means <= means.min(axis=1, keepdims=True) + _TIED
    largest = np.where(tied, sets.sum(axis=2), 0).argmax(axis=1)
    return np.asarray(sets[np.arange(len(sets)), largest].astype(np.float64))


def _log_loss(counts: NDArray[np.float64]) -> Loss:
    """Average the log loss over images, each as often as it was drawn."""

    def loss(likelihood: NDArray[np.float64]) -> NDArray[np.float64]:
        logs = np.log(np.maximum(likelihood, _EPS))
        return np.asarray(-(logs * counts[:, None]).sum(axis=-1) / _sums(counts))

    return loss


def _squares(truth: NDArray[np.float64], counts: NDArray[np.float64]) -> Loss:
    """Average the squared error, as a share of the truth's variance."""
    spread = float(truth.var()) or 1.0

    def loss(told: NDArray[np.float64]) -> NDArray[np.float64]:
        off = (told - truth) ** 2 / spread
        return np.asarray((off * counts[:, None]).sum(axis=-1) / _sums(counts))

    return loss


def _pairs(
    risks: NDArray[np.float64], truth: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], Loss]:
    """Give the differences of risk that should be above 0, ``(member, pair)``, and 1 − C-index.

    Pairs are those of :class:`zoo.metrics.survival.SurvivalScorer`. A difference of averages is
    the average of the differences, so pairs stand in the place of images.
    """
    time, event = truth[:, 0], truth[:, 1] > 0
    later = (time[:, None] < time) | ((time[:, None] == time) & ~event)
    first, second = np.nonzero(later & event[:, None])
    step = -(-len(first) // MOST_PAIRS) or 1
    first, second = first[::step], second[::step]
    drawn = counts[:, first] * counts[:, second]
    total = np.maximum(_sums(drawn), 1.0)

    def loss(ahead: NDArray[np.float64]) -> NDArray[np.float64]:
        won = (np.sign(ahead) @ drawn[:, :, None])[:, :, 0]
        return np.asarray(0.5 - 0.5 * won / total)

    return risks[:, first] - risks[:, second], loss


def _sums(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(values.sum(axis=-1, keepdims=True), dtype=np.float64)
