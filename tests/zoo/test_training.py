"""Losses, batches, schedules and the loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zoo.errors import RecipeError
from zoo.heads.catalog import spec
from zoo.recipes import Recipe, recipe
from zoo.testing import toy_bags
from zoo.training.batches import PackedBatches, PaddedBatches, arrange, keep_patches
from zoo.training.layout import Packed, Padded
from zoo.training.losses import balanced_weights, smoothed_focal, symmetric_divergence
from zoo.training.optim import WeightAverage, make_optimiser, rate_at
from zoo.training.precision import autocast
from zoo.training.threads import available, limited

CPU = torch.device("cpu")


def logits_and_labels(seed=0, n=11, classes=4):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(n, classes, generator=generator)
    return logits, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0])])
def test_focal_loss_without_focus_is_cross_entropy(smoothing, weights):
    logits, labels = logits_and_labels()
    plain = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing)
    nearly = smoothed_focal(logits, labels, weights=weights, label_smoothing=smoothing, gamma=1e-9)
    torch.testing.assert_close(nearly, plain)


def test_focal_loss_is_the_formula_of_its_paper():
    logits, labels = logits_and_labels()
    p = logits.softmax(dim=1)[torch.arange(len(labels)), labels]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(smoothed_focal(logits, labels, gamma=2.0), expected)


def test_focal_loss_has_a_gradient_where_the_answer_is_certain():
    logits = torch.tensor([[100.0, -100.0]], requires_grad=True)
    smoothed_focal(logits, torch.tensor([0]), gamma=0.5).backward()
    assert torch.isfinite(logits.grad).all()


def test_divergence_is_that_of_torch_and_zero_for_equal_passes():
    first, second = logits_and_labels(0)[0], logits_and_labels(1)[0]
    log_p, log_q = first.log_softmax(1), second.log_softmax(1)
    both = functional.kl_div(log_p, log_q, reduction="batchmean", log_target=True)
    both += functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    torch.testing.assert_close(symmetric_divergence(first, second), both / 2)
    assert float(symmetric_divergence(first, first)) == 0


def test_balanced_weights_make_classes_weigh_the_same():
    labels = torch.tensor([0] * 6 + [1] * 3 + [3])
    weights = balanced_weights(labels, 4)
    assert weights[2] == 0
    torch.testing.assert_close(
        weights * torch.bincount(labels), torch.tensor([1, 1, 0, 1]) * len(labels) / 3
    )


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    share=st.floats(0.01, 0.95),
    least=st.integers(1, 6),
)
def test_patch_dropout_always_leaves_enough(lengths, share, least):
    lengths = torch.tensor(lengths)
    keep = keep_patches(lengths, int(lengths.max()) + 2, share=share, least=least)
    kept = keep.sum(dim=1)
    assert (kept >= torch.minimum(lengths, torch.tensor(least))).all()
    assert (kept <= lengths).all()
    assert not keep[torch.arange(keep.shape[1]) >= lengths.unsqueeze(1)].any()


def test_patch_dropout_drops_its_share():
    lengths = torch.full((200,), 50)
    keep = keep_patches(lengths, 50, share=0.3, least=1)
    assert abs(float(keep.float().mean()) - 0.7) < 0.03


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    seed=st.integers(0, 99),
)
def test_both_kinds_of_batches_hold_the_same_bags(lengths, seed):
    rng = np.random.default_rng(seed)
    rows = torch.from_numpy(rng.normal(size=(sum(lengths), 3)).astype(np.float32))
    index = torch.from_numpy(rng.permutation(len(lengths))[: rng.integers(1, len(lengths) + 1)])
    lengths = torch.tensor(lengths)
    labels = torch.zeros(len(lengths), dtype=torch.int64)
    padded, where = PaddedBatches(rows, lengths, labels).take(index)
    packed, places = PackedBatches(rows, lengths, labels).take(index)
    assert torch.equal(padded[where.mask], packed)
    assert torch.equal(where.mask.sum(dim=1), places.lengths)
    parts = rows.split(lengths.tolist())
    assert torch.equal(packed, torch.cat([parts[i] for i in index.tolist()]))


def test_a_bag_alone_has_the_numbers_it_has_among_others():
    torch.manual_seed(0)
    rows, lengths = torch.randn(9, 3), torch.tensor([4, 5])
    scores, alone, slow, both = torch.randn(9), *map(Packed, (lengths[:1], lengths[:1], lengths))
    slow.alone = False
    weights = alone.softmax(scores[:4])
    for name, parts in (("sum", (weights, rows[:4])), ("mean", (rows[:4],)), ("pad", (rows[:4],))):
        for quick, long in zip(
            getattr(alone, name)(*parts), getattr(slow, name)(*parts), strict=True
        ):
            torch.testing.assert_close(quick, long)
    torch.testing.assert_close(weights, both.softmax(scores)[:4])
    per_bag = torch.randn(2, 3)
    torch.testing.assert_close(
        rows[:4] * alone.spread(per_bag[:1]), (rows * both.spread(per_bag))[:4]
    )


@pytest.mark.parametrize("longest", [9, 3000])
def test_bags_in_order_come_whole_and_in_order(longest):
    bags = toy_bags(40, longest=longest)
    batches = arrange(bags.embedding, bags.lengths, bags.labels, device=CPU)
    steps = list(batches.in_order())
    assert len(steps) > 1 or longest == 9
    rows = [rows[where.mask] if rows.dim() == 3 else rows for rows, where in steps]
    assert np.array_equal(torch.cat(rows).numpy(), bags.embedding)


def test_like_sized_bags_are_padded_and_uneven_ones_packed():
    def kind(lengths):
        rows = np.zeros((sum(lengths), 2), np.float32)
        return type(arrange(rows, np.array(lengths), np.zeros(len(lengths)), device=CPU))

    assert kind([12, 12, 11, 12]) is PaddedBatches
    assert kind([6, 699, 12]) is PackedBatches


def test_rates_fall_and_stay_where_weights_are_averaged():
    rates = [rate_at(Recipe(lr=1.0), share) for share in np.linspace(0, 1, 50)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1
    assert rates[-1] == pytest.approx(0)
    assert rate_at(Recipe(lr=0.3, schedule="none"), 0.7) == 0.3
    assert rate_at(Recipe(lr=1.0, swa_start=0.5, schedule="none"), 0.7) == 0.5


@pytest.mark.parametrize("optimiser", ["adamw", "lion", "sgd"])
def test_each_optimiser_steps_downhill(optimiser):
    weight = torch.nn.Parameter(torch.tensor([3.0]))
    stepper = make_optimiser(Recipe(optimiser=optimiser, lr=0.01), [weight])
    for _ in range(50):
        stepper.zero_grad()
        weight.square().sum().backward()
        stepper.step()
    assert abs(float(weight.detach())) < 3


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_steps_are_those_of_torch(name):
    recipe = Recipe(optimiser=name, lr=0.03, weight_decay=0.1)
    ours, theirs = (torch.nn.Linear(3, 2) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    unused = torch.nn.Parameter(torch.ones(1))  # and the bias is, in one step
    stepper = make_optimiser(recipe, [*ours.parameters(), unused])
    cls, more = (torch.optim.AdamW, {}) if name == "adamw" else (torch.optim.SGD, {"momentum": 0.9})
    other = cls(theirs.parameters(), lr=0.03, weight_decay=0.1, **more)
    for step in range(5):
        x = torch.randn(4, 3)
        for group in (*stepper.param_groups, *other.param_groups):
            group["lr"] = 0.03 / (1 + step)
        for layer, optimiser in ((ours, stepper), (theirs, other)):
            optimiser.zero_grad(set_to_none=step % 2 == 0)
            layer(x).square().sum().backward()
            if step == 2:
                layer.bias.grad = None
            optimiser.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    assert float(unused.detach()) == 1


def test_bfloat16_is_for_products_alone():
    layer, x = torch.nn.Linear(4, 3), torch.randn(5, 4)
    with autocast(Recipe(), CPU):
        assert layer(x).dtype == torch.float32
    with autocast(Recipe(precision="bfloat16"), CPU):
        found = layer(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_long_bags_are_summed_exactly_in_half_width(kind):
    # In bfloat16 256 + 1 is 256: a sum that is kept in it stops growing.
    lengths = torch.tensor([3000, 40])
    layout = Packed(lengths)
    if kind == "padded":
        layout = Padded(layout.pad(torch.zeros(3040, 1))[1])
    shape = (3040,) if kind == "packed" else (2, 3000)
    ones = torch.ones(*shape, 2, dtype=torch.bfloat16)
    gates = torch.ones(2, 2, dtype=torch.bfloat16, requires_grad=True)
    with autocast(Recipe(precision="bfloat16"), CPU):
        weights = layout.softmax(ones[..., 0])
        torch.testing.assert_close(layout.mean(ones).float(), torch.ones(2, 2), atol=4e-3, rtol=0)
        torch.testing.assert_close(
            layout.sum(weights, ones).float(), torch.ones(2, 2), atol=4e-3, rtol=0
        )
        (layout.mean(ones * layout.spread(gates))).float().sum().backward()
    torch.testing.assert_close(gates.grad.float(), torch.ones(2, 2), atol=8e-3, rtol=0)


def test_the_average_of_weights_is_their_mean():
    layer, average = torch.nn.Linear(2, 1), WeightAverage()
    seen = []
    for value in (1.0, 2.0, 6.0):
        torch.nn.init.constant_(layer.weight, value)
        seen.append(value)
        average.add(layer)
    torch.testing.assert_close(average.state()["weight"], torch.full((1, 2), sum(seen) / 3))


def test_history_follows_training_and_tells_the_gap():
    train, other = toy_bags(seed=1), toy_bags(seed=2)
    head = spec("mlp-simple").fit(train, other, recipe(epochs=20, lr=1e-2))
    assert [row["epoch"] for row in head.history] == list(range(1, 21))
    assert head.history[-1]["train_loss"] < head.history[0]["train_loss"]
    for row in head.history:
        gap = row["train_macro_f1"] - row["validation_macro_f1"]
        assert row["overfit_gap"] == pytest.approx(gap)
    alone = spec("mlp-simple").fit(train, recipe=recipe(epochs=2))
    assert math.isnan(alone.history[0]["validation_loss"])


@pytest.mark.parametrize("name", ["default", "r-drop", "swa", "focal-lion"])
def test_the_last_validation_row_is_that_of_the_kept_head(name):
    train, other = toy_bags(seed=1), toy_bags(seed=2)
    head = spec("gated-mil").fit(train, other, recipe(name, epochs=8))
    kept = max(
        head.history,
        key=lambda row: (
            (row["validation_macro_f1"], -row["validation_loss"])
            if name == "r-drop"
            else row["epoch"]
        ),
    )
    found = np.mean(head.predict_proba(other).argmax(axis=1) == other.labels)
    assert kept["validation_accuracy"] == pytest.approx(found)


def test_validation_bags_are_watched_but_never_learned():
    train, one, two = toy_bags(seed=1), toy_bags(seed=2), toy_bags(seed=3)
    heads = [spec("mlp-simple").fit(train, bags, recipe(epochs=3)) for bags in (one, two, None)]
    first, *others = [head.predict_proba(one) for head in heads]
    assert all(np.array_equal(first, other) for other in others)


def test_patience_stops_early():
    train = toy_bags(seed=1)
    noise = toy_bags(seed=2, shuffled=True)
    patient = recipe(epochs=60, patience=2, lr=1e-2)
    assert len(spec("mlp-simple").fit(train, noise, patient).history) < 60


@pytest.mark.parametrize("changes", [{"keep": "best"}, {"patience": 3}])
def test_a_recipe_that_watches_needs_something_to_watch(changes):
    with pytest.raises(RecipeError, match="validation bags"):
        spec("gated-mil").fit(toy_bags(), recipe=recipe(**changes))


def test_a_diverging_run_is_an_error_that_names_the_rate():
    with pytest.raises(RecipeError, match="lower lr"):
        spec("mlp-simple", standardise=False).fit(
            toy_bags(apart=1e18),
            recipe=recipe(optimiser="sgd", lr=10, gradient_clip=None, schedule="none"),
        )


def test_threads_are_limited_and_put_back():
    before = torch.get_num_threads()
    with limited(1) as count:
        assert count == torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    with limited(10_000) as count:
        assert count == available()


def test_one_thread_unless_somebody_says_otherwise(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with limited() as count:
        assert count == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "10000")
    with limited() as count:
        assert count == available()
