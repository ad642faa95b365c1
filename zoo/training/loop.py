"""The loop: epochs of shuffled batches, one history row each.

Training scores are those of the logits that the training passes gave anyway, with dropout and
before each step's update: a second pass over the training bags would cost as much as the first
and say little more. Validation scores come from a pass of its own without dropout.
"""

from __future__ import annotations

import copy
import logging
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import EmptyBag, RecipeError
from zoo.metrics import accuracy, evaluate, headline, higher_is_better, macro_f1
from zoo.recipes import Recipe
from zoo.tasks import Task
from zoo.training.layout import Layout, Packed, Padded
from zoo.training.losses import Loss, Pass, balanced_weights
from zoo.training.mixing import mix_bags, mix_targets
from zoo.training.optim import Rates, WeightAverage, make_optimiser
from zoo.training.precision import autocast
from zoo.training.task_losses import make_loss

if TYPE_CHECKING:
    from zoo.training.batches import Batches

__all__ = ["BagModule", "train"]  # the rest is shared with zoo.training.stacked

logger = logging.getLogger(__name__)


class BagModule(nn.Module, ABC):
    """A head's network: patches of bags in, one row of logits per bag out.

    A network whose parameters learn on two levels names those of the outer one in
    ``outer_parameters``: they step on bags held out of the inner level (see :class:`Outer`).
    """

    held_out: float = 0.0
    """Share of the training bags for the outer level."""
    outer_rate: float = 1.0
    """Its learning rate, as a multiple of the recipe's."""

    @property
    def outer_parameters(self) -> list[nn.Parameter]:
        """What learns on held-out bags; nothing as a rule."""
        return []

    @abstractmethod
    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Map rows in any layout to logits ``(bag, class)``; padding must be finite."""

    def objective(self, rows: Tensor, layout: Layout, target: Tensor, loss: Loss) -> Pass:
        """Make one training pass: the logits, and the loss to step on.

        Heads whose papers add terms of their own (an instance loss, a loss per branch)
        override this; ``loss.of_logits(logits, target)`` is the recipe's loss of any logits.

        **Shape**: ``target (bag,)`` int64, or ``(bag, class)`` float, shares that sum to 1,
        where bags are mixed; ``(bag, column)`` float of tasks other than classes and levels.
        """
        logits = self.logits(rows, layout)
        return Pass(logits, loss.of_logits(logits, target))

    def forward(self, x: Tensor, mask: Tensor, coords: Tensor | None = None) -> Tensor:
        """Map padded bags to logits.

        **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool, True where a patch
        is real, ``coords (bag, patch, 2)``, which heads without positions ignore, →
        ``(bag, class)``. What stands in the padding never matters.
        """
        return self.logits(*self.cleaned(x, mask, coords))

    @staticmethod
    def cleaned(x: Tensor, mask: Tensor, coords: Tensor | None = None) -> tuple[Tensor, Padded]:
        """Put zeros where padding may hold anything, infinities included."""
        if not bool(mask.any(dim=1).all()):
            raise EmptyBag("a bag without any patch has no prediction: leave it out")
        hidden = ~mask.unsqueeze(-1)
        places = None if coords is None else coords.masked_fill(hidden, 0.0)
        return x.masked_fill(hidden, 0.0), Padded(mask, places)


class Keeper:
    """Remembers the weights that will be kept, and how long ago they got better."""

    def __init__(self, recipe: Recipe, task: Task) -> None:
        self._recipe, self._task = recipe, task
        self._best = (-math.inf, -math.inf)
        self._state: dict[str, Tensor] | None = None
        self._waited = 0

    def see(self, module: nn.Module, row: dict[str, float]) -> bool:
        """Look at an epoch; True where training shall stop."""
        if not self._recipe.needs_validation:
            return False
        score = (monitored(self._recipe, row, self._task), -row["validation_loss"])
        if score > self._best:
            self._best, self._waited = score, 0
            if self._recipe.keep == "best":
                self._state = copy.deepcopy(module.state_dict())
        else:
            self._waited += 1
        return self._recipe.patience is not None and self._waited >= self._recipe.patience

    def restore(self, module: nn.Module) -> None:
        """Put the kept weights back."""
        if self._state is not None:
            module.load_state_dict(self._state)


_CLASSES = Task()


def monitored(recipe: Recipe, row: dict[str, float], task: Task = _CLASSES) -> float:
    """Give the score of an epoch that the recipe watches, more is better, −∞ where undefined.

    A recipe's ``macro_f1`` stands for the metric that comes first in the task.
    """
    name = headline(task) if recipe.monitor == "macro_f1" else recipe.monitor
    value = row[f"validation_{name}"]
    if math.isnan(value):
        return -math.inf
    return value if name != "loss" and higher_is_better(name) else -value


def train(
    module: BagModule,
    bags: Batches,
    validation: Batches | None,
    *,
    recipe: Recipe,
    n_classes: int,
    task: Task = _CLASSES,
) -> list[dict[str, Any]]:
    """Train ``module`` in place, with torch's own random state.

    Parameters
    ----------
    module
        The network, on the device of the bags.
    bags
        What to learn.
    validation
        What to watch, never learned; scores are NaN without.
    recipe
        How to train.
    n_classes
        Number of classes.
    task
        What is learned, with what it has learned from the training bags.

    Returns
    -------
    history
        One row per epoch: ``epoch`` from 1, loss, macro-F1 and accuracy of both, and
        ``overfit_gap``, training minus validation macro-F1. Other tasks than classification have
        the metric that comes first for them in place of those two. While weights are averaged, the
        validation columns are those of the average, which is what will be kept.

    Raises
    ------
    RecipeError
        If the loss stops being finite.
    """
    loss = make_loss(recipe, task, bags.labels, n_classes)
    if recipe.mixup and getattr(module, "uses_coords", False):
        raise RecipeError("mixup joins patches of two images, which have no common coordinates")
    outer = Outer.of(module, bags, recipe) if module.outer_parameters else None
    taught = torch.arange(len(bags)) if outer is None else outer.taught
    optimiser = make_optimiser(recipe, _inner_parameters(module))
    rates, keeper = Rates(recipe, optimiser), Keeper(recipe, task)
    average = WeightAverage(recipe.ema_decay)
    weights = [*module.parameters()]
    step = _Step(module, weights, recipe, loss, optimiser, average, outer, n_classes, task)
    history: list[dict[str, Any]] = []
    for epoch in range(1, recipe.epochs + 1):
        seen = _one_epoch(step, bags, taught.to(bags.labels.device), rates, epoch)
        if recipe.swa_start is not None and epoch > recipe.swa_start * recipe.epochs:
            average.add(module)
        judged = module
        if average.count:
            judged = copy.deepcopy(module)
            judged.load_state_dict(average.state())
        row = history_row(epoch, seen, _evaluate(judged, validation, loss, recipe, task), task)
        history.append(row)
        logger.debug("epoch %d of %d: %s", epoch, recipe.epochs, row)
        if recipe.needs_validation:
            rates.see(monitored(recipe, row, task))
            if keeper.see(judged, row):
                break
    if average.count:
        module.load_state_dict(average.state())
    keeper.restore(module)
    return history


def _inner_parameters(module: BagModule) -> list[nn.Parameter]:
    outer = set(map(id, module.outer_parameters))
    return [weight for weight in module.parameters() if id(weight) not in outer]


@dataclass(frozen=True, slots=True)
class Outer:
    """The outer level of a bilevel training: its own steps on bags of its own.

    After each step of the inner level its parameters take one step down the loss of a batch
    of held-out bags, with the inner level as it stands: the first-order approximation, which
    leaves out how the inner optimum would move (Liu et al. 2019, DARTS, eq. 7 with ξ = 0).
    """

    optimiser: torch.optim.Optimizer
    taught: Tensor
    """``(bag,)``, bags of the inner level."""
    held: Tensor
    """``(bag,)``, bags of the outer level."""

    @classmethod
    def of(cls, module: BagModule, bags: Batches, recipe: Recipe) -> Outer:
        """Hold out bags of every class that has two or more."""
        # What has no class is dealt as one.
        labels = bags.labels.cpu() if bags.labels.dim() == 1 else torch.zeros(len(bags)).long()
        held = []
        for label in labels.unique(sorted=True):  # type: ignore[no-untyped-call]
            of_class = (labels == label).nonzero().squeeze(1)
            count = min(max(1, round(module.held_out * len(of_class))), len(of_class) - 1)
            held.append(of_class[torch.randperm(len(of_class))[:count]])
        outer = torch.cat(held).sort().values
        taught = torch.ones(len(labels), dtype=torch.bool).index_fill(0, outer, value=False)
        steps = Recipe(lr=min(recipe.lr * module.outer_rate, 10.0), weight_decay=0.0)
        optimiser = make_optimiser(steps, module.outer_parameters)
        return cls(optimiser, taught.nonzero().squeeze(1), outer)

    def draw(self, size: int, device: torch.device) -> Tensor:
        """Draw a batch of held-out bags."""
        return self.held[torch.randperm(len(self.held))[:size]].to(device)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of training, and all it needs."""

    module: BagModule
    weights: list[nn.Parameter]
    recipe: Recipe
    loss: Loss
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    outer: Outer | None
    n_classes: int
    task: Task

    def take(self, bags: Batches, index: Tensor) -> Pass:
        """Step on the bags ``index``, and on held-out ones where there is an outer level."""
        value = self._down(self.optimiser, bags, index)
        if self.outer is not None and len(self.outer.held):
            held = self.outer.draw(self.recipe.batch_size, index.device)
            self._down(self.outer.optimiser, bags, held)
        if self.recipe.ema_decay is not None:
            self.average.add(self.module)
        return value

    def _down(self, optimiser: torch.optim.Optimizer, bags: Batches, index: Tensor) -> Pass:
        """Step down the loss of some bags with the parameters of one optimiser."""
        taken = bags.take(index, recipe=self.recipe)
        with autocast(self.recipe, index.device):
            value = self._forward(*taken, bags.labels[index])
        for weight in self.weights:  # those of both levels
            weight.grad = None
        value.loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.gradient_clip is not None:
            own = [weight for group in optimiser.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(own, self.recipe.gradient_clip)
        optimiser.step()
        return Pass(value.logits.detach().float(), value.loss.detach().float())

    def _forward(self, rows: Tensor, layout: Layout, target: Tensor) -> Pass:
        if self.recipe.mixup:
            rows, layout, target = mixed_batch(rows, layout, target, self.recipe, self.n_classes)
        return passes_of(self.module, rows, layout, target, self.loss, self.recipe)


def passes_of(
    module: BagModule, rows: Tensor, layout: Layout, target: Tensor, loss: Loss, recipe: Recipe
) -> Pass:
    """Make one training pass over a batch, or two that are joined."""
    first = module.objective(rows, layout, target, loss)
    if not recipe.r_drop:
        return first
    second = module.objective(rows, layout, target, loss)
    return Pass(first.logits, loss.of_passes(first, second))


def mixed_batch(
    rows: Tensor, layout: Layout, target: Tensor, recipe: Recipe, n_classes: int
) -> tuple[Tensor, Padded | Packed, Tensor]:
    """Mix each bag of a batch with another one, in a share that is drawn for the batch."""
    # Two gamma draws make one of Beta(a, a). The larger share is the bag's own, so that the
    # training scores, taken against its own label, mean something.
    draws = torch._standard_gamma(torch.full((2,), recipe.mixup))  # noqa: SLF001
    share = float(draws.max() / draws.sum().clamp_min(1e-12))
    partner = torch.randperm(len(target), device=target.device)
    rows, mixed = mix_bags(rows, layout, partner, share)
    return rows, mixed, mix_targets(target, partner, share, n_classes)


def order_of(labels: Tensor, recipe: Recipe, n_classes: int) -> Tensor:
    """Choose the bags of an epoch, ``(bag,)``, by the labels of all."""
    if recipe.sampler == "shuffle":
        return torch.randperm(len(labels), device=labels.device)
    weights = balanced_weights(labels, n_classes)[labels]
    return torch.multinomial(weights, len(labels), replacement=True)


def _one_epoch(
    step: _Step, bags: Batches, taught: Tensor, rates: Rates, epoch: int
) -> dict[str, float]:
    """Step once through the bags ``taught``; give loss and scores of the training passes."""
    step.module.train()
    order = taught[order_of(bags.labels[taught], step.recipe, step.n_classes)]
    batches = torch.split(order, step.recipe.batch_size)
    passes = []
    for number, index in enumerate(batches):
        rates.begin((epoch - 1 + number / len(batches)) / step.recipe.epochs)
        passes.append(step.take(bags, index))
    sizes = torch.tensor([len(index) for index in batches], device=order.device)
    total = float((torch.stack([one.loss for one in passes]) * sizes).sum()) / len(order)
    if not math.isfinite(total):
        raise RecipeError(
            f"training diverged in epoch {epoch} (loss is {total}): lower lr (it is "
            f"{step.recipe.lr:g})"
        )
    return scores_of(
        total, torch.cat([one.logits for one in passes]), bags.labels[order], step.task
    )


@torch.inference_mode()
def _evaluate(
    module: BagModule, bags: Batches | None, loss: Loss, recipe: Recipe, task: Task
) -> dict[str, float]:
    if bags is None:
        return unwatched(task)
    module.eval()
    logits = torch.cat([module.logits(*step) for step in bags.in_order()])
    return watched_scores(logits, bags.labels, loss, recipe, task)


def unwatched(task: Task) -> dict[str, float]:
    """Give the scores of an epoch without validation bags, NaN."""
    return dict.fromkeys(("loss", headline(task), *_ALSO.get(task.kind, ())), math.nan)


def watched_scores(
    logits: Tensor, labels: Tensor, loss: Loss, recipe: Recipe, task: Task
) -> dict[str, float]:
    """Score the logits of validation bags."""
    scores = scores_of(float(loss.of_logits(logits, labels)), logits, labels, task)
    if recipe.monitor == "auroc":
        prob = logits.double().softmax(dim=1).cpu().numpy()
        scores["auroc"] = evaluate(labels.cpu().numpy(), prob)["auroc"]
    return scores


_ALSO = {"classification": ("accuracy",)}
"""What the history of a task has beside the loss and the metric that comes first."""


def scores_of(loss: float, logits: Tensor, labels: Tensor, task: Task) -> dict[str, float]:
    if task.kind != "classification":
        values = task.decode(logits.double().cpu().numpy())
        name = headline(task)
        return {"loss": loss, name: evaluate(labels.cpu().numpy(), values, task)[name]}
    truth, guess = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    return {
        "loss": loss,
        "macro_f1": macro_f1(truth, guess, logits.shape[1]),
        "accuracy": accuracy(truth, guess),
    }


def history_row(
    epoch: int, seen: dict[str, float], watched: dict[str, float], task: Task
) -> dict[str, Any]:
    name = headline(task)
    return {
        "epoch": epoch,
        **{f"train_{name}": value for name, value in seen.items()},
        **{f"validation_{name}": value for name, value in watched.items()},
        "overfit_gap": (seen[name] - watched[name]) * (1 if higher_is_better(name) else -1),
    }
