"""Support vector machine with an RBF kernel on pooled statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.errors import SplitError
from zoo.heads import storage
from zoo.heads.base import Head, Standardiser
from zoo.heads.pooled import STATISTICS, Common, EstimatorSpec, bag_weights, pool_bags
from zoo.settings import names, number

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["SVM", "SVMHead", "load"]

_FOLDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class SVM(EstimatorSpec):
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
        for train, test in _folds(codes, bags.patient_ids, common["seed"]):
            machines = self._solve(x[train], codes[train], weights[train], len(present))
            unseen[test] = machines.decide(x[test])
        slopes, intercepts = _calibrate(unseen, codes, weights)
        return SVMHead(
            **common,
            standardiser=standardiser,
            machines=self._solve(x, codes, weights, len(present)),
            slopes=slopes,
            intercepts=intercepts,
            present=present,
        )

    def _solve(
        self,
        x: NDArray[np.float64],
        codes: NDArray[np.int64],
        weights: NDArray[np.float64],
        n_classes: int,
    ) -> Machines:
        """Fit one machine per class."""
        from sklearn.svm import SVC

        gamma = 1.0 / x.shape[1] if self.gamma is None else self.gamma
        duals, biases = np.zeros((n_classes, len(x))), np.empty(n_classes)
        for c in range(n_classes):
            # Unused without probabilities, but left out it would touch numpy's global state.
            model = SVC(C=self.penalty, gamma=gamma, random_state=0)
            model.fit(x, codes == c, sample_weight=weights)
            duals[c, model.support_] = model.dual_coef_[0]
            biases[c] = model.intercept_[0]
        used = duals.any(axis=0)
        return Machines(vectors=x[used], duals=duals[:, used], biases=biases, gamma=gamma)


def _folds(
    codes: NDArray[np.int64], patients: Any, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Deal training bags into folds in which every class is trained."""
    from sklearn.model_selection import StratifiedGroupKFold

    patients = np.asarray(patients)
    per_class = [len(np.unique(patients[codes == c])) for c in range(int(codes.max()) + 1)]
    n_folds = min(_FOLDS, *per_class)
    if n_folds < 2:
        raise SplitError(
            "head svm needs training bags of two patients of each class, to learn what its "
            f"decision values mean; the classes have {per_class}"
        )
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    folds = list(dealer.split(codes[:, None], codes, patients))
    whole = [
        (train, test) for train, test in folds if len(np.unique(codes[train])) == len(per_class)
    ]
    if len(whole) < len(folds):
        raise SplitError(
            "head svm cannot deal its training bags into folds that all train every class: "
            f"one patient holds most of a class (patients per class: {per_class})"
        )
    return whole


def _calibrate(
    decisions: NDArray[np.float64], codes: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit logits = slopes · decisions + intercepts: ``(class, class)`` and ``(class,)``."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=5_000).fit(decisions, codes, sample_weight=weights)
    if decisions.shape[1] > 2:
        return model.coef_, model.intercept_
    # For two classes scikit-learn keeps the log odds of the second alone.
    return (
        np.concatenate([-model.coef_, model.coef_]) / 2,
        np.concatenate([-model.intercept_, model.intercept_]) / 2,
    )


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
    slopes: NDArray[np.float64]
    """``(class, class)``, of decision values."""
    intercepts: NDArray[np.float64]
    """``(class,)``."""
    present: NDArray[np.int64]
    """Classes that training bags had; the others get probability 0."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        x = self.standardiser(pool_bags(bags, self.spec.statistics)).astype(np.float64)
        logits = self.machines.decide(x) @ self.slopes.T + self.intercepts
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities = np.zeros((len(bags), len(self.classes)))
        probabilities[:, self.present] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays = {
            "vectors": self.machines.vectors,
            "duals": self.machines.duals,
            "biases": self.machines.biases,
            "gamma": np.array([self.machines.gamma]),
            "slopes": self.slopes,
            "intercepts": self.intercepts,
            "present": self.present.astype(np.float64),
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> SVMHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_columns = common["n_features"] * len(common["spec"].statistics)
    present = storage.class_codes(path, arrays.get("present"), len(common["classes"]))
    n, vectors = len(present), arrays.get("vectors")
    n_vectors = 0 if vectors is None else len(vectors)
    shapes: dict[str, tuple[int, ...]] = {
        "vectors": (n_vectors, n_columns),
        "duals": (n, n_vectors),
        "biases": (n,),
        "gamma": (1,),
        "slopes": (n, n),
        "intercepts": (n,),
        "present": (n,),
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
        slopes=arrays["slopes"],
        intercepts=arrays["intercepts"],
        present=present,
    )
