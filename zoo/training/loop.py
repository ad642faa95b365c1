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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zoo.errors import EmptyBag, RecipeError
from zoo.metrics import accuracy, macro_f1
from zoo.training.layout import Layout, Padded
from zoo.training.losses import Loss
from zoo.training.optim import WeightAverage, make_optimiser, rate_at, set_rate

if TYPE_CHECKING:
    from zoo.recipes import Recipe
    from zoo.training.batches import Batches

__all__ = ["BagModule", "train"]

logger = logging.getLogger(__name__)


class BagModule(nn.Module, ABC):
    """A head's network: patches of bags in, one row of logits per bag out."""

    @abstractmethod
    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Map rows in any layout to logits ``(bag, class)``; padding must be finite."""

    def forward(self, x: Tensor, mask: Tensor, coords: Tensor | None = None) -> Tensor:
        """Map padded bags to logits.

        **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool, True where a patch
        is real, ``coords (bag, patch, 2)``, which heads without positions ignore, →
        ``(bag, class)``. What stands in the padding never matters.
        """
        del coords
        return self.logits(*self.cleaned(x, mask))

    @staticmethod
    def cleaned(x: Tensor, mask: Tensor) -> tuple[Tensor, Padded]:
        """Put zeros where padding may hold anything, infinities included."""
        if not bool(mask.any(dim=1).all()):
            raise EmptyBag("a bag without any patch has no prediction: leave it out")
        return x.masked_fill(~mask.unsqueeze(-1), 0.0), Padded(mask)


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
        score = (row["validation_macro_f1"], -row["validation_loss"])
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
    optimiser = make_optimiser(recipe, module.parameters())
    keeper, average = _Keeper(recipe), WeightAverage()
    history: list[dict[str, Any]] = []
    for epoch in range(1, recipe.epochs + 1):
        seen = _one_epoch(module, bags, recipe=recipe, loss=loss, optimiser=optimiser, epoch=epoch)
        judged = module
        if recipe.swa_start is not None and epoch > recipe.swa_start * recipe.epochs:
            average.add(module)
            judged = copy.deepcopy(module)
            judged.load_state_dict(average.state())
        row = _row(epoch, seen, _evaluate(judged, validation, loss))
        history.append(row)
        logger.debug("epoch %d of %d: %s", epoch, recipe.epochs, row)
        if keeper.see(module, row):
            break
    keeper.restore(module)
    if average.count:
        module.load_state_dict(average.state())
    return history


def _one_epoch(
    module: BagModule,
    bags: Batches,
    *,
    recipe: Recipe,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    epoch: int,
) -> dict[str, float]:
    """Step once through all bags; give loss and scores of the training passes."""
    module.train()
    order = torch.randperm(len(bags), device=bags.rows.device)
    batches = torch.split(order, recipe.batch_size)
    losses, outputs = [], []
    for step, index in enumerate(batches):
        set_rate(optimiser, rate_at(recipe, (epoch - 1 + step / len(batches)) / recipe.epochs))
        rows, layout = bags.take(index, recipe=recipe)
        target = bags.labels[index]
        logits = module.logits(rows, layout)
        if recipe.r_drop:
            value = loss.of_passes(logits, module.logits(rows, layout), target)
        else:
            value = loss.of_logits(logits, target)
        optimiser.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        if recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), recipe.gradient_clip)
        optimiser.step()
        losses.append(value.detach() * len(index))
        outputs.append(logits.detach())
    total = float(torch.stack(losses).sum()) / len(bags)
    if not math.isfinite(total):
        raise RecipeError(
            f"training diverged in epoch {epoch} (loss is {total}): lower lr (it is {recipe.lr:g})"
        )
    return _scores(total, torch.cat(outputs), bags.labels[order])


@torch.inference_mode()
def _evaluate(module: BagModule, bags: Batches | None, loss: Loss) -> dict[str, float]:
    if bags is None:
        return dict.fromkeys(("loss", "macro_f1", "accuracy"), math.nan)
    module.eval()
    logits = torch.cat([module.logits(*step) for step in bags.in_order()])
    return _scores(float(loss.of_logits(logits, bags.labels)), logits, bags.labels)


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
