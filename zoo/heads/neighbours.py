"""Nearest neighbours on pooled statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.heads import storage
from zoo.heads.base import Head, Standardiser
from zoo.heads.pooled import Common, PooledSpec, bag_weights, pool_bags
from zoo.settings import choice, whole

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["Neighbours", "NeighboursHead", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours(PooledSpec):
    """The share of each class among the nearest training bags.

    Every class starts with a tenth of a vote, so that no probability is 0 or 1 for want of
    neighbours (Laplace's rule with a small weight).
    """

    name: ClassVar[str] = "knn"

    n_neighbours: int = whole(10, "training bags that vote", low=1, high=100_000)
    metric: str = choice(
        "cosine", "how far two standardised descriptions are apart", among=("cosine", "euclidean")
    )

    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> NeighboursHead:
        del threads
        standardiser = Standardiser.learn(columns)
        weights = bag_weights(bags.labels, common["recipe"])
        return NeighboursHead(
            **common,
            standardiser=standardiser,
            columns=standardiser(columns),
            votes=np.eye(len(bags.classes))[bags.labels] * weights[:, None],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class NeighboursHead(Head):
    """The training bags' descriptions and votes."""

    spec: Neighbours
    """What was fitted."""
    standardiser: Standardiser
    """Shift and scale of the pooled columns."""
    columns: NDArray[np.float32]
    """``(training bag, column)``."""
    votes: NDArray[np.float64]
    """``(training bag, class)``, one value per row above 0."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        from scipy.spatial.distance import cdist

        x = self.standardiser(pool_bags(bags, self.spec.statistics)).astype(np.float64)
        apart = cdist(x, self.columns.astype(np.float64), self.spec.metric)
        # A description of zeros alone has no direction: it is as far from all.
        apart = np.where(np.isfinite(apart), apart, np.inf)
        k = min(self.spec.n_neighbours, len(self.columns))
        nearest = np.argsort(apart, axis=1, kind="stable")[:, :k]
        votes = self.votes[nearest].sum(axis=1) + 0.1
        probabilities: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
        return probabilities

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays: dict[str, NDArray[Any]] = {
            "columns": self.columns,
            "votes": self.votes,
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> NeighboursHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_columns = common["n_features"] * len(common["spec"].statistics)
    n_bags = len(arrays["columns"]) if "columns" in arrays else 0
    shapes: dict[str, tuple[int, ...]] = {
        "columns": (n_bags, n_columns),
        "votes": (n_bags, len(common["classes"])),
        "standardise.mean": (n_columns,),
        "standardise.scale": (n_columns,),
    }
    storage.check_arrays(path, arrays, shapes)
    return NeighboursHead(
        **common,
        standardiser=Standardiser(
            mean=arrays["standardise.mean"], scale=arrays["standardise.scale"]
        ),
        columns=arrays["columns"],
        votes=arrays["votes"],
    )
