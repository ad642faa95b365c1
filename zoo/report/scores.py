"""Classification report in scikit-learn's layout, and what guessing would score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.metrics import per_class
from zoo.metrics.classes import ratio
from zoo.report.sections import ClassRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

__all__ = ["classification_report", "label_report", "majority"]


def classification_report(
    y_true: NDArray[np.int64], prob: NDArray[np.float64], classes: Sequence[str]
) -> tuple[ClassRow, ...]:
    """Compute what scikit-learn's ``classification_report`` prints, in its order.

    Parameters
    ----------
    y_true
        ``(image,)`` class numbers.
    prob
        ``(image, class)`` probabilities; the largest is the prediction.
    classes
        Names, in the same order.

    Returns
    -------
    rows
        One per class, then ``accuracy``, ``macro avg``, ``weighted avg``. The accuracy row
        has neither precision nor recall. Classes that occur neither as truth nor as
        prediction count for nothing in the averages.

    Examples
    --------
    >>> rows = classification_report(np.array([0, 1]), np.array([[0.9, 0.1], [0.8, 0.2]]), "ab")
    >>> [(row.name, row.precision, row.support) for row in rows[:3]]
    [('a', 0.5, 1), ('b', 0.0, 1), ('accuracy', None, 2)]
    """
    told = per_class(y_true, prob, classes)
    names = ("precision", "recall", "f1")
    table = np.array([[float(row[name]) for name in names] for row in told])  # (class, ratio)
    support = np.array([int(row["support"]) for row in told])
    predicted = prob.argmax(axis=1)
    occurs = (support > 0) | np.isin(np.arange(len(classes)), predicted)
    total = int(support.sum())
    rows = [
        ClassRow(name=name, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for name, (p, r, f), n in zip(classes, table, support, strict=True)
    ]
    hit = float(np.mean(predicted == y_true))
    rows.append(ClassRow(name="accuracy", precision=None, recall=None, f1=hit, support=total))
    for name, weights in (("macro avg", occurs.astype(np.float64)), ("weighted avg", support)):
        p, r, f = (float(v) for v in np.average(table, axis=0, weights=weights))
        rows.append(ClassRow(name=name, precision=p, recall=r, f1=f, support=total))
    return tuple(rows)


def label_report(
    positive: NDArray[np.bool_], prob: NDArray[np.float64], labels: Sequence[str]
) -> tuple[ClassRow, ...]:
    """Compute the same for several labels at 0.5: one row each, then macro and micro averages.

    Parameters
    ----------
    positive
        ``(image, label)``.
    prob
        ``(image, label)``.
    labels
        Names, in the same order.

    Examples
    --------
    >>> there = np.array([[True, False], [True, True]])
    >>> rows = label_report(there, np.array([[0.9, 0.2], [0.8, 0.4]]), ("er", "pr"))
    >>> [(row.name, row.recall, row.support) for row in rows]
    [('er', 1.0, 2), ('pr', 0.0, 1), ('macro avg', 0.5, 3), ('micro avg', 0.6666666666666666, 3)]
    """
    told = prob >= 0.5
    hits, there, called = ((a & b).sum(axis=0) for a, b in ((told, positive), (positive, positive), (told, told)))  # fmt: skip
    ratios = _ratios(hits, there, called)
    rows = [
        ClassRow(name=name, precision=float(p), recall=float(r), f1=float(f), support=int(n))
        for name, (p, r, f), n in zip(labels, ratios.T, there, strict=True)
    ]
    total = int(there.sum())
    micro = _ratios(hits.sum()[None], there.sum()[None], called.sum()[None])[:, 0]
    for name, (p, r, f) in (("macro avg", ratios.mean(axis=1)), ("micro avg", micro)):
        rows.append(
            ClassRow(name=name, precision=float(p), recall=float(r), f1=float(f), support=total)
        )
    return tuple(rows)


def _ratios(
    hits: NDArray[np.int64], there: NDArray[np.int64], called: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Give precision, recall and F1, ``(3, label)``; 0 without a denominator."""
    pairs = ((hits, called), (hits, there), (2 * hits, there + called))
    return np.stack([ratio(a.astype(np.float64), b.astype(np.float64), 0.0) for a, b in pairs])


def majority(y_true: NDArray[np.int64]) -> tuple[float, float]:
    """Score the guess "always the largest class": accuracy and macro-F1.

    Examples
    --------
    >>> majority(np.array([0, 0, 0, 1]))
    (0.75, 0.42857142857142855)
    """
    support = np.bincount(y_true)
    share = float(support.max() / support.sum())
    return share, 2 * share / (1 + share) / int((support > 0).sum())
