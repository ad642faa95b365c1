"""Extremely randomised trees on pooled statistics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from zoo.errors import RunError
from zoo.heads import storage
from zoo.heads.base import Head
from zoo.heads.pooled import STATISTICS, Common, PooledSpec, bag_weights, pool_bags
from zoo.settings import names, number, whole

if TYPE_CHECKING:
    import os

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["ExtraTrees", "ExtraTreesHead", "load"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtraTrees(PooledSpec):
    """Trees that draw their thresholds at random; they want no standardising and little care.

    **Reference**: Geurts et al. 2006; scikit-learn's implementation and its defaults, with
    more trees.
    """

    name: ClassVar[str] = "extra-trees"

    statistics: tuple[str, ...] = names(
        ("mean", "sd", "min", "max"), "what describes a bag's patches", among=STATISTICS
    )
    n_trees: int = whole(500, "trees", low=1, high=100_000)
    min_bags: int = whole(1, "fewest training bags in a leaf", low=1)
    column_share: float | None = number(
        None, "share of the columns tried at a split; none is their square root",
        positive=True, high=1, optional=True,
    )  # fmt: skip

    def _learn(
        self, bags: Bags, columns: NDArray[np.float64], common: Common, *, threads: int
    ) -> ExtraTreesHead:
        from sklearn.ensemble import ExtraTreesClassifier

        model = ExtraTreesClassifier(
            self.n_trees,
            min_samples_leaf=self.min_bags,
            max_features="sqrt" if self.column_share is None else self.column_share,
            random_state=common["seed"] % 2**32,
            n_jobs=threads,
        )
        weights = bag_weights(bags.labels, common["recipe"])
        model.fit(columns, bags.labels, sample_weight=weights)
        return ExtraTreesHead(
            **common,
            trees=_joined([tree.tree_ for tree in model.estimators_]),
            present=model.classes_.astype(np.int64),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Trees:
    """All nodes of all trees one after the other; a node's children stand after it."""

    roots: NDArray[np.int64]
    """``(tree,)``, where each tree begins."""
    children: NDArray[np.int64]
    """``(node, 2)``, left and right; −1 for leaves."""
    column: NDArray[np.int64]
    """``(node,)``, what is compared."""
    threshold: NDArray[np.float64]
    """``(node,)``, a value up to it goes left."""
    share: NDArray[np.float64]
    """``(node, class)``, of the training bags there; rows sum to 1."""

    def leaves(self, x: NDArray[np.float32]) -> NDArray[np.int64]:
        """Find the leaf of each row of ``x (bag, column)`` in each tree, ``(tree, bag)``."""
        at = np.repeat(self.roots[:, None], len(x), axis=1)
        rows = np.arange(len(x))
        while True:
            inner = self.children[at, 0] >= 0
            if not inner.any():
                return at
            right = x[rows, self.column[at]] > self.threshold[at]
            at = np.where(inner, self.children[at, right.astype(np.int64)], at)


def _joined(trees: list[Any]) -> Trees:
    """Lay scikit-learn's trees end to end."""
    sizes = np.array([tree.node_count for tree in trees])
    roots = np.cumsum(sizes) - sizes
    pairs = [np.stack([tree.children_left, tree.children_right], axis=1) for tree in trees]
    shares = [tree.value[:, 0, :] for tree in trees]
    return Trees(
        roots=roots,
        children=np.concatenate(
            [np.where(pair < 0, -1, pair + root) for pair, root in zip(pairs, roots, strict=True)]
        ),
        column=np.concatenate([np.maximum(tree.feature, 0) for tree in trees]),
        threshold=np.concatenate([tree.threshold for tree in trees]),
        share=np.concatenate([share / share.sum(axis=1, keepdims=True) for share in shares]),
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExtraTreesHead(Head):
    """Fitted trees: arrays, and no scikit-learn to predict."""

    spec: ExtraTrees
    """What was fitted."""
    trees: Trees
    """All of them."""
    present: NDArray[np.int64]
    """Classes that training bags had; the others get probability 0."""

    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        # scikit-learn learns its thresholds on float32 columns.
        columns = pool_bags(bags, self.spec.statistics).astype(np.float32)
        probabilities = np.zeros((len(bags), len(self.classes)))
        found = self.trees.share[self.trees.leaves(columns)].mean(axis=0)
        probabilities[:, self.present] = found / found.sum(axis=1, keepdims=True)
        return probabilities

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned as one safetensors file."""
        arrays = {
            "roots": self.trees.roots.astype(np.float64),
            "children": self.trees.children.astype(np.float64),
            "column": self.trees.column.astype(np.float64),
            "threshold": self.trees.threshold,
            "share": self.trees.share,
            "present": self.present.astype(np.float64),
        }
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[Any]]
) -> ExtraTreesHead:
    """Build the head whose arrays were read; see :func:`zoo.heads.neural.load`."""
    present = storage.class_codes(path, arrays.get("present"), len(common["classes"]))
    n_nodes = len(arrays["column"]) if "column" in arrays else 0
    n_trees = common["spec"].n_trees
    shapes: dict[str, tuple[int, ...]] = {
        "roots": (n_trees,),
        "children": (n_nodes, 2),
        "column": (n_nodes,),
        "threshold": (n_nodes,),
        "share": (n_nodes, len(present)),
        "present": (len(present),),
    }
    storage.check_arrays(path, arrays, shapes)
    trees = Trees(
        roots=arrays["roots"].astype(np.int64),
        children=arrays["children"].astype(np.int64),
        column=arrays["column"].astype(np.int64),
        threshold=arrays["threshold"],
        share=arrays["share"],
    )
    if not _sound(trees, common["n_features"] * len(common["spec"].statistics)):
        raise RunError(f"{path}: the trees point where there is nothing: file is damaged")
    return ExtraTreesHead(**common, trees=trees, present=present)


def _sound(trees: Trees, n_columns: int) -> bool:
    """Whether every way down ends, at a node that exists."""
    n_nodes = len(trees.column)
    numbers = np.arange(n_nodes)[:, None]
    leaf = (trees.children == -1).all(axis=1)
    below = (trees.children > numbers) & (trees.children < n_nodes)
    return bool(
        (leaf | below.all(axis=1)).all()
        and ((trees.roots >= 0) & (trees.roots < n_nodes)).all()
        and ((trees.column >= 0) & (trees.column < n_columns)).all()
        and (trees.share >= 0).all()
        and np.allclose(trees.share.sum(axis=1), 1)
    )
