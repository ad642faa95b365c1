"""Ensembles by learned rules on new images, and the external test in a report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.store import open_store
from tests.commands import call
from tests.zoo.blends import softmax
from tests.zoo.stores import make_world
from zoo.bags import Bags
from zoo.blending.pools import log_pool, stack_weights
from zoo.blending.ranks import rank_among, rank_pool
from zoo.blending.temperature import cooled
from zoo.ensembles import ensemble
from zoo.errors import RunError
from zoo.prediction import predict
from zoo.report import collect, write_report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("external")


@pytest.fixture(scope="module")
def home(folder):
    return make_world(folder / "home", skill=2.0)


@pytest.fixture(scope="module")
def abroad(folder):
    return make_world(
        folder / "abroad", 14, classes=("Normal", "InSitu"), prefix="o", seed=7, skill=1.0
    )


@pytest.fixture(scope="module")
def members(folder, home):
    return [home.fit(folder / "runs" / head, head) for head in ("logistic", "knn")]


@pytest.fixture(scope="module")
def predicted(folder, members, abroad):
    """The table that the command writes for another cohort."""
    out = folder / "abroad.csv"
    done = call(
        *("zoo", "predict", members[0].path, abroad.store, abroad.table),
        *("--label-map", "Normal=benign,InSitu=malignant", "-o", out),
    )
    assert done.code == 0, done.err
    return out


def probabilities(prediction):
    return prediction.frame.filter(like="prob_").to_numpy()


def by_member(members, store):
    """Average each member's heads by hand."""
    bags = Bags.unlabelled(open_store(store).feature_set())
    return np.array(
        [
            np.mean([head.predict_proba(bags) for head in member.load_heads().values()], axis=0)
            for member in members
        ]
    )


# Rules that are no averages ----------------------------------------------------------------


@pytest.mark.parametrize("calibrate", ["none", "temperature"])
def test_a_stack_is_applied_with_weights_from_all_out_of_fold_predictions(
    members, abroad, tmp_path, calibrate
):
    made = ensemble([m.path for m in members], "stack", out=tmp_path / "s", calibrate=calibrate)
    learned = made.document["learned"]
    judged = [member.test_probabilities() for member in members]
    weights = stack_weights(np.array([images.prob for images in judged]), judged[0].y_true)
    assert learned["weights"]["all"] == pytest.approx(weights, abs=1e-5)
    pooled = log_pool(weights, by_member(members, abroad.store))
    temperature = learned.get("temperature", {}).get("all", 1.0)
    assert (temperature != 1.0) == (calibrate != "none")
    found = predict(made, abroad.store)
    np.testing.assert_allclose(probabilities(found), cooled(pooled, temperature), atol=1e-5)


def test_ranks_of_new_images_are_those_among_out_of_fold_predictions(members, abroad, tmp_path):
    made = ensemble([member.path for member in members], "rank", out=tmp_path / "rank")
    known = np.array([member.test_probabilities().prob for member in members])
    each = by_member(members, abroad.store)
    found = probabilities(predict(made, abroad.store))
    np.testing.assert_allclose(found, rank_among(each, known))
    # An image's prediction does not depend on the others, as ranks within a fold would.
    one = [rank_among(each[:, i : i + 1], known)[0] for i in range(len(found))]
    np.testing.assert_allclose(found, one)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_known_images_keep_their_places_and_one_member_its_predictions(seed):
    rng = np.random.default_rng(seed)
    known = softmax(rng.normal(size=(3, 40, 2)))
    np.testing.assert_allclose(rank_among(known, known), rank_pool(known))
    new = softmax(rng.normal(size=(1, 9, 2)))
    np.testing.assert_allclose(rank_among(new, known[:1]), new[0], atol=1e-9)


@given(st.integers(0, 10**6))
@settings(deadline=None, max_examples=30)
def test_a_larger_probability_never_lowers_the_pooled_one(seed):
    rng = np.random.default_rng(seed)
    known = np.round(softmax(rng.normal(size=(2, 20, 2))), 1)  # with ties, 0 and 1
    rising = np.linspace(0, 1, 50)
    new = np.stack([np.stack([rising, 1 - rising], axis=1)] * 2)
    pooled = rank_among(new, known)
    assert (np.diff(pooled[:, 0]) >= -1e-12).all()
    np.testing.assert_allclose(pooled.sum(axis=1), 1)


