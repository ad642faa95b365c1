"""Predicting images that a run never saw, and the external test."""

from __future__ import annotations

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from histostore.errors import Ambiguous, NotFound, OptionError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.testing import spec_of
from tests.commands import call, write_table
from tests.zoo.runs import make_run
from tests.zoo.stores import make_world
from zoo.bags import Bags
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.metrics import accuracy
from zoo.panel import open_panel, weighted_sd
from zoo.prediction import predict
from zoo.run import Run
from zoo.tasks import Task


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("prediction")


@pytest.fixture(scope="module")
def home(folder):
    """The cohort of the training, in two views."""
    return make_world(folder / "home", views=("identity", "rot90"))


@pytest.fixture(scope="module")
def abroad(folder):
    """Other images, of the same kind, with labels of their own."""
    return make_world(folder / "abroad", 12, classes=("Normal", "InSitu"), prefix="o", seed=7)


@pytest.fixture(scope="module")
def run(folder, home):
    return home.fit(folder / "runs" / "logistic", seeds=2)


@pytest.fixture(scope="module")
def other(folder, home):
    return home.fit(folder / "runs" / "knn", "knn")


LABEL_MAP = "Normal=benign,InSitu=malignant"


def by_hand(run, store, view="identity"):
    """Average what each head says, one after the other."""
    bags = Bags.unlabelled(open_store(store).feature_set(), augmentation=view)
    return np.array([head.predict_proba(bags) for head in run.load_heads().values()])


def probabilities(prediction):
    return prediction.frame.filter(like="prob_").to_numpy()


def test_probabilities_are_the_mean_over_all_heads_and_spread_their_deviation(run, abroad):
    made = predict(run.path, abroad.store)
    every = by_hand(run, abroad.store)
    np.testing.assert_allclose(probabilities(made), every.mean(axis=0))
    winner = every.mean(axis=0).argmax(axis=1)
    spread = every[:, np.arange(12), winner].std(axis=0, ddof=1)
    np.testing.assert_allclose(made.frame["spread"], spread)
    assert made.n_heads == 6
    assert list(made.frame["prediction"]) == [run.classes[k] for k in winner]
    assert list(made.frame["image_id"]) == [f"o{k}" for k in range(12)]
    assert not made.notes
    assert made.test is None


def test_several_views_are_averaged(run, home):
    made = predict(run, home.store, augmentation="identity,rot90")
    both = [by_hand(run, home.store, view).mean(axis=0) for view in ("identity", "rot90")]
    np.testing.assert_allclose(probabilities(made), np.mean(both, axis=0))


def test_the_external_test_maps_labels_and_tells_the_drop(run, abroad):
    made = predict(run, abroad.store, abroad.table, label_map=LABEL_MAP)
    truth = np.arange(12) % 2
    told = made.test.metrics["accuracy"]
    assert told["value"] == accuracy(truth, probabilities(made).argmax(axis=1))
    assert told["low"] <= told["value"] <= told["high"]
    own = run.document["metrics"]["test"]
    assert told["drop"] == own["accuracy"]["value"] - told["value"]
    loss = made.test.metrics["log_loss"]
    assert loss["drop"] == pytest.approx(loss["value"] - own["log_loss"]["value"])
    assert (made.test.n_images, made.test.n_patients) == (12, 6)
    assert "12 labelled images of 6 patients" in made.to_text()


def test_images_without_a_label_are_predicted_and_not_judged(run, abroad, tmp_path):
    table = pd.read_csv(abroad.table, dtype=str)
    table.loc[:4, "label"] = None
    table["path"] = [f"{abroad.table.parent}/{path}" for path in table["path"]]
    table.iloc[:9].to_csv(tmp_path / "some.csv", index=False)
    made = predict(run, abroad.store, tmp_path / "some.csv", label_map=LABEL_MAP)
    assert (len(made.frame), made.test.n_images) == (9, 4)


def test_a_cohort_without_the_column_is_only_predicted(run, abroad, tmp_path):
    table = write_table(tmp_path / "c.csv", [{"image_id": "o3", "path": "nowhere.png"}])
    made = predict(run, abroad.store, table)
    assert list(made.frame["image_id"]) == ["o3"]
    assert made.test is None
    with pytest.raises(NotFound, match="no column 'grade'"):
        predict(run, abroad.store, table, target="grade")


def test_labels_that_the_run_does_not_know_are_refused(run, abroad):
    with pytest.raises(
        OptionError, match=r"label holds InSitu, Normal, but .* --label-map InSitu="
    ):
        predict(run, abroad.store, abroad.table)
    with pytest.raises(OptionError, match="name one"):
        predict(run, abroad.store, label_map=LABEL_MAP)


def test_images_of_the_training_are_counted(run, home, folder):
    made = predict(run, home.store, home.table)
    assert "32 images (i0, i1, i2, …) were in the training" in made.notes[0]
    again = make_world(folder / "again", 3)
    (note,) = predict(run, again.store).notes
    assert "bear names of training images" in note


# Feature sets ------------------------------------------------------------------------------


def with_specs(folder, *specs):
    return make_world(folder, 4, prefix="n", specs=specs).store


def test_the_feature_set_that_fits_is_found_among_several(run, tmp_path):
    wrong = spec_of(dtype="float16")
    store = with_specs(tmp_path / "w", wrong, spec_of())
    assert predict(run, store).feature_sets == (spec_of().name,)
    with pytest.raises(NotFound, match=r"differs in dtype \(float32 in training, float16 here\)"):
        predict(run, store, feature_set=wrong.name)


