"""Losses on logits, as a recipe combines them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from zoo.recipes import Recipe

__all__ = ["Loss", "Pass", "balanced_weights", "smoothed_focal", "symmetric_divergence"]


def smoothed_focal(
    logits: Tensor,
    target: Tensor,
    *,
    weights: Tensor | None = None,
    label_smoothing: float = 0.0,
    gamma: float = 0.0,
) -> Tensor:
    """Measure the loss −Σ_c w_c q_c (1 − p_c)^γ log p_c, averaged over bags.

    With ``gamma`` 0 it is :func:`torch.nn.functional.cross_entropy`, the average over weights
    included: the sum is divided by the weights of the true classes.

    Parameters
    ----------
    logits
        ``(bag, class)``.
    target
        ``(bag,)`` int64, the true class; or ``(bag, class)``, shares that sum to 1.
    weights
        ``(class,)``, 1 for every class where left out.
    label_smoothing
        Share of each target spread evenly over all classes (Szegedy 2016).
    gamma
        Exponent that plays down what is already right (Lin 2017, eq. 4).
    """
    hard_target = target.dim() == 1
    if gamma == 0.0 and hard_target:
        return functional.cross_entropy(
            logits, target, weight=weights, label_smoothing=label_smoothing
        )
    log_p = functional.log_softmax(logits, dim=-1)
    hard = functional.one_hot(target, logits.shape[-1]) if hard_target else target
    hard = hard.to(log_p.dtype)
    soft = hard * (1 - label_smoothing) + label_smoothing / logits.shape[-1]
    # 1 − p is −expm1(log p): exact where p is close to 1. Its power has no finite slope at 0
    # for γ < 1, hence the floor.
    rest = (-torch.expm1(log_p)).clamp_min(torch.finfo(log_p.dtype).eps)
    terms = -soft * log_p if gamma == 0.0 else -soft * rest.pow(gamma) * log_p
    if weights is None:
        return terms.sum(dim=-1).mean()
    return (terms * weights).sum() / (hard * weights).sum()


def symmetric_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Average KL(p‖q) and KL(q‖p) of two sets of logits, ``(bag, class)``, over bags."""
    log_p, log_q = functional.log_softmax(first, dim=-1), functional.log_softmax(second, dim=-1)
    # KL(p‖q) + KL(q‖p) = Σ (p − q)(log p − log q)
    both = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(dim=-1)
    return 0.5 * both.mean()


def balanced_weights(target: Tensor, n_classes: int) -> Tensor:
    """Weigh each class by bags / (classes seen · bags of the class); 0 where it has none.

    Examples
    --------
    >>> balanced_weights(torch.tensor([0, 0, 0, 1]), 3).tolist()
    [0.6666666865348816, 2.0, 0.0]
    """
    counts = torch.bincount(target, minlength=n_classes).to(torch.float32)
    seen = counts > 0
    share = len(target) / (seen.sum() * counts.clamp_min(1))
    return torch.where(seen, share, torch.zeros_like(share))


class Pass(NamedTuple):
    """What one pass over a batch gave."""

    logits: Tensor
    """``(bag, class)``."""
    loss: Tensor
    """Scalar, averaged over bags."""


class Loss:
    """The loss of a recipe.

    Parameters
    ----------
    recipe
        How to train.
    target
        Labels of all training bags, ``(bag,)`` int64, from which balanced weights come.
    n_classes
        Number of classes.
    """

    def __init__(self, recipe: Recipe, target: Tensor, n_classes: int) -> None:
        self._recipe = recipe
        balanced = recipe.class_weights == "balanced"
        self._weights = balanced_weights(target, n_classes) if balanced else None

    def of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        """Measure the loss of one pass."""
        return smoothed_focal(
            logits,
            target,
            weights=self._weights,
            label_smoothing=self._recipe.label_smoothing,
            gamma=self._recipe.focal_gamma,
        )

    def apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure how far the predictions of two passes are from each other."""
        return symmetric_divergence(first, second)

    def of_passes(self, first: Pass, second: Pass) -> Tensor:
        """Join two dropout passes over one batch (R-Drop, Liang 2021, eq. 4).

        NOTE[DIFF] The paper adds the two cross-entropies and half of α times both divergences;
        here both terms are averaged, so that the scale of the loss is that of one pass. It is
        the paper's loss divided by 2.
        """
        apart = self.apart(first.logits, second.logits)
        return 0.5 * (first.loss + second.loss) + 0.5 * self._recipe.r_drop * apart
