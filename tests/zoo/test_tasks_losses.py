"""Losses of tasks, against the formulas written out one bag at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zoo.recipes import Recipe
from zoo.tasks import Task
from zoo.training.losses import Loss, Pass
from zoo.training.task_losses import cox, discrete_hazards, levels, make_loss

reals = st.floats(-8, 8, allow_nan=False, width=32)
bags = st.lists(st.tuples(reals, st.integers(0, 5), st.booleans()), min_size=1, max_size=12)


def naive_cox(risks, times, events):
    terms = [
        risks[i]
        - math.log(sum(math.exp(r) for r, t in zip(risks, times, strict=True) if t >= times[i]))
        for i in range(len(risks))
        if events[i]
    ]
    return -sum(terms) / max(1, len(terms))


@given(bags)
def test_cox_is_the_partial_likelihood_with_breslow_ties(drawn):
    risks, times, events = map(list, zip(*drawn, strict=True))
    truth = torch.tensor([*zip(times, map(float, events), strict=True)])
    found = cox(torch.tensor(risks).unsqueeze(1), truth)
    assert found.item() == pytest.approx(naive_cox(risks, times, events), rel=1e-4, abs=1e-4)


@given(bags, st.randoms(use_true_random=False), reals)
def test_cox_knows_neither_order_nor_level_nor_unit_of_time(drawn, random, level):
    shuffled = random.sample(drawn, len(drawn))
    made = []
    for rows, shift, unit in ((drawn, 0.0, 1.0), (shuffled, level, 30.5)):
        risk = torch.tensor([[row[0] + shift] for row in rows])
        made.append(cox(risk, torch.tensor([[row[1] * unit, float(row[2])] for row in rows])))
    assert made[0].item() == pytest.approx(made[1].item(), rel=1e-4, abs=1e-4)


def test_a_batch_without_events_teaches_nothing():
    risk = torch.randn(4, 1, requires_grad=True)
    loss = cox(risk, torch.tensor([[1.0, 0.0], [2.0, 0.0], [2.0, 0.0], [5.0, 0.0]]))
    loss.backward()
    assert loss.item() == 0
    assert not risk.grad.any()


def naive_hazards(outputs, time, event, ends):
    begins = [0.0, *ends[:-1]]
    place = next((k for k, end in enumerate(ends) if time <= end), len(ends) - 1)
    total = 0.0
    for k, output in enumerate(outputs):
        hazard = 1 / (1 + math.exp(-output))
        if event and k == place:
            total += math.log(hazard)
        elif (k < place) if event else time >= (begins[k] + ends[k]) / 2:
            total += math.log(1 - hazard)
    return -total


@given(st.lists(reals, min_size=3, max_size=3), st.floats(0, 12, width=32), st.booleans())
def test_hazards_are_the_likelihood_of_gensheimer(outputs, time, event):
    ends = [1.0, 4.0, 9.0]
    found = discrete_hazards(
        torch.tensor([outputs]), torch.tensor([[time, float(event)]]), torch.tensor(ends)
    )
    assert found.item() == pytest.approx(
        naive_hazards(outputs, time, event, ends), rel=1e-3, abs=1e-3
    )


@given(st.lists(reals, min_size=1, max_size=6), st.data())
def test_the_loss_of_a_level_is_minus_the_log_of_its_probability(outputs, data):
    level = data.draw(st.integers(0, len(outputs)))
    prob = Task.of("ordinal").decode(np.array([outputs], float))[0]
    found = levels(torch.tensor([outputs]), torch.tensor([level]))
    assert found.item() == pytest.approx(-math.log(prob[level]), rel=1e-3, abs=1e-3)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=8))
def test_levels_have_probabilities_and_passing_them_gets_only_harder(outputs):
    prob = Task.of("ordinal").decode(np.array([outputs]))[0]
    assert (prob >= 0).all()
    assert prob.sum() == pytest.approx(1.0)
    above = prob[::-1].cumsum()[::-1]
    assert (np.diff(above) <= 1e-12).all()


@given(st.lists(reals, min_size=2, max_size=6))
def test_a_larger_hazard_is_a_larger_risk(outputs):
    task = Task.of("survival", "t,e", loss="hazards")
    low, high = np.array([outputs], float), np.array([outputs], float)
    high[0, 0] += 1
    assert task.decode(high)[0, 0] > task.decode(low)[0, 0]


def make(kind, target, truth, settings=None, n_classes=0, **options):
    task = Task.of(kind, target, **options)
    if not task.one_class:
        task = task.learn(truth.numpy().astype(float))
    return task, make_loss(Recipe(**(settings or {})), task, truth, n_classes)


def test_a_number_is_learned_on_the_scale_of_its_training_target():
    truth = torch.tensor([[10.0], [30.0], [50.0]])
    task, loss = make("regression", "x", truth, loss="squared")
    perfect = (truth - task.shift) / task.scale
    assert loss.of_logits(perfect, truth).item() == pytest.approx(0, abs=1e-6)
    assert loss.of_logits(torch.zeros(3, 1), truth).item() == pytest.approx(0.5)
    assert task.decode(perfect.double().numpy()) == pytest.approx(truth.numpy())
    _, huber = make("regression", "x", truth)
    far = perfect + 3
    assert huber.of_logits(far, truth).item() == pytest.approx(2.5, rel=1e-5)


def test_balanced_labels_give_what_is_rare_its_weight():
    truth = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    _, loss = make("multi-label", "a,b", truth, {"class_weights": "balanced"})
    logits = torch.randn(4, 2)
    plain = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    # Label a is rare by 3 to 1; label b, which all have, stays as it is.
    weights = torch.tensor([[3.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]])
    assert loss.of_logits(logits, truth).item() == pytest.approx((plain * weights).mean().item())


def test_smoothed_labels_are_half_way_drawn_to_chance():
    truth = torch.tensor([[1.0, 0.0]])
    _, loss = make("multi-label", "a,b", truth, {"label_smoothing": 0.2})
    wanted = functional.binary_cross_entropy_with_logits(
        torch.tensor([[2.0, 2.0]]), torch.tensor([[0.9, 0.1]])
    )
    assert loss.of_logits(torch.tensor([[2.0, 2.0]]), truth).item() == pytest.approx(wanted.item())


def test_balanced_levels_average_over_weights():
    truth = torch.tensor([0, 0, 0, 1])
    _, loss = make("ordinal", "g", truth, {"class_weights": "balanced"}, n_classes=2)
    logits = torch.randn(4, 1)
    each = levels(logits, truth)
    assert loss.of_logits(logits, truth).item() == pytest.approx(
        (0.5 * each[:3].mean() + 0.5 * each[3]).item(), rel=1e-5
    )


EVERY = [
    ("ordinal", "g", "ratios", 2),
    ("multi-label", "a,b", "binary", 2),
    ("regression", "x", "huber", 1),
    ("survival", "t,e", "cox", 1),
    ("survival", "t,e", "hazards", 4),
]


def example(kind, n=30):
    """Give a truth of ``n`` bags."""
    if kind == "ordinal":
        return torch.arange(n) % 3
    if kind == "multi-label":
        return (torch.rand(n, 2) < 0.5).float()
    times = torch.rand(n, 1) * 10
    return times if kind == "regression" else torch.cat([times, torch.arange(n)[:, None] % 2], 1)


@pytest.mark.parametrize(("kind", "target", "loss", "n_outputs"), EVERY)
def test_losses_of_several_networks_at_once_are_those_of_each(kind, target, loss, n_outputs):
    truth = example(kind)
    _, made = make(kind, target, truth, n_classes=3, loss=loss)
    batches = torch.stack([torch.randperm(len(truth))[:12] for _ in range(3)])
    outputs = torch.randn(3, 12, n_outputs, requires_grad=True)
    values = torch.vmap(made.of_logits)(outputs, truth[batches])
    (slopes,) = torch.autograd.grad(values.sum(), outputs)
    for member, batch in enumerate(batches):
        value = made.of_logits(outputs[member], truth[batch])
        assert torch.allclose(values[member], value)
        (slope,) = torch.autograd.grad(value, outputs)
        assert torch.allclose(slopes[member], slope[member], atol=1e-6)


@pytest.mark.parametrize(("kind", "target", "loss", "n_outputs"), EVERY)
def test_half_precision_outputs_have_a_loss_in_single_precision(kind, target, loss, n_outputs):
    truth = example(kind)
    _, made = make(kind, target, truth, n_classes=3, loss=loss)
    assert made.of_logits(torch.randn(30, n_outputs).bfloat16(), truth).dtype == torch.float32


@pytest.mark.parametrize(("kind", "target", "loss", "n_outputs"), EVERY)
def test_equal_passes_are_not_apart_and_different_ones_are(kind, target, loss, n_outputs):
    truth = example(kind)
    _, made = make(kind, target, truth, {"r_drop": 1.0}, n_classes=3, loss=loss)
    first, second = torch.randn(2, 30, n_outputs)
    value = made.of_logits(first, truth)
    joined = made.of_passes(Pass(first, value), Pass(first, value))
    assert joined.item() == pytest.approx(value.item())
    there, back = made.apart(first, second).item(), made.apart(second, first).item()
    assert there == pytest.approx(back, rel=1e-5)
    assert there > 0


def test_classification_keeps_its_loss():
    loss = make_loss(Recipe(label_smoothing=0.1), Task(), torch.tensor([0, 1]), 2)
    assert type(loss) is Loss


def test_intervals_hold_as_many_events_each():
    rng = np.random.default_rng(0)
    truth = np.stack([rng.exponential(size=400), rng.random(400) < 0.7], axis=1)
    task = Task.of("survival", "t,e", loss="hazards", intervals=5).learn(truth)
    assert task.n_outputs(0) == 5
    counts = np.histogram(truth[truth[:, 1] > 0, 0], [0, *task.ends])[0]
    assert counts.max() - counts.min() <= 2
    tied = np.array([[1.0, 1.0]] * 9 + [[4.0, 0.0]])
    assert Task.of("survival", "t,e", loss="hazards").learn(tied).ends == (1.0, 4.0)


def test_the_coefficients_of_another_library_are_where_cox_is_flat():
    linear_model = pytest.importorskip("sksurv.linear_model")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 3))
    # Whole months, so that many events have one time.
    died = np.ceil(10 * rng.exponential(np.exp(-x @ [1.0, -0.5, 0.0])))
    left = np.ceil(10 * rng.exponential(2.0, size=120))
    truth = np.stack([np.minimum(died, left), died <= left], axis=1)
    wanted = np.array([*zip(truth[:, 1] > 0, truth[:, 0], strict=True)], dtype="?,f8")
    fitted = linear_model.CoxPHSurvivalAnalysis(ties="breslow", tol=1e-12).fit(x, wanted)
    weights = torch.tensor(fitted.coef_[:, None], requires_grad=True)
    cox(torch.from_numpy(x) @ weights, torch.from_numpy(truth)).backward()
    assert weights.grad.abs().max().item() < 1e-8
