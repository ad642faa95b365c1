"""Networks trained on pixels: the contract of a run, honest folds, learning, bags."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from histostore.cohort import Cohort
from histostore.synthetic import load_truth, make_cohort
from tests.commands import call
from tests.zoo.finetuning import AMIL, ONE, quick
from zoo.ensembles import ensemble
from zoo.finetune.checkpoint import load_network
from zoo.finetune.loader import Draw, PixelLoader
from zoo.finetune.loop import Lesson, train_network
from zoo.finetune.networks import network
from zoo.finetune.predicting import attention_of, predict_rows
from zoo.finetune.presets import PRESETS, preset
from zoo.finetune.running import finetune, prepare_images
from zoo.finetune.spec import FinetuneSpec
from zoo.finetune.spelling import network_options
from zoo.fit import make_split
from zoo.run import Run
from zoo.tasks import Task

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Forty-eight images of twelve patients, two classes; each cell of 28 px is known."""
    folder = tmp_path_factory.mktemp("cohort")
    return Path(make_cohort(folder, n_images=48, image_px=112, patch_px=28, planted_share=0.5))


@pytest.fixture(scope="module")
def learned(table, tmp_path_factory):
    """A-MIL on all of them."""
    prepared = prepare_images(Cohort.read(table), AMIL)
    recipe = preset(lr=1e-3, epochs=6, augmentation="right-angles")
    split = make_split(prepared.images, folds=2)
    out = tmp_path_factory.mktemp("runs") / "amil"
    return prepared, finetune(prepared, AMIL, out=out, recipe=recipe, split=split, machine=ONE)


def test_attention_over_patches_learns_from_nothing_and_its_loss_falls(learned):
    run = learned[1]
    assert run.document["metrics"]["test"]["macro_f1"]["value"] > 0.8
    curve = run.history.groupby("epoch")["train_loss"].mean()
    assert curve.iloc[-1] < 0.6 * curve.iloc[0]


def test_attention_finds_the_planted_patches_it_was_never_told_of(learned, table):
    prepared, run = learned
    truth = load_truth(table.parent)
    net, told = load_network(run.head_paths()[0, 0])
    assert told["classes"] == list(run.classes)
    loader = PixelLoader(prepared.pixels)
    found = []
    for row in make_split(prepared.images, folds=2).folds[0].test[:8].tolist():
        (patches,) = loader.batches([[Draw(row)]])
        weights = attention_of(net, patches)
        boxes = prepared.pixels.boxes_of(row)
        assert weights.sum() == pytest.approx(1.0)
        mine = truth[truth["image_id"] == prepared.images.image_ids[row]]
        assert boxes[:, :2].tolist() == mine[["x", "y"]].to_numpy().tolist()
        planted = mine["planted"].to_numpy()
        found.append(weights[planted].mean() > weights[~planted].mean())
    assert np.mean(found) > 0.7


def test_a_small_network_on_whole_images_learns_too(table, tmp_path):
    spec = FinetuneSpec(model="small-cnn", px=56)
    settings = {"epochs": 8, "lr": 2e-4, "batch_size": 8, "augmentation": "right-angles"}
    run = quick(table, tmp_path / "run", spec, **settings)
    assert run.document["metrics"]["test"]["macro_f1"]["value"] > 0.7
    assert run.document["trained_on"]["patches"] is None


def test_a_run_on_pixels_is_a_peer_of_a_run_on_vectors(learned, table, tmp_path):
    store, head = tmp_path / "store", tmp_path / "head"
    build = ("--patch-size", 56, "--tissue", "none", "--threads", 1)
    assert call("histostore", "build", table, store, *build).code == 0
    assert (
        call("zoo", "fit", store, table, "--head", "logistic", "--folds", 2, "-o", head).code == 0
    )
    theirs, ours = Run.load(head), learned[1]
    for what in ("cohort", "split"):
        assert ours.document[what]["digest"] == theirs.document[what]["digest"]
    rows = ["image_id", "patient_id", "fold", "role", "target"]
    mine, other = (run.predictions[rows].sort_values(rows) for run in (ours, theirs))
    assert mine.to_numpy().tolist() == other.to_numpy().tolist()
    assert list(ours.history.columns) == list(theirs.history.columns)
    both = ensemble([ours.path, head], out=tmp_path / "both")
    assert both.document["metrics"]["test"]["macro_f1"]["value"] > 0.8
    told = call("zoo", "compare", ours.path, head, both.path, "--json")
    assert told.code == 0, told.err
    assert {row["head"] for row in told.json["runs"]} == {"amil-cnn", "logistic", "ensemble"}
    groups = {row["head"]: row["feature_set"] for row in told.json["runs"]}
    assert groups["amil-cnn"] == "pixels"
    done = call("zoo", "report", ours.path, head, both.path, "-o", tmp_path / "report")
    assert done.code == 0, done.err
    page = (tmp_path / "report" / "report.md").read_text().replace("\\\n", " ")
    assert "--model amil-cnn --px 28 --recipe default" in " ".join(page.split())


