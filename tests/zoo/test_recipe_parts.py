"""Schedules, averages, samplers and mixing: each against its formula or torch's own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import RecipeError
from zoo.heads.catalog import spec
from zoo.recipes import PRESETS, Recipe, recipe
from zoo.testing import toy_bags
from zoo.training.kernels import ready_kernels
from zoo.training.layout import Packed, Padded
from zoo.training.loop import monitored, order_of
from zoo.training.losses import smoothed_focal
from zoo.training.mixing import mix_bags, mix_targets
from zoo.training.optim import Rates, WeightAverage, make_optimiser, rate_at


def test_one_cycle_is_that_of_torch():
    weight = torch.nn.Parameter(torch.zeros(1))
    theirs = torch.optim.SGD([weight], lr=1.0)
    cycle = torch.optim.lr_scheduler.OneCycleLR(theirs, max_lr=0.3, total_steps=201)
    cycle_recipe = Recipe(lr=0.3, schedule="one-cycle")
    for step in range(200):
        # Torch's last step lies at the end; ours is told the share of steps that are done.
        assert rate_at(cycle_recipe, step / 200) == pytest.approx(
            theirs.param_groups[0]["lr"], rel=0.02, abs=1e-4
        )
        theirs.step()
        cycle.step()


def test_the_rate_falls_when_the_score_is_stuck():
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = Rates(
        Recipe(lr=1.0, schedule="plateau", plateau_patience=1, plateau_factor=0.5), optimiser
    )
    seen = []
    for score in (0.5, 0.6, 0.6, 0.6, 0.6, 0.9, 0.9):
        rates.begin(0.0)
        seen.append(optimiser.param_groups[0]["lr"])
        rates.see(score)
    assert seen == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_a_moving_average_follows_its_formula(decay):
    layer, average = torch.nn.Linear(1, 1, bias=False), WeightAverage(decay)
    expected = None
    for count, value in enumerate((1.0, 3.0, -2.0, 5.0), start=1):
        torch.nn.init.constant_(layer.weight, value)
        average.add(layer)
        keep = min(decay, (1 + count) / (10 + count))
        expected = value if expected is None else keep * expected + (1 - keep) * value
    assert float(average.state()["weight"].squeeze()) == pytest.approx(expected, rel=1e-6)


def test_the_kept_head_is_the_moving_average():
    train, other = toy_bags(seed=1), toy_bags(seed=2)
    head = spec("mlp-simple").fit(train, other, recipe(epochs=8, ema_decay=0.9, lr=1e-2))
    prob = head.predict_proba(other)
    loss = -np.log(prob[np.arange(len(other)), other.labels]).mean()
    assert head.history[-1]["validation_loss"] == pytest.approx(loss, rel=1e-4)
    plain = spec("mlp-simple").fit(train, other, recipe(epochs=8, lr=1e-2))
    assert not np.allclose(prob, plain.predict_proba(other), atol=1e-4)


def test_the_balanced_sampler_draws_classes_alike():
    torch.manual_seed(0)
    labels = np.repeat([0, 1, 2], [900, 90, 10])
    labels = torch.from_numpy(labels)
    drawn = labels[torch.cat([order_of(labels, Recipe(sampler="balanced"), 4) for _ in range(5)])]
    shares = torch.bincount(drawn, minlength=4) / len(drawn)
    assert shares[:3].numpy() == pytest.approx(1 / 3, abs=0.05)
    plain = order_of(labels, Recipe(), 4)
    assert sorted(plain.tolist()) == list(range(1000))


@pytest.mark.parametrize("layout", ["padded", "packed"])
@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    share=st.floats(0.5, 1.0),
    seed=st.integers(0, 99),
)
def test_a_mixed_bag_holds_patches_of_two_bags_alone(layout, lengths, share, seed):
    torch.manual_seed(seed)
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    # A patch is (its bag + 1, its number): zeros are padding, and no two are equal.
    rows = torch.stack([owner + 1.0, torch.arange(len(owner)) + 1.0], dim=1)
    packed = Packed(torch.tensor(lengths))
    x, mask = packed.pad(rows)
    partner = torch.randperm(len(lengths))
    given_rows, given_layout = (rows, packed) if layout == "packed" else (x, Padded(mask))
    mixed, found = mix_bags(given_rows, given_layout, partner, share)
    assert isinstance(found, type(given_layout))
    padded, real = found.pad(mixed)
    for bag in range(len(lengths)):
        patches = padded[bag][real[bag]].tolist()
        numbers = [number for _, number in patches]
        # With itself as partner a bag may hold a patch twice, never more.
        assert max(map(numbers.count, numbers)) <= (2 if partner[bag] == bag else 1)
        assert {int(own) - 1 for own, _ in patches} <= {bag, int(partner[bag])}
        assert any(int(own) - 1 == bag for own, _ in patches)
        if share == 1.0:
            assert len(patches) == lengths[bag]


def test_mixed_targets_are_shares_and_their_loss_is_the_mixture_of_losses():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    partner = torch.randperm(6)
    target = mix_targets(labels, partner, 0.7, 3)
    torch.testing.assert_close(target.sum(dim=1), torch.ones(6))
    for options in ({}, {"label_smoothing": 0.1}, {"gamma": 2.0}):
        expected = 0.7 * smoothed_focal(logits, labels, **options)
        expected = expected + 0.3 * smoothed_focal(logits, labels[partner], **options)
        torch.testing.assert_close(smoothed_focal(logits, target, **options), expected)


def test_hard_targets_and_their_shares_have_one_loss():
    torch.manual_seed(1)
    logits, labels = torch.randn(7, 4), torch.randint(4, (7,))
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0])
    shares = torch.nn.functional.one_hot(labels, 4).float()
    for gamma in (0.0, 2.0):
        torch.testing.assert_close(
            smoothed_focal(logits, shares, weights=weights, gamma=gamma),
            smoothed_focal(logits, labels, weights=weights, gamma=gamma),
        )


@pytest.mark.parametrize("head", ["gated-mil", "mlp-simple"])
@pytest.mark.parametrize(
    "settings",
    [
        {"mixup": 0.4},
        {"mixup": 1.0, "r_drop": 1.0, "focal_gamma": 2.0, "class_weights": "balanced"},
        {"sampler": "balanced", "schedule": "one-cycle"},
        {"schedule": "plateau", "monitor": "auroc", "keep": "best", "patience": 9},
        {"ema_decay": 0.9, "keep": "best", "monitor": "loss"},
    ],
)
def test_what_is_new_still_learns(head, settings):
    train, other = toy_bags(seed=1, longest=9), toy_bags(seed=2, longest=9)
    found = spec(head).fit(train, other, recipe(epochs=40, lr=3e-3, **settings))
    assert np.mean(found.predict_proba(other).argmax(axis=1) == other.labels) > 0.9


@pytest.mark.parametrize("monitor", ["macro_f1", "accuracy", "auroc", "loss"])
def test_the_best_epoch_is_the_best_by_the_monitored_score(monitor):
    train, other = toy_bags(seed=1), toy_bags(seed=2)
    how = recipe(epochs=12, keep="best", monitor=monitor, lr=3e-3)
    head = spec("mlp-simple").fit(train, other, how)
    best = max(head.history, key=lambda row: (monitored(how, row), -row["validation_loss"]))
    prob = head.predict_proba(other)
    loss = -np.log(prob[np.arange(len(other)), other.labels]).mean()
    assert best["validation_loss"] == pytest.approx(loss, rel=1e-4)


def test_a_score_that_is_undefined_is_never_the_best():
    row = {"validation_auroc": math.nan, "validation_loss": 0.1}
    assert monitored(Recipe(monitor="auroc"), row) == -math.inf


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(RecipeError, match="both average"):
        Recipe(swa_start=0.5, ema_decay=0.9)
    with pytest.raises(RecipeError, match="no phase to average"):
        Recipe(swa_start=0.5, schedule="one-cycle")
    with pytest.raises(RecipeError, match="watches validation bags"):
        spec("mlp-simple").fit(toy_bags(), recipe=Recipe(schedule="plateau"))


def test_the_presets_of_the_reference_systems_carry_their_numbers():
    phase = PRESETS["r6-phase1"][0]
    assert (phase.lr, phase.weight_decay, phase.batch_size, phase.epochs) == (1e-4, 1e-5, 32, 7)
    assert (phase.plateau_patience, phase.plateau_factor, phase.patience) == (3, 0.2, 7)
    assert (phase.label_smoothing, phase.gradient_clip) == (0.2, 1.0)
    assert (phase.class_weights, phase.sampler, phase.monitor) == ("balanced", "balanced", "auroc")
    r4 = PRESETS["r4"][0]
    assert (r4.focal_gamma, r4.optimiser, r4.class_weights) == (2.0, "lion", "none")
    assert PRESETS["r3"][0].swa_start is not None
    assert PRESETS["r1"][0].r_drop > 0


def test_an_optimiser_is_made_once_and_its_rate_is_the_recipes():
    weight = torch.nn.Parameter(torch.zeros(1))
    how = Recipe(lr=0.1, schedule="none")
    optimiser = make_optimiser(how, [weight])
    Rates(how, optimiser).begin(0.9)
    assert optimiser.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kernels_compiled_for_a_shape_are_left_out_and_come_back(precision):
    before = torch._C._get_mkldnn_enabled()
    with ready_kernels(precision):
        assert torch._C._get_mkldnn_enabled() == (before and precision == "bfloat16")
    assert torch._C._get_mkldnn_enabled() == before
