"""Checks that every head must pass; shipped, so that a head of your own can be held to them.

>>> from zoo.testing import check_head
>>> check_head(zoo.spec("my-head"))        # doctest: +SKIP
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.bags import Bags
from zoo.errors import EmptyBag, NotSupported
from zoo.heads.catalog import load_head
from zoo.recipes import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from zoo.heads.base import Head, HeadSpec

__all__ = ["CHECKS", "check_head", "toy_bags"]

_TOLERANCE = 1e-4
_HUGE = 1e30


def toy_bags(
    n_bags: int = 48,
    *,
    seed: int = 0,
    classes: tuple[str, ...] = ("benign", "malignant"),
    n_features: int = 8,
    longest: int = 9,
    apart: float = 3.0,
    shuffled: bool = False,
) -> Bags:
    """Draw bags whose class shifts one feature of every patch.

    Parameters
    ----------
    n_bags
        Number of bags, classes in turn.
    seed
        Decides everything drawn.
    classes
        Names of the classes, fewer than features.
    n_features
        Length of an embedding.
    longest
        Bags have 1 to this many patches.
    apart
        Shift of the class's own feature, in standard deviations.
    shuffled
        Deal the labels anew, so that there is nothing to learn.
    """
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, longest + 1, n_bags)
    labels = np.arange(n_bags) % len(classes)
    rows = rng.normal(size=(int(lengths.sum()), n_features)).astype(np.float32)
    rows[np.arange(len(rows)), np.repeat(labels, lengths)] += apart
    if shuffled:
        labels = rng.permutation(labels)
    offset = np.concatenate([[0], np.cumsum(lengths)])
    return Bags.from_arrays(
        rows, offset, labels=labels, classes=classes, coords=np.concatenate([*map(_grid, lengths)])
    )


def _grid(n: int) -> NDArray[np.int32]:
    """Lay ``n`` patches out in rows of 3, 256 pixels apart, ``(n, 2)``."""
    place = np.arange(n, dtype=np.int32)
    return 256 * np.stack([place % 3, place // 3], axis=1)


def _arrays(bags: Bags) -> list[NDArray[np.float32]]:
    return [bag.embedding for bag in bags]


def _joined(parts: list[Any], like: Bags, coords: list[Any] | None = None) -> Bags:
    """Make bags of arrays; their patches lie on a grid unless ``coords`` says otherwise."""
    offset = np.concatenate([[0], np.cumsum([len(part) for part in parts])])
    labels = like.labels if len(parts) == len(like) else None
    places = [_grid(len(part)) for part in parts] if coords is None else coords
    return Bags.from_arrays(
        np.concatenate(parts),
        offset,
        labels=labels,
        classes=like.classes,
        coords=np.concatenate(places),
    )


def _reordered(bags: Bags, orders: list[NDArray[np.int64]]) -> Bags:
    """Put the patches of each bag in another order, their places with them."""
    pairs = list(zip(bags, orders, strict=True))
    return _joined(
        [bag.embedding[order] for bag, order in pairs],
        bags,
        [bag.coords[order] for bag, order in pairs],
    )


def _near(first: Any, second: Any, what: str) -> None:
    _must(np.allclose(first, second, atol=_TOLERANCE, rtol=0), what)


def _must(truth: object, what: str) -> None:
    if not truth:
        raise AssertionError(what)


class _Case:
    """A head fitted once, with the bags it has seen and others that it has not."""

    def __init__(self, spec: HeadSpec, recipe: Recipe) -> None:
        self.spec, self.recipe = spec, recipe
        self.train, self.test = toy_bags(seed=1), toy_bags(20, seed=2)
        self.head = self.fit(self.train)

    def fit(self, bags: Bags, seed: int = 0) -> Head:
        validation = self.test if self.recipe.needs_validation else None
        return self.spec.fit(bags, validation, self.recipe, seed)

    def has_attention(self) -> bool:
        try:
            self.head.attention(self.test[:1])
        except NotSupported:
            return False
        return True


def _probabilities_are_a_distribution(case: _Case) -> None:
    found = case.head.predict_proba(case.test)
    _must(found.shape == (len(case.test), len(case.train.classes)), f"shape is {found.shape}")
    _must(found.dtype == np.float64, f"dtype is {found.dtype}")
    _must(np.isfinite(found).all() and (found >= 0).all(), "probabilities below 0 or not finite")
    _must(np.allclose(found.sum(axis=1), 1, atol=1e-12), "probabilities do not sum to 1")


def _no_bag_gives_no_row(case: _Case) -> None:
    found = case.head.predict_proba(case.test[:0])
    _must(found.shape == (0, len(case.train.classes)), f"no bag gives shape {found.shape}")


def _a_batch_equals_one_by_one(case: _Case) -> None:
    together = case.head.predict_proba(case.test)
    alone = [case.head.predict_proba(case.test[[i]])[0] for i in range(len(case.test))]
    _near(together, alone, "a bag's prediction depends on the bags beside it")


def _order_of_bags_does_not_matter(case: _Case) -> None:
    order = np.random.default_rng(3).permutation(len(case.test))
    found = case.head.predict_proba(case.test[order])
    _near(found, case.head.predict_proba(case.test)[order], "the order of bags matters")


def _order_of_patches_does_not_matter(case: _Case) -> None:
    if case.spec.ordered:
        return
    rng = np.random.default_rng(4)
    mixed = _reordered(case.test, [rng.permutation(len(bag)) for bag in case.test])
    _near(
        case.head.predict_proba(mixed),
        case.head.predict_proba(case.test),
        "the order of patches matters",
    )


def _uneven_bags_change_nothing(case: _Case) -> None:
    # One long bag makes the others packed, or padded by a lot.
    rng = np.random.default_rng(5)
    long = rng.normal(scale=1e3, size=(700, case.test.n_features)).astype(np.float32)
    found = case.head.predict_proba(_joined([*_arrays(case.test), long], case.test))
    _near(found[:-1], case.head.predict_proba(case.test), "a long bag changes the others")


def _padding_is_never_seen(case: _Case) -> None:
    head: Any = case.head
    if not hasattr(head, "module"):
        return
    import torch

    module = head.module
    lengths = torch.as_tensor(case.test.lengths)
    mask = torch.arange(int(lengths.max()) + 3) < lengths.unsqueeze(1)
    x, coords = torch.zeros(*mask.shape, case.test.n_features), torch.zeros(*mask.shape, 2)
    x[mask] = torch.from_numpy(head.standardiser(case.test.embedding))
    coords[mask] = torch.from_numpy(np.array(case.test.coords, np.float32))
    padding = ~mask.unsqueeze(-1)
    with torch.inference_mode():
        calm = module(x, mask, coords)
        for filling in (_HUGE, -_HUGE, float("inf"), float("nan")):
            loud = module(x.masked_fill(padding, filling), mask, coords.masked_fill(padding, 7e5))
            _must(torch.equal(calm, loud), f"padding of {filling} changes predictions")
        tight = module(x[:, :-3], mask[:, :-3], coords[:, :-3])
        _near(calm, tight, "more padding changes predictions")
        found = calm.double().softmax(dim=1).numpy()
        _near(found, case.head.predict_proba(case.test), "forward and predict_proba differ")
        try:
            module(x, torch.zeros_like(mask), coords)
        except EmptyBag:
            return
    raise AssertionError("a mask without any patch is accepted")


def _a_bag_of_one_patch_works(case: _Case) -> None:
    single = _joined([_arrays(case.test)[0][:1]], case.test)
    found = case.head.predict_proba(single)
    _must(np.isfinite(found).all(), "a bag of one patch has no finite prediction")


def _an_empty_bag_is_refused(case: _Case) -> None:
    rows = _arrays(case.test)[0]
    try:
        case.head.predict_proba(_joined([rows, rows[:0]], case.test))
    except EmptyBag:
        return
    raise AssertionError("an empty bag is accepted")


def _other_features_are_refused(case: _Case) -> None:
    try:
        case.head.predict_proba(toy_bags(4, n_features=case.test.n_features + 1))
    except NotSupported:
        return
    raise AssertionError("embeddings of another length are accepted")


def _attention_weighs_real_patches(case: _Case) -> None:
    if not case.has_attention():
        return
    weights = case.head.attention(case.test)
    _must([len(w) for w in weights] == case.test.lengths.tolist(), "one weight per patch, please")
    _must(all((w >= 0).all() for w in weights), "a weight is negative")
    _must(np.allclose([w.sum() for w in weights], 1, atol=1e-9), "weights do not sum to 1")
    mirrored = _reordered(case.test, [np.arange(len(bag))[::-1] for bag in case.test])
    for there, back in zip(weights, case.head.attention(mirrored), strict=True):
        _near(there, back[::-1], "weights do not follow their patches")
    module = getattr(case.head, "module", None)
    if module is None:
        return
    import torch

    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.ones(2, 3, case.test.n_features).masked_fill(~mask.unsqueeze(-1), _HUGE)
    coords = torch.from_numpy(_grid(3).astype(np.float32)).expand(2, 3, 2)
    with torch.inference_mode():
        padded = module.attention(x, mask, coords)
    _must(bool((padded[~mask] == 0).all()), "padding has a weight")


def _the_same_seed_gives_the_same_head(case: _Case) -> None:
    again = case.fit(case.train).predict_proba(case.test)
    _must(np.array_equal(again, case.head.predict_proba(case.test)), "a seed gives two results")


def _another_seed_gives_another_head(case: _Case) -> None:
    if not hasattr(case.head, "module"):
        return
    other = case.fit(case.train, seed=1).predict_proba(case.test)
    _must(not np.array_equal(other, case.head.predict_proba(case.test)), "the seed is idle")


def _fit_leaves_no_trace(case: _Case) -> None:
    import torch

    def trace() -> dict[str, bytes]:
        return {
            "its embeddings": case.train.embedding.tobytes(),
            "its labels": case.train.labels.tobytes(),
            "its offsets": case.train.offset.tobytes(),
            "torch's random state": torch.random.get_rng_state().numpy().tobytes(),
            "numpy's random state": repr(np.random.get_state()).encode(),  # noqa: NPY002
            "Python's random state": repr(random.getstate()).encode(),
            "the number of threads": str(torch.get_num_threads()).encode(),
        }

    before = trace()
    case.fit(case.train, seed=9)
    after = trace()
    changed = [name for name, seen in before.items() if after[name] != seen]
    _must(not changed, f"fit changes {', '.join(changed)}")


def _predicting_twice_gives_the_same(case: _Case) -> None:
    first, second = (case.head.predict_proba(case.test) for _ in range(2))
    _must(np.array_equal(first, second), "predicting is random")


def _a_saved_head_is_the_same_head(case: _Case) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"0-0{case.head.suffix}"
        case.head.save(path)
        again = load_head(path)
    _must(again.spec == case.spec, "the settings change when saved")
    _must(again.recipe == case.recipe, "the recipe changes when saved")
    _must(again.classes == case.head.classes, "the classes change when saved")
    same = np.array_equal(again.predict_proba(case.test), case.head.predict_proba(case.test))
    _must(same, "predictions change when saved")


def _half_precision_is_taken(case: _Case) -> None:
    half = _joined([rows.astype(np.float16) for rows in _arrays(case.test)], case.test)
    found = case.head.predict_proba(half)
    _must(np.allclose(found, case.head.predict_proba(case.test), atol=0.05), "float16 differs")


def _history_has_its_columns(case: _Case) -> None:
    columns = {
        "epoch",
        "overfit_gap",
        *(f"{r}_{m}" for r in ("train", "validation") for m in ("loss", "macro_f1", "accuracy")),
    }
    _must(case.head.history, "there is no history")
    for row in case.head.history:
        _must(set(row) == columns, f"history has columns {sorted(row)}")


def _three_classes_and_uneven_bags_are_learnt(case: _Case) -> None:
    classes = ("a", "b", "c")
    train = toy_bags(90, seed=6, classes=classes, longest=20)
    test = toy_bags(60, seed=7, classes=classes, longest=20)
    found = case.spec.fit(train, test, case.recipe).predict_proba(test).argmax(axis=1)
    share = float(np.mean(found == test.labels))
    _must(share > 0.9, f"three separate classes are told apart in only {share:.0%}")


def _two_classes_are_learnt(case: _Case) -> None:
    found = case.head.predict_proba(case.test).argmax(axis=1)
    share = float(np.mean(found == case.test.labels))
    _must(share > 0.9, f"two separate classes are told apart in only {share:.0%}")


def _shuffled_labels_are_not_learnt(case: _Case) -> None:
    test = toy_bags(200, seed=8, shuffled=True)
    found = case.fit(toy_bags(60, seed=9, shuffled=True)).predict_proba(test).argmax(axis=1)
    share = float(np.mean(found == test.labels))
    _must(abs(share - 0.5) < 0.18, f"shuffled labels are predicted in {share:.0%}: a leak")


CHECKS: tuple[Callable[[_Case], None], ...] = (
    _probabilities_are_a_distribution,
    _no_bag_gives_no_row,
    _a_batch_equals_one_by_one,
    _order_of_bags_does_not_matter,
    _order_of_patches_does_not_matter,
    _uneven_bags_change_nothing,
    _padding_is_never_seen,
    _a_bag_of_one_patch_works,
    _an_empty_bag_is_refused,
    _other_features_are_refused,
    _attention_weighs_real_patches,
    _the_same_seed_gives_the_same_head,
    _another_seed_gives_another_head,
    _fit_leaves_no_trace,
    _predicting_twice_gives_the_same,
    _a_saved_head_is_the_same_head,
    _half_precision_is_taken,
    _history_has_its_columns,
    _two_classes_are_learnt,
    _three_classes_and_uneven_bags_are_learnt,
    _shuffled_labels_are_not_learnt,
)
"""Every check, in the order in which :func:`check_head` runs them."""


def check_head(spec: HeadSpec, recipe: Recipe | None = None) -> None:
    """Hold a head to what the harness relies on.

    Parameters
    ----------
    spec
        Settings of the head.
    recipe
        How to train it; the default where left out.

    Raises
    ------
    AssertionError
        If some checks fail; the message has one line for each.
    """
    case = _Case(spec, Recipe() if recipe is None else recipe)
    failures = []
    for check in CHECKS:
        try:
            check(case)
        except AssertionError as failure:
            failures.append(f"{check.__name__.lstrip('_').replace('_', ' ')}: {failure}")
    if failures:
        raise AssertionError("\n".join([f"head {spec.name} fails:", *failures]))
