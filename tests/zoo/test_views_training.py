"""Stored views: every patch drawn from them in training, predictions averaged over them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from tests.zoo.views import LENGTHS, SMALL, VIEWS, N, fitted, same, two_bags
from zoo.heads.base import Standardiser
from zoo.heads.batching import batches_of
from zoo.jobs import _sent
from zoo.manyviews import (
    Stacked,
    all_views,
    as_extra_bags,
    in_view,
    predict_views,
    training_views,
    with_views,
)
from zoo.training.batches import (
    PackedBatches,
    StoredPaddedBatches,
    StoredRows,
    arrange,
    arrange_stored,
)

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=LENGTHS)
def read(request, tmp_path_factory):
    return two_bags(tmp_path_factory.mktemp(request.param), LENGTHS[request.param])


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return two_bags(tmp_path_factory.mktemp("one"), LENGTHS["packed"])


# What training sees -------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    n_views=st.integers(2, 4),
    seed=st.integers(0, 99),
    dropout=st.sampled_from([0.0, 0.4]),
    stored=st.booleans(),
)
def test_every_row_of_a_batch_is_its_patch_in_one_of_the_views(
    lengths, n_views, seed, dropout, stored
):
    rng, n, counts = np.random.default_rng(seed), sum(lengths), np.array(lengths)
    # Column 0 says which patch it is, column 1 which view.
    views = [
        np.stack([np.arange(n), np.full(n, view)], axis=1).astype(np.float32)
        for view in range(n_views)
    ]
    coords = np.stack([np.arange(n), np.arange(n)], axis=1).astype(np.int32)
    labels, starts = np.zeros(len(counts), np.int64), np.cumsum(counts) - counts
    if stored:
        batches = arrange_stored(
            StoredRows(Stacked(views), device=CPU),
            starts,
            counts,
            labels,
            coords=StoredRows(coords, device=CPU),
            n_views=n_views,
        )
    else:
        rows = np.concatenate(views)
        batches = arrange(rows, counts, labels, device=CPU, coords=coords, n_views=n_views)
    assert isinstance(batches, PackedBatches)
    index = torch.from_numpy(rng.permutation(len(counts)))
    torch.manual_seed(seed)
    recipe = zoo.recipe(patch_dropout=dropout, min_patches=1)
    rows, layout = batches.take(index, recipe=recipe)
    mask = getattr(layout, "mask", torch.ones(rows.shape[:-1], dtype=torch.bool))
    assert torch.equal(layout.coords[..., 0][mask], rows[..., 0][mask])
    assert set(rows[..., 1][mask].tolist()) <= set(range(n_views))
    if isinstance(batches, StoredPaddedBatches) or not dropout:
        expected = [starts[i] + np.arange(counts[i]) for i in index.tolist()]
        real = mask if not dropout else torch.arange(mask.shape[1]) < batches.lengths[index, None]
        assert rows[..., 0][real].tolist() == np.concatenate(expected).tolist()
    watched = batches.take(index)[0]
    assert not watched[..., 1].any(), "what is not training is of the first view"


def test_all_views_come_in_like_shares_and_anew_each_time(read):
    features, *both = read
    for bags in both:
        many = with_views(bags, features, train=VIEWS)
        batches = batches_of(
            Standardiser.idle(8), many, CPU, coords=False, views=training_views(many)
        )
        flat = np.stack([one.embedding for one in all_views(many)])  # (view, patch, feature)
        index, recipe = torch.arange(N), zoo.recipe()
        torch.manual_seed(0)
        seen = []
        for _ in range(12):
            rows, layout = batches.take(index, recipe=recipe)
            real = layout.real(rows).numpy()
            hits = (flat == real).all(axis=2)  # (view, patch)
            assert (hits.sum(axis=0) == 1).all()
            seen.append(hits.argmax(axis=0))
        shares = np.bincount(np.concatenate(seen), minlength=3) / (12 * len(seen[0]))
        assert np.abs(shares - 1 / 3).max() < 0.05
        assert all(len(set(patch)) > 1 for patch in np.transpose(seen))
        assert not np.array_equal(seen[0], seen[1])


# What comes of it ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated-mil", "mlp-simple", "logistic"])
def test_the_same_seed_gives_the_same_head_wherever_the_views_lie(read, name, tmp_path):
    features, here, there = read
    one = with_views(here, features, train=VIEWS, memory_limit=2**30)
    mapped = with_views(there, features, train=VIEWS, memory_limit=0)
    mixed = with_views(here, features, train=VIEWS, memory_limit=0, cache=tmp_path)
    assert [bool(bags.folder) for bags in all_views(mixed)] == [False, True, True]
    assert all(bags.folder.parent == there.folder.parent for bags in all_views(mapped))
    heads = [fitted(bags, name) for bags in (one, one, mapped, mixed)]
    assert all(same(heads[0], head) for head in heads[1:])
    assert not same(heads[0], fitted(here, name)), "the views do matter"
    if name != "logistic":
        assert not same(heads[0], fitted(one, name, seed=1))


@pytest.mark.parametrize("read", ["padded"], indirect=True)
def test_seeds_that_are_computed_as_one_draw_what_each_draws_alone(read):
    features, here, _ = read
    many = with_views(here, features, train=VIEWS)
    spec, recipe = zoo.spec("gated-mil", **SMALL["gated-mil"]), zoo.recipe(epochs=2, batch_size=6)
    alone = [spec.fit(many, recipe=recipe, seed=seed) for seed in (0, 1)]
    both = spec.fit_many(many, recipe=recipe, seeds=(0, 1), together="always")
    for one, other in zip(alone, both, strict=True):
        np.testing.assert_allclose(one.predict(here), other.predict(here), atol=1e-5)
    assert not np.allclose(alone[0].predict(here), alone[1].predict(here), atol=1e-3)


@pytest.mark.parametrize("name", ["gated-mil", "patch-mean", "logistic"])
def test_one_view_trains_as_it_did_before_there_were_several(read, name):
    features, *both = read
    for bags in both:
        plain = fitted(bags, name)
        assert same(plain, fitted(with_views(bags, features, train="identity"), name))
        turned = in_view(with_views(bags, features, train=["rot90"]), "rot90")
        drawn = with_views(bags, features, train=["rot90"])[:16]
        recipe = zoo.recipe() if name == "logistic" else zoo.recipe(epochs=1)
        heads = [
            zoo.spec(name, **SMALL.get(name, {})).fit(x, recipe=recipe)
            for x in (turned[:16], drawn)
        ]
        assert same(*heads)
        assert not same(heads[0], plain)


def test_estimators_see_each_image_once_per_view(packed):
    features, here, there = packed
    for bags in (here, there):
        many = with_views(bags, features, train=VIEWS)
        choice = [3, 0, 1, 2, 23]
        extra = as_extra_bags(many[choice])
        assert len(extra) == 3 * len(choice)
        assert extra.patient_ids == bags[choice].patient_ids * 3
        assert extra.labels.tolist() == bags[choice].labels.tolist() * 3
        expected = np.concatenate([in_view(many, view)[choice].embedding for view in VIEWS])
        assert np.array_equal(extra.embedding, expected)
        assert np.array_equal(np.concatenate([b.embedding for b in extra.blocks(99)]), expected)
        assert np.array_equal(extra.coords, np.tile(bags[choice].coords, (3, 1)))
        assert np.array_equal(extra[6].embedding, in_view(many, "rot90")[0].embedding)


def test_what_is_learned_is_what_bags_of_all_views_would_teach(packed):
    features, here, _ = packed
    many = with_views(here, features, train=VIEWS)
    by_hand = zoo.Bags.from_arrays(
        np.concatenate([bags.embedding for bags in all_views(many)]),
        np.cumsum([0, *np.tile(here.lengths, 3)]),
        labels=np.tile(here.labels, 3),
        classes=here.classes,
    )
    head, other = (zoo.spec("logistic").fit(bags) for bags in (many, by_hand))
    assert same(head, other)
    networks = [
        zoo.spec("gated-mil", **SMALL["gated-mil"]).fit(bags, recipe=zoo.recipe(epochs=1))
        for bags in (many, by_hand)
    ]
    assert np.array_equal(*(head.standardiser.mean for head in networks))


# At test time -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gated-mil", "logistic"])
def test_predictions_are_the_mean_over_views(read, name):
    features, *both = read
    for bags in both:
        many = with_views(bags, features, test=VIEWS)
        head = fitted(many, name)
        assert same(head, fitted(bags, name)), "test views have no say in training"
        single = [head.predict_proba(in_view(many, view)) for view in VIEWS]
        np.testing.assert_allclose(predict_views(head, many), np.mean(single, axis=0))
        pair = predict_views(head, many[[5, 2]], ("rot90", "flip-h"))
        np.testing.assert_allclose(pair, (single[1] + single[2])[[5, 2]] / 2)
        assert np.array_equal(predict_views(head, bags), head.predict_proba(bags))
        assert not np.array_equal(single[0], single[1])
        assert np.array_equal(head.predict_proba(many), single[0])


def test_a_run_averages_test_and_validation_and_says_so(packed, tmp_path):
    features, here, _ = packed
    many = with_views(here, features, train=VIEWS[:2], test=VIEWS)
    split = zoo.make_split(here, folds=2)
    run = zoo.fit_run(many, zoo.spec("logistic"), split=split, out=tmp_path / "run")
    assert run.document["train_views"] == ["identity", "rot90"]
    assert run.document["test_views"] == list(VIEWS)
    plain = zoo.fit_run(here, zoo.spec("logistic"), split=split, out=tmp_path / "plain")
    assert not {"train_views", "test_views"} & set(plain.document)
    head = run.load_heads()[0, 0]
    for role, rows in split.folds[0].parts.items():
        expected = predict_views(head, many[rows], None if role != "train" else ("identity",))
        table = run.predictions.query("fold == 0 and role == @role")
        np.testing.assert_allclose(table[["prob_a", "prob_b"]], expected)


def test_worker_processes_are_sent_the_names_of_files(packed, tmp_path):
    features, here, there = packed
    for bags in (here[4:], there[4:]):
        many = with_views(bags, features, train=VIEWS, test="all")
        with _sent(many, tmp_path / "embedding.npy") as (shared, sent):
            assert shared is None
            packet = pickle.dumps(sent)
            assert len(packet) < many.embedding.nbytes
            again = pickle.loads(packet)  # noqa: TID251 - as multiprocessing does
            assert again.table.test_views == VIEWS
            for one, other in zip(all_views(many), all_views(again), strict=True):
                assert one.augmentation == other.augmentation
                assert other.folder is not None
                assert np.array_equal(one.embedding, other.embedding)
                assert np.array_equal(one.coords, other.coords)
            heads = [zoo.spec("logistic").fit(sort) for sort in (many, again)]
            assert same(*heads)
            assert np.array_equal(*(predict_views(heads[0], sort) for sort in (many, again)))
        assert not list(tmp_path.iterdir())
    assert there.folder.is_dir()
