"""Several seeds trained as one computation are the seeds trained one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from histostore.errors import OptionError
from zoo.bags import Bags
from zoo.errors import NotSupported, RecipeError
from zoo.fit import Execution, make_split
from zoo.fit import fit_run as run_fits
from zoo.heads.catalog import HEADS, spec
from zoo.recipes import Recipe
from zoo.tasks import Task
from zoo.testing import toy_bags
from zoo.training import stacked, streams
from zoo.training.batches import StoredRows, arrange, arrange_stored
from zoo.training.loop import train
from zoo.training.stacked import train_stacked
from zoo.training.streams import Streams

CPU = torch.device("cpu")
SEEDS = (3, 0, 7)
SMALL = {
    "gated-mil": {"hidden": 8, "attention": 4, "bottleneck": 2},
    "fusion": {"hidden": 8, "bottleneck": 4},
    "acmil": {"hidden": 8, "attention": 4, "n_branches": 2, "n_masked": 3},
    "dsmil": {"query": 4, "dropout": 0.2},
    "clam-sb": {"hidden": 8, "attention": 4, "k_sample": 2},
    "clam-mb": {"hidden": 8, "attention": 4, "k_sample": 2},
    "abmil": {"hidden": 8, "attention": 4},
}
ALL_AT_ONCE = Recipe(
    epochs=4,
    batch_size=5,
    r_drop=1.0,
    patch_dropout=0.3,
    min_patches=2,
    embedding_noise=0.1,
    gradient_clip=0.5,
    label_smoothing=0.1,
    class_weights="balanced",
    ema_decay=0.9,
    keep="best",
)
RECIPES = {
    "swa": {"swa_start": 0.5},
    "stops": {"patience": 1, "lr": 0.02, "epochs": 8, "monitor": "loss"},
    "plateau": {"schedule": "plateau", "plateau_patience": 0, "keep": "best", "lr": 0.01},
    "one-cycle": {"schedule": "one-cycle"},
    "lion": {"optimiser": "lion"},
    "sgd": {"optimiser": "sgd", "lr": 0.05},
    "mixup": {"mixup": 0.4, "embedding_noise": 0.1},
    "balanced": {"sampler": "balanced"},
    "focal": {"focal_gamma": 2.0},
    "auroc": {"monitor": "auroc", "keep": "best"},
}


def like_sized(n=13, *, n_features=6, seed=0, lengths=(5, 6)):
    """Bags of so like a size that they are padded, with some padding."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(lengths[0], lengths[1] + 1, n)
    labels = np.arange(n) % 3
    rows = rng.normal(size=(counts.sum(), n_features)) + 0.3 * np.repeat(labels, counts)[:, None]
    return Bags.from_arrays(
        rows.astype(np.float32), np.cumsum([0, *counts]), labels=[f"c{code}" for code in labels]
    )


def both(head, recipe, *, bags=None, seeds=SEEDS):
    """Heads trained one by one, and together."""
    bags = like_sized() if bags is None else bags
    watched = like_sized(7, seed=1)
    apart = head.fit_many(bags, watched, recipe, seeds, device="cpu", together="never")
    return apart, head.fit_many(bags, watched, recipe, seeds, device="cpu", together="always")


def assert_alike(apart, together):
    seen = like_sized(9, seed=2)
    for one, other in zip(apart, together, strict=True):
        assert one.seed == other.seed
        np.testing.assert_allclose(
            other.predict_proba(seen), one.predict_proba(seen), rtol=1e-4, atol=2e-5
        )
        assert_rows_alike(one.history, other.history)


def assert_rows_alike(first, second):
    assert [row["epoch"] for row in first] == [row["epoch"] for row in second]
    for row, other in zip(first, second, strict=True):
        assert row.keys() == other.keys()
        np.testing.assert_allclose([*other.values()], [*row.values()], rtol=2e-4, atol=2e-5)


STACKABLE = [
    name
    for name, card in HEADS.items()
    if not card.package and getattr(spec(name), "stackable", False)
]


def test_the_heads_that_can_be_stacked():
    assert {"gated-mil", "mlp-simple", "mlp-improved", "patch-mean", "abmil"} < {*STACKABLE}
    assert {"mean-pool", "max-pool", "clam-sb", "clam-mb", "dsmil", "acmil"} < {*STACKABLE}


@pytest.mark.parametrize("name", STACKABLE)
def test_a_head_trained_together_is_the_head_trained_alone(name):
    settings = SMALL.get(name, {"hidden": 8})
    apart, together = both(spec(name, **settings), ALL_AT_ONCE)
    assert_alike(apart, together)
    # Seeds differ by far more than the two ways of training one do.
    seen = like_sized(9, seed=2)
    guesses = [head.predict_proba(seen) for head in together]
    assert min(np.abs(guesses[0] - other).max() for other in guesses[1:]) > 1e-3


