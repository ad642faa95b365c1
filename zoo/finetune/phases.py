"""Phases: which parts of a network learn, how fast, and for how long.

Parts are named as the network names its groups. Beside a group's own name, ``last:N`` stands
for the last N stages and ``all`` for everything but the head; with a branch in front
(``vit.last:4``) they mean that branch of a hybrid.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zoo import settings as _settings
from zoo.errors import RecipeError
from zoo.settings import choice, number, whole

if TYPE_CHECKING:
    from torch import nn

    from zoo.finetune.networks import Network

__all__ = ["HEAD", "Phase", "prepare", "rates_of", "teach", "trained_groups"]

HEAD = "head"
"""The group of a network that is not a backbone: what is drawn at random and learned anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stretch of a training.

    Raises
    ------
    RecipeError
        If a value has the wrong type or lies outside its range; ``problems`` lists all.

    Examples
    --------
    >>> Phase(name="head alone", epochs=7, learning_rates={"head": 1e-4}).learning_rates
    {'head': 0.0001}
    """

    name: str = "training"
    learning_rates: Mapping[str, float] = field(default_factory=lambda: {"all": 1e-3, HEAD: 1e-3})
    """Part → learning rate; what is not named is frozen. Where parts overlap, the later counts."""

    epochs: int = whole(30, "passes over the training images", low=1, high=100_000)
    optimiser: str = choice("adamw", "how to step", among=("adamw", "adam", "sgd"))
    weight_decay: float = number(0.0, "decoupled weight decay (adam, sgd: L2)", high=10)
    schedule: str = choice(
        "none",
        "learning rate over the phase: constant, to zero, or down when stuck",
        among=("none", "cosine", "plateau"),
    )
    plateau_patience: int = whole(
        3, "epochs without a better score before schedule plateau lowers the rates", low=0
    )
    plateau_factor: float = number(
        0.2, "by which schedule plateau multiplies the rates", positive=True, high=0.99
    )
    patience: int | None = whole(
        None, "end the phase after this many epochs without a better score", low=1, optional=True
    )
    accumulation: int = whole(1, "batches whose gradients make one step", low=1, high=100_000)
    gradient_clip: float | None = number(
        None, "largest gradient norm", positive=True, optional=True
    )
    precision: str = choice(
        "float32",
        "of matrix products while training; bfloat16 is mixed precision",
        among=("float32", "bfloat16"),
    )
    augmentation: str | None = None
    """Name of an augmentation; ``None`` is the recipe's."""

    def __post_init__(self) -> None:
        problems = _settings.problems_of(self)
        if not self.learning_rates:
            problems.append("learning_rates is empty, so nothing would learn")
        for part, rate in self.learning_rates.items():
            if isinstance(rate, bool) or not 0 < rate <= 10:
                problems.append(f"the learning rate of {part} is {rate!r}: above 0, at most 10")
        _settings.check(f"phase {self.name}", problems)

    def to_json(self) -> dict[str, Any]:
        """Give the phase as JSON values."""
        return {
            "name": self.name,
            "learning_rates": dict(self.learning_rates),
            "augmentation": self.augmentation,
            **_settings.to_json(self),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Phase:
        """Invert :meth:`to_json`; unknown keys are refused."""
        rest = dict(document)
        name, augmentation = rest.pop("name", "training"), rest.pop("augmentation", None)
        rates = rest.pop("learning_rates", None)
        if not isinstance(rates, Mapping) or not all(
            isinstance(rate, float | int) for rate in rates.values()
        ):
            raise RecipeError(f"phase {name}: learning_rates is {rates!r}, not parts with rates")
        values = _settings.parse(cls, rest, subject=f"phase {name}")
        return cls(name=name, learning_rates=dict(rates), augmentation=augmentation, **values)

    def with_rate(self, rate: float) -> Phase:
        """Give the phase with the fastest rate set to ``rate`` and the others in proportion."""
        fastest = max(self.learning_rates.values())
        rates = {part: old / fastest * rate for part, old in self.learning_rates.items()}
        return dataclasses.replace(self, learning_rates=rates)


def trained_groups(groups: Mapping[str, tuple[str, ...]], part: str) -> tuple[str, ...]:
    """Find the groups of a network that a part of a phase means.

    Parameters
    ----------
    groups
        Of the network, from input to output.
    part
        A group, ``last:N`` or ``all``, the latter two with a branch and a point in front where
        they mean one branch.

    Raises
    ------
    RecipeError
        If nothing is meant; the message lists the groups and the nearest.

    Examples
    --------
    >>> groups = dict.fromkeys(("stem", "stage-1", "stage-2", "norm", "head"), ())
    >>> trained_groups(groups, "last:1"), trained_groups(groups, "all")
    (('stage-2',), ('stem', 'stage-1', 'stage-2', 'norm'))
    >>> trained_groups(groups, "haed")
    Traceback (most recent call last):
    zoo.errors.RecipeError: no part is called 'haed' (did you mean 'head'?); groups: stem, stage-1, stage-2, norm, head; or all, last:N
    """
    if part in groups:
        return (part,)
    branch, _, short = part.rpartition(".")
    prefix = f"{branch}." if branch else ""
    inside = [name for name in groups if name.startswith(prefix) and name != HEAD]
    if short == "all" and inside:
        return tuple(inside)
    if short.startswith("last:") and short[5:].isdigit() and int(short[5:]) > 0:
        stages = [name for name in inside if name.removeprefix(prefix).startswith("stage-")]
        if int(short[5:]) <= len(stages):
            return tuple(stages[-int(short[5:]) :])
    nearest = difflib.get_close_matches(part, groups, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    raise RecipeError(
        f"no part is called {part!r}{hint}; groups: {', '.join(groups)}; or all, last:N"
    )


def rates_of(network: Network, phase: Phase) -> dict[str, float]:
    """Give the learning rate of each group that learns in a phase, from input to output.

    Raises
    ------
    RecipeError
        If the phase names a part that the network does not have.
    """
    rates: dict[str, float] = {}
    for part, rate in phase.learning_rates.items():
        rates.update(dict.fromkeys(trained_groups(network.groups, part), float(rate)))
    return {name: rates[name] for name in network.groups if name in rates}


def prepare(network: Network, phase: Phase) -> list[dict[str, Any]]:
    """Freeze and unfreeze parameters as a phase wants them.

    Returns
    -------
    parameter_groups
        One per group that learns: ``name``, ``params``, ``names`` of the parameters, ``lr``, in
        the order of the network.
    """
    named = dict(network.module.named_parameters())
    for parameter in named.values():
        parameter.requires_grad = False
        parameter.grad = None
    prepared = []
    for group, rate in rates_of(network, phase).items():
        names = network.groups[group]
        members = [named[name] for name in names]
        for parameter in members:
            parameter.requires_grad = True
        prepared.append({"name": group, "names": names, "params": members, "lr": rate})
    return prepared


def teach(module: nn.Module) -> None:
    """Put what learns into training mode, and what is frozen into evaluation mode.

    A frozen stage then has neither dropout nor statistics of its batches, and gives the vectors
    that the encoder of a store gives. To be called before every epoch, after :func:`prepare`.
    """
    learns = [parameter.requires_grad for parameter in module.parameters()]
    if learns and not any(learns):
        module.eval()
        return
    module.training = True
    for child in module.children():
        teach(child)
