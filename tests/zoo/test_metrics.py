"""Metrics agree with scikit-learn, for one sample and for thousands of resamples."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from histostore.errors import OptionError
from zoo.metrics import (
    ECE_BINS,
    METRICS,
    Scorer,
    accuracy,
    confusion_matrix,
    evaluate,
    macro_f1,
    per_class,
)


@st.composite
def predictions(draw):
    """Truth and probabilities, with ties, absent classes and certain answers among them."""
    n, k = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    y = rng.integers(draw(st.integers(1, k)), size=n)
    prob = rng.dirichlet(np.full(k, draw(st.sampled_from([0.2, 1.0, 10.0]))), n)
    decimals = draw(st.sampled_from([1, 2, 12]))
    prob = np.round(prob, decimals) + 1e-12
    return y, prob / prob.sum(axis=1, keepdims=True)


def by_sklearn(y, prob, weight):
    """The same metrics from scikit-learn, class by class where it would warn."""
    k = prob.shape[1]
    pred, labels = prob.argmax(axis=1), np.arange(k)
    drawn = weight > 0
    union = np.union1d(y[drawn], pred[drawn])
    seen = np.unique(y[drawn])
    both = [c for c in range(k) if 0 < weight[y == c].sum() < weight.sum()]
    mean = {
        "auroc": oracle.roc_auc_score,
        "auprc": oracle.average_precision_score,
    }
    values = {
        "macro_f1": oracle.f1_score(y, pred, labels=union, average="macro", sample_weight=weight),
        "accuracy": oracle.accuracy_score(y, pred, sample_weight=weight),
        "balanced_accuracy": oracle.recall_score(
            y, pred, labels=seen, average="macro", sample_weight=weight
        ),
        "log_loss": oracle.log_loss(y, prob, labels=labels, sample_weight=weight),
        "brier": np.average(((prob - np.eye(k)[y]) ** 2).sum(axis=1), weights=weight),
    }
    for name, function in mean.items():
        areas = [function(y == c, prob[:, c], sample_weight=weight) for c in both]
        values[name] = np.mean(areas) if areas else np.nan
    if len(union) > 1:
        values["kappa"] = oracle.cohen_kappa_score(
            y, pred, labels=labels, weights="quadratic", sample_weight=weight
        )
    else:
        values["kappa"] = 1.0
    return values


def ece_by_hand(y, prob, weight):
    """Guo et al. 2017, equation 5, bin by bin."""
    confidence, hit = prob.max(axis=1), prob.argmax(axis=1) == y
    total = 0.0
    for b in range(ECE_BINS):
        inside = (confidence > b / ECE_BINS) & (confidence <= (b + 1) / ECE_BINS)
        share = weight[inside].sum()
        if share:
            gap = np.average(hit[inside], weights=weight[inside]) - np.average(
                confidence[inside], weights=weight[inside]
            )
            total += share / weight.sum() * abs(gap)
    return total


@given(predictions(), st.integers(0, 2**32 - 1))
def test_every_resample_scores_as_scikit_learn_would_score_it(sample, seed):
    y, prob = sample
    weights = np.random.default_rng(seed).multinomial(len(y), np.full(len(y), 1 / len(y)), size=3)
    found = Scorer(y, prob)(weights.astype(np.float64))
    assert tuple(found) == METRICS
    for row, weight in enumerate(weights.astype(np.float64)):
        expected = {**by_sklearn(y, prob, weight), "ece": ece_by_hand(y, prob, weight)}
        for name in METRICS:
            assert found[name][row] == pytest.approx(expected[name], abs=1e-9, nan_ok=True), name


@given(predictions())
def test_a_sample_is_the_resample_that_draws_each_image_once(sample):
    y, prob = sample
    weights = Scorer(y, prob)(np.ones((1, len(y))))
    assert evaluate(y, prob) == pytest.approx(
        {name: value[0] for name, value in weights.items()}, nan_ok=True
    )


@given(predictions())
def test_per_class_figures_and_confusion_agree_with_scikit_learn(sample):
    y, prob = sample
    k = prob.shape[1]
    pred, labels = prob.argmax(axis=1), np.arange(k)
    rows = per_class(y, prob, [f"class {c}" for c in labels])
    expected = oracle.precision_recall_fscore_support(y, pred, labels=labels, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "support"), expected, strict=True):
        assert [row[name] for row in rows] == pytest.approx(values)
    table = confusion_matrix(y, pred, k)
    assert np.array_equal(table, oracle.confusion_matrix(y, pred, labels=labels))
    assert macro_f1(y, pred, k) == pytest.approx(evaluate(y, prob)["macro_f1"])
    assert accuracy(y, pred) == pytest.approx(evaluate(y, prob)["accuracy"])


def test_a_single_class_leaves_only_the_areas_undefined():
    scores = evaluate([1, 1], [[0.2, 0.8], [0.6, 0.4]])
    assert {name for name, value in scores.items() if np.isnan(value)} == {"auroc", "auprc"}


@pytest.mark.parametrize(
    ("y", "prob", "reason"),
    [
        ([], np.zeros((0, 2)), "no image"),
        ([0, 2], np.full((2, 2), 0.5), "label out of range"),
        ([0, -1], np.full((2, 2), 0.5), "unlabelled image"),
        ([0.5, 1], np.full((2, 2), 0.5), "labels that are no integers"),
        ([0], np.full((2, 2), 0.5), "lengths differ"),
        ([0, 1], [0.5, 0.5], "no class axis"),
        ([0, 1], [[0.5, 0.5], [np.nan, 0.5]], "probability not finite"),
    ],
)
def test_input_that_makes_no_sense_is_refused(y, prob, reason):
    with pytest.raises(OptionError):
        evaluate(np.array(y), prob)


def test_two_thousand_resamples_take_less_than_two_seconds():
    rng = np.random.default_rng(0)
    y, prob = rng.integers(4, size=400), rng.dirichlet(np.ones(4), 400)
    weights = rng.multinomial(400, np.full(400, 1 / 400), size=2000).astype(np.float64)
    start = time.perf_counter()
    Scorer(y, prob)(weights)
    assert time.perf_counter() - start < 2.0