# The external test in a report -------------------------------------------------------------


def test_the_report_holds_both_cohorts_and_the_drop(members, predicted, tmp_path):
    told = json.loads(predicted.with_name("abroad.csv.json").read_text())["test"]
    data = collect([member.path for member in members], external=[predicted])
    (one,) = data.external
    assert data.runs[one.number - 1].name == one.run == "logistic"
    assert (one.judged.n_images, one.judged.n_patients) == (14, 7)
    for shift in one.shifts:
        metric = told["metrics"][shift.metric]
        own = members[0].document["metrics"]["test"][shift.metric]
        assert (shift.own.value, shift.own.low) == (own["value"], own["low"])
        assert (shift.drop.value, shift.drop.high) == (metric["drop"], metric["drop_high"])
        assert shift.drop.low <= shift.drop.value <= shift.drop.high
    table = pd.read_csv(predicted)
    right = np.trace(one.confusion)
    wanted = np.array(["benign", "malignant"])[np.arange(14) % 2]
    assert right == (table.set_index("image_id").loc[[f"o{i}" for i in range(14)], "prediction"] == wanted).sum()  # fmt: skip
    out = tmp_path / "report"
    words = [member.path for member in members]
    done = call("zoo", "report", *words, "--external", predicted, "-o", out)
    assert done.code == 0, done.err
    for name in ("index.html", "report.md"):
        text = (out / name).read_text("utf-8")
        assert "External test" in text
        assert "Normal = benign" in text
    document = json.loads((out / "report.json").read_text("utf-8"))
    assert document["external"][0]["shifts"][0]["metric"] == "macro_f1"
    assert any("--external" in line for line in document["commands"])


def test_predictions_of_another_run_or_without_scores_are_refused(
    members, predicted, abroad, tmp_path
):
    with pytest.raises(RunError, match="which is not in this report, or was changed"):
        write_report([members[1].path], tmp_path / "out", external=[predicted])
    with pytest.raises(RunError, match="is not there: give the table that zoo predict wrote"):
        write_report([members[0].path], tmp_path / "out", external=[tmp_path / "x.csv"])
    predict(members[0], abroad.store).write(tmp_path / "bare.csv")
    (tmp_path / "bare.csv.json").write_text('{"test": null}')
    with pytest.raises(RunError, match="holds no scores"):
        write_report([members[0].path], tmp_path / "out", external=[tmp_path / "bare.csv"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["rows", "columns", "numbers", "truth"])
def test_damaged_predictions_are_refused_in_one_line(members, predicted, tmp_path, damage):
    table = pd.read_csv(predicted)
    document = json.loads(predicted.with_name("abroad.csv.json").read_text())
    if damage == "rows":
        table = table.iloc[:5]
    elif damage == "columns":
        table = table.drop(columns="prob_benign")
    elif damage == "numbers":
        table["prob_benign"] = 7.0
    else:
        document["test"]["truth"]["target"][0] = "no such class"
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.csv.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match="predict again"):
        collect([members[0].path], external=[tmp_path / "t.csv"])


def test_scores_of_earlier_predictions_do_not_stay_beside_later_ones(members, abroad, tmp_path):
    out, words = tmp_path / "p.csv", ("zoo", "predict", members[0].path, abroad.store)
    labels = ("--label-map", "Normal=benign,InSitu=malignant")
    assert call(*words, abroad.table, *labels, "-o", out).code == 0
    assert call(*words, "-o", out).code == 0
    done = call("zoo", "report", members[0].path, "--external", out, "-o", tmp_path / "report")
    assert done.code == 1
    assert "p.csv.json is not there" in done.err


def test_the_cohort_is_not_written_over(members, abroad, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_text("image_id,path\no1,nowhere.png\n")
    done = call("zoo", "predict", members[0].path, abroad.store, table, "-o", table)
    assert done.code == 1
    assert "is what is read" in done.err
    assert table.read_text() == "image_id,path\no1,nowhere.png\n"
