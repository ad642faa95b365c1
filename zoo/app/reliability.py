"""How far a run's confidence can be trusted, by what it said of images it had not learned.

Answering only where one is sure enough is selective prediction (Geifman & El-Yaniv 2017,
*Selective Classification for Deep Neural Networks*). The confidence from which on a class is
named is chosen on validation images, and judged on test images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.run import Run

__all__ = ["ACCURACY", "Reliability", "choose_confidence"]

ACCURACY = 0.9
"""Share of validation images above the chosen confidence that must be right."""

LEAST_IMAGES = 10
"""Images from which on a share is told, or a confidence chosen."""

_NEAR = 0.05


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Reliability:
    """What a run's confidence was worth on held-out images."""

    confidence: NDArray[np.float64]
    """``(image,)``: the highest probability of each out-of-fold test image."""
    right: NDArray[np.bool_]
    """``(image,)``: whether the class with it was the true one."""
    threshold: float | None
    """Confidence from which on a class is named; None where there is none to be had."""
    is_given: bool = False
    """Whether the threshold was given, not chosen."""
    n_validation: int = 0
    """Images on which it was chosen."""

    @classmethod
    def of(cls, run: Run, abstain_below: float | None = None) -> Reliability:
        """Learn from a run's predictions.

        Parameters
        ----------
        run
            A finished run, or an ensemble, of classification.
        abstain_below
            The threshold, where it is not to be chosen.
        """
        test = run.probabilities("test")
        n, threshold = 0, abstain_below
        if abstain_below is None and (run.predictions["role"] == "validation").any():
            watched = run.probabilities("validation")
            n = len(watched.image_ids)
            threshold = choose_confidence(*_sureness(watched.prob, watched.y_true))
        confidence, right = _sureness(test.prob, test.y_true)
        return cls(
            confidence=confidence,
            right=right,
            threshold=threshold,
            is_given=abstain_below is not None,
            n_validation=n,
        )

    def near(self, confidence: float) -> tuple[int, int, float, float] | None:
        """Count the held-out images of like confidence: right, all, and the bounds.

        The window is widened until it holds :data:`LEAST_IMAGES`; None where there are not as
        many in a tenth to either side.
        """
        for step in (1, 2):
            low, high = confidence - step * _NEAR, confidence + step * _NEAR
            inside = (self.confidence >= low) & (self.confidence <= high)
            if inside.sum() >= LEAST_IMAGES:
                right = int(self.right[inside].sum())
                return right, int(inside.sum()), max(low, 0.0), min(high, 1.0)
        return None

    def named(self) -> tuple[int, int, int]:
        """Count test images: right among those above the threshold, those, and all."""
        above = self.confidence >= (self.threshold or 0.0)
        return int(self.right[above].sum()), int(above.sum()), len(above)


def choose_confidence(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], accuracy: float = ACCURACY
) -> float | None:
    """Choose the lowest confidence above which enough images are right.

    Parameters
    ----------
    confidence
        ``(image,)``.
    right
        ``(image,)``.
    accuracy
        How many must be.

    Returns
    -------
    threshold
        None where no :data:`LEAST_IMAGES` images are right often enough.

    Examples
    --------
    >>> sure = np.linspace(0.5, 1.0, 21)
    >>> round(choose_confidence(sure, sure > 0.63), 3)
    0.625
    """
    order = np.argsort(-confidence, kind="stable")
    sure, share = confidence[order], np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    # Equal confidences stand or fall together.
    last = np.append(sure[1:] < sure[:-1], True)[: len(sure)]
    good = np.flatnonzero(last & (share >= accuracy) & (np.arange(len(sure)) + 1 >= LEAST_IMAGES))
    return float(sure[good[-1]]) if len(good) else None


def _sureness(
    prob: NDArray[np.float64], y_true: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    return prob.max(axis=1), prob.argmax(axis=1) == y_true