def test_vectors_made_in_another_way_are_refused_with_what_differs(run, tmp_path):
    strides = dataclasses.replace(spec_of(), grid=PatchGrid(16, stride=8))
    store = with_specs(tmp_path / "w", strides, spec_of(name="other"))
    with pytest.raises(NotFound, match="2 others differ") as caught:
        predict(run, store)
    told = "\n".join(caught.value.problems)
    assert "grid.stride (16 in training, 8 here)" in told
    assert "encoder.name (test in training, other here)" in told


def test_patches_chosen_in_another_way_fit_with_a_note(run, tmp_path):
    chosen = [
        dataclasses.replace(spec_of(), tissue=TissueFilter(min_tissue=share))
        for share in (0.3, 0.4)
    ]
    store = with_specs(tmp_path / "one", chosen[0])
    (note,) = predict(run, store).notes
    assert "tissue.min_tissue" in note
    store = with_specs(tmp_path / "two", *chosen)
    with pytest.raises(Ambiguous, match="several feature sets that fit"):
        predict(run, store)
    assert len(predict(run, store, feature_set=chosen[1].name).frame) == 4


# Runs --------------------------------------------------------------------------------------


def test_members_of_an_ensemble_count_alike_however_many_heads_they_have(
    run, other, abroad, folder
):
    both = ensemble([run.path, other.path], out=folder / "ensemble")
    made = predict(both.path, abroad.store)
    mean = np.mean([by_hand(one, abroad.store).mean(axis=0) for one in (run, other)], axis=0)
    np.testing.assert_allclose(probabilities(made), mean)
    assert made.n_heads == 9


def rewritten(ensemble, path, **changes):
    """Give an ensemble with another document."""
    shutil.copytree(ensemble.path, path)
    document = json.loads((path / "run.json").read_text()) | changes
    (path / "run.json").write_text(json.dumps(document))
    return path


def test_learned_weights_count_and_pools_are_no_averages(run, other, home, tmp_path):
    both = ensemble([run.path, other.path], out=tmp_path / "ensemble")
    store = open_store(home.store)
    learned = {"weights": {"mean": [0.75, 0.25], "folds": {}}}
    path = rewritten(both, tmp_path / "greedy", rule="greedy", learned=learned)
    assert [member.weight for member in open_panel(path, store).members] == [0.75, 0.25]
    for rule in ("stack", "rank"):
        path = rewritten(both, tmp_path / rule, rule=rule)
        with pytest.raises(NotSupported, match=f"rule {rule}, which cannot be applied to new"):
            open_panel(path, store)
    with pytest.raises(RunError, match="does not tell the weights that it learned"):
        predict(tmp_path / "stack", home.store)


def test_members_that_changed_or_went_are_told(other, home, tmp_path):
    for name in "ab":
        shutil.copytree(other.path, tmp_path / name)
    both = ensemble([tmp_path / "a", tmp_path / "b"], out=tmp_path / "both")
    with (tmp_path / "b" / "run.json").open("a") as file:
        file.write("\n")
    with pytest.raises(RunError, match="b was changed since"):
        predict(both, home.store)
    shutil.rmtree(tmp_path / "b")
    with pytest.raises(RunError, match="b, which is not there"):
        predict(both, home.store)


def test_runs_that_cannot_predict_a_store_are_refused(home, run, tmp_path):
    arrays = make_run(tmp_path / "arrays")
    with pytest.raises(RunError, match="fitted to arrays"):
        predict(arrays, home.store)
    task = Task.of("regression", "age").to_json()
    numbers = dataclasses.replace(run, document={**run.document, "task": task})
    with pytest.raises(NotSupported, match="learned task regression"):
        open_panel(numbers, open_store(home.store))


@pytest.mark.parametrize("n", [2, 5])
def test_deviation_with_equal_weights_is_the_usual_one(n):
    values = np.random.default_rng(n).normal(size=(n, 3))
    deviation = weighted_sd(values, np.full(n, 1 / n))
    np.testing.assert_allclose(deviation, values.std(axis=0, ddof=1))


def test_one_head_has_no_spread():
    assert np.isnan(weighted_sd(np.ones((1, 2)), np.ones(1))).all()


# The command -------------------------------------------------------------------------------


def test_the_command_writes_the_table_and_the_scores(run, abroad, tmp_path):
    out = tmp_path / "sub" / "submission.csv"
    done = call(
        *("zoo", "predict", run.path, abroad.store, abroad.table),
        *("--label-map", LABEL_MAP, "-o", out, "--json"),
    )
    assert done.code == 0, done.err
    assert done.json["n_heads"] == 6
    beside = json.loads((tmp_path / "sub" / "submission.csv.json").read_text())
    assert beside == done.json
    table = pd.read_csv(out)
    assert list(table) == ["image_id", "prediction", "prob_benign", "prob_malignant", "spread"]
    np.testing.assert_allclose(table.filter(like="prob_").sum(axis=1), 1, atol=2e-6)


def test_the_command_writes_parquet_without_scores_where_there_are_no_labels(run, abroad, tmp_path):
    out = tmp_path / "all.parquet"
    done = call("zoo", "predict", run.path, abroad.store, "-o", out)
    assert done.code == 0, done.err
    assert "12 images predicted by 6 heads" in done.out
    pd.testing.assert_frame_equal(pd.read_parquet(out), predict(run, abroad.store).frame)
    assert [path.name for path in tmp_path.iterdir()] == ["all.parquet"]
    assert Run.load(run.path).name == "logistic"


def test_the_command_refuses_an_unknown_kind_of_file_at_once(tmp_path):
    done = call("zoo", "predict", tmp_path / "none", tmp_path / "none", "-o", "x.txt")
    assert (done.code, done.out) == (1, "")
    assert "ends in .csv or .parquet" in done.err
