"""Ranks of what members predict, averaged over members and mapped back to predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rank_among", "rank_pool"]

_NUMBERS = ("regression", "survival")
"""Kinds of task that predict no probabilities."""


def rank_pool(prob: NDArray[np.float64], kind: str = "classification") -> NDArray[np.float64]:
    """Average members' ranks, and give each mean rank the probability that stands there.

    Class by class (label by label; so are numbers and risks), each member ranks the images (ties share their mean rank), ranks are
    averaged, and the mean rank r becomes the r-th smallest probability, averaged over members
    and read between neighbours (the quantile normalisation of Bolstad et al. 2003,
    *Bioinformatics* 19:185, with the mean rank in the place of one's own); rows of classes and
    levels are then scaled to sum 1. So a member counts by how it orders images, not by how sure it sounds, one member
    alone comes out as it is, and two classes need no scaling.

    An image's result depends on the images beside it; with one image this is the mean.

    Parameters
    ----------
    prob
        ``(member, image, class)``, images of one fold.
    kind
        Of task.

    Returns
    -------
    prob
        ``(image, class)``.

    Examples
    --------
    >>> sure, cautious = [0.0, 0.2, 1.0], [0.5, 0.6, 0.4]  # they disagree on the order
    >>> prob = np.array([[[p, 1 - p] for p in member] for member in (sure, cautious)])
    >>> rank_pool(prob)[:, 0].round(3).tolist()
    [0.275, 0.575, 0.35]
    """
    import pandas as pd

    n_images, n_classes = prob.shape[1:]
    ranks = np.mean([pd.DataFrame(member).rank().to_numpy() for member in prob], axis=0)
    levels = np.sort(prob, axis=1).mean(axis=0)
    places = np.arange(1, n_images + 1)
    columns = [np.interp(ranks[:, k], places, levels[:, k]) for k in range(n_classes)]
    return _scaled(np.stack(columns, axis=1), kind)


def rank_among(
    prob: NDArray[np.float64], reference: NDArray[np.float64], kind: str = "classification"
) -> NDArray[np.float64]:
    """Do the same to single images, by their ranks among images that are known.

    An image's rank is read between those of the images whose probabilities stand next to its own,
    0 below and 1 above all; the mean rank then becomes the probability that stands there. So the
    result depends on no other new image. Numbers and risks have no such ends: how far one lies
    beyond all that are known is averaged over members, and added.

    Parameters
    ----------
    prob
        ``(member, image, class)``.
    reference
        ``(member, known image, class)``.
    kind
        Of task.

    Returns
    -------
    prob
        ``(image, class)``.

    Examples
    --------
    >>> known = np.array([[[0.1, 0.9], [0.3, 0.7], [0.8, 0.2]]])
    >>> rank_among(np.array([[[0.2, 0.8], [0.9, 0.1]]]), known).round(3).tolist()
    [[0.2, 0.8], [0.9, 0.1]]
    """
    has_ends = kind not in _NUMBERS
    beyond = np.zeros_like(prob)
    if not has_ends:
        inside = np.clip(prob, *(end(reference, axis=1, keepdims=True) for end in (np.min, np.max)))
        prob, beyond = inside, prob - inside
    n_known, n_classes = reference.shape[1:]
    places = np.arange(n_known + 2, dtype=np.float64)
    columns = []
    for k in range(n_classes):
        ranks = [
            _place(prob[m, :, k], reference[m, :, k], has_ends=has_ends) for m in range(len(prob))
        ]
        levels = np.sort(reference[:, :, k], axis=1).mean(axis=0)
        ends = (0.0, 1.0) if has_ends else levels[[0, -1]]
        columns.append(np.interp(np.mean(ranks, axis=0), places, np.r_[ends[0], levels, ends[1]]))
    return _scaled(np.stack(columns, axis=1) + beyond.mean(axis=0), kind)


def _place(
    values: NDArray[np.float64], known: NDArray[np.float64], *, has_ends: bool
) -> NDArray[np.float64]:
    """Read ranks among known values, from 1; equal ones share their mean rank."""
    marks, counts = np.unique(known, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2
    # Nothing is below 0 or above 1: there the scale ends, unless a known value stands there.
    if has_ends and marks[0] > 0:
        marks, ranks = np.r_[0.0, marks], np.r_[0.0, ranks]
    if has_ends and marks[-1] < 1:
        marks, ranks = np.r_[marks, 1.0], np.r_[ranks, len(known) + 1.0]
    return np.asarray(np.interp(values, marks, ranks))


def _scaled(pooled: NDArray[np.float64], kind: str) -> NDArray[np.float64]:
    """Scale rows to sum 1, where they are of classes."""
    if kind == "multi-label" or kind in _NUMBERS:
        return pooled
    n_classes = pooled.shape[1]
    total = pooled.sum(axis=1, keepdims=True)
    # Nobody gives such an image anything: each class is as likely as another.
    shares: NDArray[np.float64] = np.where(
        total > 0, pooled / np.where(total > 0, total, 1.0), 1.0 / n_classes
    )
    return shares
