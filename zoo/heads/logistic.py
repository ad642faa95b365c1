"""Logistic regression on pooled statistics: the baseline that every head has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.errors import RecipeError
from zoo.heads import storage
from zoo.heads.base import Head, Standardiser
from zoo.heads.pooled import Common, PooledSpec, bag_weights, pool_bags
from zoo.settings import number, whole

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.recipes import Recipe

__all__ = ["Logistic", "LogisticHead", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Logistic(PooledSpec):
    """Multinomial logistic regression on standardised pooled statistics.

    Of several labels, one regression each; of ordered levels, one for each but the last, on the
    bags that reach it: whether they stop there (continuation ratios, Tutz 1991).
    """

    name: ClassVar[str] = "logistic"
    tasks: ClassVar[tuple[str, ...]] = ("classification", "ordinal", "multi-label")

    inverse_penalty: float = number(
        1.0, "scikit-learn's C on standardised columns; smaller is smoother", positive=True
    )
    max_iter: int = whole(5_000, "most iterations of the solver", low=1)

    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> LogisticHead:
        del threads
        recipe = common["recipe"]
        standardiser = Standardiser.learn(columns)
        ready = standardiser(columns).astype(np.float64)
        if bags.task.kind == "classification":
            solved = self._solve(ready, bags.labels, recipe, len(bags.classes))
        else:
            solved = self._solve_each(ready, _questions(bags), recipe)
        return LogisticHead(
            **common,
            standardiser=standardiser,
            coefficients=solved[0],
            intercepts=solved[1],
        )

    def _solve(
        self,
        columns: NDArray[np.float64],
        labels: NDArray[np.int64],
        recipe: Recipe,
        n_classes: int,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fit weights ``(class, column)`` and intercepts ``(class,)``."""
        import warnings

        from sklearn.exceptions import ConvergenceWarning
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.inverse_penalty, max_iter=self.max_iter)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            try:
                model.fit(columns, labels, sample_weight=bag_weights(labels, recipe))
            except ConvergenceWarning as warning:
                raise RecipeError(
                    f"head logistic did not converge in {self.max_iter} iterations: raise "
                    "max_iter or lower inverse_penalty"
                ) from warning
        weights, intercepts = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps one row, the log odds of the second
            weights = np.concatenate([-weights, weights]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        # A class that no training bag has gets a logit low enough for a probability of zero.
        all_weights = np.zeros((n_classes, columns.shape[1]), np.float32)
        all_intercepts = np.full(n_classes, -1e30, np.float32)
        all_weights[model.classes_] = weights
        all_intercepts[model.classes_] = intercepts
        return all_weights, all_intercepts

    def _solve_each(
        self,
        columns: NDArray[np.float64],
        questions: list[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
        recipe: Recipe,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Fit weights ``(question, column)`` and intercepts ``(question,)``, one by one."""
        weights = np.zeros((len(questions), columns.shape[1]), np.float32)
        intercepts = np.zeros(len(questions), np.float32)
        for k, (asked, answer) in enumerate(questions):
            yes, told = int(answer[asked].sum()), int(asked.sum())
            if 0 < yes < told:
                found = self._solve(columns[asked], answer[asked].astype(np.int64), recipe, 2)
                # Two rows with opposite signs: their difference is the log odds of yes.
                weights[k], intercepts[k] = found[0][1] - found[0][0], found[1][1] - found[1][0]
            else:  # what has one answer throughout has nothing to do with the columns
                intercepts[k] = np.log((yes + 0.5) / (told - yes + 0.5))
        return weights, intercepts


def _questions(bags: Bags) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Give the bags that each output is asked of, and the answers, both ``(bag,)``."""
    if bags.task.kind == "multi-label":
        everyone = np.ones(len(bags), bool)
        return [(everyone, column > 0) for column in bags.truth.T]
    return [(bags.labels >= k, bags.labels == k) for k in range(len(bags.classes) - 1)]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LogisticHead(Head):
    """A fitted logistic regression: arrays, and no scikit-learn to predict."""

    spec: Logistic
    """What was fitted."""
    standardiser: Standardiser
    """Shift and scale of the pooled columns."""
    coefficients: NDArray[np.float32]
    """``(class, column)``; of other tasks ``(output, column)``."""
    intercepts: NDArray[np.float32]
    """``(class,)``, or ``(output,)``."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        columns = pool_bags(bags, self.spec.statistics)
        logits = self.standardiser(columns).astype(np.float64) @ self.coefficients.T
        logits += self.intercepts
        if self.task.kind != "classification":
            return self.task.decode(logits)
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities: NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
        return probabilities

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, standardisation and settings as one safetensors file."""
        arrays = {
            "coefficients": self.coefficients,
            "intercepts": self.intercepts,
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[np.float32]]
) -> LogisticHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_classes = common["task"].n_outputs(len(common["classes"]))
    n_columns = common["n_features"] * len(common["spec"].statistics)
    shapes: dict[str, tuple[int, ...]] = {
        "coefficients": (n_classes, n_columns),
        "intercepts": (n_classes,),
        "standardise.mean": (n_columns,),
        "standardise.scale": (n_columns,),
    }
    storage.check_arrays(path, arrays, shapes)
    standardiser = Standardiser(mean=arrays["standardise.mean"], scale=arrays["standardise.scale"])
    return LogisticHead(
        **common,
        standardiser=standardiser,
        coefficients=arrays["coefficients"],
        intercepts=arrays["intercepts"],
    )
