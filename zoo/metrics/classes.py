"""Metrics of class probabilities, for one sample or for thousands of resamples at once.

A resample is a row of weights: how often each image was drawn. Everything that does not
depend on the weights (sorting by score, cells of the confusion matrix) is done once, so two
thousand resamples of four hundred images take a fraction of a second.

What is undefined, and what then happens
----------------------------------------
macro-F1
    averages over the classes that occur in truth or prediction; a class in neither says
    nothing.
balanced accuracy
    averages over the classes that occur in the truth.
AUROC, AUPRC
    one class against the rest, averaged over the classes that have both positives and
    negatives; NaN where none has.
kappa
    1 where truth and prediction are one and the same class throughout.

Nothing else can be NaN, and nothing warns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "LEVEL_METRICS",
    "METRICS",
    "LevelScorer",
    "Ranking",
    "Scorer",
    "accuracy",
    "confusion_matrix",
    "macro_f1",
    "mean_defined",
    "per_class",
    "ratio",
]

METRICS = (
    "macro_f1",
    "accuracy",
    "balanced_accuracy",
    "auroc",
    "auprc",
    "kappa",
    "log_loss",
    "brier",
    "ece",
)
"""Names of the metrics, in the order of reports."""

LEVEL_METRICS = ("macro_f1", "kappa", "level_mae", *(m for m in METRICS[1:] if m != "kappa"))
"""The same for ordered levels, with the mean distance in levels."""

ECE_BINS = 15
"""Equal-width confidence bins of the expected calibration error (Guo et al. 2017, eq. 5)."""


class Scorer:
    """All metrics of one set of predictions, for any number of resamples.

    Parameters
    ----------
    y_true
        True class of each image, ``(image,)`` integers from 0.
    prob
        Probabilities, ``(image, class)``; rows sum to 1.

    Raises
    ------
    OptionError
        If shapes do not fit, a label is out of range, or a probability is not finite.
    """

    __slots__ = ("_bins", "_cells", "_correct", "_losses", "_ranks", "n_classes", "n_images")

    names: ClassVar[tuple[str, ...]] = METRICS
    """Metrics, in the order of reports."""

    def __init__(self, y_true: ArrayLike, prob: ArrayLike) -> None:
        truth, scores = _checked(y_true, prob)
        self.n_images, self.n_classes = scores.shape
        predicted = scores.argmax(axis=1)
        self._cells = _Groups(truth * self.n_classes + predicted, self.n_classes**2)
        self._ranks = [Ranking(scores[:, k], truth == k) for k in range(self.n_classes)]
        rows = np.arange(self.n_images)
        onehot = np.eye(self.n_classes)[truth]
        likelihood = np.clip(scores[rows, truth], np.finfo(np.float64).eps, 1.0)
        # One column each: log loss, Brier (sum over classes, 0 to 2).
        self._losses = np.stack([-np.log(likelihood), ((scores - onehot) ** 2).sum(axis=1)], 1)
        confidence = scores[rows, predicted]
        bins = np.clip(np.ceil(confidence * ECE_BINS).astype(np.int64) - 1, 0, ECE_BINS - 1)
        self._bins = _Groups(bins, ECE_BINS)
        self._correct = (predicted == truth) - confidence

    def confusion(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Count images by truth and prediction, ``(resample, truth, prediction)``."""
        shape = (len(weights), self.n_classes, self.n_classes)
        return self._cells.sum(weights).reshape(shape)

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Compute all metrics.

        Parameters
        ----------
        weights
            How often each image counts, ``(resample, image)``; no row may be all zero.

        Returns
        -------
        dict
            Metric name to ``(resample,)`` values.
        """
        total = weights.sum(axis=1)
        table = self.confusion(weights)
        losses = weights @ self._losses / total[:, None]
        areas = [rank.areas(weights) for rank in self._ranks]
        values = {
            "macro_f1": mean_defined(_f1(table)),
            "accuracy": table.trace(axis1=1, axis2=2) / total,
            "balanced_accuracy": mean_defined(_recall(table)),
            "auroc": mean_defined(np.stack([area[0] for area in areas], axis=1)),
            "auprc": mean_defined(np.stack([area[1] for area in areas], axis=1)),
            "kappa": _kappa(table),
            "log_loss": losses[:, 0],
            "brier": losses[:, 1],
            "ece": np.abs(self._bins.sum(weights * self._correct)).sum(axis=1) / total,
        }
        return {name: values[name] for name in METRICS}


class LevelScorer(Scorer):
    """The same for ordered levels, with how many levels a prediction is off on average."""

    __slots__ = ()

    names: ClassVar[tuple[str, ...]] = LEVEL_METRICS

    def __call__(self, weights: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
        """Compute all metrics, as :meth:`Scorer.__call__` does."""
        values = super().__call__(weights)
        places = np.arange(self.n_classes)
        apart = np.abs(places[:, None] - places[None, :])
        values["level_mae"] = (self.confusion(weights) * apart).sum(axis=(1, 2)) / weights.sum(1)
        return {name: values[name] for name in self.names}


class _Groups:
    """Sums of weights over groups of images, by one sort and one pass."""

    __slots__ = ("_n_groups", "_order", "_starts", "_which")

    def __init__(self, group: NDArray[np.int64], n_groups: int) -> None:
        self._order = np.argsort(group, kind="stable")
        self._which, self._starts = np.unique(group[self._order], return_index=True)
        self._n_groups = n_groups

    def sum(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum ``(resample, image)`` weights to ``(resample, group)``."""
        sums = np.zeros((len(weights), self._n_groups))
        sums[:, self._which] = np.add.reduceat(weights[:, self._order], self._starts, axis=1)
        return sums


