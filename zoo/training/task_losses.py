"""Losses of tasks that are not classification, on a network's outputs.

All are taken in single precision, whatever the network computed in, and averaged over bags.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from zoo.training.losses import Loss, balanced_weights

if TYPE_CHECKING:
    from zoo.recipes import Recipe
    from zoo.tasks import Task

__all__ = [
    "bernoulli_divergence",
    "cox",
    "discrete_hazards",
    "levels",
    "make_loss",
    "sequential",
    "time_steps",
]


def sequential(outputs: Tensor, passed: Tensor, stopped: Tensor) -> Tensor:
    """Measure −Σ_k stopped_k log h_k + passed_k log(1 − h_k) of each bag, h = sigmoid(output).

    The likelihood of walking up steps until one stops: levels of an ordered scale, or intervals
    of time until an event.

    Parameters
    ----------
    outputs
        ``(bag, step)``.
    passed, stopped
        ``(bag, step)`` bool, never both; neither beyond the last step that is known.

    Returns
    -------
    loss
        ``(bag,)``.
    """
    terms = passed * functional.softplus(outputs) + stopped * functional.softplus(-outputs)
    return terms.sum(dim=1)


def levels(outputs: Tensor, target: Tensor) -> Tensor:
    """Measure the loss of ordered levels by continuation ratios, ``(bag,)``.

    **Reference**: Tutz 1991; the same conditional likelihood, on networks, is CORN (Shi et al.
    2021, eq. 4 and 6). P(level > k) is a product of k + 1 factors, so it can only fall with k,
    without the shared weights that CORAL (Cao et al. 2020) needs for that.

    NOTE[DIFF] CORN divides by the number of terms, here the sum over a bag's terms is averaged
    over bags: the likelihood itself.

    Parameters
    ----------
    outputs
        ``(bag, level − 1)``.
    target
        ``(bag,)`` int64.
    """
    places = torch.arange(outputs.shape[1], device=outputs.device)
    return sequential(outputs, target.unsqueeze(1) > places, target.unsqueeze(1) == places)


def time_steps(target: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Say which intervals of time each bag survived, and in which it had its event.

    A censored bag is credited with an interval if it lived through half of it at least
    (Gensheimer & Narasimhan 2019). An interval ends with its end; what happens after the last
    end counts as in the last interval.

    Parameters
    ----------
    target
        ``(bag, 2)``, time and event.
    ends
        ``(interval,)``, rising.

    Returns
    -------
    passed, stopped
        ``(bag, interval)`` bool.

    Examples
    --------
    >>> passed, stopped = time_steps(torch.tensor([[1.5, 1.0], [1.6, 0.0]]), torch.tensor([1.0, 2.0]))
    >>> passed.tolist(), stopped.tolist()
    ([[True, False], [True, True]], [[False, True], [False, False]])
    """
    time, event = target[:, :1], target[:, 1:] > 0
    places = torch.arange(len(ends), device=ends.device)
    # The first interval whose end is not before the time.
    place = torch.bucketize(time.contiguous(), ends).clamp_max(len(ends) - 1)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    passed = torch.where(event, places < place, time >= (begins + ends) / 2)
    return passed, event & (places == place)


def discrete_hazards(outputs: Tensor, target: Tensor, ends: Tensor) -> Tensor:
    """Measure the negative log-likelihood of survival in intervals of time, ``(bag,)``.

    **Reference**: Gensheimer & Narasimhan 2019 (nnet-survival), eq. 2 to 4.

    Parameters
    ----------
    outputs
        ``(bag, interval)``, logits of the hazards.
    target, ends
        As of :func:`time_steps`.
    """
    return sequential(outputs, *time_steps(target, ends))


def cox(risk: Tensor, target: Tensor) -> Tensor:
    """Measure the negative log partial likelihood, averaged over events.

    −1/E Σ_{i: event} (r_i − log Σ_{j: t_j >= t_i} exp r_j), with Breslow's way of ties: all who
    have an event at one time share one risk set. Bags are compared with those of their own
    batch alone, so batches should be large, and each should have events; one without any event
    teaches nothing, and its loss is 0.

    **Reference**: Cox 1972; Breslow 1974; on networks Katzman et al. 2018, eq. 4.

    Parameters
    ----------
    risk
        ``(bag, 1)``, log hazards.
    target
        ``(bag, 2)``, time and event.

    Examples
    --------
    >>> cox(torch.zeros(2, 1), torch.tensor([[1.0, 1.0], [2.0, 0.0]])).item()  # log 2
    0.6931471824645996
    """
    time, event = target[:, 0], target[:, 1]
    order = time.argsort(descending=True, stable=True)
    time, event, risk = time[order], event[order], risk.squeeze(1)[order]
    # All up to the last of an equal time are at risk.
    last = torch.searchsorted(-time, -time, right=True) - 1
    at_risk = risk.logcumsumexp(dim=0)[last]
    return ((at_risk - risk) * event).sum() / event.sum().clamp_min(1.0)


