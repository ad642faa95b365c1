"""How much each patch of one image counts: attention, or what is lost without it.

Attention is what heads with a weighted mean over patches give by themselves (Ilse et al. 2018,
*Attention-based Deep Multiple Instance Learning*); times the number of patches, 1 is uniform.
Where no head has it, each patch is left out in turn, and what that does to the log odds of the
predicted class is its importance (occlusion: Zeiler & Fergus 2014).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zoo.bags import Bags
from zoo.errors import NotSupported, RunError
from zoo.panel import weighted_mean, weighted_sd

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from zoo.heads.base import Head

__all__ = [
    "ATTENTION",
    "LEAVE_ONE_OUT",
    "Voice",
    "Weighed",
    "agreement",
    "boxes_of",
    "left_out_of",
    "map_auroc",
    "weigh",
]

ATTENTION = "attention"
LEAVE_ONE_OUT = "leave-one-out"

MOST_LEFT_OUT = 2000
"""Patches of an image up to which each is left out in turn: the work grows with their square."""

_BATCH_BYTES = 64 * 2**20
_EPS = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Voice:
    """One head before one image."""

    head: Head
    weight: float
    """How much it counts."""
    views: tuple[Bags, ...]
    """One bag each: the image in the views that are averaged, the same patches in all."""
    edge_px: int
    """Edge of its patches, level-0 pixels."""

    def prob(self) -> NDArray[np.float64]:
        """Predict, ``(class,)``."""
        found = [self.head.predict_proba(bags)[0] for bags in self.views]
        return np.asarray(np.mean(found, axis=0))

    def attention(self) -> NDArray[np.float64] | None:
        """Weigh the patches, ``(patch,)`` with sum 1; None where the head does not."""
        try:
            found = [self.head.attention(bags)[0] for bags in self.views]
        except NotSupported:
            return None
        return np.asarray(np.mean(found, axis=0))

    def left_out(self, predicted: int) -> NDArray[np.float64]:
        """Leave out each patch, ``(patch,)``; see :func:`left_out_of`."""
        found = [left_out_of(self.head, bags, predicted) for bags in self.views]
        return np.asarray(np.mean(found, axis=0))

    def sees_as(self, other: Voice) -> bool:
        """Tell whether another head reads the same patches."""
        return np.array_equal(self.views[0].coords, other.views[0].coords) and (
            self.edge_px == other.edge_px
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Weighed:
    """The patches of one image, weighed by several heads."""

    method: str
    """:data:`ATTENTION` (times the number of patches) or :data:`LEAVE_ONE_OUT`."""
    coords: NDArray[np.int32]
    """``(patch, 2)``, x and y, level-0 pixels."""
    edge_px: int
    value: NDArray[np.float64]
    """``(patch,)``, mean over heads."""
    sd: NDArray[np.float64]
    """``(patch,)``, standard deviation over heads; NaN of one head."""
    agreement: float | None
    """Mean Spearman correlation of pairs of heads; None where it is undefined."""
    n_heads: int


def boxes_of(
    coords: NDArray[np.int32], edge_px: int, width_px: int, height_px: int
) -> NDArray[np.int64]:
    """Give left, top, right, bottom of patches inside an image, ``(patch, 4)``.

    Examples
    --------
    >>> boxes_of(np.array([[8, 0]], np.int32), 8, width_px=12, height_px=20).tolist()
    [[8, 0, 12, 8]]
    """
    x, y = coords.astype(np.int64).T
    right, bottom = np.minimum(x + edge_px, width_px), np.minimum(y + edge_px, height_px)
    return np.stack([x, y, right, bottom], axis=1)


def weigh(voices: Sequence[Voice], predicted: int) -> Weighed:
    """Weigh the patches of one image by all heads that can, in the same way.

    Heads with attention alone speak where there are any; of heads that read different patches,
    those that read the same as the first.

    Parameters
    ----------
    voices
        Heads before the image, one at least.
    predicted
        Index of the class that leaving patches out is about.

    Raises
    ------
    NotSupported
        If patches must be left out, and there is one alone, or are too many.
    """
    attention = [voice.attention() for voice in voices]
    attended = [
        (voice, value * len(value))
        for voice, value in zip(voices, attention, strict=True)
        if value is not None
    ]
    if attended:
        used = [(voice, value) for voice, value in attended if voice.sees_as(attended[0][0])]
    else:
        _check_size(voices[0].head, len(voices[0].views[0].coords))
        same = [voice for voice in voices if voice.sees_as(voices[0])]
        used = [(voice, voice.left_out(predicted)) for voice in same]
    values = np.array([value for _, value in used])
    weights = np.array([voice.weight for voice, _ in used])
    weights = weights / weights.sum()
    return Weighed(
        method=ATTENTION if attended else LEAVE_ONE_OUT,
        coords=used[0][0].views[0].coords,
        edge_px=used[0][0].edge_px,
        value=weighted_mean(values, weights),
        sd=weighted_sd(values, weights),
        agreement=agreement(values),
        n_heads=len(values),
    )


def left_out_of(head: Head, bags: Bags, predicted: int) -> NDArray[np.float64]:
    """Tell what each patch adds to the log odds of a class.

    Parameters
    ----------
    head
        A fitted head.
    bags
        One bag of two patches or more.
    predicted
        Index of the class.

    Returns
    -------
    importance
        ``(patch,)``: log odds with all patches, minus log odds without this one. Above 0: the
        patch speaks for the class.
    """
    whole = _log_odds(head.predict_proba(bags)[:, predicted])
    rows, coords = bags.embedding, bags.coords
    n = len(rows)
    step = max(1, _BATCH_BYTES // (rows[1:].nbytes or 1))
    parts = []
    for start in range(0, n, step):
        removed = range(start, min(start + step, n))
        kept = np.concatenate([np.delete(np.arange(n), k) for k in removed])
        batch = Bags.from_arrays(
            rows[kept],
            np.arange(len(removed) + 1) * (n - 1),
            classes=bags.classes,
            coords=coords[kept],
        )
        parts.append(_log_odds(head.predict_proba(batch)[:, predicted]))
    change: NDArray[np.float64] = whole - np.concatenate(parts)
    return change


def agreement(values: NDArray[np.float64]) -> float | None:
    """Average Spearman's correlation over all pairs of heads.

    Parameters
    ----------
    values
        ``(head, patch)``.

    Returns
    -------
    mean
        None for one head, for fewer than three patches, or where a head weighs all alike.

    Examples
    --------
    >>> round(agreement(np.array([[1.0, 2.0, 3.0], [1.0, 5.0, 9.0], [3.0, 2.0, 1.0]])), 6)
    -0.333333
    """
    from scipy.stats import rankdata

    n_heads, n_patches = values.shape
    if n_heads < 2 or n_patches < 3 or (np.ptp(values, axis=1) == 0).any():
        return None
    correlation = np.corrcoef(rankdata(values, axis=1))
    return float(correlation[np.triu_indices(n_heads, 1)].mean())


def map_auroc(
    coords: NDArray[np.int32], value: NDArray[np.float64], image_id: str, truth: pd.DataFrame
) -> float:
    """Score a map against patches that are known to carry the class.

    Parameters
    ----------
    coords
        ``(patch, 2)`` x and y, level-0 pixels.
    value
        ``(patch,)``.
    image_id
        The image.
    truth
        ``image_id``, ``x``, ``y`` and ``planted`` (bool), as
        :func:`histostore.synthetic.load_truth` gives it.

    Raises
    ------
    RunError
        If the image has patches of one kind only.
    """
    from sklearn.metrics import roc_auc_score

    mine = truth[truth["image_id"] == image_id]
    planted = {(int(x), int(y)) for x, y in mine.loc[mine["planted"], ["x", "y"]].to_numpy()}
    known = np.array([(int(x), int(y)) in planted for x, y in coords])
    if not known.any() or known.all():
        raise RunError(f"{image_id} has {int(known.sum())} planted of {len(known)} patches")
    return float(roc_auc_score(known, value))


def _check_size(head: Head, n_patches: int) -> None:
    what = f"head {head.spec.name} does not weigh patches, and leaving each out in turn"
    if n_patches < 2:
        raise NotSupported(f"{what} takes two or more, this image has {n_patches}")
    if n_patches > MOST_LEFT_OUT:
        raise NotSupported(
            f"{what} is for images of up to {MOST_LEFT_OUT:,} patches, this one has "
            f"{n_patches:,}: use a run of a head with attention, such as gated-mil"
        )


def _log_odds(p: NDArray[np.float64]) -> NDArray[np.float64]:
    p = np.clip(p, _EPS, 1 - _EPS)
    odds: NDArray[np.float64] = np.log(p) - np.log1p(-p)
    return odds
