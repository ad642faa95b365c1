"""Metrics of tasks: scikit-learn, SciPy and plain loops say the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError
from zoo.metrics import evaluate, higher_is_better, make_scorer, metric_names
from zoo.statistics import bootstrap, paired_bootstrap
from zoo.tasks import Task

REGRESSION = Task.of("regression", "age")
SURVIVAL = Task.of("survival", "time,event")
LABELS = Task.of("multi-label", "a,b,c")
ORDINAL = Task.of("ordinal", "grade")


def example(task, n=40, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=n)
    told = (signal + rng.normal(size=n))[:, None].round(1)
    if task is REGRESSION:
        return signal[:, None].round(1), told
    if task is SURVIVAL:
        time = rng.integers(1, 12, size=n) - 2 * (signal > 0)
        return np.stack([np.maximum(time, 0), rng.random(n) < 0.6], 1).astype(float), told
    if task is ORDINAL:
        prob = rng.dirichlet(np.ones(4), size=n)
        return rng.integers(4, size=n), prob
    truth = (rng.random((n, 3)) < [0.5, 0.2, 0.7]).astype(float)
    return truth, np.clip(0.4 * truth + 0.6 * rng.random((n, 3)).round(1), 0, 1)


TASKS = [REGRESSION, SURVIVAL, LABELS, ORDINAL]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_drawing_an_image_twice_is_having_it_twice(task):
    truth, told = example(task)
    weights = np.random.default_rng(1).integers(0, 3, size=(5, len(truth))).astype(float)
    found = make_scorer(task, truth, told)(weights)
    assert tuple(found) == metric_names(task)
    for row, times in enumerate(weights.astype(int)):
        again = evaluate(np.repeat(truth, times, axis=0), np.repeat(told, times, axis=0), task)
        for name, value in again.items():
            if name != "c_index_ipcw":  # its censoring weights are those of the whole sample
                assert found[name][row] == pytest.approx(value, nan_ok=True), name


def test_numbers_agree_with_scikit_learn_and_scipy():
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    truth, told = example(REGRESSION)
    y, p = truth[:, 0], told[:, 0]
    wanted = {
        "mae": mean_absolute_error(y, p),
        "rmse": mean_squared_error(y, p) ** 0.5,
        "r2": r2_score(y, p),
        "pearson": pearsonr(y, p).statistic,
        "spearman": spearmanr(y, p).statistic,
    }
    assert evaluate(truth, told, REGRESSION) == pytest.approx(wanted)


def test_labels_agree_with_scikit_learn():
    from sklearn import metrics

    truth, prob = example(LABELS)
    told = prob >= 0.5
    wanted = {
        "macro_f1": metrics.f1_score(truth, told, average="macro"),
        "auroc": metrics.roc_auc_score(truth, prob, average="macro"),
        "subset_accuracy": metrics.accuracy_score(truth, told),
        "micro_f1": metrics.f1_score(truth, told, average="micro"),
        "auprc": metrics.average_precision_score(truth, prob, average="macro"),
        "hamming": metrics.hamming_loss(truth, told),
    }
    found = evaluate(truth, prob, LABELS)
    assert {name: found[name] for name in wanted} == pytest.approx(wanted)


def test_levels_agree_with_scikit_learn():
    from sklearn import metrics

    truth, prob = example(ORDINAL)
    found, told = evaluate(truth, prob, ORDINAL), prob.argmax(axis=1)
    assert found["level_mae"] == pytest.approx(metrics.mean_absolute_error(truth, told))
    assert found["kappa"] == pytest.approx(
        metrics.cohen_kappa_score(truth, told, weights="quadratic")
    )
    assert not higher_is_better("level_mae")


def naive_c_index(truth, risk, *, ipcw):
    """Look at every pair, and at everyone's censoring, one by one."""
    won = compared = 0.0
    for i, (time, event) in enumerate(truth):
        if not event:
            continue
        stays = 1.0
        for moment in sorted({t for t, e in truth if t < time and not e}):
            leaving = sum(t == moment and not e for t, e in truth)
            there = sum(t > moment or (t == moment and not e) for t, e in truth)
            stays *= 1 - leaving / there
        weight = stays**-2 if ipcw else 1.0
        for j, (other, died) in enumerate(truth):
            if time < other or (time == other and not died):
                compared += weight
                won += weight * ((risk[i] > risk[j]) + 0.5 * (risk[i] == risk[j]))
    return won / compared if compared else np.nan


