"""Blending: what is learned is learned from other folds, pays where it may, and never cheats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.zoo.blends import cohort, log_loss, right
from zoo.blending import LEARNED, RULES, Members, blend
from zoo.blending.nested import learning_rows
from zoo.blending.pools import (
    FLOOR,
    bagged_greedy_weights,
    greedy_weights,
    linear_pool,
    log_pool,
    simplex_weights,
    stack_weights,
)
from zoo.blending.temperature import find_temperature
from zoo.errors import NotSupported

LEARN = {
    "weighted": simplex_weights,
    "greedy": greedy_weights,
    "bagged": lambda p, y: bagged_greedy_weights(p, y, np.array([f"p{i}" for i in range(len(y))])),
    "stack": stack_weights,
}


# Nothing is given away -------------------------------------------------------------------


@pytest.mark.parametrize("calibrate", ["none", "temperature"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("role", ["test", "validation"])
def test_the_labels_of_a_part_have_no_say_in_its_own_predictions(rule, calibrate, role):
    members = cohort(np.random.default_rng(0), 40, [2, 1, 0.5], repeats=2)
    part = (members.fold == 5) & (members.role == role)
    patients = set(members.patient_ids[part])
    if role == "validation":
        patients |= set(members.patient_ids[(members.fold == 5) & (members.role == "test")])
    touched = np.array([patient in patients for patient in members.patient_ids])
    turned = np.where(touched, 1 - members.y_true, members.y_true)
    other = dataclasses.replace(members, y_true=turned)
    before, after = (blend(given, rule, calibrate).prob for given in (members, other))
    assert np.array_equal(before[part], after[part])
    if rule in LEARNED or calibrate == "temperature":  # so the labels do say something elsewhere
        assert not np.array_equal(before[~part], after[~part])


@pytest.mark.parametrize("role", ["test", "validation"])
def test_no_patient_stands_on_two_sides_of_a_nested_split(role):
    members = cohort(np.random.default_rng(1), 40, [1, 1], repeats=3)
    # A cohort may deal a patient twice; what is learned from must not care how it was dealt.
    patients = members.patient_ids.copy()
    patients[::7] = "patient 1"
    members = dataclasses.replace(members, patient_ids=patients)
    for fold in range(12):
        rows = learning_rows(members, fold, role)
        judged = (members.fold == fold) & (members.role == role)
        assert set(members.role[rows]) <= {"test"}
        assert fold not in members.fold[rows]
        assert set(members.fold[rows] // 4) <= {fold // 4}
        assert not set(members.patient_ids[rows]) & set(members.patient_ids[judged])


@pytest.mark.parametrize("rule", LEARNED)
def test_noise_gives_no_gain_but_would_without_nested_folds(rule):
    """Members that know nothing: accuracy stays that of a coin, and below the luckiest member's."""
    rng = np.random.default_rng(2)
    pool = log_pool if rule == "stack" else linear_pool
    nested, naive, best = [], [], []
    for _ in range(60):
        members = cohort(rng, 40, [0] * 10, validation=False, shared=0.0, scale=2.0)
        y = members.y_true
        nested.append(right(blend(members, rule).prob, y))
        naive.append(right(pool(LEARN[rule](members.prob, y), members.prob), y))
        best.append(max(right(prob, y) for prob in members.prob))
    error = np.std(nested) / np.sqrt(len(nested))
    assert np.mean(nested) <= 0.5 + 3 * error
    assert np.mean(nested) - np.mean(best) <= 0
    assert np.mean(naive) >= 0.5 + 8 * error


@pytest.mark.parametrize("rule", RULES)
def test_a_fold_alone_has_nothing_to_learn_from(rule):
    members = cohort(np.random.default_rng(3), 40, [1, 2], folds=4)
    keep = members.fold == 0
    alone = Members(
        prob=members.prob[:, keep],
        y_true=members.y_true[keep],
        patient_ids=members.patient_ids[keep],
        fold=members.fold[keep],
        role=members.role[keep],
        n_folds=1,
    )
    if rule in LEARNED:
        with pytest.raises(NotSupported, match="fold 0 has no other fold"):
            blend(alone, rule)
    else:
        assert blend(alone, rule).weights is None
    with pytest.raises(NotSupported, match="without calibration"):
        blend(alone, rule, "temperature")


@pytest.mark.parametrize("options", [("median",), ("mean", "isotonic")])
def test_what_is_not_known_is_refused(options):
    members = cohort(np.random.default_rng(3), 20, [1, 2])
    with pytest.raises(NotSupported, match="is not known: use one of"):
        blend(members, *options)


