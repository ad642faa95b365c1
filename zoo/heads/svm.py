"""Support vector machine with an RBF kernel on pooled statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.heads import storage
from zoo.heads.base import Head, Standardiser
from zoo.heads.margins import Calibration, deal, solve
from zoo.heads.pooled import STATISTICS, Common, PooledSpec, bag_weights, pool_bags
from zoo.settings import names, number

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["SVM", "SVMHead", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SVM(PooledSpec):
    """One machine per class against the rest, made probabilities by a logistic regression.

    The regression is fitted to decision values of bags that the machines had not seen, in up
    to five patient-grouped folds of the training bags (Platt 1999, for several classes at once).
    """

    name: ClassVar[str] = "svm"

    statistics: tuple[str, ...] = names(
        ("mean", "sd", "min", "max"), "what describes a bag's patches", among=STATISTICS
    )
    penalty: float = number(
        10.0, "C on standardised columns; smaller is smoother", positive=True, high=1e9
    )
    gamma: float | None = number(
        None, "width of the kernel; none is 1 / columns", positive=True, high=1e9, optional=True
    )

    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> SVMHead:
        del threads
        standardiser = Standardiser.learn(columns)
        x = standardiser(columns).astype(np.float64)
        weights = bag_weights(bags.labels, common["recipe"])
        present, codes = np.unique(bags.labels, return_inverse=True)
        unseen = np.empty((len(bags), len(present)))
        for train, test in deal(self.name, codes, bags.patient_ids, common["seed"]):
            unseen[test] = self._solve(x[train], codes[train], weights[train]).decide(x[test])
        return SVMHead(
            **common,
            standardiser=standardiser,
            machines=self._solve(x, codes, weights),
            calibration=Calibration.learn(unseen, codes, weights, present),
        )

    def _solve(
        self, x: NDArray[np.float64], codes: NDArray[np.int64], weights: NDArray[np.float64]
    ) -> Machines:
        """Fit one machine per class."""
        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        duals, biases = solve(x, codes, weights, C=self.penalty, gamma=gamma)
        used = duals.any(axis=0)
        return Machines(vectors=x[used], duals=duals[:, used], biases=biases, gamma=gamma)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Machines:
    """One machine per class: arrays, and no scikit-learn to decide."""

    vectors: NDArray[np.float64]
    """``(vector, column)``, support vectors of all classes."""
    duals: NDArray[np.float64]
    """``(class, vector)``."""
    biases: NDArray[np.float64]
    """``(class,)``."""
    gamma: float
    """exp(−γ · squared distance) is the kernel."""

    def decide(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give decision values ``(bag, class)`` for ``x (bag, column)``."""
        from scipy.spatial.distance import cdist

        kernel = np.exp(-self.gamma * cdist(x, self.vectors, "sqeuclidean"))
        decisions: NDArray[np.float64] = kernel @ self.duals.T + self.biases
        return decisions


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SVMHead(Head):
    """Fitted machines with what turns their decisions into probabilities."""

    spec: SVM
    """What was fitted."""
    standardiser: Standardiser
    """Shift and scale of the pooled columns."""
    machines: Machines
    """One per class that training bags had."""
    calibration: Calibration
    """What turns decisions into probabilities."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        x = self.standardiser(pool_bags(bags, self.spec.statistics)).astype(np.float64)
        return self.calibration.probabilities(self.machines.decide(x), len(self.classes))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays = {
            "vectors": self.machines.vectors,
            "duals": self.machines.duals,
            "biases": self.machines.biases,
            "gamma": np.array([self.machines.gamma]),
            **self.calibration.arrays(),
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> SVMHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_columns = common["n_features"] * len(common["spec"].statistics)
    calibration = Calibration.blank(path, arrays, len(common["classes"]))
    n, vectors = len(calibration.present), arrays.get("vectors")
    n_vectors = 0 if vectors is None else len(vectors)
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (n_vectors, n_columns),
        "duals": (n, n_vectors),
        "biases": (n,),
        "gamma": (1,),
        **calibration.shapes(),
        "standardise.mean": (n_columns,),
        "standardise.scale": (n_columns,),
    }
    storage.check_arrays(path, arrays, shapes)
    return SVMHead(
        **common,
        standardiser=Standardiser(
            mean=arrays["standardise.mean"], scale=arrays["standardise.scale"]
        ),
        machines=Machines(
            vectors=arrays["vectors"],
            duals=arrays["duals"],
            biases=arrays["biases"],
            gamma=float(arrays["gamma"][0]),
        ),
        calibration=calibration,
    )
