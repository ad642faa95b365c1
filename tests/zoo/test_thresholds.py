"""Operating points: chosen on validation rows alone, judged on test rows alone."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError
from tests.zoo.runs import make_bags, make_run
from zoo.errors import RunError
from zoo.thresholds import choose_threshold, operating_points


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "run", skill=0.4)


def sample(seed, n=30):
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(n) % 3 == 0)
    return positive, np.round(rng.normal(size=n) + positive, 1)


def rates(positive, score, cut):
    return (score >= cut)[positive].mean(), (score < cut)[~positive].mean()


@given(st.integers(0, 10**6))
def test_no_other_threshold_has_more_of_what_was_asked(seed):
    positive, score = sample(seed)
    others = [rates(positive, score, cut) for cut in np.r_[np.unique(score), np.inf]]
    youden = rates(positive, score, choose_threshold(positive, score))
    assert sum(youden) == pytest.approx(max(map(sum, others)))
    found = rates(positive, score, choose_threshold(positive, score, rule="sensitivity"))
    assert found[0] >= 0.95
    assert found[1] == max(spared for seen, spared in others if seen >= 0.95)


def test_a_run_is_judged_by_each_folds_own_validation_images(run):
    for point in operating_points(run, n_resamples=200):
        hits = {True: [], False: []}
        for fold, rows in run.predictions.groupby("fold"):
            watched, tested = (rows[rows["role"] == role] for role in ("validation", "test"))
            cut = choose_threshold(
                watched["target"] == "class 1", watched["prob_class 1"], rule=point.rule
            )
            assert point.thresholds[fold] == cut
            for target, prob in zip(tested["target"], tested["prob_class 1"], strict=True):
                hits[target == "class 1"].append((prob >= cut) == (target == "class 1"))
        assert point.sensitivity.value == pytest.approx(np.mean(hits[True]))
        assert point.specificity.value == pytest.approx(np.mean(hits[False]))
        assert point.sensitivity.low < point.sensitivity.value < point.sensitivity.high or (
            point.sensitivity.value in {0.0, 1.0}
        )
        json.dumps(point.to_json(), allow_nan=False)


def test_test_labels_do_not_move_a_threshold(run):
    table = run.predictions.copy()
    tested = table["role"] == "test"
    table.loc[tested, "target"] = table.loc[tested, "target"].to_numpy()[::-1]
    there, here = operating_points(run), operating_points(dataclasses.replace(run, predictions=table))  # fmt: skip
    assert [point.thresholds for point in there] == [point.thresholds for point in here]
    assert [point.sensitivity for point in there] != [point.sensitivity for point in here]


def test_the_other_class_may_be_the_positive_one(run):
    points = operating_points(run, positive="class 0")
    assert [(point.rule, point.positive) for point in points] == [
        ("youden", "class 0"),
        ("sensitivity", "class 0"),
    ]


def test_what_does_not_fit_is_refused(run, tmp_path):
    with pytest.raises(OptionError, match="use youden or sensitivity"):
        choose_threshold([0, 1], [0, 1], rule="best")
    with pytest.raises(OptionError, match="needs both kinds"):
        choose_threshold([1, 1], [0, 1])
    with pytest.raises(OptionError, match="one per image"):
        choose_threshold([1, 0], [0])
    with pytest.raises(RunError, match="one of them as positive"):
        operating_points(run, positive="class 7")
    three = make_run(tmp_path / "three", bags=make_bags(1, k=3))
    with pytest.raises(RunError, match="need two classes"):
        operating_points(three)
    table = run.predictions
    unseen = dataclasses.replace(run, predictions=table[table["role"] == "test"])
    with pytest.raises(RunError, match="fold 0 has no validation images"):
        operating_points(unseen)


def test_a_class_of_several_is_held_against_the_rest(tmp_path):
    three = make_run(tmp_path / "three", bags=make_bags(0.5, k=3))
    for point in operating_points(three, positive="class 1", n_resamples=100):
        tested = three.predictions[three.predictions["role"] == "test"]
        called = tested["prob_class 1"] >= tested["fold"].map(point.thresholds)
        is_one = tested["target"] == "class 1"
        assert point.sensitivity.value == pytest.approx(called[is_one].mean())
        assert point.ppv.value == pytest.approx(is_one[called].mean())
        assert point.npv.value == pytest.approx(1 - is_one[~called].mean())
