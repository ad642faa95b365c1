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
from zoo.metrics import accuracy, evaluate, macro_f1
from zoo.training.layout import Layout, Padded
from zoo.training.losses import Loss, Pass, balanced_weights
from zoo.training.mixing import mix_bags, mix_targets
from zoo.training.optim import Rates, WeightAverage, make_optimiser

if TYPE_CHECKING:
    from zoo.recipes import Recipe
    from zoo.training.batches import Batches

__all__ = ["BagModule", "train"]

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
        where bags are mixed.
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


class _Keeper:
    """Remembers the weights that will be kept, and how long ago they got better."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._best = (-math.inf, -math.inf)
        self._state: dict[str, Tensor] | None = None
        self._waited = 0

    def see(self, module: nn.Module, row: dict[str, float]) -> bool:
        """Look at an epoch; True where training shall stop."""
        if not self._recipe.needs_validation:
            return False
        score = (monitored(self._recipe, row), -row["validation_loss"])
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


def monitored(recipe: Recipe, row: dict[str, float]) -> float:
    """Give the score of an epoch that the recipe watches, more is better, −∞ where undefined."""
    value = row[f"validation_{recipe.monitor}"]
    if math.isnan(value):
        return -math.inf
    return -value if recipe.monitor == "loss" else value


def train(
    module: BagModule,
    bags: Batches,
    validation: Batches | None,
    *,
    recipe: Recipe,
    n_classes: int,
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

    Returns
    -------
    history
        One row per epoch: ``epoch`` from 1, loss, macro-F1 and accuracy of both, and
        ``overfit_gap``, training minus validation macro-F1. While weights are averaged, the
        validation columns are those of the average, which is what will be kept.

    Raises
    ------
    RecipeError
        If the loss stops being finite.
    """
    loss = Loss(recipe, bags.labels, n_classes)
    outer = Outer.of(module, bags, recipe) if module.outer_parameters else None
    taught = torch.arange(len(bags)) if outer is None else outer.taught
    optimiser = make_optimiser(recipe, _inner_parameters(module))
    rates, keeper = Rates(recipe, optimiser), _Keeper(recipe)
    average = WeightAverage(recipe.ema_decay)
    step = _Step(module, recipe, loss, optimiser, average, outer, n_classes)
    history: list[dict[str, Any]] = []
    for epoch in range(1, recipe.epochs + 1):
        seen = _one_epoch(step, bags, taught.to(bags.labels.device), rates, epoch)
        if recipe.swa_start is not None and epoch > recipe.swa_start * recipe.epochs:
            average.add(module)
        judged = module
        if average.count:
            judged = copy.deepcopy(module)
            judged.load_state_dict(average.state())
        row = _row(epoch, seen, _evaluate(judged, validation, loss, recipe))
        history.append(row)
        logger.debug("epoch %d of %d: %s", epoch, recipe.epochs, row)
        if recipe.needs_validation:
            rates.see(monitored(recipe, row))
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
        labels = bags.labels.cpu()
        held = []
        for label in labels.unique(sorted=True):  # type: ignore[no-untyped-call]
            of_class = (labels == label).nonzero().squeeze(1)
            count = min(max(1, round(module.held_out * len(of_class))), len(of_class) - 1)
            held.append(of_class[torch.randperm(len(of_class))[:count]])
        outer = torch.cat(held).sort().values
        taught = torch.ones(len(labels), dtype=torch.bool).index_fill(0, outer, value=False)
        optimiser = torch.optim.Adam(
            module.outer_parameters, lr=recipe.lr * module.outer_rate, betas=(0.5, 0.999)
        )
        return cls(optimiser, taught.nonzero().squeeze(1), outer)

    def draw(self, size: int, device: torch.device) -> Tensor:
        """Draw a batch of held-out bags."""
        return self.held[torch.randperm(len(self.held))[:size]].to(device)


@dataclass(frozen=True, slots=True)
class _Step:
    """One step of training, and all it needs."""

    module: BagModule
    recipe: Recipe
    loss: Loss
    optimiser: torch.optim.Optimizer
    average: WeightAverage
    outer: Outer | None
    n_classes: int

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
        value = self._forward(*bags.take(index, recipe=self.recipe), bags.labels[index])
        self.module.zero_grad(set_to_none=True)
        value.loss.backward()  # type: ignore[no-untyped-call]
        if self.recipe.gradient_clip is not None:
            own = [weight for group in optimiser.param_groups for weight in group["params"]]
            nn.utils.clip_grad_norm_(own, self.recipe.gradient_clip)
        optimiser.step()
        return Pass(value.logits.detach(), value.loss.detach())

    def _forward(self, rows: Tensor, layout: Layout, target: Tensor) -> Pass:
        if self.recipe.mixup:
            rows, layout, target = self._mixed(rows, layout, target)
        first = self.module.objective(rows, layout, target, self.loss)
        if not self.recipe.r_drop:
            return first
        second = self.module.objective(rows, layout, target, self.loss)
        return Pass(first.logits, self.loss.of_passes(first, second))

    def _mixed(self, rows: Tensor, layout: Layout, target: Tensor) -> tuple[Tensor, Layout, Tensor]:
        # Two gamma draws make one of Beta(a, a). The larger share is the bag's own, so that the
        # training scores, taken against its own label, mean something.
        draws = torch._standard_gamma(torch.full((2,), self.recipe.mixup))  # noqa: SLF001
        share = float(draws.max() / draws.sum().clamp_min(1e-12))
        partner = torch.randperm(len(target), device=target.device)
        rows, mixed = mix_bags(rows, layout, partner, share)
        return rows, mixed, mix_targets(target, partner, share, self.n_classes)


def _order(labels: Tensor, recipe: Recipe, n_classes: int) -> Tensor:
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
    order = taught[_order(bags.labels[taught], step.recipe, step.n_classes)]
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
    return _scores(total, torch.cat([one.logits for one in passes]), bags.labels[order])


@torch.inference_mode()
def _evaluate(
    module: BagModule, bags: Batches | None, loss: Loss, recipe: Recipe
) -> dict[str, float]:
    if bags is None:
        return dict.fromkeys(("loss", "macro_f1", "accuracy"), math.nan)
    module.eval()
    logits = torch.cat([module.logits(*step) for step in bags.in_order()])
    scores = _scores(float(loss.of_logits(logits, bags.labels)), logits, bags.labels)
    if recipe.monitor == "auroc":
        prob = logits.double().softmax(dim=1).cpu().numpy()
        scores["auroc"] = evaluate(bags.labels.cpu().numpy(), prob)["auroc"]
    return scores


def _scores(loss: float, logits: Tensor, labels: Tensor) -> dict[str, float]:
    truth, guess = labels.cpu().numpy(), logits.argmax(dim=1).cpu().numpy()
    return {
        "loss": loss,
        "macro_f1": macro_f1(truth, guess, logits.shape[1]),
        "accuracy": accuracy(truth, guess),
    }


def _row(epoch: int, seen: dict[str, float], watched: dict[str, float]) -> dict[str, Any]:
    return {
        "epoch": epoch,
        **{f"train_{name}": value for name, value in seen.items()},
        **{f"validation_{name}": value for name, value in watched.items()},
        "overfit_gap": seen["macro_f1"] - watched["macro_f1"],
    }