def bernoulli_divergence(first: Tensor, second: Tensor) -> Tensor:
    """Average KL(p‖q) and KL(q‖p) of sigmoids, summed over outputs, averaged over bags."""
    return 0.5 * ((first.sigmoid() - second.sigmoid()) * (first - second)).sum(dim=1).mean()


class _Steps(Loss):
    """Levels, or intervals of time."""

    def __init__(self, recipe: Recipe, task: Task, target: Tensor, n_classes: int) -> None:
        self._recipe = recipe
        balanced = task.one_class and recipe.class_weights == "balanced"
        self._weights = balanced_weights(target, n_classes) if balanced else None
        self._ends = torch.tensor(task.ends, device=target.device)

    def of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        """Measure the loss of one pass."""
        if target.dim() == 1:
            values = levels(logits.float(), target)
            if self._weights is None:
                return values.mean()
            weights = self._weights[target]
            return (values * weights).sum() / weights.sum()
        return discrete_hazards(logits.float(), target, self._ends).mean()

    def apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure how far the predictions of two passes are from each other."""
        return bernoulli_divergence(first.float(), second.float())


class _Labels(Loss):
    """Several labels, each there or not: binary cross-entropy, averaged over labels.

    With balanced weights what is there counts as much as what is not, label by label.
    """

    def __init__(self, recipe: Recipe, task: Task, target: Tensor, n_classes: int) -> None:
        del task, n_classes
        self._recipe = recipe
        there = target.sum(dim=0)
        balanced = recipe.class_weights == "balanced"
        # A label that every bag has, or none, has nothing to be balanced against.
        share = torch.where(there > 0, (len(target) - there) / there.clamp_min(1), 1.0)
        self._positive = torch.where(share > 0, share, 1.0) if balanced else None

    def of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        """Measure the loss of one pass."""
        smoothing = self._recipe.label_smoothing
        soft = target * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits.float(), soft, pos_weight=self._positive
        )

    def apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure how far the predictions of two passes are from each other."""
        return bernoulli_divergence(first.float(), second.float())


class _Numbers(Loss):
    """A number, standardised; or a risk that is judged against the others of the batch.

    Two passes are as far apart as their outputs: half the squared distance, which is the
    divergence of two normal distributions of variance 1.
    """

    def __init__(self, recipe: Recipe, task: Task, target: Tensor, n_classes: int) -> None:
        del target, n_classes
        self._recipe, self._task = recipe, task

    def of_logits(self, logits: Tensor, target: Tensor) -> Tensor:
        """Measure the loss of one pass."""
        outputs = logits.float()
        if self._task.loss == "cox":
            return cox(outputs, target)
        standard = (target - self._task.shift) / self._task.scale
        if self._task.loss == "huber":
            return functional.huber_loss(outputs, standard)
        return 0.5 * functional.mse_loss(outputs, standard)

    def apart(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure how far the predictions of two passes are from each other."""
        return 0.5 * functional.mse_loss(first.float(), second.float())


def make_loss(recipe: Recipe, task: Task, target: Tensor, n_classes: int) -> Loss:
    """Make the loss of a recipe for a task.

    Parameters
    ----------
    recipe
        How to train.
    task
        What is learned, with what it has learned from the training bags.
    target
        Truth of all training bags: ``(bag,)`` int64 for classes and levels, else
        ``(bag, column)`` float32.
    n_classes
        Number of classes, levels or labels.
    """
    if task.kind == "classification":
        return Loss(recipe, target, n_classes)
    if task.kind == "ordinal" or task.loss == "hazards":
        return _Steps(recipe, task, target, n_classes)
    kind = _Labels if task.kind == "multi-label" else _Numbers
    return kind(recipe, task, target, n_classes)
