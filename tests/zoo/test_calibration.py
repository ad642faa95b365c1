"""Calibration: the bins are those of the metrics, the parts add up, intervals are Jeffreys'."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from histostore.errors import OptionError
from zoo.calibration import brier_parts, chance_error, reliability
from zoo.metrics import evaluate


def sample(seed, n=80, k=3):
    rng = np.random.default_rng(seed)
    prob = rng.dirichlet(np.ones(k), n)
    return np.array([rng.choice(k, p=p) for p in prob]), prob


@given(st.integers(0, 10**6), st.integers(2, 4))
def test_the_error_is_that_of_the_metrics(seed, k):
    y, prob = sample(seed, k=k)
    found, scores = reliability(y, prob), evaluate(y, prob)
    assert found.ece == pytest.approx(scores["ece"])
    assert found.mce >= found.ece
    assert sum(bin_.n for bin_ in found.bins) == len(y)
    assert brier_parts(y, prob).brier == pytest.approx(scores["brier"])


@given(st.integers(0, 10**6), st.integers(1, 20), st.booleans())
def test_every_image_lies_in_its_bin(seed, n_bins, equal_mass):
    y, prob = sample(seed)
    prob = np.round(prob, 1) / np.round(prob, 1).sum(axis=1, keepdims=True)  # ties and bounds
    found = reliability(y, prob, of_class=1, n_bins=n_bins, equal_mass=equal_mass)
    assert (found.bins[0].low, found.bins[-1].high) == (0.0, 1.0)
    for i, bin_ in enumerate(found.bins):
        inside = (prob[:, 1] > bin_.low) & (prob[:, 1] <= bin_.high)
        inside |= (prob[:, 1] == 0) & (i == 0)
        assert bin_.n == inside.sum()
        if bin_.n:
            assert bin_.predicted == pytest.approx(prob[inside, 1].mean())
            assert bin_.observed == pytest.approx((y[inside] == 1).mean())
            assert bin_.observed_low <= bin_.observed <= bin_.observed_high
    json.dumps(found.to_json(), allow_nan=False)


def test_bins_of_equal_mass_have_equally_many_images():
    y, prob = sample(0, n=90)
    assert {bin_.n for bin_ in reliability(y, prob, n_bins=9, equal_mass=True).bins} == {10}


def test_intervals_are_those_of_jeffreys():
    (bin_,) = reliability([1] * 3 + [0] * 7, [[0.6, 0.4]] * 10, of_class=1, n_bins=1).bins
    expected = stats.beta(3.5, 7.5).ppf([0.025, 0.975])
    assert (bin_.observed_low, bin_.observed_high) == pytest.approx(tuple(expected))
    (sure,) = reliability([0] * 10, [[0.6, 0.4]] * 10, of_class=1, n_bins=1).bins
    assert (sure.observed_low, sure.observed_high) == (0.0, pytest.approx(0.217, abs=5e-4))


@given(st.integers(0, 10**6))
def test_parts_of_the_brier_score_add_up(seed):
    y, prob = sample(seed)
    found = brier_parts(y, prob, n_bins=10)
    told = found.reliability - found.resolution + found.uncertainty + found.within
    assert told == pytest.approx(found.brier)
    # Probabilities that are one number per bin leave nothing within: Murphy's three parts.
    rough = np.eye(3)[prob.argmax(axis=1)] * 0.55 + 0.15
    assert brier_parts(y, rough).within == pytest.approx(0, abs=1e-12)


def test_probabilities_that_are_true_are_calibrated_and_those_that_boast_are_not():
    y, prob = sample(1, n=4000, k=2)
    honest, boasting = brier_parts(y, prob), brier_parts(y, prob**3 / (prob**3).sum(1)[:, None])
    assert honest.reliability < 0.01 < boasting.reliability
    assert honest.resolution == pytest.approx(boasting.resolution, rel=0.1)
    assert reliability(y, prob).ece < 0.03 < reliability(y, prob**3 / (prob**3).sum(1)[:, None]).ece


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match=r"give \(image,\)"):
        reliability([0, 1], [0.2, 0.8])
    with pytest.raises(OptionError, match="from 0 to 1"):
        brier_parts([0], [[-0.5, 1.5]])
    with pytest.raises(OptionError, match="2 columns"):
        brier_parts([2], [[0.5, 0.5]])
    with pytest.raises(OptionError, match="classes are 0 to 1"):
        reliability([0], [[0.5, 0.5]], of_class=2)
    with pytest.raises(OptionError, match="n_bins=0"):
        reliability([0], [[0.5, 0.5]], n_bins=0)


def test_chance_alone_makes_the_error_it_is_said_to_make():
    rng = np.random.default_rng(0)
    prob = rng.dirichlet(np.ones(3), 90)
    mean, high = chance_error(prob)
    drawn = [
        reliability((rng.random(90)[:, None] > prob.cumsum(axis=1)).sum(axis=1), prob).ece
        for _ in range(400)
    ]
    assert mean == pytest.approx(np.mean(drawn), abs=0.01)
    assert 0.02 <= np.mean(np.array(drawn) > high) <= 0.09
    assert chance_error(np.tile(prob, (20, 1)))[0] < mean / 3
