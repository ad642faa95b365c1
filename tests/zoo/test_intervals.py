"""Intervals of shares: Wilson's where images are independent, wider and narrower where they say so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zoo.intervals import (
    SHARES,
    area_interval,
    basic_interval,
    effective_size,
    expanded_interval,
    expanded_p,
    loss_interval,
    metric_interval,
    percentile_interval,
    share_interval,
    square_and_add,
    wilson,
)
from zoo.metrics import METRICS
from zoo.statistics import bootstrap, metric_draws


@given(st.integers(1, 400), st.data())
def test_wilson_is_the_one_of_scipy(n, data):
    hits = data.draw(st.integers(0, n))
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits / n, n) == pytest.approx([expected.low, expected.high], abs=1e-12)


@given(st.floats(0, 1), st.floats(0, 0.3), st.integers(1, 500), st.integers(1, 5))
def test_an_interval_lies_in_bounds_holds_its_value_and_is_never_a_point(v, sd, n, images):
    draws = np.clip(v + sd * np.linspace(-1, 1, 50), 0, 1)
    low, high = share_interval(v, draws, n_images=n * images, n_patients=n)
    assert 0 <= low <= v <= high <= 1
    assert low < high


@given(st.integers(0, 60))
def test_accuracy_of_single_images_has_wilsons_interval(wrong):
    y = np.zeros(60, int)
    prob = np.where(np.arange(60)[:, None] < wrong, [[0.2, 0.8]], [[0.8, 0.2]])
    found = bootstrap(y, prob, [f"p{i}" for i in range(60)], n_resamples=2000)["accuracy"]
    # Within what 2000 resamples leave open about their variance.
    assert (found.low, found.high) == pytest.approx(wilson(1 - wrong / 60, 60), abs=0.015)


@pytest.mark.parametrize("n", [30, 60, 100, 374])
@pytest.mark.parametrize("truth", [0.6, 0.8, 0.9, 0.98])
def test_the_truth_is_held_as_often_as_promised(n, truth):
    # Every number of right images there can be, weighted by its chance: no simulation.
    hits = np.arange(n + 1)
    variance = hits / n * (1 - hits / n) / n  # that of resamples
    held = 0.0
    for k in hits:
        value = k / n
        size = effective_size(value, variance[k] * n / (n - 1), n_images=n, n_patients=n)
        low, high = wilson(value, size)
        held += stats.binom.pmf(k, n, truth) * (low <= truth <= high)
    assert 0.93 <= held <= 0.98


def test_perfect_scores_are_not_certain():
    y, prob = np.arange(30) % 2, np.eye(2)[np.arange(30) % 2]
    alone = bootstrap(y, prob, [f"p{i}" for i in range(30)], n_resamples=50)
    together = bootstrap(y, prob, [f"p{i // 3}" for i in range(30)], n_resamples=50)
    for name in SHARES & set(METRICS):
        assert alone[name].value == alone[name].high == 1.0
        assert alone[name].low == pytest.approx(0.886, abs=5e-4)
        assert together[name].low == pytest.approx(0.722, abs=5e-4)  # worth ten images


def test_other_metrics_keep_their_percentiles():
    draws = np.r_[np.linspace(-1, 1, 101), np.full(50, np.nan)]
    assert percentile_interval(draws) == pytest.approx((-0.95, 0.95))
    assert percentile_interval(np.r_[draws, np.full(60, np.nan)]) == (None, None)


@given(
    st.lists(st.integers(-5, 5), min_size=1, max_size=400),
    st.floats(-6, 6),
    st.integers(1, 500),
    st.sampled_from([0.5, 0.8, 0.95, 0.99]),
)
def test_a_difference_is_sure_at_a_level_where_its_interval_leaves_out_zero(some, by, n, level):
    draws = np.array(some) + round(by, 1)
    low, high = expanded_interval(draws, n_patients=n, level=level)
    p = expanded_p(draws, n_patients=n)
    assert 0 < p <= 1
    assert (p < 1 - level) == (low is not None and (low > 0 or high < 0))


@given(st.integers(3, 200), st.floats(0.02, 0.98), st.integers(2, 300))
def test_the_expanded_p_is_students_of_a_normal_tail(n_draws, share, n):
    draws = np.where(np.arange(n_draws) < round(share * n_draws), -1.0, 1.0)
    least = min((draws < 0).sum(), (draws > 0).sum())
    z = stats.norm.ppf(min(0.5, (least + 1) / (n_draws + 1)))
    expected = 2 * stats.t.cdf(z * np.sqrt((n - 1) / n), n - 1)
    assert expanded_p(draws, n_patients=n) == pytest.approx(expected)


def test_of_many_patients_the_expanded_interval_is_that_of_percentiles():
    draws = np.random.default_rng(0).normal(size=1999)
    steps = np.diff(np.sort(draws))
    plain = np.array(percentile_interval(draws))
    found = [expanded_interval(draws, n_patients=n) for n in (10, 30, 100, 1000, 10**9)]
    assert np.all(np.diff([high - low for low, high in found]) <= 0)
    assert found[-1] == pytest.approx(plain, abs=steps[45:55].max() + steps[-55:-45].max())
    twice = 2 * (np.count_nonzero(draws + 2 < 0) + 1) / 2000
    assert expanded_p(draws + 2, n_patients=10**9) == pytest.approx(twice, rel=1e-6)


def test_the_mean_of_ten_normal_patients_is_held_as_often_as_promised():
    # Student's interval is exact here, and percentiles hold the truth in some 90 of 100 samples.
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(1000, 10))
    held = []
    for sample in samples:
        draws = sample[rng.integers(10, size=(999, 10))].mean(axis=1)
        ends = expanded_interval(draws, n_patients=10), percentile_interval(draws)
        held.append([low <= 0 <= high for low, high in ends])
    expanded, plain = np.mean(held, axis=0)
    assert 0.93 <= expanded <= 0.97
    assert plain <= 0.92


@given(st.floats(0, 1), st.lists(st.floats(0, 1), min_size=5, max_size=50))
def test_a_basic_interval_holds_its_value_and_does_not_go_below_zero(value, draws):
    low, high = basic_interval(value, np.array(draws))
    assert 0 <= low <= value <= high


def test_the_calibration_error_is_held_where_percentiles_leave_it_out():
    # Probabilities that are right: resamples overstate how far off they are, and so does the value.
    rng = np.random.default_rng(0)
    held = {"basic": 0, "percentiles": 0}
    for _ in range(40):
        prob = rng.dirichlet([1, 1, 1], 120)
        said = prob**1.5 / (prob**1.5).sum(axis=1, keepdims=True)
        y = (rng.random(120)[:, None] > prob.cumsum(axis=1)).sum(axis=1)
        found = bootstrap(y, said, [str(i) for i in range(120)], n_resamples=150)["ece"]
        assert found.low <= found.value <= found.high
        held["basic"] += found.low <= 0.082 <= found.high  # of 400,000 images
        draws = ece_draws(y, said)
        low, high = percentile_interval(draws)
        held["percentiles"] += low <= 0.082 <= high
    assert held["basic"] >= 32
    assert held["percentiles"] < 28


def ece_draws(y, prob):
    names = [str(i) for i in range(len(y))]
    return metric_draws(y, [prob], names, "ece", n_resamples=150)[1][0]


@given(st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.integers(10, 200), st.integers(10, 200))
def test_a_difference_of_shares_lies_in_its_interval_which_mirrors(a, b, n, m):
    first, second = (a, *wilson(a, n)), (b, *wilson(b, m))
    low, high = square_and_add(first, second)
    assert -1 <= low <= a - b <= high <= 1
    assert square_and_add(second, first) == pytest.approx((-high, -low))


def test_the_interval_of_a_drop_holds_the_truth():
    rng, held = np.random.default_rng(0), 0
    for _ in range(600):
        a, b = rng.binomial(80, 0.9) / 80, rng.binomial(40, 0.7) / 40
        low, high = square_and_add((a, *wilson(a, 80)), (b, *wilson(b, 40)))
        held += low <= 0.2 <= high
    assert 0.925 <= held / 600 <= 0.98


@given(st.floats(0.01, 0.99), st.floats(0.001, 0.3), st.integers(2, 300))
def test_areas_and_losses_have_students_interval_on_their_scales(value, sd, n):
    draws = value + sd * np.linspace(-1, 1, 51)
    error, t = np.std(draws) * np.sqrt(n / (n - 1)), stats.t.ppf(0.975, n - 1)
    odds = np.array(area_interval(value, draws, n_patients=n))
    assert np.all((odds >= 0) & (odds <= 1))
    assert odds[0] <= value <= odds[1]
    half = t * error / (value * (1 - value))
    if half < 10:  # beyond, an end rounds to 0 or 1
        centre = np.log(value / (1 - value))
        assert np.log(odds / (1 - odds)) == pytest.approx([centre - half, centre + half], abs=1e-6)
    if t * error / value < 100:
        losses = np.log(loss_interval(value, draws, n_patients=n))
        expected = [np.log(value) - t * error / value, np.log(value) + t * error / value]
        assert losses == pytest.approx(expected, abs=1e-9)


@given(st.floats(-1, 1), st.floats(0, 0.5), st.integers(2, 300))
def test_kappas_interval_holds_it_and_stays_in_bounds(value, sd, n):
    draws = np.clip(value + sd * np.linspace(-1, 1, 50), -1, 1)
    low, high = metric_interval("kappa", value, draws, n_images=2 * n, n_patients=n)
    assert -1 <= low <= value + 1e-12
    assert value - 1e-12 <= high <= 1
    assert low < high


def test_the_area_of_few_patients_with_several_images_is_held_as_often_as_promised():
    rng, held = np.random.default_rng(0), []
    for _ in range(200):
        y = np.repeat(rng.permutation(np.arange(60) % 2), 3)
        noise = rng.normal(size=180) + np.repeat(rng.normal(size=60), 3)
        score = 1 / (1 + np.exp(-noise / np.sqrt(2) - 1.8124 * y))  # AUROC 0.9
        patients = [f"p{i // 3}" for i in range(180)]
        prob = np.c_[1 - score, score]
        found, draws = metric_draws(y, [prob], patients, "auroc", n_resamples=150)
        ends = metric_interval("auroc", found[0], draws[0], n_images=180, n_patients=60)
        held.append(ends[0] <= 0.9 <= ends[1])
    assert 0.90 <= np.mean(held) <= 0.99  # 95 %, and what 200 samples leave open


def test_what_half_of_the_resamples_do_not_define_has_no_interval():
    draws = np.r_[np.full(51, np.nan), np.linspace(0.4, 0.6, 49)]
    for name in METRICS:
        assert metric_interval(name, 0.5, draws, n_images=20, n_patients=20) == (None, None)
