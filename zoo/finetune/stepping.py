"""Steps and rates of one phase, with a state that a checkpoint can hold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.adam import adam
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from zoo.errors import RunError
from zoo.finetune.phases import prepare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from zoo.finetune.networks import Network
    from zoo.finetune.phases import Phase

__all__ = ["Rates", "Stepper", "begin_phase"]

_BETAS, _EPSILON, _MOMENTUM = (0.9, 0.999), 1e-8, 0.9
_KEPT = {"adamw": ("mean", "square", "step"), "adam": ("mean", "square", "step"), "sgd": ("mean",)}


class Stepper:
    """The optimiser of a phase, one learning rate per group.

    The steps are torch's fused ones. ``torch.optim``'s classes do the same, but making one
    imports torch's compiler, which takes seconds in every process and is not used.

    Parameters
    ----------
    phase
        Names the optimiser and its weight decay.
    groups
        As :func:`zoo.finetune.phases.prepare` gives them; ``lr`` is read at every step.
    """

    def __init__(self, phase: Phase, groups: list[dict[str, Any]]) -> None:
        self.param_groups = groups
        self._phase = phase
        self._kinds = _KEPT[phase.optimiser]
        self._state: dict[str, dict[str, Tensor]] = {}

    @property
    def parameters(self) -> list[Tensor]:
        """All that learns, as gradient clipping wants it."""
        return [parameter for group in self.param_groups for parameter in group["params"]]

    def zero_grad(self) -> None:
        """Forget gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Step along the gradients there are."""
        for group in self.param_groups:
            moved = [
                (name, weight)
                for name, weight in zip(group["names"], group["params"], strict=True)
                if weight.grad is not None
            ]
            if not moved:
                continue
            for name, weight in moved:
                if name not in self._state:
                    self._state[name] = self._begin(weight)
            states = [[self._state[name][kind] for name, _ in moved] for kind in self._kinds]
            weights = [weight for _, weight in moved]
            self._move(weights, [weight.grad for weight in weights], states, group["lr"])

    def _begin(self, weight: Tensor) -> dict[str, Tensor]:
        # The first moment of SGD starts from zero too: without dampening, one step leaves the
        # gradient itself.
        return {
            kind: torch.zeros((), dtype=torch.float32, device=weight.device)
            if kind == "step"
            else torch.zeros_like(weight)
            for kind in self._kinds
        }

    def _move(
        self, weights: list[Any], gradients: list[Any], states: list[list[Tensor]], rate: float
    ) -> None:
        common: dict[str, Any] = {
            "fused": True,
            "maximize": False,
            "lr": rate,
            "weight_decay": self._phase.weight_decay,
        }
        if self._phase.optimiser == "sgd":
            momenta: list[Any] = [*states[0]]
            sgd(
                weights,
                gradients,
                momenta,
                momentum=_MOMENTUM,
                dampening=0.0,
                nesterov=False,
                **common,
            )
            return
        means, squares, steps = states
        beta1, beta2 = _BETAS
        common |= {"amsgrad": False, "beta1": beta1, "beta2": beta2, "eps": _EPSILON}
        kind = adamw if self._phase.optimiser == "adamw" else adam
        kind(weights, gradients, means, squares, [], steps, **common)

    def state(self) -> dict[str, Tensor]:
        """Give what is remembered of each parameter: ``KIND.PARAMETER`` → tensor."""
        return {
            f"{kind}.{name}": value
            for name, kept in self._state.items()
            for kind, value in kept.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave.

        Raises
        ------
        RunError
            If it is not that of these parameters.
        """
        known = {
            name: weight
            for group in self.param_groups
            for name, weight in zip(group["names"], group["params"], strict=True)
        }
        found: dict[str, dict[str, Tensor]] = {}
        for key, value in state.items():
            kind, _, name = key.partition(".")
            if kind not in self._kinds or name not in known:
                raise RunError(f"a checkpoint remembers {key}, which does not learn in this phase")
            place = known[name].device
            found.setdefault(name, {})[kind] = value.to(place).clone()
        for name, kept in found.items():
            whole = all(
                kind in kept and (kind == "step" or kept[kind].shape == known[name].shape)
                for kind in self._kinds
            )
            if not whole:
                raise RunError(f"a checkpoint's memory of {name} is not whole")
        self._state = found


class Rates:
    """The learning rates over a phase.

    ``cosine`` falls from each group's rate to zero. ``plateau`` multiplies all rates by
    ``plateau_factor`` when the monitored score has not got better for ``plateau_patience``
    epochs, as torch's ``ReduceLROnPlateau`` does without its threshold.

    Parameters
    ----------
    phase
        Names the schedule.
    stepper
        Whose groups' ``lr`` are set.
    """

    def __init__(self, phase: Phase, stepper: Stepper) -> None:
        self._phase = phase
        self._groups = stepper.param_groups
        self._first = [group["lr"] for group in self._groups]
        self._best, self._stuck, self._factor = -math.inf, 0, 1.0

    def begin(self, progress: float) -> None:
        """Set the rates of the next step, after a share ``progress`` of the phase's steps."""
        cosine = self._phase.schedule == "cosine"
        share = 0.5 * (1 + math.cos(math.pi * progress)) if cosine else self._factor
        for group, first in zip(self._groups, self._first, strict=True):
            group["lr"] = first * share

    def see(self, score: float) -> None:
        """Look at the monitored score of an epoch, more is better."""
        if self._phase.schedule != "plateau":
            return
        if score > self._best:
            self._best, self._stuck = score, 0
            return
        self._stuck += 1
        if self._stuck > self._phase.plateau_patience:
            self._stuck = 0
            self._factor *= self._phase.plateau_factor

    def state(self) -> dict[str, float | None]:
        """Give what is remembered, as JSON values."""
        best = None if math.isinf(self._best) else self._best
        return {"best": best, "stuck": self._stuck, "factor": self._factor}

    def load_state(self, state: Mapping[str, float | None]) -> None:
        """Take up what :meth:`state` gave."""
        best, stuck, factor = (state.get(key) for key in ("best", "stuck", "factor"))
        self._best = -math.inf if best is None else best
        self._stuck = int(stuck or 0)
        self._factor = 1.0 if factor is None else factor


def begin_phase(network: Network, phase: Phase) -> tuple[Stepper, Rates]:
    """Freeze and unfreeze what a phase wants, and make its steps and rates."""
    stepper = Stepper(phase, prepare(network, phase))
    return stepper, Rates(phase, stepper)
