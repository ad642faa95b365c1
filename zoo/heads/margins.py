"""What heads with support vector machines share: machines, inner folds, calibration, patches drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.errors import SplitError
from zoo.heads import storage
from zoo.heads.pooled import bag_weights

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.heads.pooled import Common

__all__ = [
    "PENALTIES",
    "Calibration",
    "LinearMachines",
    "choose_machines",
    "deal",
    "draw_patches",
    "solve",
]

PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""C that inner folds choose from, for descriptions of length 1."""

_FOLDS = 5
_EPS = 1e-15
_FLAT = 1e-9
"""Decisions that vary less are all the same."""

Folds = list[tuple["NDArray[np.int64]", "NDArray[np.int64]"]]


def draw_patches(bags: Bags, most: int, seed: int) -> NDArray[np.float32]:
    """Draw patches without replacement, all bags being as likely whatever their length.

    Weights are those of Efraimidis and Spirakis (2006); rows that are mapped are read part by part.

    Returns
    -------
    rows
        ``(patch, feature)``: ``most`` of them, or all, in the order of the bags.
    """
    lengths = bags.lengths
    ages = np.random.default_rng(seed).exponential(size=int(lengths.sum()))
    chosen = np.sort(np.argsort(ages * np.repeat(lengths, lengths), kind="stable")[:most])
    parts, start = [], 0
    for block in bags.blocks():
        stop = start + int(block.lengths.sum())
        low, high = np.searchsorted(chosen, (start, stop))
        parts.append(block.embedding[chosen[low:high] - start])
        start = stop
    return np.concatenate(parts)