def test_what_is_tested_has_no_say_in_what_is_learned(table, tmp_path):
    """Labels of the test part are exchanged, and every prediction stays what it was."""
    frame = pd.read_csv(table)
    halves = np.where(np.arange(len(frame)) % 8 < 4, "train", "test")
    runs = []
    for name, swap in (("as it is", False), ("exchanged", True)):
        told = frame.assign(split=halves)
        test = told["split"] == "test"
        if swap:
            told.loc[test, "label"] = told.loc[test, "label"].to_numpy()[::-1]
        path = table.with_name(f"{name}.csv")
        told.to_csv(path, index=False)
        out = tmp_path / name
        done = call(
            "zoo", "finetune", path, "--model", "amil-cnn", "--split", "split",
            "--set", "epochs=2", "--set", "patience=1", "--device", "cpu", "-o", out,
        )  # fmt: skip
        assert done.code == 0, done.err
        runs.append(Run.load(out))
    columns = ["image_id", "role", *[name for name in runs[0].predictions if "prob" in name]]
    assert runs[0].predictions[columns].equals(runs[1].predictions[columns])
    assert runs[0].history.equals(runs[1].history)
    watched = runs[0].predictions.query("role == 'validation'")["image_id"]
    assert len(watched)
    assert set(watched) <= set(frame["image_id"][halves == "train"])


def test_several_batches_that_make_one_step_are_one_large_batch(table):
    prepared = prepare_images(Cohort.read(table), AMIL)
    images = prepared.images
    spec = FinetuneSpec(model="small-cnn", px=32)
    pixels = prepare_images(Cohort.read(table), spec).pixels
    weights = []
    for size, accumulation in ((12, 1), (4, 3)):
        recipe = preset(
            batch_size=size,
            accumulation=accumulation,
            epochs=1,
            optimiser="sgd",
            class_weights="balanced",
            gradient_clip=1.0,
            keep="last",
        )
        net = spec.network(2, seed=0)
        lesson = Lesson(
            recipe=recipe,
            loader=PixelLoader(pixels),
            truth=torch.tensor(images.labels),
            train=[row for row in range(48) if row % 3 or images.labels[row]],
            validation=[],
            n_classes=2,
            task=Task(),
            seed=0,
        )
        train_network(net, lesson, table.with_name(f"{size}.checkpoint"), lambda _: None)
        weights.append(torch.cat([w.flatten() for w in net.module.parameters()]))
    assert torch.allclose(weights[0], weights[1], atol=1e-5)
    moved = torch.cat([w.flatten() for w in spec.network(2, seed=0).module.parameters()])
    assert (weights[0] - moved).abs().max() > 1e-4


def test_predictions_of_several_views_are_their_mean(learned):
    prepared, run = learned
    net, _ = load_network(run.head_paths()[0, 0])
    loader, task = PixelLoader(prepared.pixels), Task()
    one, other, both = (
        predict_rows(net, loader, [3, 4, 5], task=task, views=views)
        for views in (("identity",), ("rot90",), ("identity", "rot90"))
    )
    assert np.allclose(both, (one + other) / 2)
    assert not np.allclose(one, other)


def test_new_images_are_predicted_from_their_table_as_the_run_predicted_its_test_part(
    table, tmp_path
):
    frame = pd.read_csv(table)
    halves = np.where(np.arange(len(frame)) % 8 < 4, "train", "test")
    path = table.with_name("halves.csv")
    frame.assign(split=halves).to_csv(path, index=False)
    out, told = tmp_path / "run", tmp_path / "predicted.csv"
    options = ("--set", "epochs=2", "--set", "test_views=identity,flip-h", "--device", "cpu")
    words = ("finetune", path, "--model", "amil-cnn", "--split", "split", *options)
    assert call("zoo", *words, "-o", out).code == 0
    done = call("zoo", "predict", out, path, "-o", told, "--json")
    assert done.code == 0, done.err
    assert "bear names of training images" in done.err
    own = Run.load(out).probabilities("test")
    mine = pd.read_csv(told).set_index("image_id").loc[list(own.image_ids)]
    assert np.allclose(mine[["prob_large-cell", "prob_small-cell"]], own.prob, atol=1e-5)
    assert done.json["test"]["n_images"] == len(frame)


