"""Steps, rates and averages, as a recipe asks for them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from zoo.recipes import Recipe

__all__ = ["Rates", "WeightAverage", "make_optimiser", "rate_at"]

_BETAS, _EPSILON, _MOMENTUM = (0.9, 0.999), 1e-8, 0.9
_WARM_UP, _FIRST, _LAST = 0.3, 1 / 25, 1 / 250_000


def make_optimiser(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Make the optimiser of a recipe: AdamW and SGD fused into one kernel, Lion from its author."""
    if recipe.optimiser == "lion":
        from lion_pytorch import Lion

        lion: torch.optim.Optimizer = Lion(
            parameters, betas=(0.9, 0.99), lr=recipe.lr, weight_decay=recipe.weight_decay
        )
        return lion
    fused = _AdamW if recipe.optimiser == "adamw" else _SGD
    # It has of an optimiser what training needs: groups, zero_grad and step.
    return cast("torch.optim.Optimizer", fused(recipe, parameters))


class _Fused(ABC):
    """One of torch's fused steps without ``torch.optim.Optimizer`` around it.

    The numbers are those of torch's class. Making an object of that class, though, imports
    torch's compiler, which takes seconds in every process and is not used.
    """

    def __init__(self, recipe: Recipe, parameters: Iterable[nn.Parameter]) -> None:
        self.param_groups: list[dict[str, Any]] = [
            {"params": list(parameters), "lr": recipe.lr, "weight_decay": recipe.weight_decay}
        ]
        self._state: dict[Tensor, tuple[Tensor, ...]] = {}
        self._last: tuple[list[int], list[list[Tensor]]] = ([], [])

    def zero_grad(self, *, set_to_none: bool = True) -> None:
        """Forget gradients."""
        for weight in self.param_groups[0]["params"]:
            if set_to_none or weight.grad is None:
                weight.grad = None
            else:
                weight.grad.zero_()

    @torch.no_grad()
    def step(self) -> None:
        """Step along the gradients there are."""
        group = self.param_groups[0]
        moved = [weight for weight in group["params"] if weight.grad is not None]
        if moved:
            self._move(moved, [weight.grad for weight in moved], self._states(moved), group)

    def _states(self, moved: list[Tensor]) -> list[list[Tensor]]:
        """Give what is remembered of parameters, kind by kind; as a rule they are those of before."""
        which = [id(weight) for weight in moved]
        if which != self._last[0]:
            for weight in moved:
                if weight not in self._state:
                    self._state[weight] = self._begin(weight)
            kinds = zip(*(self._state[weight] for weight in moved), strict=True)
            self._last = (which, [list(kind) for kind in kinds])
        return self._last[1]

    @abstractmethod
    def _begin(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Make what is remembered of one parameter."""

    @abstractmethod
    def _move(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        states: list[list[Tensor]],
        group: dict[str, Any],
    ) -> None:
        """Change weights and states in place."""


class _AdamW(_Fused):
    """AdamW (Loshchilov 2019, algorithm 2)."""

    def _begin(self, weight: Tensor) -> tuple[Tensor, ...]:
        steps = torch.zeros((), dtype=torch.float32, device=weight.device)
        return torch.zeros_like(weight), torch.zeros_like(weight), steps

    def _move(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        states: list[list[Tensor]],
        group: dict[str, Any],
    ) -> None:
        means, squares, steps = states
        adamw(
            weights,
            gradients,
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=_BETAS[0],
            beta2=_BETAS[1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=_EPSILON,
            maximize=False,
        )


class _SGD(_Fused):
    """Gradient descent with momentum."""

    def _begin(self, weight: Tensor) -> tuple[Tensor, ...]:
        # From zero, one step without dampening leaves the gradient itself.
        return (torch.zeros_like(weight),)

    def _move(
        self,
        weights: list[Tensor],
        gradients: list[Tensor],
        states: list[list[Tensor]],
        group: dict[str, Any],
    ) -> None:
        sgd(
            weights,
            gradients,
            [*states[0]],
            fused=True,
            weight_decay=group["weight_decay"],
            momentum=_MOMENTUM,
            lr=group["lr"],
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )


def rate_at(recipe: Recipe, progress: float) -> float:
    """Give the learning rate after a share ``progress`` of all steps, ``0 <= progress <= 1``.

    ``cosine`` falls from ``lr`` to zero (Loshchilov 2017, eq. 5, one cycle). ``one-cycle`` rises
    from ``lr`` / 25 to ``lr`` over the first 0.3 of the steps and falls to ``lr`` / 250,000, both
    along a cosine (Smith 2018, with the defaults of torch's ``OneCycleLR``). With weight
    averaging, ``cosine`` falls to ``swa_lr`` at ``swa_start`` and stays there, because averaging
    needs weights that still move (Izmailov 2018, §3.2).

    Examples
    --------
    >>> from zoo.recipes import Recipe
    >>> [round(rate_at(Recipe(lr=1.0), share), 3) for share in (0, 0.5, 1)]
    [1.0, 0.5, 0.0]
    >>> [rate_at(Recipe(lr=1.0, swa_start=0.5, swa_lr=0.25), share) for share in (0, 0.5, 1)]
    [1.0, 0.25, 0.25]
    >>> [round(rate_at(Recipe(lr=1.0, schedule="one-cycle"), share), 2) for share in (0, 0.3, 1)]
    [0.04, 1.0, 0.0]
    """
    if recipe.schedule == "one-cycle":
        if progress < _WARM_UP:
            return _between(_FIRST * recipe.lr, recipe.lr, progress / _WARM_UP)
        return _between(recipe.lr, _LAST * recipe.lr, (progress - _WARM_UP) / (1 - _WARM_UP))
    last, end = 0.0, 1.0
    if recipe.swa_start is not None:
        last = recipe.lr / 2 if recipe.swa_lr is None else recipe.swa_lr
        end = recipe.swa_start
        if progress >= end:
            return last
    if recipe.schedule == "none":
        return recipe.lr
    return _between(recipe.lr, last, progress / end)


def _between(first: float, last: float, share: float) -> float:
    """Go from ``first`` to ``last`` along half a cosine."""
    return last + 0.5 * (first - last) * (1 + math.cos(math.pi * share))


class Rates:
    """The learning rate over a training.

    ``plateau`` is the one schedule that looks at results: the rate is multiplied by
    ``plateau_factor`` when the monitored score has not got better for ``plateau_patience``
    epochs, as torch's ``ReduceLROnPlateau`` does without its threshold.
    """

    def __init__(self, recipe: Recipe, optimiser: torch.optim.Optimizer) -> None:
        self._recipe = recipe
        self._optimiser = optimiser
        self._best, self._stuck = -math.inf, 0

    def begin(self, progress: float) -> None:
        """Set the rate of the next step, after a share ``progress`` of all."""
        if self._recipe.schedule != "plateau":
            for group in self._optimiser.param_groups:
                group["lr"] = rate_at(self._recipe, progress)

    def see(self, score: float) -> None:
        """Look at the monitored score of an epoch, more is better."""
        if self._recipe.schedule != "plateau":
            return
        if score > self._best:
            self._best, self._stuck = score, 0
            return
        self._stuck += 1
        if self._stuck > self._recipe.plateau_patience:
            self._stuck = 0
            for group in self._optimiser.param_groups:
                group["lr"] *= self._recipe.plateau_factor


class WeightAverage:
    """Running mean of a module's parameters.

    Without ``decay`` all weights taken in count alike (SWA; Izmailov 2018, algorithm 1). With
    it, older ones fade (EMA; Polyak 1992): mean ← d · mean + (1 − d) · weights, where d is
    ``decay``, but smaller at first, (1 + n) / (10 + n) after n updates, so that initial weights
    are soon forgotten.

    The heads normalise by layer, not by batch, so there are no statistics to compute again.
    """

    def __init__(self, decay: float | None = None) -> None:
        self.count = 0
        self._decay = decay
        self._mean: dict[str, Tensor] = {}

    def add(self, module: nn.Module) -> None:
        """Take the module's present weights into the mean."""
        self.count += 1
        share = 1.0 / self.count
        if self._decay is not None:
            share = 1.0 - min(self._decay, (1 + self.count) / (10 + self.count))
        for name, value in module.state_dict().items():
            if self.count == 1:
                self._mean[name] = value.clone()
            else:
                self._mean[name].lerp_(value, share)

    def state(self) -> dict[str, Tensor]:
        """Give the mean of all weights taken in."""
        return {name: value.clone() for name, value in self._mean.items()}
