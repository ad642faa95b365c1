"""Ranks of probabilities, averaged over members and mapped back to probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["rank_pool"]


def rank_pool(prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average members' ranks, and give each mean rank the probability that stands there.

    Class by class, each member ranks the images (ties share their mean rank), ranks are
    averaged, and the mean rank r becomes the r-th smallest probability, averaged over members
    and read between neighbours (the quantile normalisation of Bolstad et al. 2003,
    *Bioinformatics* 19:185, with the mean rank in the place of one's own); rows are then scaled
    to sum 1. So a member counts by how it orders images, not by how sure it sounds, one member
    alone comes out as it is, and two classes need no scaling.

    An image's result depends on the images beside it; with one image this is the mean.

    Parameters
    ----------
    prob
        ``(member, image, class)``, images of one fold.

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
    pooled = np.stack(columns, axis=1)
    total = pooled.sum(axis=1, keepdims=True)
    # Nobody gives such an image anything: each class is as likely as another.
    shares: NDArray[np.float64] = np.where(
        total > 0, pooled / np.where(total > 0, total, 1.0), 1.0 / n_classes
    )
    return shares
