"""Steps, rates and averages, as a recipe asks for them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from zoo.recipes import Recipe

__all__ = ["WeightAverage", "make_optimiser", "rate_at", "set_rate"]


def make_optimiser(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser of a recipe: AdamW and SGD fused into one kernel, Lion from its author."""
    settings: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **settings)
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(parameters, momentum=0.9, fused=True, **settings)
    from lion_pytorch import Lion

    lion: torch.optim.Optimizer = Lion(parameters, betas=(0.9, 0.99), **settings)
    return lion


def rate_at(recipe: Recipe, progress: float) -> float:
    """Give the learning rate after a share ``progress`` of all steps, ``0 <= progress <= 1``.

    The cosine schedule falls from ``lr`` to zero (Loshchilov 2017, eq. 5, one cycle). With
    weight averaging it falls to ``swa_lr`` at ``swa_start`` and stays there, because averaging
    needs weights that still move (Izmailov 2018, §3.2).

    Examples
    --------
    >>> from zoo.recipes import Recipe
    >>> [round(rate_at(Recipe(lr=1.0), share), 3) for share in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    >>> [rate_at(Recipe(lr=1.0, swa_start=0.5, swa_lr=0.25), share) for share in (0, 0.5, 1)]
    [1.0, 0.25, 0.25]
    """
    last, end = 0.0, 1.0
    if recipe.swa_start is not None:
        last = recipe.lr / 2 if recipe.swa_lr is None else recipe.swa_lr
        end = recipe.swa_start
        if progress >= end:
            return last
    if recipe.schedule == "none":
        return recipe.lr
    return last + 0.5 * (recipe.lr - last) * (1 + math.cos(math.pi * progress / end))


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Step with ``rate`` from now on."""
    for group in optimiser.param_groups:
        group["lr"] = rate


class WeightAverage:
    """Running mean of a module's parameters over epochs (Izmailov 2018, algorithm 1).

    The heads normalise by layer, not by batch, so there are no statistics to compute again.
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean: dict[str, Tensor] = {}

    def add(self, module: nn.Module) -> None:
        """Take the module's present weights into the mean."""
        self.count += 1
        for name, value in module.state_dict().items():
            if self.count == 1:
                self._mean[name] = value.clone()
            else:
                self._mean[name].lerp_(value, 1.0 / self.count)

    def state(self) -> dict[str, Tensor]:
        """Give the mean of all weights taken in."""
        return {name: value.clone() for name, value in self._mean.items()}
