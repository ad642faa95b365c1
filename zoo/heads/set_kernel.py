"""Support vector machine whose kernel compares two bags patch by patch."""

from __future__ import annotations

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
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["SetKernel", "SetKernelHead", "load"]

WIDTHS = (0.25, 0.5, 1.0, 2.0)
"""Widths of the kernel that inner folds choose from, in median distances of two patches."""

_PATCHES_AT_ONCE = 8192
_MOST_PAIRED = 1024
"""Patches of a bag up to which all its own pairs count for its length."""
_LEAST_SHARE = 1e-6
"""Directions of the kernel matrix with a smaller share of the largest eigenvalue are noise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SetKernel(EstimatorSpec):
    """Normalised set kernel: the mean of an RBF kernel over all pairs of patches of two bags.

    It is the product of the bags' mean maps, scaled to length 1, so bags of any size cost time in
    proportion to it. The map is Nyström's (Williams & Seeger 2001) with training patches as
    landmarks, and exact where these are all of them. Width and penalty are chosen by the log loss on
    inner folds of the training bags, unless they are given.

    **Reference**: Gärtner et al. 2002 (set kernels, and their normalisation in feature space).

    **Differences**

    - NOTE[DIFF] The paper compares bags pair by pair; the map makes that possible for bags of
      thousands of patches. The length of a bag of more than 1,024 is estimated from so many.
    - NOTE[DIFF] Features are standardised first, and decisions are made probabilities.
    """

    name: ClassVar[str] = "set-kernel"

    landmarks: int = whole(1024, "training patches that span the map", low=1, high=20_000)
    width: float | None = number(
        None, "σ of the kernel in median distances of two patches; none is chosen on inner folds",
        positive=True, high=1e6, optional=True,
    )  # fmt: skip
    penalty: float | None = number(
        None, "C on maps of length 1; none is chosen on inner folds",
        positive=True, high=1e9, optional=True,
    )  # fmt: skip

    def _learn_bags(self, bags: Bags, common: Common, *, threads: int) -> SetKernelHead:
        del threads
        standardiser = Standardiser.learn_parts(
            lambda: (block.embedding for block in bags.blocks())
        )
        landmarks = standardiser(draw_patches(bags, self.landmarks, common["seed"]))
        widths = WIDTHS if self.width is None else (self.width,)
        gammas = _gammas(landmarks, widths)
        means = _mean_kernels(standardiser, bags, landmarks, gammas)
        lengths = _lengths(standardiser, bags, gammas)
        maps = [_root(landmarks, gamma) for gamma in gammas]
        chosen, machines = choose_machines(
            [m @ root / size for m, root, size in zip(means, maps, lengths, strict=True)],
            bags,
            common,
            self.penalty,
        )
        return SetKernelHead(
            **common,
            standardiser=standardiser,
            landmarks=landmarks,
            gamma=gammas[chosen],
            root=maps[chosen],
            machines=machines,
        )


def _gammas(landmarks: NDArray[np.float32], widths: tuple[float, ...]) -> list[float]:
    """Give γ of exp(−γ · squared distance) for each width: 1 / 2σ²."""
    from scipy.spatial.distance import pdist

    apart = pdist(landmarks.astype(np.float64), "sqeuclidean")
    apart = apart[apart > 0]
    median = float(np.median(apart)) if len(apart) else 1.0
    return [0.5 / (width**2 * median) for width in widths]


def _kernels(
    rows: NDArray[np.float32], landmarks: NDArray[np.float32], gammas: list[float]
) -> Iterator[NDArray[np.float64]]:
    """Compare ``rows`` with landmarks, ``(patch, landmark)`` for each γ."""
    x, y = rows.astype(np.float64), landmarks.astype(np.float64)
    apart = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * (x @ y.T)
    apart = np.maximum(apart, 0, out=apart)
    return (np.exp(-gamma * apart) for gamma in gammas)


def _root(landmarks: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """Give K^(−1/2) of the landmarks' own kernel, ``(landmark, column)``, noise left out."""
    (kernel,) = _kernels(landmarks, landmarks, [gamma])
    values, vectors = np.linalg.eigh(kernel)
    kept = values > _LEAST_SHARE * values[-1]
    root: NDArray[np.float32] = (vectors[:, kept] / np.sqrt(values[kept])).astype(np.float32)
    return root