# What every rule has to be ---------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("calibrate", ["none", "temperature"])
@pytest.mark.parametrize("rule", RULES)
def test_distributions_come_out_whatever_the_order_of_the_members(rule, calibrate, k):
    members = cohort(np.random.default_rng(4), 48, [2, 1, 0.5, 1.5], k=k)
    found = blend(members, rule, calibrate)
    assert found.prob.min() >= 0
    assert found.prob.sum(axis=1) == pytest.approx(1.0, abs=1e-9)
    order = [2, 0, 3, 1]
    again = blend(dataclasses.replace(members, prob=members.prob[order]), rule, calibrate)
    assert again.prob == pytest.approx(found.prob, abs=1e-5)
    assert (found.weights is None) == (rule not in LEARNED)
    assert (found.temperature is None) == (calibrate == "none")
    if found.weights is not None:
        assert again.weights == pytest.approx(found.weights[:, order], abs=1e-4)
        assert found.weights.shape == (4, 4)
        assert found.weights.min() >= 0
        if rule != "stack":
            assert found.weights.sum(axis=1) == pytest.approx(1.0)


@pytest.mark.parametrize("rule", RULES)
def test_one_member_keeps_its_predictions(rule):
    members = cohort(np.random.default_rng(5), 40, [1.5], k=3)
    found = blend(members, rule).prob
    if rule == "stack":  # a temperature, above the floor
        kept = (members.prob[0] > FLOOR).all(axis=1)
        ratio = np.log(found / found[:, :1])[kept, 1:]
        own = np.log(members.prob[0] / members.prob[0][:, :1])[kept, 1:]
        for fold in range(4):
            rows = ((members.fold == fold) & (members.role == "test"))[kept]
            scale = ratio[rows] / own[rows]
            assert scale == pytest.approx(scale[0, 0], abs=1e-6)
    else:
        assert found == pytest.approx(members.prob[0], abs=1e-12)


@pytest.mark.parametrize("rule", LEARNED)
def test_equal_members_get_equal_weights(rule):
    members = cohort(np.random.default_rng(6), 40, [1.5])
    same = dataclasses.replace(members, prob=np.repeat(members.prob, 3, axis=0))
    weights = blend(same, rule).weights
    assert weights == pytest.approx(np.repeat(weights[:, :1], 3, axis=1), abs=1e-6)


@pytest.mark.parametrize("rule", LEARNED)
def test_the_strong_member_is_not_dragged_down(rule):
    rng = np.random.default_rng(7)
    told = []
    for _ in range(10):
        members = cohort(rng, 80, [3] + [0.2] * 9, validation=False, shared=0.0, scale=2.0)
        y = members.y_true
        ways = (members.prob[0], blend(members, rule).prob, blend(members).prob)
        told.append([right(prob, y) for prob in ways])
    strong, learned, mean = np.mean(told, axis=0)
    assert learned >= strong - 0.015
    assert mean < strong - 0.1


@pytest.mark.parametrize("calibrate", ["none", "temperature"])
@pytest.mark.parametrize("rule", RULES)
def test_a_class_that_other_folds_lack_may_still_be_predicted(rule, calibrate):
    members = cohort(np.random.default_rng(8), 48, [2, 1.5], k=3, validation=False)
    # All images of class 2 are tested in fold 0, so fold 0 learns of two classes only.
    fold = np.where(members.y_true == 2, 0, np.where(members.fold == 0, 1, members.fold))
    names = np.array([f"image {i}" for i in range(48)], dtype=object)
    moved = dataclasses.replace(members, fold=fold, patient_ids=names)
    found = blend(moved, rule, calibrate).prob
    assert np.isfinite(found).all()
    assert right(found[members.y_true == 2], 2) > 0.8


def test_zeros_are_no_veto_and_give_no_nan():
    rng = np.random.default_rng(9)
    members = cohort(rng, 40, [2, 1, 1])
    hard = members.prob.copy()
    hard[0] = np.eye(2)[hard[0].argmax(axis=1)]
    for rule in RULES:
        for calibrate in ("none", "temperature"):
            found = blend(dataclasses.replace(members, prob=hard), rule, calibrate).prob
            assert np.isfinite(found).all()
            assert found.sum(axis=1) == pytest.approx(1.0)


def test_temperature_helps_members_that_are_too_sure_and_spares_the_others():
    rng = np.random.default_rng(15)
    gain = {1.0: [], 5.0: []}
    for scale, gains in gain.items():
        for _ in range(25):
            members = cohort(rng, 60, [1, 1], scale=scale, shared=0.9, validation=False)
            plain, calm = (blend(members, "mean", how) for how in ("none", "temperature"))
            y = members.y_true
            assert calm.prob.argmax(axis=1).tolist() == plain.prob.argmax(axis=1).tolist()
            gains.append(log_loss(plain.prob, y) - log_loss(calm.prob, y))
    assert np.mean(gain[5.0]) > 0.2
    assert np.mean(gain[1.0]) > -0.02


def test_learned_weights_are_not_believed_on_the_rows_they_were_learned_from():
    rng = np.random.default_rng(16)
    told, flattered = [], []
    for _ in range(6):
        members = cohort(rng, 60, [0.5] * 8, scale=3.0, validation=False)
        told += np.log(blend(members, "stack", "temperature").temperature).tolist()
        for fold in range(4):
            rows = learning_rows(members, fold, "test")
            prob, y = members.prob[:, rows], members.y_true[rows]
            flattered.append(np.log(find_temperature(log_pool(stack_weights(prob, y), prob), y)))
    assert np.mean(told) > np.mean(flattered) + 0.05
