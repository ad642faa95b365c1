"""The learned graph: what it sees that no pooling can, its levels, its edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from zoo.bags import Bags
from zoo.errors import NotSupported, RecipeError
from zoo.heads.catalog import spec
from zoo.heads.graph import Neighbours, edges, nearest, sparsemax
from zoo.metrics import evaluate
from zoo.recipes import Recipe, recipe
from zoo.training.batches import arrange
from zoo.training.layout import Padded
from zoo.training.loop import Outer


def arrangements(n_bags=60, *, seed=0, side=6):
    """Draw squares of two kinds of patches, as many of each: in halves, or as a chessboard."""
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(side * side), side)
    halves, board = (x < side // 2), (x + y) % 2 == 0
    rows, coords, labels = [], [], []
    for bag in range(n_bags):
        kind = (halves, board)[bag % 2] ^ bool(rng.integers(2))
        rows.append(np.stack([kind, ~kind], axis=1) * 2.0 + rng.normal(size=(side * side, 2)))
        coords.append(np.stack([x, y], axis=1) * 256)
        labels.append(bag % 2)
    return Bags.from_arrays(
        np.concatenate(rows).astype(np.float32),
        np.arange(n_bags + 1) * side * side,
        labels=np.array(labels),
        classes=("halves", "chessboard"),
        coords=np.concatenate(coords).astype(np.int32),
    )


SMALL = {"hidden": 16, "attention": 8, "n_candidates": 12, "n_neighbours": 4, "dropout": 0.0}
LONG = recipe(epochs=30, lr=1e-2)


def auroc(name, **settings):
    head = spec(name, **settings).fit(arrangements(seed=1), recipe=LONG)
    bags = arrangements(seed=2)
    return evaluate(bags.labels, head.predict_proba(bags))["auroc"]


@pytest.mark.parametrize("learned", [True, False])
def test_an_arrangement_is_seen_by_the_graph(learned):
    assert auroc("graph", **SMALL, learned=learned) > 0.95


@pytest.mark.parametrize("name", ["mean-pool", "gated-mil"])
def test_an_arrangement_is_not_seen_by_pooling(name):
    assert abs(auroc(name, hidden=16) - 0.5) < 0.25


def planted(n_bags=60, *, seed=0, side=6):
    """Draw squares of noise in which two patches carry the class; give which they are, too."""
    rng = np.random.default_rng(seed)
    y, x = np.divmod(np.arange(side * side), side)
    rows = rng.normal(size=(n_bags, side * side, 6)).astype(np.float32)
    telling = np.zeros((n_bags, side * side), bool)
    for bag in range(n_bags):
        telling[bag, rng.choice(side * side, 2, replace=False)] = True
        rows[bag, telling[bag], bag % 2] += 4
    bags = Bags.from_arrays(
        rows.reshape(-1, 6),
        np.arange(n_bags + 1) * side * side,
        labels=np.arange(n_bags) % 2,
        classes=("first", "second"),
        coords=np.tile(np.stack([x, y], axis=1) * 256, (n_bags, 1)).astype(np.int32),
    )
    return bags, telling


@pytest.mark.parametrize("learned", [True, False])
def test_attention_finds_the_patches_that_speak_not_those_that_listen(learned):
    head = spec("graph", **SMALL, learned=learned).fit(planted(seed=1)[0], recipe=LONG)
    bags, telling = planted(seed=2)
    found = [
        roc_auc_score(truth, weights)
        for truth, weights in zip(telling, head.attention(bags), strict=True)
    ]
    assert np.mean(found) > 0.9


def test_attention_is_carried_back_along_the_edges():
    # All but the last listen to the patch on their right, and the first and last are attended.
    torch.manual_seed(0)
    module = spec("graph", **{**SMALL, "depth": 1}, learned=False).build(2, 2).eval()
    mask = torch.ones(1, 4, dtype=torch.bool)
    near = Neighbours(torch.tensor([[[1], [2], [3], [2]]]), torch.ones(1, 4, 1), mask[..., None])
    module.graph = lambda *_: (near, torch.tensor([[[1.0], [1.0], [1.0], [0.0]]]))
    module.attend.forward = lambda *_: torch.tensor([[0.6, 0.0, 0.0, 0.4]])
    first, second, third, last = module.weights(torch.randn(1, 4, 2), Padded(mask))[0].tolist()
    assert first > 0
    assert second > 0
    np.testing.assert_allclose([first + second, third, last], [0.6, 0.0, 0.4], atol=1e-6)


def test_learned_edges_prefer_what_matters_and_most_are_gone():
    bags = arrangements(seed=1)
    found = edges(spec("graph", **SMALL).fit(bags, recipe=LONG), arrangements(6, seed=3))
    assert len(found) == 6
    for one in found:
        sums = np.zeros(36)
        np.add.at(sums, one.first, one.weight)
        np.testing.assert_allclose(sums, 1, atol=1e-5)
        assert (one.first != one.second).all()
        assert (one.weight > 0).all()
        assert len(one.first) < 0.8 * 36 * SMALL["n_candidates"]


def test_heads_without_edges_and_bags_without_coordinates_say_so():
    bags = arrangements(12)
    plain = spec("gated-mil", hidden=8).fit(bags, recipe=recipe(epochs=1))
    with pytest.raises(NotSupported, match="has no edges"):
        edges(plain, bags)
    bare = Bags.from_arrays(bags.embedding, bags.offset, labels=bags.labels, classes=bags.classes)
    with pytest.raises(NotSupported, match="coordinates"):
        spec("graph", **SMALL).fit(bare, recipe=recipe(epochs=1))


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4),
    k=st.integers(1, 14),
    seed=st.integers(0, 99),
)
def test_neighbours_are_the_nearest_real_patches(lengths, k, seed):
    rng = np.random.default_rng(seed)
    width = max(lengths)
    mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    coords = torch.from_numpy(
        rng.permutation(1000)[: len(lengths) * width * 2].reshape(-1, width, 2)
    )
    near = nearest(coords.float(), mask, k)
    for bag, length in enumerate(lengths):
        points = coords[bag, :length].double().numpy()
        apart = np.linalg.norm(points[:, None] - points[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        for patch in range(width):
            real = near.real[bag, patch]
            if patch >= length:
                assert not real.any()
                continue
            count = min(k, length - 1)
            assert int(real.sum()) == count
            chosen = near.which[bag, patch][real].numpy()
            np.testing.assert_allclose(apart[patch, chosen], np.sort(apart[patch])[:count])


@given(
    rows=st.lists(
        st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4), min_size=1, max_size=5
    )
)
def test_sparsemax_is_the_nearest_point_of_the_simplex(rows):
    scores = torch.tensor(rows)
    found = sparsemax(scores)
    torch.testing.assert_close(found.sum(dim=1), torch.ones(len(rows)))
    assert (found >= 0).all()
    rng = np.random.default_rng(0)
    others = torch.from_numpy(rng.dirichlet(np.ones(4) * 0.5, size=(50, len(rows)))).float()
    mine = (found - scores).norm(dim=1)
    assert ((others - scores).norm(dim=2) >= mine - 1e-4).all()


def test_a_patch_without_neighbours_hears_nothing():
    torch.testing.assert_close(sparsemax(torch.full((1, 3), -torch.inf)), torch.zeros(1, 3))
    head = spec("graph", **SMALL).fit(arrangements(12), recipe=recipe(epochs=1))
    single = arrangements(4)
    lone = Bags.from_arrays(
        single.embedding[:2],
        np.array([0, 1, 2]),
        classes=single.classes,
        coords=single.coords[:2],
    )
    assert np.isfinite(head.predict_proba(lone)).all()


def test_the_levels_learn_on_bags_of_their_own_and_with_parameters_of_their_own():
    torch.manual_seed(0)
    module = spec("graph", **SMALL, held_out=0.3).build(2, 2)
    labels = np.repeat([0, 1], [20, 7])
    bags = arrange(
        np.zeros((27, 2), np.float32), np.ones(27, np.int64), labels, device=torch.device("cpu")
    )
    outer = Outer.of(module, bags, Recipe())
    assert set(outer.taught.tolist()).isdisjoint(outer.held.tolist())
    assert sorted([*outer.taught.tolist(), *outer.held.tolist()]) == list(range(27))
    assert np.bincount(labels[outer.held]).tolist() == [6, 2]
    moved = {id(weight) for group in outer.optimiser.param_groups for weight in group["params"]}
    assert moved == {id(weight) for weight in module.edge.parameters()}
    assert spec("graph", **SMALL, learned=False).build(2, 2).outer_parameters == []


def test_images_on_a_graph_are_not_mixed():
    with pytest.raises(RecipeError, match="no common coordinates"):
        spec("graph", **SMALL).fit(arrangements(12), recipe=recipe(epochs=1, mixup=0.4))


def test_the_same_seed_gives_the_same_graph():
    bags, how = arrangements(16), recipe(epochs=2)
    first, second = (spec("graph", **SMALL).fit(bags, recipe=how, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first.predict_proba(bags), second.predict_proba(bags))


def test_a_rotated_and_shifted_image_has_the_same_prediction():
    bags = arrangements(16)
    head = spec("graph", **SMALL).fit(bags, recipe=recipe(epochs=3))
    turned = bags.coords[:, ::-1] * np.array([-1, 1]) + 5000
    other = Bags.from_arrays(
        bags.embedding,
        bags.offset,
        labels=bags.labels,
        classes=bags.classes,
        coords=turned.astype(np.int32),
    )
    # Ties between equally near patches may fall otherwise, hence the tolerance.
    near = spec("graph", **{**SMALL, "n_candidates": 4}, learned=False)
    plain = near.fit(bags, recipe=recipe(epochs=3))
    assert np.abs(head.predict_proba(bags) - head.predict_proba(other)).mean() < 0.1
    assert plain.predict_proba(bags).shape == plain.predict_proba(other).shape
