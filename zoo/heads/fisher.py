"""Linear support vector machine on Fisher vectors: how a bag would bend a mixture of patches."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.errors import RunError
from zoo.heads import storage
from zoo.heads.base import Head, Standardiser
from zoo.heads.margins import LinearMachines, choose_machines, draw_patches
from zoo.heads.pooled import Common, EstimatorSpec
from zoo.settings import number, whole

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["Fisher", "FisherHead", "Mixture", "load"]

COMPONENTS = (1, 2, 4, 8)
"""Sizes of the mixture that inner folds choose from."""

VARIANCES = (0.8, 0.9, 1.0)
"""Shares of variance that inner folds choose from."""

_PATCHES_AT_ONCE = 4096
_EPS = 1e-9
_LEAST_SD = 1e-2
"""Of a component, on standardised features."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fisher(EstimatorSpec):
    """Improved Fisher vectors (miFV) before one linear machine per class.

    Patches are projected on their principal axes, and a mixture of Gaussians with diagonal
    covariance is fitted to a sample of them. A bag is the gradient of its patches' mean log
    likelihood by the means and standard deviations, square-rooted with its sign and scaled to
    length 1. Axes, components and penalty are chosen by the log loss on inner folds of the training
    bags, unless they are given.

    **Reference**: Wei, Wu & Zhou 2017 (miFV); Perronnin et al. 2010, eq. 7, 8 and §3.

    **Differences**

    - NOTE[DIFF] Features are standardised first, decisions are made probabilities, and the log loss
      of these chooses: accuracy on some dozens of bags has too many ties.
    """

    name: ClassVar[str] = "fisher"

    components: int | None = whole(
        None, "Gaussians of the mixture; none is chosen on inner folds",
        low=1, high=1024, optional=True,
    )  # fmt: skip
    variance: float | None = number(
        None, "share of the patches' variance that principal axes keep; none is chosen likewise",
        positive=True, high=1, optional=True,
    )  # fmt: skip
    penalty: float | None = number(
        None, "C on vectors of length 1; none is chosen on inner folds",
        positive=True, high=1e9, optional=True,
    )  # fmt: skip
    sample: int = whole(20_000, "training patches that the mixture is fitted to", low=2)

    def _learn_bags(self, bags: Bags, common: Common, *, threads: int) -> FisherHead:
        del threads
        standardiser = Standardiser.learn_parts(
            lambda: (block.embedding for block in bags.blocks())
        )
        rows = standardiser(draw_patches(bags, self.sample, common["seed"]))
        axes, counts = _principal_axes(
            rows, VARIANCES if self.variance is None else [self.variance]
        )
        x = (rows @ axes).astype(np.float64)
        mixtures = [
            Mixture.fit(x[:, :count], min(size, len(x)), common["seed"])
            for count in counts
            for size in (COMPONENTS if self.components is None else (self.components,))
        ]
        gradients = _mean_gradients(standardiser, axes, mixtures, bags)
        chosen, machines = choose_machines(
            [_improved(found) for found in gradients], bags, common, self.penalty
        )
        return FisherHead(
            **common,
            standardiser=standardiser,
            axes=axes[:, : mixtures[chosen].n_axes],
            mixture=mixtures[chosen],
            machines=machines,
        )


