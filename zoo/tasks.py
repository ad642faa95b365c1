"""What is learned of an image: its class, its level, several labels, a number, or a survival time.

A :class:`Task` is decided once, when a run begins, and says everything that depends on it: how
many numbers a network puts out, what they mean, and what the columns of a predictions table are
called. The names of classes, levels or labels are kept where they always were, with the bags.

==============  ======================  ==================================================
kind            truth                   what a head predicts
==============  ======================  ==================================================
classification  one of some classes     a probability per class
ordinal         one of ordered levels   a probability per level
multi-label     0 or 1 per label        a probability per label
regression      a number                the number
survival        a time, and an event    a risk: the larger, the sooner the event
==============  ======================  ==================================================
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["KINDS", "LOSSES", "Task"]

LOSSES: dict[str, tuple[str, ...]] = {
    "classification": ("recipe",),
    "ordinal": ("ratios",),
    "multi-label": ("binary",),
    "regression": ("huber", "squared"),
    "survival": ("cox", "hazards"),
}
"""What may be minimised for each kind of task; the first is the default."""

KINDS = tuple(LOSSES)
"""Every kind of task."""

_HEEDED = {
    "ordinal": {"class_weights", "sampler"},
    "multi-label": {"label_smoothing", "class_weights"},
}
_OF_CLASSES = ("label_smoothing", "class_weights", "focal_gamma", "mixup", "sampler")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """What is learned.

    Raises
    ------
    OptionError
        If the parts do not fit each other; ``problems`` lists everything found.

    Examples
    --------
    >>> task = Task.of("survival", "months,dead", loss="hazards")
    >>> task.targets, task.target_columns, task.value_columns(())
    (('months', 'dead'), ('target_time', 'target_event'), ('pred_risk',))
    """

    kind: str = "classification"
    """One of :data:`KINDS`."""
    targets: tuple[str, ...] = ("label",)
    """Columns of the cohort: the label; the labels of multi-label; time and event of survival."""
    loss: str = "recipe"
    """What is minimised, one of :data:`LOSSES` of the kind."""
    intervals: int = 4
    """Intervals of time, for ``hazards``."""
    shift: float = 0.0
    """Learned, added to outputs: mean of the training target (regression), or what makes the
    mean risk of the training bags 0, so that folds can be judged together (``cox``)."""
    scale: float = 1.0
    """Learned: standard deviation of the training target (regression)."""
    ends: tuple[float, ...] = ()
    """Learned: ends of the intervals, the last one the longest training time (``hazards``)."""

    def __post_init__(self) -> None:
        problems = []
        if self.kind not in LOSSES:
            raise OptionError(f"task is {self.kind!r}: use auto or one of {', '.join(KINDS)}")
        if self.loss not in LOSSES[self.kind]:
            known = ", ".join(LOSSES[self.kind])
            problems.append(f"loss is {self.loss!r}, but task {self.kind} knows {known}")
        count, wanted = len(self.targets), {"multi-label": "two or more", "survival": "two"}
        if (self.kind == "survival" and count != 2) or (self.kind == "multi-label" and count < 2):
            told = " (time, then event)" if self.kind == "survival" else ""
            problems.append(
                f"task {self.kind} needs {wanted[self.kind]} target columns with commas "
                f"between{told}, seen {','.join(self.targets)!r}"
            )
        if len(set(self.targets)) < count or not all(self.targets):
            problems.append(f"target columns {','.join(self.targets)!r} must be different names")
        if self.kind == "multi-label" and any(";" in name for name in self.targets):
            problems.append("a label's name holds ';', which stands between labels in tables")
        if type(self.intervals) is not int or not 2 <= self.intervals <= 1_000:
            problems.append(f"intervals is {self.intervals!r}, but must be 2 to 1000")
        if not self.scale > 0 or not all(map(math.isfinite, (self.shift, self.scale, *self.ends))):
            problems.append("shift, scale and ends must be finite, scale above 0")
        if problems:
            raise OptionError("; ".join(problems), problems=problems)

    @classmethod
    def of(
        cls, kind: str, target: str = "label", *, loss: str | None = None, intervals: int = 4
    ) -> Task:
        """Make a task as the options of ``zoo fit`` say.

        Parameters
        ----------
        kind
            One of :data:`KINDS`, or ``auto``: classification, whatever the column holds.
        target
            Column, or several with commas between (multi-label, survival).
        loss
            One of :data:`LOSSES` of the kind; the first where left out.
        intervals
            Intervals of time, for ``hazards``.
        """
        kind = "classification" if kind == "auto" else kind
        several = kind in ("multi-label", "survival")
        names = tuple(name.strip() for name in target.split(",")) if several else (target,)
        chosen = loss if loss is not None else LOSSES.get(kind, ("",))[0]
        return cls(kind=kind, targets=names, loss=chosen, intervals=intervals)

    @property
    def one_class(self) -> bool:
        """Whether each image has one of some classes or levels."""
        return self.kind in ("classification", "ordinal")

    @property
    def has_classes(self) -> bool:
        """Whether probabilities are predicted."""
        return self.one_class or self.kind == "multi-label"

    @property
    def target_columns(self) -> tuple[str, ...]:
        """Columns of a predictions table that hold the truth."""
        return ("target_time", "target_event") if self.kind == "survival" else ("target",)

    def value_columns(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Columns of a predictions table that hold what was predicted."""
        if self.has_classes:
            return tuple(f"prob_{name}" for name in classes)
        return ("pred_risk",) if self.kind == "survival" else (f"pred_{self.targets[0]}",)

    def n_outputs(self, n_classes: int) -> int:
        """Count the numbers that a network puts out for a bag."""
        if self.kind == "ordinal":
            return n_classes - 1
        return n_classes if self.has_classes else max(1, len(self.ends))

    def unheeded(self, recipe: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
        """Name the settings of a recipe that would mean nothing.

        Parameters
        ----------
        recipe, plain
            Settings by name, of the recipe and of one that asks for nothing.

        Examples
        --------
        >>> Task.of("regression", "age").unheeded({"mixup": 1.0}, {"mixup": 0.0})
        ['mixup']
        """
        if self.kind == "classification":
            return []
        heeded = _HEEDED.get(self.kind, set())
        return [
            key for key in _OF_CLASSES if key not in heeded and recipe.get(key) != plain.get(key)
        ]

    def learn(self, truth: NDArray[np.float64]) -> Task:
        """Learn from the truth of the training bags what outputs are to be measured by.

        Parameters
        ----------
        truth
            As of :attr:`zoo.bags.Bags.truth`.

        Examples
        --------
        >>> task = Task.of("regression", "age").learn(np.array([[1.0], [3.0]]))
        >>> task.shift, task.scale
        (2.0, 1.0)
        """
        if self.kind == "regression":
            return dataclasses.replace(
                self, shift=float(truth.mean()), scale=float(truth.std()) or 1.0
            )
        if self.loss == "hazards":
            # As many events in each interval: quantiles of their times.
            times = truth[truth[:, 1] > 0, 0]
            shares = np.arange(1, self.intervals) / self.intervals
            longest = float(truth[:, 0].max())
            cuts = np.unique(np.quantile(times, shares))
            inner = [float(cut) for cut in cuts if 0 < cut < longest]
            return dataclasses.replace(self, ends=(*inner, longest))
        return self

    def decode(self, outputs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Turn outputs of a network into what is predicted.

        A level's probability is that of stopping there, having passed those below: with
        h = sigmoid(output), P(level k) = h_k · Π_{j<k} (1 − h_j). P(level > k) can therefore
        only fall with k. ``hazards`` are read the same way; their risk is minus the mean over
        the intervals of the probability to survive them.

        Parameters
        ----------
        outputs
            ``(bag, output)``.

        Returns
        -------
        values
            ``(bag, column)``, the columns of :meth:`value_columns`.

        Examples
        --------
        >>> Task.of("ordinal").decode(np.array([[0.0, 0.0]])).tolist()
        [[0.5, 0.25, 0.25]]
        """
        if self.kind == "regression" or self.loss == "cox":
            return outputs * self.scale + self.shift
        if self.kind == "multi-label":
            return _sigmoid(outputs)
        if self.kind == "classification":
            powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
            shares: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
            return shares
        passed = np.exp(-np.cumsum(np.logaddexp(0.0, outputs), axis=1))  # P(level > k)
        if self.kind == "survival":
            risk: NDArray[np.float64] = -passed.mean(axis=1, keepdims=True)
            return risk
        ahead = np.concatenate([np.ones((len(passed), 1)), passed], axis=1)
        return np.concatenate([ahead[:, :-1] * _sigmoid(outputs), ahead[:, -1:]], axis=1)

    def problem_of(self, truth: NDArray[np.float64]) -> str:
        """Say why the truth of some bags teaches nothing; empty where it does."""
        if self.kind == "regression" and np.ptp(truth) == 0:
            return f"target {self.targets[0]} is {truth.flat[0]:g} throughout"
        if self.kind == "survival" and not truth[:, 1].any():
            return f"{self.targets[1]} has no event"
        if self.kind == "multi-label" and (np.ptp(truth, axis=0) == 0).all():
            return "no label has both 0 and 1"
        return ""

    def to_json(self) -> dict[str, Any]:
        """Write the task as JSON values."""
        told = dataclasses.asdict(self)
        return {**told, "targets": list(self.targets), "ends": list(self.ends)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any] | None) -> Task:
        """Invert :meth:`to_json`; classification where there is none.

        Raises
        ------
        OptionError
            If it is no task.
        """
        if document is None:
            return cls()
        try:
            told = dict(document)
            lists = {"targets": tuple(map(str, told["targets"])), "ends": tuple(told["ends"])}
            return cls(**{**told, **lists})
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, OptionError):
                raise
            raise OptionError(f"not a task: {document!r}") from error


def _sigmoid(outputs: NDArray[np.float64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = np.exp(-np.logaddexp(0.0, -outputs))
    return shares