def test_a_run_on_pixels_says_where_it_needs_images_and_not_a_store(learned, table, tmp_path):
    store, run = tmp_path / "store", learned[1].path
    build = ("--patch-size", 56, "--tissue", "none", "--threads", 1)
    assert call("histostore", "build", table, store, *build).code == 0
    told = call("zoo", "explain", run, store, "--image", "image-0000", "-o", tmp_path / "x.png")
    assert told.code == 1
    assert "was trained on pixels, not on a store" in told.err
    said = ("--feature-set", "x", "-o", tmp_path / "p.csv")
    assert call("zoo", "predict", run, table, *said).code == 2
    assert not (tmp_path / "p.csv").exists()


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (("--task", "regression", "--target", "age"), ["pred_age"]),
        (("--task", "ordinal", "--target", "grade"), ["prob_1", "prob_2", "prob_3"]),
        (("--task", "multi-label", "--target", "er,pr"), ["prob_er", "prob_pr"]),
        (
            ("--task", "survival", "--target", "months,dead", "--loss", "hazards"),
            ["pred_risk"],
        ),
    ],
)
def test_other_tasks_than_classes_are_learned_and_predicted_too(table, tmp_path, options, columns):
    path = with_targets(table)
    words = ("finetune", path, "--model", "amil-cnn", "--folds", 2, "--device", "cpu")
    done = call("zoo", *words, *options, "--set", "epochs=1", "-o", tmp_path / "run")
    assert done.code == 0, done.err
    run = Run.load(tmp_path / "run")
    assert list(run.predictions)[-len(columns) :] == columns
    assert np.isfinite(run.predictions[columns].to_numpy()).all()
    assert len(run.test_probabilities().image_ids) == 47
    told = call("zoo", "predict", tmp_path / "run", path, "-o", tmp_path / "new.parquet", "--json")
    assert told.code == 0, told.err
    assert told.json["test"]["n_images"] == 47
    mine = pd.read_parquet(tmp_path / "new.parquet").set_index("image_id")
    # Each fold's network has predicted every image in one of its parts.
    both = run.predictions.groupby("image_id")[columns].mean()
    assert np.allclose(mine.loc[both.index, columns], both, atol=1e-5)


def with_targets(table):
    """Add targets of every kind, one image without any."""
    rng = np.random.default_rng(0)
    frame = pd.read_csv(table)
    bad = (frame["label"] == "small-cell").to_numpy()
    frame["age"] = 50 + 20 * bad + rng.normal(size=len(frame))
    frame["grade"] = 1 + bad + rng.integers(2, size=len(frame))
    frame["er"], frame["pr"] = bad.astype(int), rng.integers(2, size=len(frame))
    frame["months"], frame["dead"] = 60 - 40 * bad + rng.random(len(frame)), 1
    targets = ["age", "grade", "er", "pr", "months", "dead"]
    frame[targets] = frame[targets].astype(object)
    frame.loc[0, targets] = None
    path = table.with_name("targets.csv")
    frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--task", "survival", "--target", "months,dead"), "takes one at a time"),
        (("--task", "regression", "--target", "age", "--set", "focal_gamma=2"), "means nothing"),
        (("--folds", "40"), "fewer"),
        (("--target", "labels"), "has no column 'labels'"),
        (("--recipe", "r10"), "no recipe is called 'r10'"),
        (("--recipe", "r6"), "no part is called"),
    ],
)
def test_what_cannot_work_is_refused_before_an_image_is_decoded(
    table, tmp_path, monkeypatch, options, says
):
    monkeypatch.setattr("zoo.finetune.pixels.open_image", None)
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "cache"))
    words = ("finetune", with_targets(table), "--model", "amil-cnn", *options)
    done = call("zoo", *words, "-o", tmp_path / "run")
    assert done.code == 1
    assert done.err.count("Error: ") == 1
    assert says in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", list(PRESETS))
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch_size": 3, "epochs": 2, "patience": 1},
        {"lr": 0.03, "augmentation": "none", "gradient_clip": None, "test_views": "identity,rot90"},
    ],
)
def test_a_report_spells_the_options_that_make_the_recipe_again(name, settings):
    recipe = preset(name, **settings)
    head = {"name": "small-cnn", "settings": {"px": 32}}
    words = network_options({"head": head, "recipe": recipe.to_json()})
    assert words[:6] == ["--model", "small-cnn", "--px", "32", "--recipe", name]
    told = dict(word.split("=", 1) for word in words[7::2])
    assert preset(name, **told) == recipe


def test_the_same_network_is_drawn_from_the_same_seed_and_another_from_another():
    first, same, other = (network("amil-cnn", 2, seed=seed).module for seed in (1, 1, 2))
    for mine, theirs, third in zip(
        first.parameters(), same.parameters(), other.parameters(), strict=True
    ):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, third)