def _principal_axes(
    rows: NDArray[np.float32], variances: Sequence[float]
) -> tuple[NDArray[np.float32], list[int]]:
    """Give principal axes ``(feature, axis)``, and how many keep each share of the variance."""
    values, vectors = np.linalg.eigh(np.atleast_2d(np.cov(rows, rowvar=False)))
    kept = np.cumsum(np.maximum(values[::-1], 0))
    wanted = np.array(variances) * kept[-1] * (1 - _EPS)
    counts = np.unique(1 + np.searchsorted(kept, wanted)).tolist()
    return vectors[:, ::-1][:, : counts[-1]].astype(np.float32), counts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixture:
    """A mixture of Gaussians with diagonal covariance: arrays, and no scikit-learn to apply it."""

    shares: NDArray[np.float64]
    """``(component,)``, sum 1."""
    means: NDArray[np.float64]
    """``(component, axis)``."""
    variances: NDArray[np.float64]
    """``(component, axis)``."""

    @property
    def n_axes(self) -> int:
        """How many axes it knows."""
        return int(self.means.shape[1])

    @classmethod
    def fit(cls, x: NDArray[np.float64], n_components: int, seed: int) -> Mixture:
        """Fit ``x (patch, axis)`` by expectation maximisation from k-means."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        model = GaussianMixture(
            n_components,
            covariance_type="diag",
            reg_covar=_LEAST_SD**2,
            max_iter=200,
            random_state=seed % 2**32,
        )
        with warnings.catch_warnings():
            # A codebook need not be at the top of its likelihood, nor patches be distinct.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x)
        return cls(shares=model.weights_, means=model.means_, variances=model.covariances_)

    def belongs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Give the posterior probability of each component, ``(patch, component)``."""
        from scipy.special import softmax

        apart = (x * x) @ (1 / self.variances).T - 2 * x @ (self.means / self.variances).T
        apart += (self.means**2 / self.variances + np.log(self.variances)).sum(axis=1)
        posterior: NDArray[np.float64] = softmax(np.log(self.shares) - apart / 2, axis=1)
        return posterior

    def gradient(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum the Fisher vectors of patches ``x (patch, axis)``: ``(2, component, axis)``.

        By the means, then by the standard deviations, each divided by the root of its Fisher
        information.

        **Reference**: Perronnin et al. 2010, eq. 7 and 8.
        """
        belongs = self.belongs(x)
        count, total, squares = belongs.sum(axis=0)[:, None], belongs.T @ x, belongs.T @ (x * x)
        by_mean = (total - count * self.means) / np.sqrt(self.variances)
        by_sd = (squares - 2 * self.means * total + count * self.means**2) / self.variances - count
        return np.stack([by_mean, by_sd / np.sqrt(2)]) / np.sqrt(self.shares)[:, None]

    def project(self, x: NDArray[np.float64], on: NDArray[np.float64]) -> NDArray[np.float64]:
        """Multiply each patch's Fisher vector with others, without making it.

        Parameters
        ----------
        x
            ``(patch, axis)``.
        on
            ``(vector, 2 · component · axis)``.

        Returns
        -------
        products
            ``(patch, vector)``.
        """
        vectors = on.reshape(len(on), 2, *self.means.shape) / np.sqrt(self.shares)[:, None]
        by_mean = vectors[:, 0] / np.sqrt(self.variances)
        by_square = vectors[:, 1] / np.sqrt(2) / self.variances
        constant = (by_square * (self.means**2 - self.variances) - by_mean * self.means).sum(axis=2)
        slopes = (by_mean - 2 * by_square * self.means).reshape(-1, self.n_axes)
        products = x @ slopes.T + (x * x) @ by_square.reshape(-1, self.n_axes).T
        shaped = products.reshape(len(x), *constant.shape) + constant
        return np.asarray((shaped * self.belongs(x)[:, None]).sum(axis=2))


def _parts(
    standardiser: Standardiser, axes: NDArray[np.float32], rows: NDArray[np.float32]
) -> Iterator[NDArray[np.float64]]:
    """Give patches on principal axes ``(patch, axis)``, a few thousand at once."""
    for start in range(0, len(rows), _PATCHES_AT_ONCE):
        yield (standardiser(rows[start : start + _PATCHES_AT_ONCE]) @ axes).astype(np.float64)


def _mean_gradients(
    standardiser: Standardiser,
    axes: NDArray[np.float32],
    mixtures: Sequence[Mixture],
    bags: Bags,
) -> list[NDArray[np.float64]]:
    """Average the Fisher vectors of each bag's patches, ``(bag, column)`` for each mixture."""
    found = [np.zeros((len(bags), 2, *mixture.means.shape)) for mixture in mixtures]
    for i, bag in enumerate(bags):
        for part in _parts(standardiser, axes, bag.embedding):
            for mixture, rows in zip(mixtures, found, strict=True):
                rows[i] += mixture.gradient(part[:, : mixture.n_axes]) / len(bag)
    return [rows.reshape(len(rows), -1) for rows in found]


def _improved(gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Take signed roots, and scale to length 1: ``(bag, column)`` (Perronnin et al. 2010, §3)."""
    return gradients * _stretch(gradients)


def _stretch(gradients: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give what each number is multiplied by in that, 0 for a 0; ``(bag, column)``."""
    sizes = np.abs(gradients)
    lengths = np.sqrt(np.maximum(sizes.sum(axis=1, keepdims=True), np.finfo(np.float64).tiny))
    roots = np.sqrt(np.where(sizes > 0, sizes, np.inf))
    return np.asarray(1 / (roots * lengths))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FisherHead(Head):
    """A mixture and linear machines: arrays, and no scikit-learn to predict."""

    spec: Fisher
    """What was fitted."""
    standardiser: Standardiser
    """Shift and scale of patches."""
    axes: NDArray[np.float32]
    """``(feature, axis)``, principal axes of standardised patches."""
    mixture: Mixture
    """Of patches on those axes."""
    machines: LinearMachines
    """On improved Fisher vectors."""

    def _gradients(self, bags: Bags) -> NDArray[np.float64]:
        return _mean_gradients(self.standardiser, self.axes, [self.mixture], bags)[0]

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        decisions = self.machines.decide(_improved(self._gradients(bags)))
        return self.machines.calibration.probabilities(decisions, len(self.classes))

    def _attention(self, bags: Bags) -> list[NDArray[np.float64]]:
        # With a bag's own stretch, its decision is the mean over its patches' vectors, plus the
        # bias, as Lapuschkin et al. (2016, CVPR) spread it over patches.
        weights = []
        for bag, stretch in zip(bags, _stretch(self._gradients(bags)), strict=True):
            pulls = [
                self.mixture.project(part, self.machines.weights * stretch)
                for part in _parts(self.standardiser, self.axes, bag.embedding)
            ]
            decisions = np.concatenate(pulls) + self.machines.biases
            weights.append(self.machines.calibration.attention(decisions))
        return weights

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays: dict[str, NDArray[Any]] = {
            "axes": self.axes,
            "shares": self.mixture.shares,
            "means": self.mixture.means,
            "variances": self.mixture.variances,
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
            **self.machines.arrays(),
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> FisherHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_features = common["n_features"]
    machines = LinearMachines.blank(path, arrays, len(common["classes"]))
    means = arrays.get("means", np.empty(0))
    n, n_axes = means.shape if means.ndim == 2 else (0, 0)
    shapes: dict[str, tuple[int, ...]] = {
        "axes": (n_features, n_axes),
        "shares": (n,),
        "means": (n, n_axes),
        "variances": (n, n_axes),
        "standardise.mean": (n_features,),
        "standardise.scale": (n_features,),
        **machines.shapes(2 * n * n_axes),
    }
    storage.check_arrays(path, arrays, shapes)
    mixture = Mixture(shares=arrays["shares"], means=means, variances=arrays["variances"])
    if not ((mixture.shares > 0).all() and (mixture.variances > 0).all()):
        raise RunError(f"{path}: a component has no share or no width: file is damaged")
    return FisherHead(
        **common,
        standardiser=Standardiser(
            mean=arrays["standardise.mean"], scale=arrays["standardise.scale"]
        ),
        axes=arrays["axes"],
        mixture=mixture,
        machines=machines,
    )
