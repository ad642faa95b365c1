"""Statistics of a bag's patches, and what heads on them share.

The statistics are part of a head's settings, in this order and these definitions; each gives
one value per feature:

``mean``, ``min``, ``max``
    as usual;
``sd``
    standard deviation over the bag's patches, divided by their number, 0 for one patch;
``q10``, ``q25``, ``q50``, ``q75``, ``q90``
    quantiles, linear between neighbours (type 7 of Hyndman and Fan).
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from zoo.errors import RecipeError
from zoo.heads.base import HeadSpec
from zoo.metrics import accuracy, evaluate, headline, higher_is_better, macro_f1
from zoo.settings import names

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.heads.base import Head
    from zoo.recipes import Recipe
    from zoo.tasks import Task

__all__ = [
    "STATISTICS",
    "Common",
    "EstimatorSpec",
    "PooledSpec",
    "bag_weights",
    "pool",
    "pool_bags",
]

STATISTICS = ("mean", "sd", "min", "max", "q10", "q25", "q50", "q75", "q90")
"""Names of the known statistics."""


def pool(
    embedding: NDArray[Any], offset: NDArray[np.int64], statistics: tuple[str, ...]
) -> NDArray[np.float64]:
    """Describe each bag by statistics over its patches.

    Parameters
    ----------
    embedding
        ``(patch, feature)``.
    offset
        ``(bag + 1,)``; rows of bag i are ``offset[i]:offset[i + 1]``, at least one.
    statistics
        Names out of :data:`STATISTICS`.

    Returns
    -------
    pooled
        ``(bag, statistic · feature)`` float64, one statistic after the other.

    Examples
    --------
    >>> pool(np.array([[1.0], [3.0], [7.0]]), np.array([0, 2, 3]), ("mean", "sd", "q50"))
    array([[2., 1., 2.],
           [7., 0., 7.]])
    """
    rows = np.asarray(embedding, np.float64)
    starts, lengths = offset[:-1], np.diff(offset)[:, None]
    columns = []
    mean = np.add.reduceat(rows, starts, axis=0) / lengths
    for name in statistics:
        if name == "mean":
            columns.append(mean)
        elif name == "sd":
            apart = rows - np.repeat(mean, lengths[:, 0], axis=0)
            columns.append(np.sqrt(np.add.reduceat(apart * apart, starts, axis=0) / lengths))
        elif name == "min":
            columns.append(np.minimum.reduceat(rows, starts, axis=0))
        elif name == "max":
            columns.append(np.maximum.reduceat(rows, starts, axis=0))
        else:
            columns.append(_quantile(rows, offset, int(name[1:]) / 100))
    return np.concatenate(columns, axis=1)


def pool_bags(bags: Bags, statistics: tuple[str, ...]) -> NDArray[np.float64]:
    """Describe each bag as :func:`pool` does; rows that are mapped are read part by part."""
    parts = [pool(block.embedding, block.offset, statistics) for block in bags.blocks()]
    return np.concatenate(parts)


def _quantile(
    rows: NDArray[np.float64], offset: NDArray[np.int64], share: float
) -> NDArray[np.float64]:
    """Take a quantile of each bag, all bags of one length together."""
    lengths = np.diff(offset)
    result = np.empty((len(lengths), rows.shape[1]))
    for length in np.unique(lengths):
        bags = np.flatnonzero(lengths == length)
        where = offset[bags][:, None] + np.arange(length)  # (bag, patch)
        result[bags] = np.quantile(rows[where], share, axis=1)
    return result


def bag_weights(labels: NDArray[np.int64], recipe: Recipe) -> NDArray[np.float64]:
    """Weigh training bags as the recipe's ``class_weights`` asks, ``(bag,)``, mean 1."""
    if recipe.class_weights == "none":
        return np.ones(len(labels))
    counts = np.bincount(labels)
    return len(labels) / (np.count_nonzero(counts) * counts[labels])


class Common(TypedDict):
    """Fields of a :class:`~zoo.heads.base.Head` that say what was fitted, and how."""

    spec: Any
    recipe: Recipe
    seed: int
    classes: tuple[str, ...]
    n_features: int
    task: Task


