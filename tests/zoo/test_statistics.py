"""Intervals: over patients, the same for any order of rows, honest about noise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError
from zoo.metrics import METRICS
from zoo.statistics import bootstrap, paired_bootstrap, patient_draws


def sample(seed, n=60, n_patients=20, k=3, skill=0.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(k, size=n)
    prob = rng.dirichlet(np.ones(k), n) + skill * np.eye(k)[y]
    patients = np.array([f"p{i}" for i in rng.integers(n_patients, size=n)], dtype=object)
    return y, prob / prob.sum(axis=1, keepdims=True), patients


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_intervals_do_not_depend_on_the_order_of_rows(seed, shuffle):
    y, prob, patients = sample(seed)
    order = np.random.default_rng(shuffle).permutation(len(y))
    there = bootstrap(y, prob, patients, n_resamples=50)
    here = bootstrap(y[order], prob[order], patients[order], n_resamples=50)
    for name in METRICS:
        assert here[name].to_json() == pytest.approx(there[name].to_json(), abs=1e-9)


@given(st.integers(0, 10**6))
def test_the_images_of_a_patient_are_drawn_together(seed):
    _, _, patients = sample(seed)
    (weights,) = patient_draws(patients, n_resamples=30, seed=seed)
    for patient in np.unique(patients):
        mine = weights[:, patients == patient]
        assert (mine == mine[:, :1]).all()
    first = np.unique(patients, return_index=True)[1]
    assert (weights[:, first].sum(axis=1) == len(first)).all()


def test_draws_come_in_bounded_pieces_that_make_up_the_whole(monkeypatch):
    _, _, patients = sample(0)
    monkeypatch.setattr("zoo.statistics._CHUNK_WEIGHTS", 7 * len(patients))
    pieces = list(patient_draws(patients, n_resamples=30, seed=1))
    assert [len(piece) for piece in pieces] == [7, 7, 7, 7, 2]


def test_the_same_seed_gives_the_same_interval_and_another_seed_another():
    y, prob, patients = sample(3)
    runs = [bootstrap(y, prob, patients, n_resamples=99, seed=s)["auroc"] for s in (0, 0, 1)]
    assert runs[0] == runs[1] != runs[2]


def test_patients_whose_images_stand_or_fall_together_widen_the_interval():
    y, prob, _ = sample(4, n=200)
    hits_first = np.argsort(prob.argmax(axis=1) != y, kind="stable")
    y, prob = y[hits_first], prob[hits_first]
    together = bootstrap(y, prob, [f"p{i // 20}" for i in range(200)])["accuracy"]
    alone = bootstrap(y, prob, [f"p{i}" for i in range(200)])["accuracy"]
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_noise_covers_chance_about_as_often_as_promised():
    covered = 0
    for seed in range(100):
        y, prob, patients = sample(seed, n=80, n_patients=80, k=2)
        interval = bootstrap(y, prob, patients, n_resamples=200)["auroc"]
        covered += interval.low <= 0.5 <= interval.high
    # Binomial(100, 0.95) lies in 87..100 but for one time in a thousand.
    assert covered >= 87


def test_a_difference_of_a_run_to_itself_is_none():
    y, prob, patients = sample(5)
    for difference in paired_bootstrap(y, prob, prob, patients, n_resamples=99).values():
        assert difference.to_json() == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}


@given(st.integers(0, 10**6))
def test_differences_change_sign_with_the_order_of_the_runs(seed):
    y, first, patients = sample(seed)
    second = sample(seed + 1)[1]
    there = paired_bootstrap(y, first, second, patients, n_resamples=99)
    back = paired_bootstrap(y, second, first, patients, n_resamples=99)
    for name in METRICS:
        assert back[name].value == pytest.approx(-there[name].value, abs=1e-12)
        assert back[name].low == pytest.approx(-there[name].high, abs=1e-12)
        assert back[name].p == there[name].p


def test_skill_against_noise_is_told_apart():
    y, good, patients = sample(6, n=200, n_patients=100, skill=2.0)
    bad = sample(6, n=200, n_patients=100)[1]
    found = paired_bootstrap(y, good, bad, patients)["macro_f1"]
    assert found.value > 0.2
    assert found.low > 0
    assert found.p < 0.01


def test_few_patients_have_no_difference_that_is_sure():
    y, good, bad = [0, 1, 0, 1], np.eye(2)[[0, 1, 0, 1]], np.eye(2)[[1, 0, 1, 0]]
    found = paired_bootstrap(y, good, bad, ["a", "b", "c", "d"])["accuracy"]
    assert (found.value, found.low, found.high) == (1.0, None, None)
    assert found.p > 0.05  # every resample is above 0


def test_equal_classifiers_of_thirty_patients_are_called_different_no_more_than_promised():
    rng, alarms = np.random.default_rng(0), {"accuracy": 0, "macro_f1": 0}
    for k in range(300):
        y = np.arange(30) % 2
        shared, *own = rng.normal(size=(3, 30))
        said = [1 / (1 + np.exp(-shared - noise - 2.4 * (y - 0.5))) for noise in own]
        one, other = (np.c_[1 - prob, prob] for prob in said)
        told = paired_bootstrap(y, one, other, np.arange(30).astype(str), n_resamples=399, seed=k)
        for name in alarms:
            alarms[name] += told[name].p <= 0.05
    # Binomial(300, 0.05) is above 26 once in a thousand times.
    assert max(alarms.values()) <= 26


def test_what_is_undefined_in_most_resamples_has_no_interval():
    found = bootstrap([0, 0, 0], [[0.9, 0.1]] * 3, ["a", "b", "c"], n_resamples=20)
    assert found["auroc"].to_json() == {"value": None, "low": None, "high": None}
    assert found["accuracy"].value == 1.0
    paired = paired_bootstrap([0], [[0.9, 0.1]], [[0.8, 0.2]], ["a"], n_resamples=5)
    assert paired["auroc"].p is None


def test_nothing_to_draw_from_is_refused():
    with pytest.raises(OptionError):
        list(patient_draws([], n_resamples=5))
    with pytest.raises(OptionError):
        list(patient_draws(["a"], n_resamples=0))