def _parts(standardiser: Standardiser, rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Give standardised rows, so many at once as memory should hold kernels of."""
    for start in range(0, len(rows), _PATCHES_AT_ONCE):
        yield standardiser(rows[start : start + _PATCHES_AT_ONCE])


def _mean_kernels(
    standardiser: Standardiser, bags: Bags, landmarks: NDArray[np.float32], gammas: list[float]
) -> NDArray[np.float64]:
    """Average the kernel of each bag's patches with the landmarks, ``(γ, bag, landmark)``."""
    means = np.zeros((len(gammas), len(bags), len(landmarks)))
    for i, bag in enumerate(bags):
        for part in _parts(standardiser, bag.embedding):
            for mean, kernel in zip(means, _kernels(part, landmarks, gammas), strict=True):
                mean[i] += kernel.sum(axis=0) / len(bag)
    return means


def _lengths(standardiser: Standardiser, bags: Bags, gammas: list[float]) -> NDArray[np.float64]:
    """Give the length of each bag's mean in the kernel's own space, ``(γ, bag, 1)``.

    Its square is the mean kernel over the bag's pairs; it is not the length of the map, which is
    shorter for a bag far from all landmarks, and would blow up what little is known of it.
    """
    squares = np.empty((len(gammas), len(bags), 1))
    for i, bag in enumerate(bags):
        rows = standardiser(_spread(bag.embedding))
        n = len(rows)
        for square, kernel in zip(squares, _kernels(rows, rows, gammas), strict=True):
            others = (kernel.sum() - np.trace(kernel)) / max(n * (n - 1), 1)
            square[i] = 1 / len(bag) + (1 - 1 / len(bag)) * others
    return np.sqrt(squares)


def _spread(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Take patches in equal steps along the order of their sums, which no order of theirs changes."""
    if len(rows) <= _MOST_PAIRED:
        return rows
    order = np.argsort(rows.sum(axis=1, dtype=np.float64), kind="stable")
    return rows[order[np.linspace(0, len(rows) - 1, _MOST_PAIRED).round().astype(np.int64)]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SetKernelHead(Head):
    """Landmarks and linear machines: arrays, and no scikit-learn to predict."""

    spec: SetKernel
    """What was fitted."""
    standardiser: Standardiser
    """Shift and scale of patches."""
    landmarks: NDArray[np.float32]
    """``(landmark, feature)``, standardised."""
    gamma: float
    """exp(−γ · squared distance) is the kernel of two patches."""
    root: NDArray[np.float32]
    """``(landmark, column)``, from kernels with the landmarks to the map."""
    machines: LinearMachines
    """On mean maps of length 1."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        (means,) = _mean_kernels(self.standardiser, bags, self.landmarks, [self.gamma])
        (lengths,) = _lengths(self.standardiser, bags, [self.gamma])
        decisions = self.machines.decide(means @ self.root / lengths)
        return self.machines.calibration.probabilities(decisions, len(self.classes))

    def _attention(self, bags: Bags) -> list[NDArray[np.float64]]:
        # A bag's decision is the mean of w · φ(patch) / its length, plus the bias.
        (lengths,) = _lengths(self.standardiser, bags, [self.gamma])
        pull = self.root @ self.machines.weights.T  # (landmark, class)
        weights = []
        for bag, length in zip(bags, lengths, strict=True):
            pulls = [
                kernel @ pull
                for part in _parts(self.standardiser, bag.embedding)
                for kernel in _kernels(part, self.landmarks, [self.gamma])
            ]
            decisions = np.concatenate(pulls) / length + self.machines.biases
            weights.append(self.machines.calibration.attention(decisions))
        return weights

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays = {
            "landmarks": self.landmarks,
            "gamma": np.array([self.gamma]),
            "root": self.root,
            **self.machines.arrays(),
            "standardise.mean": self.standardiser.mean,
            "standardise.scale": self.standardiser.scale,
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> SetKernelHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    n_features = common["n_features"]
    machines = LinearMachines.blank(path, arrays, len(common["classes"]))
    root = arrays.get("root", np.empty(0))
    n_landmarks, n_columns = root.shape if root.ndim == 2 else (0, 0)
    shapes: dict[str, tuple[int, ...]] = {
        "root": (n_landmarks, n_columns),
        "landmarks": (n_landmarks, n_features),
        "gamma": (1,),
        **machines.shapes(n_columns),
        "standardise.mean": (n_features,),
        "standardise.scale": (n_features,),
    }
    storage.check_arrays(path, arrays, shapes)
    if arrays["gamma"][0] <= 0:
        raise RunError(f"{path}: the kernel has no width: file is damaged")
    return SetKernelHead(
        **common,
        standardiser=Standardiser(
            mean=arrays["standardise.mean"], scale=arrays["standardise.scale"]
        ),
        landmarks=arrays["landmarks"],
        gamma=float(arrays["gamma"][0]),
        root=root,
        machines=machines,
    )
