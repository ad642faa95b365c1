"""What each rule learns and how it is applied, task by task.

=====================  ====================  ======================  ==========================
task                   ``weighted``          ``greedy``              ``stack``
=====================  ====================  ======================  ==========================
classes, levels        log loss              log loss                exponents, log loss
several labels         the same of each label's two sides, mean over labels
regression             squared error         squared error           slopes, squared error
survival               partial likelihood    C-index                 no meaning of its own
=====================  ====================  ======================  ==========================

Risks have no scale that members share, so those of each member are standardised first, by mean
and standard deviation of the rows that weights are learned from.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.blending.numbers import cox_weights, slope_weights, squares_weights
from zoo.blending.pools import (
    PRIOR_IMAGES,
    RIDGE,
    linear_pool,
    log_pool,
    simplex_weights,
    stack_weights,
)
from zoo.blending.ranks import rank_among
from zoo.blending.selection import bagged_greedy_weights
from zoo.blending.temperature import cooled
from zoo.errors import NotSupported

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CALIBRATIONS", "LEARNED", "RULES", "Mix", "Pool", "as_cells", "check_rule", "learn"]

RULES = ("mean", "rank", "weighted", "greedy", "stack")
"""How members are combined; the first is the default."""

LEARNED = ("weighted", "greedy", "stack")
"""Rules that learn weights."""

CALIBRATIONS = ("none", "temperature")
"""What may follow a rule; the first is the default."""

_NUMBERS = ("regression", "survival")
"""Kinds of task that predict no probabilities."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mix:
    """What a rule learned: Σ_m w_m (x_m − shift_m) / scale_m + intercept, or powers w_m."""

    weights: NDArray[np.float64]
    """``(member,)``."""
    shift: NDArray[np.float64] | None = None
    """``(member,)``; None: 0."""
    scale: NDArray[np.float64] | None = None
    """``(member,)``; None: 1."""
    intercept: float | None = None
    """None: 0."""

    def standardised(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Put members ``(member, image, column)`` on the scale on which they are added up."""
        moved = values if self.shift is None else values - self.shift[:, None, None]
        return moved if self.scale is None else moved / self.scale[:, None, None]

    def select(self, members: NDArray[np.int64]) -> Mix:
        """Keep what is for some of the members."""
        return dataclasses.replace(
            self,
            weights=self.weights[members],
            shift=None if self.shift is None else self.shift[members],
            scale=None if self.scale is None else self.scale[members],
        )

    def to_json(self) -> dict[str, Any]:
        """Give what was learned as JSON values, without what was not."""
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: np.asarray(x).tolist() for name, x in told.items() if x is not None}


def check_rule(rule: str, calibrate: str, kind: str = "classification") -> None:
    """Refuse what is not known, or has no meaning for a kind of task."""
    for what, given, known in (("rule", rule, RULES), ("calibration", calibrate, CALIBRATIONS)):
        if given not in known:
            raise NotSupported(f"{what} {given!r} is not known: use one of {', '.join(known)}")
    if kind == "survival" and rule == "stack":
        raise NotSupported(
            "rule stack would order risks just as rule weighted does, and risks have no scale to "
            "learn: use rule weighted"
        )
    if kind in _NUMBERS and calibrate != "none":
        raise NotSupported(
            f"calibration by {calibrate} is of probabilities, and task {kind} has none: leave it out"
        )


def learn(
    rule: str,
    prob: NDArray[np.float64],
    y_true: NDArray[Any],
    patient_ids: NDArray[np.object_],
    *,
    kind: str = "classification",
    n_cells: int = 1,
) -> Mix:
    """Learn what a rule needs from images whose truth is known.

    Parameters
    ----------
    rule
        One of :data:`LEARNED`.
    prob
        ``(member, image, column)``.
    y_true
        Classes ``(image,)``; of numbers and risks ``(image, column)``.
    patient_ids
        ``(image,)``.
    kind
        Of task; several labels come as cells (:func:`as_cells`), which are classes.
    n_cells
        Rows that count as one image where they are weighed against a prior.
    """
    if kind == "survival":
        return _of_risks(rule, prob, y_true, patient_ids)
    if rule == "greedy":
        return Mix(weights=bagged_greedy_weights(prob, y_true, patient_ids, kind=kind))
    if kind == "regression":
        return _of_numbers(rule, prob[:, :, 0], y_true[:, 0])
    if rule == "weighted":
        return Mix(weights=simplex_weights(prob, y_true, prior=PRIOR_IMAGES * n_cells))
    return Mix(weights=stack_weights(prob, y_true, ridge=RIDGE * n_cells))


def _of_numbers(rule: str, values: NDArray[np.float64], truth: NDArray[np.float64]) -> Mix:
    if rule == "weighted":
        return Mix(weights=squares_weights(values, truth))
    slopes = slope_weights(values, truth)
    return Mix(weights=slopes, shift=values.mean(axis=1), intercept=float(truth.mean()))


def _of_risks(
    rule: str,
    risks: NDArray[np.float64],
    truth: NDArray[np.float64],
    patient_ids: NDArray[np.object_],
) -> Mix:
    sd = risks[:, :, 0].std(axis=1)
    plain = Mix(
        weights=np.ones(len(risks)),
        shift=risks[:, :, 0].mean(axis=1),
        scale=np.where(sd > 0, sd, 1.0),
    )
    told = plain.standardised(risks)
    if rule == "weighted":
        return dataclasses.replace(plain, weights=cox_weights(told[:, :, 0], truth))
    picked = bagged_greedy_weights(told, truth, patient_ids, kind="survival")
    return dataclasses.replace(plain, weights=picked)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Pool:
    """A rule with what it learned: from what members say to what the ensemble says."""

    kind: str = "classification"
    rule: str = "mean"
    mix: Mix | None = None
    """Of a rule that learns."""
    reference: NDArray[np.float64] | None = None
    """Out-of-fold predictions ``(member, image, column)``, of the rule ``rank``."""
    temperature: float = 1.0
    members: tuple[Pool, ...] = ()
    """How each member makes one of what its own say; none for a run, whose heads are averaged."""

    @property
    def n_runs(self) -> int:
        """How many runs with heads there are, members of members too."""
        return sum(member.n_runs for member in self.members) if self.members else 1

    @property
    def is_average(self) -> bool:
        """Whether members are averaged as they are, with weights that sum to 1."""
        if self.mix is None:
            return self.rule != "rank"
        return self.rule != "stack" and self.mix.scale is None

    def select(self, members: NDArray[np.int64]) -> Pool:
        """Keep what is for some of the members."""
        return dataclasses.replace(
            self,
            mix=None if self.mix is None else self.mix.select(members),
            reference=None if self.reference is None else self.reference[members],
        )

    def __call__(self, prob: NDArray[np.float64]) -> NDArray[np.float64]:
        """Combine members, ``(member, image, column)`` to ``(image, column)``."""
        return self.finished(self._mixed(prob))

    def finished(self, mixed: NDArray[np.float64]) -> NDArray[np.float64]:
        """Cool what was combined, ``(image, column)``, by the temperature."""
        if self.kind != "multi-label" or self.temperature == 1.0:
            return cooled(mixed, self.temperature)
        return _from_cells(cooled(as_cells(mixed), self.temperature), mixed.shape[1])

    def _mixed(self, prob: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.rule == "rank" and self.reference is not None:
            return rank_among(prob, self.reference, self.kind)
        if self.mix is None:
            return np.asarray(prob.mean(axis=0))
        if self.rule != "stack" or self.kind == "regression":
            mixed = linear_pool(self.mix.weights, self.mix.standardised(prob))
            return mixed + (self.mix.intercept or 0.0)
        if self.kind == "multi-label":
            return _from_cells(log_pool(self.mix.weights, as_cells(prob)), prob.shape[2])
        return log_pool(self.mix.weights, prob)


def as_cells(prob: NDArray[np.float64]) -> NDArray[np.float64]:
    """Write each label's probability as a row of two classes, not there and there.

    So what holds for classes holds for labels, and the log loss of the rows is the mean over labels.

    Examples
    --------
    >>> as_cells(np.array([[0.25, 1.0]])).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    flat = prob.reshape(*prob.shape[:-2], -1)
    return np.stack([1.0 - flat, flat], axis=-1)


def _from_cells(prob: NDArray[np.float64], n_labels: int) -> NDArray[np.float64]:
    return prob[:, 1].reshape(-1, n_labels)