@dataclass(frozen=True, kw_only=True, slots=True)
class EstimatorSpec(HeadSpec):
    """Settings of a head that is fitted without gradient steps on patches."""

    def check_recipe(self, recipe: Recipe, *, has_validation: bool) -> None:
        """Refuse a recipe of which anything but ``class_weights`` would be ignored."""
        del has_validation
        unfit = recipe.unfit_for_estimators()
        if unfit:
            raise RecipeError(
                f"head {self.name} takes no gradient steps, so recipe {recipe.name} does not fit "
                f"it ({', '.join(unfit)} would mean nothing): use recipe default, in which "
                "class_weights may be set",
                problems=unfit,
            )

    def _fit(
        self,
        bags: Bags,
        validation: Bags | None,
        recipe: Recipe,
        *,
        seed: int,
        device: str,
        threads: int,
    ) -> Head:
        del device  # estimators use the CPU
        common = Common(
            spec=self,
            recipe=recipe,
            seed=seed,
            classes=bags.classes,
            n_features=bags.n_features,
            task=bags.task.learn(bags.truth),
        )
        head = self._learn_bags(bags, common, threads=threads)
        return dataclasses.replace(head, history=(score_row(head, bags, validation),))

    @abstractmethod
    def _learn_bags(self, bags: Bags, common: Common, *, threads: int) -> Head:
        """Fit bags; ``common`` goes into the head."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledSpec(EstimatorSpec):
    """Settings of a head that fits pooled statistics."""

    statistics: tuple[str, ...] = names(
        ("mean", "sd"), "what describes a bag's patches", among=STATISTICS
    )

    def _learn_bags(self, bags: Bags, common: Common, *, threads: int) -> Head:
        return self._learn(bags, pool_bags(bags, self.statistics), common, threads=threads)

    @abstractmethod
    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> Head:
        """Fit ``columns (bag, statistic · feature)`` of bags; ``common`` goes into the head."""


def score_row(head: Head, bags: Bags, validation: Bags | None) -> dict[str, Any]:
    """Give the one history row of an estimator: losses and scores of its predictions."""
    if bags.task.kind != "classification":
        return _task_row(head, bags, validation)
    row: dict[str, Any] = {"epoch": 0}
    for role, part in (("train", bags), ("validation", validation)):
        if part is None:
            row |= dict.fromkeys(
                (f"{role}_loss", f"{role}_macro_f1", f"{role}_accuracy"), float("nan")
            )
            continue
        probabilities = head.predict_proba(part)
        guess = probabilities.argmax(axis=1)
        of_truth = probabilities[np.arange(len(part)), part.labels]
        row[f"{role}_loss"] = float(-np.log(np.maximum(of_truth, 1e-15)).mean())
        row[f"{role}_macro_f1"] = macro_f1(part.labels, guess, len(bags.classes))
        row[f"{role}_accuracy"] = accuracy(part.labels, guess)
    row["overfit_gap"] = row["train_macro_f1"] - row["validation_macro_f1"]
    return row


def _task_row(head: Head, bags: Bags, validation: Bags | None) -> dict[str, Any]:
    """Give the row of another task, with the metric that comes first there."""
    name = headline(bags.task)
    row: dict[str, Any] = {"epoch": 0}
    for role, part in (("train", bags), ("validation", validation)):
        loss = score = float("nan")
        if part is not None:
            values = head.predict(part)
            score = evaluate(part.truth, values, part.task)[name]
            loss = _task_loss(head, part, values)
        row |= {f"{role}_loss": loss, f"{role}_{name}": score}
    gap = row[f"train_{name}"] - row[f"validation_{name}"]
    row["overfit_gap"] = gap if higher_is_better(name) else -gap
    return row


def _task_loss(head: Head, bags: Bags, values: NDArray[np.float64]) -> float:
    """Give the log loss; of a number, the loss on the scale of the training target."""
    if bags.task.has_classes:
        return evaluate(bags.truth, values, bags.task)["log_loss"]
    off = np.abs(values - bags.truth) / head.task.scale
    near = 0.5 * off**2
    return float(
        (near if bags.task.loss == "squared" else np.where(off < 1, near, off - 0.5)).mean()
    )