@pytest.mark.parametrize("name", RECIPES)
def test_every_part_of_a_recipe_is_each_seed_s_own(name):
    recipe = Recipe(**{"epochs": 4, "batch_size": 5, "lr": 2e-3, **RECIPES[name]})
    head = spec("gated-mil", **SMALL["gated-mil"])
    apart, together = both(head, recipe)
    assert_alike(apart, together)
    if name == "stops":
        assert len({len(head.history) for head in together}) > 1, "all stop at once: no test"


def test_clipping_goes_by_each_member_s_own_norm():
    strict = Recipe(epochs=2, batch_size=5, optimiser="sgd", lr=0.5, gradient_clip=0.05)
    free = Recipe(epochs=2, batch_size=5, optimiser="sgd", lr=0.5, gradient_clip=None)
    head = spec("mlp-simple", hidden=8)
    assert_alike(*both(head, strict))
    assert_alike(*both(head, free))
    first, second = (both(head, recipe)[1][0].history[-1] for recipe in (strict, free))
    assert abs(first["train_loss"] - second["train_loss"]) > 1e-3


def test_training_together_twice_gives_the_same_and_leaves_no_trace():
    head, before = spec("gated-mil", **SMALL["gated-mil"]), torch.get_rng_state()
    first, second = (both(head, ALL_AT_ONCE)[1] for _ in range(2))
    seen = like_sized(9, seed=2)
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.predict_proba(seen), other.predict_proba(seen))
    assert torch.equal(torch.get_rng_state(), before)


def test_one_by_one_is_what_fit_gives():
    bags, recipe = like_sized(), Recipe(epochs=2)
    for name, settings in (("gated-mil", SMALL["gated-mil"]), ("logistic", {})):
        head = spec(name, **settings)
        # On a CPU, auto is one by one.
        many = head.fit_many(
            bags, None, None if name == "logistic" else recipe, (0, 1), device="cpu"
        )
        for seed, one in enumerate(many):
            alone = head.fit(bags, None, None if name == "logistic" else recipe, seed, device="cpu")
            assert np.array_equal(one.predict_proba(bags), alone.predict_proba(bags))


def test_what_cannot_be_stacked_is_refused_or_done_one_by_one():
    uneven, recipe = toy_bags(12, longest=9), Recipe(epochs=1)
    head = spec("gated-mil", **SMALL["gated-mil"])
    with pytest.raises(NotSupported, match="uneven"):
        head.fit_many(uneven, None, recipe, (0, 1), device="cpu", together="always")
    for name in ("transmil", "dtfd", "logistic"):
        other = spec(name)
        with pytest.raises(NotSupported, match="use together=auto"):
            other.fit_many(uneven, seeds=(0, 1), device="cpu", together="always")
    with pytest.raises(OptionError, match="together is 'perhaps'"):
        head.fit_many(uneven, seeds=(0, 1), together="perhaps")
    with pytest.raises(OptionError, match="seeds is empty"):
        head.fit_many(uneven, seeds=())
    with pytest.raises(OptionError, match="together is 'perhaps'"):
        Execution(together="perhaps")


def test_a_network_that_cannot_be_mapped_is_refused():
    module = spec("mlp-simple", hidden=4).build(6, 3)
    module.register_buffer("seen", torch.zeros(1))
    with pytest.raises(NotSupported, match="PooledMLP uses coordinates, buffers or outer"):
        train_stacked(
            [module],
            None,
            None,
            recipe=Recipe(),
            n_classes=3,
            task=Task(),
            streams=Streams(CPU),
        )


def test_a_seed_that_diverges_is_told_of():
    wild = Recipe(epochs=3, lr=10.0, optimiser="sgd", gradient_clip=None, schedule="none")
    bags = like_sized()
    bags = Bags.from_arrays(
        bags.embedding * 1e18, bags.offset, labels=[bags.classes[code] for code in bags.labels]
    )
    head = spec("mlp-simple", hidden=8, standardise=False)
    with pytest.raises(RecipeError, match="training diverged in epoch"):
        head.fit_many(bags, None, wild, (0, 1), device="cpu", together="always")


def test_memory_bounds_how_many_are_trained_at_once(monkeypatch):
    head, recipe = spec("mlp-simple", hidden=8), Recipe(epochs=2, batch_size=5)
    whole = both(head, recipe)[1]
    monkeypatch.setattr(stacked, "_VALUES_AT_ONCE", 2 * 5 * 6 * 6)
    parts = both(head, recipe)[1]
    assert_alike(whole, parts)


LABELS = {
    "cox": (Task(kind="survival", loss="cox", targets=("t", "e")), 1),
    "hazards": (Task(kind="survival", loss="hazards", targets=("t", "e")), 4),
    "huber": (Task(kind="regression", loss="huber"), 1),
    "binary": (Task(kind="multi-label", loss="binary", targets=("a", "b")), 2),
    "ratios": (Task(kind="ordinal", loss="ratios"), 2),
}


