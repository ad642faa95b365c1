"""Weights of members that predict labels, numbers and risks, against others and by their slopes."""

from __future__ import annotations

import numpy as np
import pytest

from tests.zoo.blends import draw_of, log_loss, softmax
from tests.zoo.test_pools import slopes
from zoo.blending import Pool
from zoo.blending.mixing import Mix, as_cells, learn
from zoo.blending.numbers import cox_weights, slope_weights, squares_weights
from zoo.blending.pools import simplex_weights
from zoo.blending.ranks import rank_among, rank_pool
from zoo.blending.selection import bagged_greedy_weights, greedy_weights
from zoo.metrics import evaluate
from zoo.tasks import Task

STEP = 1e-5
SURVIVAL = Task.of("survival", "months,dead")


def standardised(risks):
    return (risks - risks.mean(axis=1, keepdims=True)) / risks.std(axis=1, keepdims=True)


# Selection ---------------------------------------------------------------------------------


def naive_greedy(prob, loss, rounds):
    """Caruana et al. 2004, written as one would tell it."""
    of = lambda chosen: loss(np.mean([prob[m] for m in chosen], axis=0))  # noqa: E731
    ranked = sorted(range(len(prob)), key=lambda m: of([m]))
    chosen = min((ranked[: n + 1] for n in range(len(prob))), key=of)
    path = [chosen]
    for _ in range(rounds):
        chosen = min(([*chosen, m] for m in range(len(prob))), key=of)
        path.append(chosen)
    best = min(path, key=of)
    return np.bincount(best, minlength=len(prob)) / len(best)


def test_numbers_are_selected_by_squared_error():
    prob, y = draw_of("regression", np.random.default_rng(0), 60, [0.5, 1, 1.5, 0])
    wanted = naive_greedy(prob, lambda told: ((told - y) ** 2).mean(), 25)
    assert greedy_weights(prob, y, kind="regression") == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("rounds", [0, 1])
def test_risks_are_selected_by_the_c_index(rounds):
    """With few rounds: later, many selections share one C-index, and ties are split."""
    rng = np.random.default_rng(1)
    prob, y = draw_of("survival", rng, 50, [0.5, 1, 2, 0])
    prob = standardised(prob)
    wanted = naive_greedy(prob, lambda told: 1 - evaluate(y, told, SURVIVAL)["c_index"], rounds)
    ours = greedy_weights(prob, y, rounds=rounds, kind="survival")
    assert ours == pytest.approx(wanted, abs=1e-12)