def deal(name: str, codes: NDArray[np.int64], patients: Sequence[str], seed: int) -> Folds:
    """Deal training bags into up to five patient-grouped folds in which every class is trained.

    Parameters
    ----------
    name
        The head's, for messages.
    codes
        ``(bag,)``, classes without gaps.
    patients
        ``(bag,)``.
    seed
        Decides the shuffle.

    Raises
    ------
    SplitError
        If there are no such folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    groups = np.asarray(patients)
    per_class = [len(np.unique(groups[codes == c])) for c in range(int(codes.max()) + 1)]
    n_folds = min(_FOLDS, *per_class)
    if n_folds < 2:
        raise SplitError(
            f"head {name} needs training bags of two patients of each class, to learn what its "
            f"decision values mean; the classes have {per_class}"
        )
    dealer = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed % 2**32)
    folds = list(dealer.split(codes[:, None], codes, groups))
    whole = [
        (train, test) for train, test in folds if len(np.unique(codes[train])) == len(per_class)
    ]
    if len(whole) < len(folds):
        raise SplitError(
            f"head {name} cannot deal its training bags into folds that all train every class: "
            f"one patient holds most of a class (patients per class: {per_class})"
        )
    return whole


def solve(
    x: NDArray[np.float64],
    codes: NDArray[np.int64],
    weights: NDArray[np.float64],
    **settings: Any,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Fit one machine per class against the rest.

    Parameters
    ----------
    x
        ``(bag, column)``; with ``kernel="precomputed"`` the kernel ``(bag, bag)``.
    codes
        ``(bag,)``, classes without gaps.
    weights
        ``(bag,)``.
    settings
        Of :class:`sklearn.svm.SVC`.

    Returns
    -------
    duals, biases
        ``(class, bag)``, 0 but for support vectors, and ``(class,)``.
    """
    from sklearn.svm import SVC

    n_classes = int(codes.max()) + 1
    duals, biases = np.zeros((n_classes, len(x))), np.empty(n_classes)
    for c in range(n_classes):
        # Unused without probabilities, but left out it would touch numpy's global state.
        model = SVC(**settings, random_state=0)
        model.fit(x, codes == c, sample_weight=weights)
        duals[c, model.support_] = model.dual_coef_[0]
        biases[c] = model.intercept_[0]
    return duals, biases


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """Logits = slopes · decisions + intercepts, for the classes that training had."""

    slopes: NDArray[np.float64]
    """``(class, class)``, of decision values."""
    intercepts: NDArray[np.float64]
    """``(class,)``."""
    present: NDArray[np.int64]
    """Classes that training bags had; the others get probability 0."""

    @classmethod
    def learn(
        cls,
        decisions: NDArray[np.float64],
        codes: NDArray[np.int64],
        weights: NDArray[np.float64],
        present: NDArray[np.int64],
    ) -> Calibration:
        """Fit a logistic regression (Platt 1999, for several classes at once).

        Parameters
        ----------
        decisions
            ``(bag, class)``, of machines that had not seen the bag.
        codes, weights
            ``(bag,)``.
        present
            ``(class,)``, what codes stand for.
        """
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(max_iter=5_000).fit(decisions, codes, sample_weight=weights)
        slopes, intercepts = model.coef_, model.intercept_
        if decisions.shape[1] == 2:  # scikit-learn keeps the log odds of the second alone
            slopes = np.concatenate([-slopes, slopes]) / 2
            intercepts = np.concatenate([-intercepts, intercepts]) / 2
        return cls(slopes=slopes, intercepts=intercepts, present=present)

    def logits(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give ``(bag, class)`` for decisions of that shape."""
        logits: NDArray[np.float64] = decisions @ self.slopes.T + self.intercepts
        return logits

    def probabilities(self, decisions: NDArray[np.float64], n_classes: int) -> NDArray[np.float64]:
        """Give ``(bag, n_classes)``, rows sum to 1."""
        from scipy.special import softmax

        probabilities = np.zeros((len(decisions), n_classes))
        probabilities[:, self.present] = softmax(self.logits(decisions), axis=1)
        return probabilities

    def attention(self, decisions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weigh the patches of a bag whose decision is the mean of its patches' decisions.

        The bag's log odds of the class that it is given, against the geometric mean of the others,
        are a mean over its patches too. A patch weighs as much as it adds to them, and nothing where
        it speaks against the class.

        Parameters
        ----------
        decisions
            ``(patch, class)``.

        Returns
        -------
        weights
            ``(patch,)``, sum 1.
        """
        logits = self.logits(decisions)
        given = int(logits.mean(axis=0).argmax())
        odds = logits[:, given] - np.delete(logits, given, axis=1).mean(axis=1)
        # Their mean is not below 0; where rounding says so, all patches are alike.
        added = np.maximum(odds, 0) if (odds > 0).any() else np.ones(len(odds))
        weights: NDArray[np.float64] = added / added.sum()
        return weights

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Give what is saved."""
        present = self.present.astype(np.float64)
        return {"slopes": self.slopes, "intercepts": self.intercepts, "present": present}

    @classmethod
    def blank(
        cls, path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], n_classes: int
    ) -> Calibration:
        """Take from a file what it says, none of it checked but which classes there are.

        Raises
        ------
        RunError
            If ``present`` is no list of classes.
        """
        nothing = np.empty(0)
        return cls(
            slopes=arrays.get("slopes", nothing),
            intercepts=arrays.get("intercepts", nothing),
            present=storage.class_codes(path, arrays.get("present"), n_classes),
        )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shapes that arrays of so many classes have."""
        n = len(self.present)
        return {"slopes": (n, n), "intercepts": (n,), "present": (n,)}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LinearMachines:
    """One machine per class, linear in a bag's description, and what its decisions mean."""

    weights: NDArray[np.float64]
    """``(class, column)``."""
    biases: NDArray[np.float64]
    """``(class,)``."""
    calibration: Calibration
    """Of their decisions."""

    def decide(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give decision values ``(bag, class)`` for ``x (bag, column)``."""
        decisions: NDArray[np.float64] = x @ self.weights.T + self.biases
        return decisions

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Give what is saved."""
        return {"weights": self.weights, "biases": self.biases, **self.calibration.arrays()}

    @classmethod
    def blank(
        cls, path: str | os.PathLike[str], arrays: Mapping[str, NDArray[Any]], n_classes: int
    ) -> LinearMachines:
        """Take from a file what it says; see :meth:`Calibration.blank`."""
        nothing = np.empty(0)
        return cls(
            weights=arrays.get("weights", nothing),
            biases=arrays.get("biases", nothing),
            calibration=Calibration.blank(path, arrays, n_classes),
        )

    def shapes(self, n_columns: int) -> dict[str, tuple[int, ...]]:
        """Give the shapes that arrays of so many classes and columns have."""
        n = len(self.calibration.present)
        return {"weights": (n, n_columns), "biases": (n,), **self.calibration.shapes()}


def choose_machines(
    descriptions: Sequence[NDArray[np.float64]], bags: Bags, common: Common, penalty: float | None
) -> tuple[int, LinearMachines]:
    """Fit machines to the description, and with the penalty, that inner folds like best.

    Best is the least log loss of calibrated decisions on bags that the machines had not seen; of
    equals, the first.

    Parameters
    ----------
    descriptions
        Each ``(bag, column)``, rows of length 1.
    bags
        What they describe.
    common
        Whose head it is, with which recipe and seed.
    penalty
        C; one of :data:`PENALTIES` where left out.

    Returns
    -------
    chosen, machines
        Which description, and machines on it, fitted to all bags.

    Raises
    ------
    SplitError
        If bags cannot be dealt into folds.
    """
    labels, weights = bags.labels, bag_weights(bags.labels, common["recipe"])
    present, codes = np.unique(labels, return_inverse=True)
    folds = deal(common["spec"].name, codes, bags.patient_ids, common["seed"])
    candidates = [
        (number, c)
        for number in range(len(descriptions))
        for c in (PENALTIES if penalty is None else (penalty,))
    ]
    losses, calibrations = [], []
    kernels = [x @ x.T for x in descriptions]
    for number, c in candidates:
        unseen = _unseen(kernels[number], codes, weights, folds, c)
        calibrations.append(_calibrated(unseen, codes, weights, present))
        prob = calibrations[-1].probabilities(unseen, len(bags.classes))
        told = prob[np.arange(len(labels)), labels]
        losses.append(-float(weights @ np.log(np.maximum(told, _EPS))))
    best = int(np.argmin(losses))
    number, c = candidates[best]
    duals, biases = solve(kernels[number], codes, weights, kernel="precomputed", C=c)
    return number, LinearMachines(
        weights=duals @ descriptions[number], biases=biases, calibration=calibrations[best]
    )


def _unseen(
    kernel: NDArray[np.float64],
    codes: NDArray[np.int64],
    weights: NDArray[np.float64],
    folds: Folds,
    penalty: float,
) -> NDArray[np.float64]:
    """Give decisions ``(bag, class)`` of machines that had not seen the bag."""
    unseen = np.empty((len(codes), int(codes.max()) + 1))
    for train, test in folds:
        own = kernel[np.ix_(train, train)]
        duals, biases = solve(own, codes[train], weights[train], kernel="precomputed", C=penalty)
        unseen[test] = kernel[np.ix_(test, train)] @ duals.T + biases
    return unseen


def _calibrated(
    decisions: NDArray[np.float64],
    codes: NDArray[np.int64],
    weights: NDArray[np.float64],
    present: NDArray[np.int64],
) -> Calibration:
    """Calibrate decisions of any size: a small C makes them small, which the fit must not mind."""
    spread = float(decisions.std())
    size = spread if spread > _FLAT else 1.0
    found = Calibration.learn(decisions / size, codes, weights, present)
    return Calibration(
        slopes=found.slopes / size, intercepts=found.intercepts, present=found.present
    )
