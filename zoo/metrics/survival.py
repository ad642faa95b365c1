"""Metrics of predicted risks against times that may be censored.

Two images are comparable where the one with the shorter time had an event; at equal times, where
one had an event and the other was censored, which means that it lived on. The C-index is the
share of comparable pairs in which the one with the earlier event has the higher risk, ties of
risk counting half (Harrell et al. 1996, §5.5). With inverse probability of censoring weights
each pair counts 1 / G(t)², where G is the Kaplan-Meier estimate of not being censored just
before the event, among the images judged (Uno et al. 2011, eq. 6, without truncation).
Both are NaN where no pair is comparable.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from histostore.errors import OptionError
from zoo.metrics.classes import ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["SURVIVAL_METRICS", "SurvivalScorer"]

SURVIVAL_METRICS = ("c_index", "c_index_ipcw")
"""Names of the metrics, in the order of reports."""

_EVENTS_AT_ONCE = 256


class SurvivalScorer:
    """All metrics of one set of predictions, for any number of resamples.

    Work grows with images times events.

    Parameters
    ----------
    truth
        ``(image, 2)``, time and event (0 or 1).
    values
        Risks, ``(image, 1)``.

    Raises
    ------
    OptionError
        If shapes do not fit, a number is not finite, or an event is neither 0 nor 1.

    Examples
    --------
    >>> scorer = SurvivalScorer([[1, 1], [2, 0], [3, 1]], [[0.9], [0.1], [0.5]])
    >>> float(scorer(np.ones((1, 3)))["c_index"][0])
    1.0
    """

    __slots__ = ("_event", "_risk", "_sureness", "_time", "n_images")

    names: ClassVar[tuple[str, ...]] = SURVIVAL_METRICS

    def __init__(self, truth: ArrayLike, values: ArrayLike) -> None:
        real, risk = np.asarray(truth, np.float64), np.asarray(values, np.float64)
        if real.ndim != 2 or real.shape[1] != 2 or risk.shape != (len(real), 1) or not len(real):
            msg = f"need truth (image, 2) and values (image, 1), seen {real.shape}, {risk.shape}"
            raise OptionError(msg)
        if not (np.isfinite(real).all() and np.isfinite(risk).all()):
            raise OptionError("times and risks must be finite")
        if not np.isin(real[:, 1], (0, 1)).all():
            raise OptionError("events must be 0 or 1")
        self.n_images = len(real)
        self._time, self._event, self._risk = real[:, 0], real[:, 1] > 0, risk[:, 0]
        self._sureness = _uncensored_before(self._time, self._event) ** -2.0

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Map weights ``(resample, image)`` to metric name and ``(resample,)`` values."""
        sums = np.zeros((4, len(weights)))  # won and compared, plain and weighted
        events = np.flatnonzero(self._event)
        for start in range(0, len(events), _EVENTS_AT_ONCE):
            rows = events[start : start + _EVENTS_AT_ONCE]
            compared, won = self._pairs(rows)
            drawn = weights[:, rows]
            wins, pairs = drawn * (weights @ won.T), drawn * (weights @ compared.T)
            sure = self._sureness[rows]
            sums += np.stack([wins.sum(1), pairs.sum(1), wins @ sure, pairs @ sure])
        return {
            "c_index": ratio(sums[0], sums[1], np.nan),
            "c_index_ipcw": ratio(sums[2], sums[3], np.nan),
        }

    def _pairs(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compare events with all images, ``(event, image)``: comparable or not, and won."""
        time, risk = self._time[rows, None], self._risk[rows, None]
        compared = (time < self._time) | ((time == self._time) & ~self._event)
        won = (risk > self._risk) + 0.5 * (risk == self._risk)
        return compared.astype(np.float64), compared * won


def _uncensored_before(time: NDArray[np.float64], event: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Estimate the probability of not being censored before each image's time, ``(image,)``.

    Where an event and a censoring have the same time, the event came first.
    """
    times, place = np.unique(time, return_inverse=True)
    censored, died = (
        np.bincount(place, kind, minlength=len(times)).astype(np.float64)
        for kind in (~event, event)
    )
    at_risk = len(time) - np.concatenate([[0], (censored + died).cumsum()[:-1]]) - died
    stays = 1.0 - ratio(censored, at_risk, 0.0)
    before: NDArray[np.float64] = np.concatenate([[1.0], stays.cumprod()[:-1]])
    return before[place]
