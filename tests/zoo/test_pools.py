"""The parts of blending, one by one, against others and by what they have to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoo.blends import draw, log_loss, softmax
from zoo.blending.pools import (
    FLOOR,
    linear_pool,
    log_pool,
    simplex_weights,
    stack_weights,
)
from zoo.blending.ranks import rank_pool
from zoo.blending.selection import bagged_greedy_weights, greedy_weights
from zoo.blending.temperature import cooled, find_temperature

# Against others --------------------------------------------------------------------------


def naive_greedy(prob, y, rounds):
    """Caruana et al. 2004, written as one would tell it."""
    loss = lambda chosen: log_loss(np.mean([prob[m] for m in chosen], axis=0), y)  # noqa: E731
    ranked = sorted(range(len(prob)), key=lambda m: loss([m]))
    chosen = min((ranked[: n + 1] for n in range(len(prob))), key=loss)
    path = [chosen]
    for _ in range(rounds):
        chosen = min(([*chosen, m] for m in range(len(prob))), key=loss)
        path.append(chosen)
    best = min(path, key=loss)
    return np.bincount(best, minlength=len(prob)) / len(best)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_selection_is_that_of_a_naive_one(seed):
    rng = np.random.default_rng(seed)
    prob, y = draw(rng, 50, rng.uniform(0, 2, size=5), k=2 + seed % 2)
    for rounds in (0, 7, 25):
        ours = greedy_weights(prob, y, rounds=rounds)
        assert ours == pytest.approx(naive_greedy(prob, y, rounds), abs=1e-12)


def test_a_bag_is_a_naive_selection_on_drawn_patients():
    prob, y = draw(np.random.default_rng(1), 30, [1, 1, 1.5])
    patients = np.array([f"{i // 3:02}" for i in range(30)])
    drawn = np.random.default_rng(3).multinomial(10, np.full(10, 0.1), size=2)
    bags = [np.repeat(np.arange(30), times[np.arange(30) // 3]) for times in drawn]
    wanted = np.mean([naive_greedy(prob[:, rows], y[rows], 25) for rows in bags], axis=0)
    ours = bagged_greedy_weights(prob, y, patients, bags=2, seed=3)
    assert ours == pytest.approx(wanted, abs=1e-9)
    turned = np.random.default_rng(0).permutation(30)
    again = bagged_greedy_weights(prob[:, turned], y[turned], patients[turned], bags=2, seed=3)
    assert again == pytest.approx(ours, abs=1e-9)


@pytest.mark.parametrize("ridge", [0.5, 10.0])
def test_stacking_two_classes_is_logistic_regression_on_log_odds(ridge):
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    prob, y = draw(np.random.default_rng(10), 200, [1, 1.2, 0.8], shared=0.0)
    prob = np.clip(prob, FLOOR, 1 - FLOOR)
    odds = np.log(prob[:, :, 1] / prob[:, :, 0]).T
    model = linear.LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=1000)
    wanted = model.fit(odds, y).coef_[0]
    assert wanted.min() > 0  # so the bounds do not bind
    ours = stack_weights(prob, y, ridge=ridge, centre=0.0)
    assert ours == pytest.approx(wanted, abs=1e-5)
    assert log_pool(ours, prob) == pytest.approx(model.predict_proba(odds), abs=1e-5)


@pytest.mark.parametrize("k", [2, 4])
def test_weights_are_where_the_loss_is_least(k):
    """Slopes at what was found, by differences: none where free, none inwards at a bound."""
    prob, y = draw(np.random.default_rng(11), 150, [2, 1, 0, 0], k=k, scale=2.0)
    centre, ridge, step = 0.25, 10.0, 1e-5

    def stacked(w):
        logs = np.tensordot(w, np.log(np.maximum(prob, FLOOR)), axes=1)
        return len(y) * log_loss(softmax(logs), y) + ridge / 2 * ((w - centre) ** 2).sum()

    w = stack_weights(prob, y)
    for slope, weight in zip(slopes(stacked, w, step), w, strict=True):
        assert slope == pytest.approx(0.0, abs=0.01) if weight > step else slope > -0.01

    def weighted(free):
        w = softmax(free)
        return len(y) * log_loss(linear_pool(w, prob), y) - 3 / 4 * np.log(w).sum()

    assert slopes(weighted, np.log(simplex_weights(prob, y)), step) == pytest.approx(0, abs=0.01)


def slopes(loss, at, step):
    nudges = step * np.eye(len(at))
    return np.array([(loss(at + nudge) - loss(at - nudge)) / (2 * step) for nudge in nudges])


def test_without_images_weights_are_the_plain_average():
    none, y = np.empty((4, 0, 3)), np.empty(0, dtype=np.int64)
    for learn in (simplex_weights, stack_weights):
        assert learn(none, y) == pytest.approx(0.25)


# Ranks -----------------------------------------------------------------------------------


def test_ranks_heed_the_order_and_not_how_sure_a_member_sounds():
    rng = np.random.default_rng(12)
    prob, _ = draw(rng, 30, [1, 1.5])
    sure = np.stack([prob[0], cooled(prob[1], 0.2)])  # two classes: the same order
    assert rank_pool(sure)[:, 1].argsort().tolist() == rank_pool(prob)[:, 1].argsort().tolist()
    assert (
        np.mean(sure, axis=0)[:, 1].argsort().tolist() != rank_pool(prob)[:, 1].argsort().tolist()
    )


def test_two_classes_mirror_each_other():
    prob, _ = draw(np.random.default_rng(13), 25, [1, 0.5, 2])
    assert rank_pool(prob)[:, ::-1] == pytest.approx(rank_pool(prob[:, :, ::-1]), abs=1e-12)


def test_one_image_alone_is_ranked_as_the_mean():
    prob, _ = draw(np.random.default_rng(14), 1, [1, 0.5, 2], k=3)
    assert rank_pool(prob) == pytest.approx(prob.mean(axis=0), abs=1e-12)


# Temperature -----------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    st.integers(0, 10_000), st.integers(2, 5), st.floats(0.05, 20), st.sampled_from([0.5, 3, 30])
)
def test_a_temperature_never_changes_the_most_likely_class(seed, k, temperature, spread):
    prob = softmax(spread * np.random.default_rng(seed).normal(size=(20, k)))
    after = cooled(prob, temperature)
    assert after.argmax(axis=1).tolist() == prob.argmax(axis=1).tolist()
    assert after.sum(axis=1) == pytest.approx(1.0)


def test_a_temperature_is_the_best_of_a_grid():
    for seed, scale in enumerate((0.3, 1.0, 4.0)):
        prob, y = draw(np.random.default_rng(seed), 80, [1], k=3, scale=scale)
        found = find_temperature(prob[0], y)
        grid = np.exp(np.linspace(-3, 3, 601))
        loss = [80 * log_loss(cooled(prob[0], t), y) + np.log(t) ** 2 / 2 for t in grid]
        assert np.log(found) == pytest.approx(np.log(grid[np.argmin(loss)]), abs=0.011)


def test_all_right_is_no_reason_for_certainty():
    prob = np.tile([0.8, 0.2], (10, 1))
    assert find_temperature(prob, np.zeros(10, dtype=np.int64)) > 0.15
