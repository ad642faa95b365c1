"""Gradient-boosted trees (LightGBM) on pooled statistics."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histostore.errors import MissingExtra
from zoo.errors import RunError
from zoo.heads import storage
from zoo.heads.base import Head
from zoo.heads.pooled import STATISTICS, Common, PooledSpec, bag_weights, pool_bags
from zoo.settings import names, number, whole
from zoo.training.threads import limited

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.tasks import Task

__all__ = ["Boosted", "BoostedHead", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Boosted(PooledSpec):
    """LightGBM on pooled statistics, with settings for tens to thousands of bags.

    Small trees, few bags per leaf and a small share of the columns per tree: with more columns
    than bags, deep trees on all columns learn the bags by heart. A fixed number of rounds, since a
    validation part of a small cohort is too small to choose one.

    **Reference**: Ke et al. 2017. The field has none for bags; the statistics are ours.
    """

    name: ClassVar[str] = "lightgbm"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression")

    statistics: tuple[str, ...] = names(
        ("mean", "sd", "min", "max"), "what describes a bag's patches", among=STATISTICS
    )
    rounds: int = whole(200, "trees per class", low=1, high=100_000)
    learning_rate: float = number(0.05, "shrinkage of each tree", positive=True, high=1)
    leaves: int = whole(7, "most leaves of a tree", low=2, high=4_096)
    min_bags: int = whole(5, "fewest bags of a leaf", low=1)
    column_share: float = number(0.2, "share of the columns a tree sees", positive=True, high=1)
    bag_share: float = number(0.8, "share of the bags a tree sees", positive=True, high=1)
    l2: float = number(1.0, "L2 penalty of leaf values")

    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> BoostedHead:
        lightgbm = _library()
        task = common["task"]
        present, wanted = _wanted(bags, task)
        table = lightgbm.Dataset(
            columns,
            label=wanted,
            weight=bag_weights(bags.labels, common["recipe"]),
            params={"verbosity": -1, "min_data_in_bin": 1},
        )
        parameters = self._parameters(seed=common["seed"], threads=threads) | _objective(
            task, len(present)
        )
        booster = lightgbm.train(parameters, table, self.rounds)
        return BoostedHead(
            **common,
            model=booster.model_to_string(),
            present=tuple(int(label) for label in present),
            booster=booster,
        )

    def _parameters(self, *, seed: int, threads: int) -> dict[str, Any]:
        return {
            "learning_rate": self.learning_rate,
            "num_leaves": self.leaves,
            "min_data_in_leaf": self.min_bags,
            "feature_fraction": self.column_share,
            "bagging_fraction": self.bag_share,
            "bagging_freq": 1,
            "lambda_l2": self.l2,
            "min_data_in_bin": 1,
            "seed": seed % 2**31,
            "deterministic": True,
            "force_col_wise": True,
            "num_threads": threads,
            "verbosity": -1,
        }


def _wanted(bags: Bags, task: Task) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Give the classes that bags have, and what trees shall say of each bag."""
    if task.kind == "regression":
        return np.empty(0, np.int64), (bags.truth[:, 0] - task.shift) / task.scale
    return np.unique(bags.labels, return_inverse=True)


def _objective(task: Task, n_classes: int) -> dict[str, Any]:
    if task.kind == "regression":
        # Of a standardised target; alpha is where Huber's loss turns straight.
        return {"objective": "huber" if task.loss == "huber" else "regression", "alpha": 1.0}
    return {"objective": "multiclass", "num_class": n_classes}


def _library() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise MissingExtra.named("lightgbm", extra="zoo") from error
    return lightgbm


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BoostedHead(Head):
    """Fitted trees, kept in LightGBM's own text format."""

    suffix: ClassVar[str] = ".lightgbm.json"

    spec: Boosted
    """What was fitted."""
    model: str = field(repr=False)
    """The trees as LightGBM writes them."""
    present: tuple[int, ...]
    """Classes that training bags had; the others get probability 0. None of a number."""
    booster: Any = field(repr=False)
    """The trees as LightGBM holds them."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        columns = pool_bags(bags, self.spec.statistics)
        with limited() as threads:
            found = self.booster.predict(columns, num_threads=threads)
        if self.task.kind == "regression":
            return self.task.decode(np.asarray(found, np.float64)[:, None])
        probabilities = np.zeros((len(bags), len(self.classes)))
        probabilities[:, list(self.present)] = found / found.sum(axis=1, keepdims=True)
        return probabilities

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write trees and settings as one JSON file."""
        document = {
            **self.document(),
            "present": list(self.present),
            "model": self.model,
            "model_sha256": _digest(self.model),
        }
        storage.write_json(path, document)


def _digest(model: str) -> str:
    return hashlib.sha256(model.encode()).hexdigest()


def load(
    path: str | os.PathLike[str], common: dict[str, Any], document: dict[str, Any]
) -> BoostedHead:
    """Build the head whose document was read.

    The trees are handed to LightGBM only if their digest is the one written with them:
    its parser is not made for damaged text.
    """
    model, present = document.get("model"), document.get("present")
    if not isinstance(model, str) or _digest(model) != document.get("model_sha256"):
        raise RunError(f"{path}: the trees do not have the digest written with them: damaged")
    n_classes = len(common["classes"])
    number = common["task"].kind == "regression"
    if (
        not isinstance(present, list)
        or (bool(present) if number else len(present) < 2)
        or not all(type(label) is int and 0 <= label < n_classes for label in present)
        or len(set(present)) != len(present)
    ):
        raise RunError(f"{path}: 'present' must list some of {n_classes} classes, is {present!r}")
    lightgbm = _library()
    try:
        booster = lightgbm.Booster(model_str=model)
    except lightgbm.basic.LightGBMError as error:
        raise RunError(f"{path}: LightGBM cannot read the trees: {error}") from error
    n_columns = common["n_features"] * len(common["spec"].statistics)
    if booster.num_feature() != n_columns or booster.num_model_per_iteration() != (
        len(present) or 1
    ):
        raise RunError(f"{path}: the trees do not fit the head's settings")
    return BoostedHead(**common, model=model, present=tuple(present), booster=booster)