def truth_of(task, n):
    rng = np.random.default_rng(5)
    if task.kind == "survival":
        return np.stack([rng.exponential(size=n), np.arange(n) % 3 > 0], axis=1)
    if task.kind == "ordinal":
        return np.arange(n) % 3
    return rng.normal(size=(n, 1)) if task.kind == "regression" else rng.integers(0, 2, (n, 2))


def trained(batches, watched, task, n_outputs, recipe):
    """Train modules one by one, and together; give both with their histories."""
    head = spec("gated-mil", **SMALL["gated-mil"])
    results = []
    with torch.random.fork_rng(devices=[]):
        for together in (False, True):
            modules, own, histories = [], Streams(CPU), []
            for seed in SEEDS:
                torch.default_generator.manual_seed(seed)
                modules.append(head.build(6, n_outputs))
                own.add()
                told = {"recipe": recipe, "n_classes": 3, "task": task}
                if not together:
                    histories.append(train(modules[-1], batches, watched, **told))
            if together:
                histories = train_stacked(modules, batches, watched, **told, streams=own)
            results.append((modules, histories))
    return results


def assert_trained_alike(results, batches):
    (apart, first), (together, second) = results
    for one, other, row, same in zip(apart, together, first, second, strict=True):
        assert_rows_alike(row, same)
        with torch.inference_mode():
            step = batches.take(torch.arange(len(batches)))
            guess, wanted = (module.eval().logits(*step) for module in (other, one))
        torch.testing.assert_close(guess, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", LABELS)
def test_every_task_is_learned_alike(name):
    task, n_outputs = LABELS[name]
    bags = like_sized(12)
    truth = truth_of(task, 12)
    batches = arrange(bags.embedding, bags.lengths, bags.labels, device=CPU)
    batches.labels = torch.from_numpy(truth if truth.ndim == 1 else truth.astype(np.float32))
    recipe = Recipe(epochs=2, batch_size=6, r_drop=0.5)
    results = trained(batches, batches, task.learn(truth), n_outputs, recipe)
    assert_trained_alike(results, batches)


@pytest.mark.parametrize("n_views", [1, 2])
def test_bags_that_stay_in_a_file_are_learned_alike(n_views):
    bags = like_sized(12)
    rows = np.concatenate([bags.embedding + view for view in range(n_views)])
    stored = arrange_stored(
        StoredRows(rows, device=CPU), bags.starts, bags.lengths, bags.labels, n_views=n_views
    )
    recipe = Recipe(epochs=2, batch_size=5, patch_dropout=0.3, min_patches=2)
    assert_trained_alike(trained(stored, stored, Task(), 3, recipe), stored)


def test_validation_bags_may_be_uneven():
    bags, uneven = like_sized(12), like_sized(9, lengths=(1, 9))
    batches, watched = (
        arrange(one.embedding, one.lengths, one.labels, device=CPU) for one in (bags, uneven)
    )
    recipe = Recipe(epochs=2, batch_size=5, keep="best")
    assert_trained_alike(trained(batches, watched, Task(), 3, recipe), batches)


@pytest.mark.parametrize("draw", ["uniform", "normal", "dropout"])
@pytest.mark.parametrize("mapped", [False, True])
def test_every_member_draws_what_it_would_draw_alone(draw, mapped):
    like = torch.zeros(3, 5)
    kinds = {
        "uniform": streams.uniform,
        "normal": streams.normal_like,
        "dropout": lambda x: streams.dropout_mask(x, 0.3),
    }
    alone, members = [], Streams(CPU)
    with torch.random.fork_rng(devices=[]):
        for seed in SEEDS:
            torch.default_generator.manual_seed(seed)
            members.add()
            alone.append(torch.stack([kinds[draw](like) for _ in range(2)]))
        with members.together():
            if mapped:
                every = torch.vmap(kinds[draw])
                drawn = [every(torch.zeros(3, 3, 5)) for _ in range(2)]
            else:
                drawn = [kinds[draw](torch.zeros(9, 5)).view(3, 3, 5) for _ in range(2)]
    assert torch.equal(torch.stack(drawn, dim=1), torch.stack(alone))


def test_a_run_of_seeds_together_is_the_run_one_by_one(tmp_path):
    bags = like_sized(24)
    runs = [
        run_fits(
            bags,
            spec("gated-mil", **SMALL["gated-mil"]),
            out=tmp_path / together,
            split=make_split(bags, folds=2),
            recipe=Recipe(epochs=3),
            seeds=2,
            execution=Execution(device="cpu", together=together),
        )
        for together in ("never", "always")
    ]
    first, second = (run.predictions for run in runs)
    key = ["image_id", "fold", "seed", "role"]
    assert first[key].equals(second[key])
    prob = [name for name in first.columns if name.startswith("prob_")]
    np.testing.assert_allclose(second[prob], first[prob], rtol=1e-4, atol=2e-5)
    assert first.groupby("seed")[prob[0]].mean().nunique() == 2
    assert sorted(runs[1].head_paths()) == [(0, 0), (0, 1), (1, 0), (1, 1)]