@given(
    st.lists(
        st.tuples(st.integers(0, 6), st.booleans(), st.integers(0, 3)), min_size=1, max_size=14
    )
)
def test_c_indices_agree_with_looking_at_every_pair(rows):
    truth = np.array([[time, event] for time, event, _ in rows], float)
    risk = np.array([[row[2]] for row in rows], float)
    found = evaluate(truth, risk, SURVIVAL)
    for name, ipcw in (("c_index", False), ("c_index_ipcw", True)):
        wanted = naive_c_index(truth.tolist(), risk[:, 0].tolist(), ipcw=ipcw)
        assert found[name] == pytest.approx(wanted, nan_ok=True)


def test_more_events_than_are_compared_at_once_change_nothing():
    truth, risk = example(SURVIVAL, n=600)
    found = evaluate(truth, risk, SURVIVAL)["c_index"]
    assert found == pytest.approx(naive_c_index(truth.tolist(), risk[:, 0].tolist(), ipcw=False))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20))
def test_what_has_no_spread_has_no_correlation_and_nothing_warns(values):
    truth = np.array(values)[:, None]
    found = evaluate(truth, np.full_like(truth, 0.1), REGRESSION)
    assert np.isnan(found["pearson"])
    assert np.isnan(found["spearman"])
    constant = evaluate(np.full_like(truth, 0.1), truth, REGRESSION)
    assert np.isnan(constant["r2"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_intervals_hold_the_value_and_differences_change_sign(task):
    truth, told = example(task)
    other = np.roll(told, 1, axis=0)
    patients = [f"p{i // 2}" for i in range(len(truth))]
    for interval in bootstrap(truth, told, patients, task=task, n_resamples=200).values():
        assert interval.low <= interval.high
    ways = [
        paired_bootstrap(truth, a, b, patients, task=task, n_resamples=200)
        for a, b in ((told, other), (other, told))
    ]
    for name in metric_names(task):
        assert ways[0][name].value == pytest.approx(-ways[1][name].value)


@pytest.mark.parametrize(
    ("task", "truth", "told"),
    [
        (REGRESSION, [[1.0]], [[np.nan]]),
        (REGRESSION, [1.0], [1.0]),
        (SURVIVAL, [[1.0, 2.0]], [[0.0]]),
        (SURVIVAL, [[1.0, 1.0]], [[0.0], [1.0]]),
        (LABELS, [[0, 1, 2]], [[0.1, 0.2, 0.3]]),
        (LABELS, [[0, 1, 1]], [[0.1, 0.2, 1.3]]),
    ],
)
def test_what_cannot_be_scored_is_refused(task, truth, told):
    with pytest.raises(OptionError):
        make_scorer(task, truth, told)


@pytest.mark.parametrize("seed", range(4))
def test_c_indices_agree_with_scikit_survival(seed):
    oracle = pytest.importorskip("sksurv.metrics")
    rng = np.random.default_rng(seed)
    risk = rng.normal(size=80).round(1)  # some are equal
    died = rng.exponential(np.exp(-risk)) + 0.01
    left = rng.exponential(1.5, size=80)
    truth = np.stack([np.minimum(died, left), died <= left], axis=1)
    truth[truth[:, 0].argmax(), 1] = 1  # after the last censoring all is known: no weight is lost
    wanted = np.array([*zip(truth[:, 1] > 0, truth[:, 0], strict=True)], dtype="?,f8")
    found = evaluate(truth, risk[:, None], SURVIVAL)
    harrell = oracle.concordance_index_censored(wanted["f0"], wanted["f1"], risk)[0]
    uno = oracle.concordance_index_ipcw(wanted, wanted, risk)[0]
    assert found["c_index"] == pytest.approx(harrell)
    assert found["c_index_ipcw"] == pytest.approx(uno)