class Ranking:
    """Areas under the curves of one class against the rest, with tied scores as one step."""

    __slots__ = ("_order", "_positive", "_starts")

    def __init__(self, score: NDArray[np.float64], positive: NDArray[np.bool_]) -> None:
        self._order = np.argsort(-score, kind="stable")
        ranked = score[self._order]
        self._starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
        self._positive = positive[self._order].astype(np.float64)

    def areas(
        self, weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return AUROC and average precision, ``(resample,)`` each, NaN where undefined."""
        ranked = weights[:, self._order]
        hits = np.add.reduceat(ranked * self._positive, self._starts, axis=1)
        drawn = np.add.reduceat(ranked, self._starts, axis=1)
        n_hits, n_drawn = hits.sum(axis=1), drawn.sum(axis=1)
        n_misses = n_drawn - n_hits
        hits_so_far, drawn_so_far = hits.cumsum(axis=1), drawn.cumsum(axis=1)
        misses = drawn - hits
        # Each miss is beaten by the hits ranked above it, half by those tied with it.
        beaten = (misses * (hits_so_far - hits / 2)).sum(axis=1)
        precision = ratio(hits_so_far, drawn_so_far, 0.0)
        both = (n_hits > 0) & (n_misses > 0)
        auroc = ratio(beaten, n_hits * n_misses, np.nan)
        auprc = ratio((hits * precision).sum(axis=1), n_hits, np.nan)
        return auroc, np.where(both, auprc, np.nan)


def confusion_matrix(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Count images by truth (row) and prediction (column).

    Examples
    --------
    >>> confusion_matrix([0, 1, 1], [0, 1, 0], 2).tolist()
    [[1, 0], [1, 1]]
    """
    cells = np.asarray(y_true, dtype=np.int64) * n_classes + np.asarray(y_pred, dtype=np.int64)
    counts = np.bincount(cells, minlength=n_classes**2)
    return counts.reshape(n_classes, n_classes).astype(np.int64)


def macro_f1(y_true: ArrayLike, y_pred: ArrayLike, n_classes: int) -> float:
    """Average the F1 of the classes that occur in truth or prediction.

    Examples
    --------
    >>> macro_f1([0, 1, 1, 1], [0, 1, 1, 0], 3)
    0.7333333333333334
    """
    table = confusion_matrix(y_true, y_pred, n_classes)[None].astype(np.float64)
    return float(mean_defined(_f1(table))[0])


def accuracy(y_true: ArrayLike, y_pred: ArrayLike) -> float:
    """Share of images whose class was predicted.

    Examples
    --------
    >>> accuracy([0, 1, 1, 1], [0, 1, 1, 0])
    0.75
    """
    return float(np.mean(np.asarray(y_true) == np.asarray(y_pred)))


def per_class(
    y_true: ArrayLike, prob: ArrayLike, classes: Sequence[str]
) -> list[dict[str, float | int | str]]:
    """Tell precision, recall, F1 and the number of images of every class.

    A ratio without a denominator (a class never predicted, or never seen) is 0.

    Examples
    --------
    >>> per_class([0, 1, 1], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], ("a", "b"))[1]
    {'class': 'b', 'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'support': 2}
    """
    truth, scores = _checked(y_true, prob)
    table = confusion_matrix(truth, scores.argmax(axis=1), len(classes)).astype(np.float64)
    hits, seen, told = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    precision, recall = ratio(hits, told, 0.0), ratio(hits, seen, 0.0)
    f1 = ratio(2 * hits, seen + told, 0.0)
    return [
        {
            "class": name,
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "support": int(seen[k]),
        }
        for k, name in enumerate(classes)
    ]


def _checked(y_true: ArrayLike, prob: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, scores = np.asarray(y_true), np.asarray(prob, dtype=np.float64)
    if scores.ndim != 2 or truth.shape != scores.shape[:1] or not len(truth):
        msg = f"need y_true (image,) and prob (image, class), seen {truth.shape}, {scores.shape}"
        raise OptionError(msg)
    if not np.issubdtype(truth.dtype, np.integer) or np.any(
        (truth < 0) | (truth >= scores.shape[1])
    ):
        msg = f"y_true must hold integers from 0 to {scores.shape[1] - 1}"
        raise OptionError(msg)
    if not np.isfinite(scores).all():
        msg = f"{int((~np.isfinite(scores)).sum())} probabilities are not finite"
        raise OptionError(msg)
    return truth.astype(np.int64), scores


def ratio(
    upper: NDArray[np.float64], lower: NDArray[np.float64], undefined: float
) -> NDArray[np.float64]:
    """Divide, with ``undefined`` where the denominator is 0."""
    ratio = np.full(lower.shape, undefined)
    np.divide(upper, lower, out=ratio, where=lower > 0)
    return ratio


def mean_defined(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average ``(resample, class)`` over classes that are not NaN."""
    defined = ~np.isnan(values)
    return ratio(np.where(defined, values, 0.0).sum(axis=1), defined.sum(axis=1) * 1.0, np.nan)


def _f1(table: NDArray[np.float64]) -> NDArray[np.float64]:
    hits = np.diagonal(table, axis1=1, axis2=2)
    return ratio(2 * hits, table.sum(axis=1) + table.sum(axis=2), np.nan)


def _recall(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return ratio(np.diagonal(table, axis1=1, axis2=2), table.sum(axis=2), np.nan)


def _kappa(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Cohen's kappa with quadratic weights (Cohen 1968), classes in their order."""
    places = np.arange(table.shape[1])
    distance = (places[:, None] - places[None, :]) ** 2.0
    seen, told = table.sum(axis=2), table.sum(axis=1)
    expected = np.einsum("bi,ij,bj->b", seen, distance, told) / table.sum(axis=(1, 2))
    observed = (table * distance).sum(axis=(1, 2))
    return 1.0 - ratio(observed, expected, 0.0)
