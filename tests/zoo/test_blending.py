"""Blending: what is learned is learned from other folds, pays where it may, and never cheats."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.zoo.blends import CHANCE, TASKS, cohort, log_loss, right, score
from zoo.blending import LEARNED, RULES, Members, Pool, blend
from zoo.blending.mixing import learn
from zoo.blending.nested import learning_rows
from zoo.blending.pools import FLOOR, log_pool, stack_weights
from zoo.blending.temperature import find_temperature
from zoo.errors import NotSupported

WAYS = [(kind, rule) for kind in TASKS for rule in RULES if (kind, rule) != ("survival", "stack")]
LEARNING = [(kind, rule) for kind, rule in WAYS if rule in LEARNED]
CALIBRATED = [
    (kind, rule, calibrate)
    for kind, rule in WAYS
    for calibrate in ("none", "temperature")[: 1 + TASKS[kind].has_classes]
]


# Nothing is given away -------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "rule", "calibrate"), CALIBRATED)
@pytest.mark.parametrize("role", ["test", "validation"])
def test_the_labels_of_a_part_have_no_say_in_its_own_predictions(kind, rule, calibrate, role):
    members = cohort(np.random.default_rng(0), 40, [2, 1, 0.5], repeats=2, kind=kind)
    part = (members.fold == 5) & (members.role == role)
    patients = set(members.patient_ids[part])
    if role == "validation":
        patients |= set(members.patient_ids[(members.fold == 5) & (members.role == "test")])
    touched = np.array([patient in patients for patient in members.patient_ids])
    turned = members.y_true.copy()
    turned[touched] = {"regression": 9.0, "survival": [0.001, 1.0]}.get(kind, 1 - turned[touched])
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


def learned_from_all(members, rule):
    """Combine rows by what they themselves taught."""
    rows = members.cells()
    mix = learn(
        rule, rows.prob, rows.y_true, rows.patient_ids, kind=rows.kind, n_cells=rows.n_cells
    )
    return Pool(kind=members.kind, rule=rule, mix=mix)(members.prob)


@pytest.mark.parametrize(("kind", "rule"), LEARNING)
def test_noise_gives_no_gain_but_would_without_nested_folds(kind, rule):
    """Members that know nothing are worth chance, and less than the luckiest of them."""
    rng = np.random.default_rng(2)
    nested, naive, best = [], [], []
    for _ in range(60 if kind == "classification" else 25):
        options = {"shared": 0.0, "scale": 2.0} if TASKS[kind].has_classes else {}
        members = cohort(rng, 40, [0] * 10, validation=False, kind=kind, **options)
        y = members.y_true
        nested.append(score(kind, blend(members, rule).prob, y))
        naive.append(score(kind, learned_from_all(members, rule), y))
        best.append(max(score(kind, prob, y) for prob in members.prob))
    error = np.std(nested) / np.sqrt(len(nested))
    assert np.mean(nested) <= CHANCE[kind] + 3 * error
    assert np.mean(nested) - np.mean(best) <= 0
    gained = np.subtract(naive, nested)
    assert np.mean(gained) >= 5 * np.std(gained) / np.sqrt(len(gained))
    if kind == "classification":
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


@pytest.mark.parametrize(
    ("kind", "rule", "calibrate", "told"),
    [
        ("survival", "stack", "none", "just as rule weighted does"),
        ("survival", "mean", "temperature", "task survival has none: leave it out"),
        ("regression", "stack", "temperature", "task regression has none: leave it out"),
    ],
)
def test_what_has_no_meaning_for_a_task_is_refused(kind, rule, calibrate, told):
    members = cohort(np.random.default_rng(3), 20, [1, 2], kind=kind)
    with pytest.raises(NotSupported, match=told):
        blend(members, rule, calibrate)


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


@pytest.mark.parametrize("kind", ["multi-label", "regression", "survival"])
@pytest.mark.parametrize("rule", RULES)
def test_what_is_predicted_does_not_depend_on_the_order_of_members(kind, rule):
    if (kind, rule) not in WAYS:
        return
    members = cohort(np.random.default_rng(4), 48, [2, 1, 0.5, 1.5], kind=kind)
    found = blend(members, rule)
    assert found.prob.shape == members.prob.shape[1:]
    assert np.isfinite(found.prob).all()
    order = [2, 0, 3, 1]
    again = blend(dataclasses.replace(members, prob=members.prob[order]), rule)
    assert again.prob == pytest.approx(found.prob, abs=1e-3)
    if found.weights is not None and rule != "stack":
        assert found.weights.sum(axis=1) == pytest.approx(1.0)
    if kind == "multi-label":
        assert found.prob.min() >= 0
        assert found.prob.max() <= 1


@pytest.mark.parametrize("rule", ["mean", "rank", "weighted", "greedy"])
def test_the_scale_of_a_members_risks_does_not_count_but_for_the_mean(rule):
    members = cohort(np.random.default_rng(5), 60, [2, 1, 0.5], kind="survival")
    units = np.array([1000.0, 1.0, 0.001])[:, None, None]
    other = dataclasses.replace(members, prob=units * members.prob - 7)
    one, two = (blend(given, rule).prob[:, 0] for given in (members, other))
    test = members.role == "test"
    for fold in np.unique(members.fold):
        rows = test & (members.fold == fold)
        same = np.array_equal(one[rows].argsort(), two[rows].argsort())
        assert same == (rule != "mean")


@pytest.mark.parametrize("kind", ["multi-label", "regression"])
@pytest.mark.parametrize("rule", ["mean", "rank", "weighted", "greedy"])
def test_one_member_of_any_task_keeps_its_predictions(kind, rule):
    members = cohort(np.random.default_rng(5), 40, [1.5], kind=kind)
    assert blend(members, rule).prob == pytest.approx(members.prob[0], abs=1e-9)


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


@pytest.mark.parametrize(("kind", "rule"), LEARNING)
def test_equal_members_get_equal_weights(kind, rule):
    members = cohort(np.random.default_rng(6), 40, [1.5], kind=kind)
    same = dataclasses.replace(members, prob=np.repeat(members.prob, 3, axis=0))
    weights = blend(same, rule).weights
    assert weights == pytest.approx(np.repeat(weights[:, :1], 3, axis=1), abs=1e-6)


@pytest.mark.parametrize(("kind", "rule"), LEARNING)
def test_the_strong_member_is_not_dragged_down(kind, rule):
    rng = np.random.default_rng(7)
    options = {"shared": 0.0, "scale": 2.0} if TASKS[kind].has_classes else {}
    told = []
    # A censored image tells less of a risk than a labelled one of a class.
    n, times = (160, 5) if kind == "survival" else (80, 10)
    for _ in range(times):
        members = cohort(rng, n, [3] + [0.2] * 9, validation=False, kind=kind, **options)
        y = members.y_true
        ways = (members.prob[0], blend(members, rule).prob, blend(members).prob)
        told.append([score(kind, prob, y) for prob in ways])
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