def test_resamples_of_survival_count_pairs_as_often_as_both_were_drawn():
    prob, y = draw_of("survival", np.random.default_rng(2), 30, [0.5, 2])
    y[::5, 0] = y[1::5, 0]  # ties of time
    patients = np.array([f"{i // 2:02}" for i in range(30)])
    drawn = np.random.default_rng(0).multinomial(15, np.full(15, 1 / 15), size=1)[0]
    rows = np.repeat(np.arange(30), drawn[np.arange(30) // 2])

    def loss(told):
        return 1 - evaluate(y[rows], told[rows], SURVIVAL)["c_index"]

    wanted = naive_greedy(prob, loss, 0)
    ours = bagged_greedy_weights(prob, y, patients, rounds=0, bags=1, kind="survival")
    assert ours == pytest.approx(wanted, abs=1e-12)


# Least losses ------------------------------------------------------------------------------


def test_weights_of_numbers_are_where_the_error_is_least():
    prob, y = draw_of("regression", np.random.default_rng(3), 80, [2, 1, 0.5, 0])
    x, y = prob[:, :, 0], y[:, 0]
    noise = ((x - y) ** 2).mean(axis=1).min()

    def weighted(free):
        w = softmax(free)
        return ((w @ x - y) ** 2).sum() / (2 * noise) - 3 / 4 * np.log(w).sum()

    found = squares_weights(x, y)
    assert slopes(weighted, np.log(found), STEP) == pytest.approx(0, abs=0.01)
    assert found.sum() == pytest.approx(1)

    def stacked(w):
        told = w @ (x - x.mean(axis=1, keepdims=True)) - (y - y.mean())
        spread = (x - y - (x - y).mean(axis=1, keepdims=True)).var(axis=1).min()
        return (told**2).sum() / (2 * spread) + 10 / 2 * ((w - 0.25) ** 2).sum()

    w = slope_weights(x, y)
    for slope, weight in zip(slopes(stacked, w, STEP), w, strict=True):
        assert slope == pytest.approx(0, abs=0.01) if weight > STEP else slope > -0.01


def test_slopes_are_those_of_ridge_regression_where_no_bound_binds():
    linear = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is not installed")
    prob, y = draw_of("regression", np.random.default_rng(4), 200, [1, 1.2, 0.8])
    x, y = prob[:, :, 0], y[:, 0]
    errors = x - y
    noise = errors.var(axis=1).min()
    # The pull to 1 / M: what is learned is the difference from the plain average.
    model = linear.Ridge(alpha=10 * noise).fit(x.T, y - x.mean(axis=0))
    assert slope_weights(x, y) == pytest.approx(model.coef_ + 1 / 3, abs=1e-6)


def test_weights_of_risks_are_where_the_partial_likelihood_is_highest():
    prob, y = draw_of("survival", np.random.default_rng(5), 60, [2, 1, 0, 0])
    y[::7, 0] = y[1::7, 0][: len(y[::7])]  # ties of time
    z = standardised(prob)[:, :, 0]

    def partial(beta):
        risk = beta @ z
        at_risk = [np.log(np.exp(risk[y[:, 0] >= t]).sum()) for t in y[:, 0]]
        return (y[:, 1] * (np.array(at_risk) - risk)).sum()

    def loss(free):
        w, b = softmax(free[:-1]), np.exp(free[-1])
        return partial(b * w) + b**2 / 2 - 3 / 4 * np.log(w).sum()

    weights = cox_weights(z, y)
    scales = np.linspace(-4, 3, 1401)
    best = scales[np.argmin([loss(np.append(np.log(weights), s)) for s in scales])]
    found = slopes(loss, np.append(np.log(weights), best), STEP)
    assert found[:-1] == pytest.approx(0, abs=0.05)
    assert weights[0] > weights[1] > weights[2:].max()


# Labels ------------------------------------------------------------------------------------


def test_the_log_loss_of_labels_is_their_mean():
    prob, y = draw_of("multi-label", np.random.default_rng(6), 50, [2, 1, 0])
    patients = np.array([f"p{i}" for i in range(50)], dtype=object)
    truth = y.astype(int)
    mix = learn("weighted", as_cells(prob), truth.ravel(), patients.repeat(3), n_cells=3)

    def loss(free):
        w = softmax(free)
        told = np.tensordot(w, prob, axes=1)
        sides = np.stack([1 - told, told], axis=2)
        each = [log_loss(sides[:, k], truth[:, k]) for k in range(3)]
        return 50 * np.mean(each) - 3 / 3 * np.log(w).sum()

    assert slopes(loss, np.log(mix.weights), STEP) == pytest.approx(0, abs=0.01)


def test_copies_of_a_label_change_nothing():
    """An image counts once against the prior, however many labels it has."""
    prob, y = draw_of("classification", np.random.default_rng(7), 40, [2, 1])
    once = simplex_weights(prob, y)
    cells = as_cells(np.repeat(prob[:, :, 1:], 4, axis=2))
    patients = np.array([f"p{i}" for i in range(40)], dtype=object).repeat(4)
    found = learn("weighted", cells, y.repeat(4), patients, n_cells=4)
    assert found.weights == pytest.approx(once, abs=1e-5)


# Ranks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["multi-label", "regression", "survival"])
def test_known_images_keep_their_places(kind):
    known, _ = draw_of(kind, np.random.default_rng(8), 40, [1, 2, 0])
    np.testing.assert_allclose(rank_among(known, known, kind), rank_pool(known, kind))
    new, _ = draw_of(kind, np.random.default_rng(9), 15, [1])
    np.testing.assert_allclose(rank_among(new, known[:1], kind), new[0], atol=1e-9)


def test_numbers_beyond_all_known_keep_their_order():
    known, _ = draw_of("regression", np.random.default_rng(10), 20, [1, 2])
    far = np.linspace(0, 200, 50)[None, :, None].repeat(2, axis=0)
    assert (np.diff(rank_among(far, known, "regression")[:, 0]) > 0).all()


def test_a_pool_of_some_members_keeps_what_is_theirs():
    mix = Mix(weights=np.array([0.2, 0.0, 0.8]), shift=np.arange(3.0), scale=np.array([1, 2, 4.0]))
    pool = Pool(kind="survival", rule="weighted", mix=mix)
    said = np.random.default_rng(11).normal(size=(3, 5, 1))
    kept = np.array([0, 2])
    np.testing.assert_allclose(pool.select(kept)(said[kept]), pool(said))
