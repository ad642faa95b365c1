"""Tests of differences, against definitions written out, scipy, and published numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from histostore.errors import OptionError
from zoo.metrics import Scorer
from zoo.significance import delong, friedman, holm, mcnemar


def sides(prob):
    return np.c_[1 - np.asarray(prob), prob]


# McNemar -----------------------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 10))
def test_one_image_a_patient_is_the_exact_binomial_test(first, second, both):
    one = np.repeat([0, 1, 0], [first, second, both])
    other = np.repeat([1, 0, 0], [first, second, both])
    found = mcnemar(np.zeros(len(one), int), one, other)
    assert (found.first_only, found.second_only) == (first, second)
    n = first + second
    expected = stats.binomtest(first, n).pvalue if n else 1.0
    assert found.p == pytest.approx(expected)
    least = min(first, second)
    mid = 2 * stats.binom.cdf(least - 1, n, 0.5) + stats.binom.pmf(least, n, 0.5)
    assert found.mid_p == pytest.approx(mid)


@given(st.integers(0, 10**6))
def test_clusters_are_swapped_whole_in_all_ways(seed):
    rng = np.random.default_rng(seed)
    y, one, other = rng.integers(2, size=(3, 14))
    patients = rng.integers(7, size=14)
    found = mcnemar(y, one, other, [f"p{i}" for i in patients])
    surplus = [((one == y)[patients == i].astype(int) - (other == y)[patients == i]).sum() for i in range(7)]  # fmt: skip
    sums = [np.dot(signs, surplus) for signs in itertools.product((-1, 1), repeat=7)]
    assert found.p == pytest.approx(np.mean(np.abs(sums) >= abs(sum(surplus))))
    assert found.mid_p <= found.p


def test_images_of_a_patient_say_less_than_those_of_many():
    y, one, other = np.zeros(20, int), np.zeros(20, int), np.repeat([1, 0], 10)
    alone = mcnemar(y, one, other)
    together = mcnemar(y, one, other, [f"p{i // 5}" for i in range(20)])
    assert alone.p == pytest.approx(2 / 1024)
    assert together.p == pytest.approx(2 / 4)


# DeLong ------------------------------------------------------------------------------------


def by_definition(y, first, second):
    """DeLong et al. 1988, eq. 4 to 7, pair by pair."""
    wins = [
        np.array([[(p > q) + (p == q) / 2 for q in s[y == 0]] for p in s[y == 1]], float)
        for s in (first, second)
    ]
    areas = [w.mean() for w in wins]
    s10 = np.cov(np.stack([w.mean(axis=1) for w in wins]))
    s01 = np.cov(np.stack([w.mean(axis=0) for w in wins]))
    s = s10 / wins[0].shape[0] + s01 / wins[0].shape[1]
    return areas[0] - areas[1], np.sqrt(max(s[0, 0] + s[1, 1] - 2 * s[0, 1], 0))


@given(st.integers(0, 10**6), st.integers(2, 15), st.integers(2, 15), st.integers(2, 30))
def test_areas_vary_as_delong_defines(seed, m, n, levels):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat([0, 1], [m, n]))
    first, second = rng.integers(levels, size=(2, m + n)) / levels  # ties, too
    value, error = by_definition(y, first, second)
    found = delong(y, sides(first), sides(second))
    assert found.value == pytest.approx(value, abs=1e-12)
    if error > 1e-9:
        assert found.p == pytest.approx(2 * stats.norm.sf(abs(value) / error))
        assert found.high - found.low == pytest.approx(2 * 1.959964 * error, rel=1e-6)


def test_clusters_vary_as_obuchowski_defines():
    rng = np.random.default_rng(4)
    n, patients = 600, np.repeat(np.arange(200), 3)
    y = (rng.normal(size=n) + rng.normal(size=200)[patients] > 0).astype(int)
    scores = rng.normal(size=(2, n)) + 2 * rng.normal(size=200)[patients] + y
    value, _ = by_definition(y, *scores)
    pos, neg = y == 1, y == 0
    wins = [(s[pos][:, None] > s[neg][None, :]).astype(float) for s in scores]
    gap = wins[0] - wins[1]
    v10 = np.bincount(patients[pos], gap.mean(axis=1) - value, 200)
    v01 = np.bincount(patients[neg], gap.mean(axis=0) - value, 200)
    m, k = pos.sum(), neg.sum()
    i10, i01 = len(set(patients[pos])), len(set(patients[neg]))
    s10, s01 = i10 / (i10 - 1) / m * (v10**2).sum(), i01 / (i01 - 1) / k * (v01**2).sum()
    s11 = 200 / 199 * (v10 * v01).sum()
    error = np.sqrt(s10 / m + s01 / k + 2 * s11 / (m * k))
    scaled = [(s - s.min()) / np.ptp(s) for s in scores]
    found = delong(y, sides(scaled[0]), sides(scaled[1]), patients.astype(str))
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(error, rel=0.002)


def test_the_mean_over_classes_varies_as_the_jackknife_says():
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=150)
    first, second = (rng.dirichlet(np.ones(3), 150) + s * np.eye(3)[y] for s in (0.5, 0.3))
    first, second = first / 1.5, second / 1.3
    gaps = [Scorer(y, first)(w)["auroc"] - Scorer(y, second)(w)["auroc"] for w in (np.ones((1, 150)), 1 - np.eye(150))]  # fmt: skip
    found = delong(y, first, second)
    jackknife = np.sqrt(149 / 150 * ((gaps[1] - gaps[1].mean()) ** 2).sum())
    assert found.value == pytest.approx(gaps[0][0])
    assert (found.high - found.low) / 2 / 1.959964 == pytest.approx(jackknife, rel=0.02)


def test_equal_scores_do_not_differ_and_too_few_images_say_nothing():
    y, prob = [0, 0, 1, 1], sides(np.array([0.1, 0.6, 0.4, 0.9]))
    assert delong(y, prob, prob).to_json() == {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}
    assert delong([0, 0, 0, 1], prob, prob).p is None


# Friedman, Nemenyi, Holm -------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(3, 6), st.integers(3, 12), st.sampled_from([3, 1000]))
def test_ranks_are_tested_as_scipy_does(seed, k, n, levels):
    scores = np.random.default_rng(seed).integers(levels, size=(n, k)).astype(float)
    if len(np.unique(np.round(scores - scores[:, :1], 9))) == 1:
        return
    found = friedman(scores)
    expected = stats.friedmanchisquare(*scores.T)
    assert found.statistic == pytest.approx(expected.statistic, abs=1e-9)
    assert found.p == pytest.approx(expected.pvalue)
    assert np.mean(found.ranks) == pytest.approx((k + 1) / 2)


@pytest.mark.parametrize(
    # Demšar 2006, Table 5 a: critical values of the two-tailed Nemenyi test, level 0.05
    ("k", "q"),
    [(3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (10, 3.164)],
)
def test_mean_ranks_differ_from_the_published_distance_on(k, q):
    scores = np.random.default_rng(0).normal(size=(14, k))
    found = friedman(scores)
    assert found.critical_difference == pytest.approx(q * np.sqrt(k * (k + 1) / (6 * 14)), rel=4e-4)
    apart = np.abs(np.subtract.outer(found.ranks, found.ranks)) > found.critical_difference
    np.testing.assert_array_equal(np.array(found.nemenyi_p) < 0.05, apart)
    np.testing.assert_allclose(np.diag(found.nemenyi_p), 1.0)


def test_the_example_of_demsar_comes_out():
    # Demšar 2006, section 3.2.2: chi-square 9.28 and F 3.69 from these mean ranks of 4 on 14 sets.
    ranks, n, k = np.array([3.143, 2.000, 2.893, 1.964]), 14, 4
    chi = 12 * n / (k * (k + 1)) * (np.sum(ranks**2) - k * (k + 1) ** 2 / 4)
    assert chi == pytest.approx(9.28, abs=0.02)
    assert (n - 1) * chi / (n * (k - 1) - chi) == pytest.approx(3.69, abs=0.02)
    scores = np.random.default_rng(3).normal(size=(n, k)) + np.arange(k) / 2
    found = friedman(scores)
    ratio = (n - 1) * found.statistic / (n * (k - 1) - found.statistic)
    assert found.p_iman_davenport == pytest.approx(stats.f.sf(ratio, k - 1, (k - 1) * (n - 1)))


def test_ties_throughout_are_no_difference():
    found = friedman(np.ones((5, 3)))
    assert (found.p, found.p_iman_davenport, found.ranks) == (1.0, 1.0, (2.0, 2.0, 2.0))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(p):
    corrected = holm(p)
    for level in (0.01, 0.05, 0.2):
        rejected = set()
        for step, i in enumerate(np.argsort(p, kind="stable")):
            if p[i] * (len(p) - step) > level:
                break
            rejected.add(i)
        assert {i for i, value in enumerate(corrected) if value <= level} == rejected


def test_holm_gives_what_statsmodels_gives():
    assert holm([0.01, 0.04, 0.03, 0.2]) == pytest.approx([0.04, 0.09, 0.09, 0.2])
    assert holm([None, 0.5, None]) == [None, 0.5, None]
    assert holm([]) == []


def test_what_does_not_fit_is_refused():
    with pytest.raises(OptionError, match="one class per image"):
        mcnemar([0, 1], [0], [1])
    with pytest.raises(OptionError, match="name one for each"):
        mcnemar([0, 1], [0, 1], [1, 1], ["a"])
    with pytest.raises(OptionError, match=r"twice \(image, class\)"):
        delong([0, 1], [0.1, 0.9], [0.2, 0.8])
    with pytest.raises(OptionError, match="three runs or more"):
        friedman([[1, 2], [2, 1]])
