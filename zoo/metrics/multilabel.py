"""Metrics of several labels at once, each there or not.

A label is predicted where its probability is 0.5 or more. Macro-F1 averages over the labels that
occur in truth or prediction, AUROC and AUPRC over those that have both positives and negatives;
they are NaN where none does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from histostore.errors import OptionError
from zoo.metrics.classes import Ranking, mean_defined, ratio

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LABEL_METRICS", "LabelScorer"]

LABEL_METRICS = (
    "macro_f1",
    "auroc",
    "subset_accuracy",
    "micro_f1",
    "auprc",
    "hamming",
    "log_loss",
)
"""Names of the metrics, in the order of reports."""

_THRESHOLD = 0.5


class LabelScorer:
    """All metrics of one set of predictions, for any number of resamples.

    Parameters
    ----------
    truth
        ``(image, label)``, 0 or 1.
    values
        Probabilities, ``(image, label)``.

    Raises
    ------
    OptionError
        If shapes do not fit, or a value is not what it must be.

    Examples
    --------
    >>> scorer = LabelScorer([[1, 0], [1, 1]], [[0.9, 0.2], [0.8, 0.4]])
    >>> {name: float(v[0]) for name, v in scorer(np.ones((1, 2))).items() if name != "log_loss"}
    {'macro_f1': 0.5, 'auroc': 1.0, 'subset_accuracy': 0.5, 'micro_f1': 0.8, 'auprc': 1.0, 'hamming': 0.25}
    """

    __slots__ = ("_counts", "_of_images", "_ranks", "n_images")

    names: ClassVar[tuple[str, ...]] = LABEL_METRICS

    def __init__(self, truth: ArrayLike, values: ArrayLike) -> None:
        real, prob = np.asarray(truth, np.float64), np.asarray(values, np.float64)
        if real.ndim != 2 or real.shape != prob.shape or not len(real):
            msg = f"need truth and values (image, label), seen {real.shape}, {prob.shape}"
            raise OptionError(msg)
        if not np.isin(real, (0, 1)).all() or not ((prob >= 0) & (prob <= 1)).all():
            raise OptionError("labels must be 0 or 1, and probabilities between")
        self.n_images = len(real)
        told, is_there = prob >= _THRESHOLD, real > 0
        # Columns: labels that are right, that are there, that were told.
        self._counts = np.stack([told & is_there, is_there, told], axis=1).astype(np.float64)
        wrong = told != is_there
        likelihood = np.clip(np.where(is_there, prob, 1 - prob), np.finfo(np.float64).eps, 1.0)
        self._of_images = np.stack(
            [~wrong.any(axis=1), wrong.mean(axis=1), -np.log(likelihood).mean(axis=1)], axis=1
        ).astype(np.float64)
        self._ranks = [Ranking(prob[:, k], is_there[:, k]) for k in range(real.shape[1])]

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Map weights ``(resample, image)`` to metric name and ``(resample,)`` values."""
        counts = np.tensordot(weights, self._counts, axes=1)  # (resample, 3, label)
        right, there, told = counts[:, 0], counts[:, 1], counts[:, 2]
        exact, hamming, log_loss = (weights @ self._of_images / weights.sum(1)[:, None]).T
        areas = [rank.areas(weights) for rank in self._ranks]
        both = (there + told).sum(axis=1)
        return {
            "macro_f1": mean_defined(ratio(2 * right, there + told, np.nan)),
            "auroc": mean_defined(np.stack([area[0] for area in areas], axis=1)),
            "subset_accuracy": exact,
            "micro_f1": ratio(2 * right.sum(axis=1), both, np.nan),
            "auprc": mean_defined(np.stack([area[1] for area in areas], axis=1)),
            "hamming": hamming,
            "log_loss": log_loss,
        }
