"""Tasks: what columns of a cohort may hold, how a cohort is split, and what does not go together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.cohort import Cohort
from histostore.errors import OptionError
from tests.zoo.tasks import drawn
from zoo.bags import Bags
from zoo.errors import NotSupported, RecipeError, SplitError
from zoo.fit import make_split
from zoo.heads import spec
from zoo.metrics import headline, metric_names
from zoo.recipes import recipe
from zoo.targets import read_targets, strata
from zoo.tasks import KINDS, LOSSES, Task

TARGETS = {"multi-label": "a,b", "survival": "time,event"}


def cohort(**columns):
    n = len(next(iter(columns.values())))
    names = {"image_id": [f"i{k}" for k in range(n)], "path": [f"{k}.png" for k in range(n)]}
    return Cohort.from_frame(pd.DataFrame(names | columns), check_files=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_survives_json_with_what_it_has_learned(kind):
    for loss in LOSSES[kind]:
        task = Task.of(kind, TARGETS.get(kind, "column"), loss=loss, intervals=3)
        truth = np.array([[1.5, 1.0], [2.25, 0.0], [7.0, 1.0]])
        learned = task.learn(truth if kind == "survival" else truth[:, :1])
        assert Task.from_json(task.to_json()) == task
        assert Task.from_json(learned.to_json()) == learned
    assert metric_names(task)[0] == headline(task)


def test_auto_is_classification_even_of_numbers():
    assert Task.of("auto") == Task()
    table = cohort(label=["1", "2", "10"])
    assert read_targets(table, Task.of("auto")).classes == ("1", "10", "2")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"kind": "clustering"}, "use auto or one of classification"),
        ({"kind": "regression", "loss": "cox"}, "task regression knows huber, squared"),
        ({"kind": "survival", "target": "time"}, "needs two target columns"),
        ({"kind": "multi-label", "target": "a"}, "needs two or more target columns"),
        ({"kind": "multi-label", "target": "a,a"}, "must be different names"),
        ({"kind": "survival", "target": "t,e", "intervals": 1}, "must be 2 to 1000"),
        ({"kind": "multi-label", "target": "a;b,c"}, "stands between labels in tables"),
    ],
)
def test_what_makes_no_task_is_said(change, told):
    with pytest.raises(OptionError, match=told):
        Task.of(**change)


@pytest.mark.parametrize(
    "document", [{}, {"kind": "regression"}, {"targets": 3, "ends": []}, {"x": 1}]
)
def test_a_damaged_task_is_refused(document):
    with pytest.raises(OptionError):
        Task.from_json(document)


def test_levels_are_taken_in_the_order_given_or_in_that_of_numbers():
    words = cohort(grade=["mid", "low", None, "high"])
    read = read_targets(words, Task.of("ordinal", "grade"), ("low", "mid", "high"))
    assert read.classes == ("low", "mid", "high")
    assert read.codes.tolist() == [1, 0, -1, 2]
    numbers = read_targets(cohort(grade=["10", "9", "2"]), Task.of("ordinal", "grade"))
    assert numbers.classes == ("2", "9", "10")


def test_images_with_an_empty_cell_have_no_label():
    table = cohort(
        time=["3", "4", None], event=["1", "0", "1"], a=["1", None, "0"], b=["0", "1", "1"]
    )
    assert read_targets(table, Task.of("survival", "time,event")).codes.tolist() == [0, 0, -1]
    read = read_targets(table, Task.of("multi-label", "a,b"))
    assert read.codes.tolist() == [0, -1, 0]
    assert read.classes == ("a", "b")


BAD = [
    (
        "regression",
        "x",
        {"x": ["1", "two", "inf"]},
        (),
        ["finite number, seen 'two', 'inf' (2 cells)"],
    ),
    ("regression", "x", {"x": ["1", "1.0", None]}, (), ["x is 1 throughout"]),
    ("regression", "y", {"x": ["1"]}, (), ["no column 'y'"]),
    (
        "survival",
        "t,e",
        {"t": ["-1", "soon", "3"], "e": ["1", "0", "yes"]},
        (),
        ["t must hold a time of 0 or more, seen '-1', 'soon' (2 cells)", "e must hold an event"],
    ),
    ("survival", "t,e", {"t": ["1", "2"], "e": ["0", "0"]}, (), ["e has no event"]),
    (
        "multi-label",
        "a,b",
        {"a": ["1", "2"], "b": ["x", "0"]},
        (),
        ["a must hold 0 or 1", "b must"],
    ),
    ("multi-label", "a,b", {"a": ["1", "1"], "b": ["0", "0"]}, (), ["no label has both 0 and 1"]),
    (
        "ordinal",
        "g",
        {"g": ["low", "top"]},
        ("low", "high"),
        ["g holds 'top', not among the levels"],
    ),
    ("ordinal", "g", {"g": ["low", "high"]}, (), ["give levels, the lowest first"]),
    (
        "ordinal",
        "g",
        {"g": ["1.0", "1"]},
        (),
        ["g holds '1' and '1.0', one level in two spellings"],
    ),
    ("ordinal", "g", {"g": ["3", "3"]}, (), ["two at least are needed"]),
    ("regression", "x", {"x": ["1", "2"]}, ("1", "2"), ["levels are for task ordinal"]),
]


@pytest.mark.parametrize(("kind", "target", "columns", "levels", "told"), BAD)
def test_everything_wrong_with_a_target_is_said_at_once(kind, target, columns, levels, told):
    with pytest.raises(OptionError) as caught:
        read_targets(cohort(**columns), Task.of(kind, target), levels)
    problems = caught.value.problems or (str(caught.value),)
    assert len(problems) == len(told)
    for problem, part in zip(problems, told, strict=True):
        assert part in problem
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["multi-label", "regression", "survival"])
def test_folds_hold_like_shares_of_what_has_no_class(kind):
    bags = drawn(kind, 120, 0)
    split = make_split(bags, folds=4)
    groups = strata(bags.task, bags.truth, bags.patient_ids, 4)
    assert len(set(groups)) > 1
    for name in set(groups):
        counts = [np.count_nonzero(groups[fold.test] == name) for fold in split]
        # Patients of two images are dealt whole, so a share may be off by a few images.
        assert max(counts) - min(counts) <= 6
    assert len(make_split(bags, folds="leave-one-patient-out")) == 60


@given(st.lists(st.integers(0, 3), min_size=8, max_size=40), st.integers(2, 4))
def test_strata_are_large_enough_or_refused(values, n_folds):
    truth = np.array(values, float)[:, None]
    patients = [str(i) for i in range(len(values))]
    try:
        groups = strata(Task.of("regression", "x"), truth, patients, n_folds)
    except SplitError:
        return
    _, counts = np.unique(groups, return_counts=True)
    assert len(counts) > 1
    assert counts.min() >= n_folds


def test_all_events_are_split_by_time():
    truth = np.stack([np.arange(20.0), np.ones(20)], axis=1)
    groups = strata(Task.of("survival", "t,e"), truth, [str(i) for i in range(20)], 5)
    assert set(groups) == {"event bin 0", "event bin 1"}


def test_heads_that_cannot_learn_a_task_name_those_that_can():
    bags = drawn("regression", 20, 0)
    for name in ("clam-mb", "svm", "logistic"):
        with pytest.raises(NotSupported, match=r"use one of .*abmil.*lightgbm"):
            spec(name).fit(bags)
    with pytest.raises(NotSupported, match="class probabilities of patches"):
        spec("patch-mean").fit(bags)


@pytest.mark.parametrize(
    ("kind", "name", "named"),
    [
        ("regression", "r-drop", ["label_smoothing"]),
        ("survival", "r6-phase1", ["label_smoothing", "class_weights", "sampler", "monitor"]),
        ("ordinal", "focal-lion", ["focal_gamma"]),
        ("multi-label", "r6-phase1", ["sampler", "monitor"]),
    ],
)
def test_settings_that_a_task_would_ignore_are_refused_all_at_once(kind, name, named):
    with pytest.raises(RecipeError, match="--set ") as caught:
        spec("abmil").fit(drawn(kind, 20, 0), recipe=recipe(name))
    assert list(caught.value.problems) == named


def test_training_bags_that_teach_nothing_are_refused():
    bags = drawn("regression", 20, 0)
    same = Bags.from_arrays(
        bags.embedding, bags.offset, truth=np.full((20, 1), 3.0), task=bags.task
    )
    with pytest.raises(SplitError, match="target age is 3 throughout"):
        spec("abmil").fit(same)
    bags = drawn("survival", 40, 0)
    with pytest.raises(SplitError, match="dead has no event"):
        spec("abmil").fit(bags[bags.truth[:, 1] == 0])


@pytest.mark.parametrize("truth", [None, [1.0, 2.0], [[1.0, 2.0], [3.0, 1.0]], [[1.0]]])
def test_truth_of_another_shape_is_refused(truth):
    task = Task.of("regression", "age")
    with pytest.raises(OptionError, match="truth"):
        Bags.from_arrays(np.zeros((2, 3)), [0, 1, 2], truth=truth, task=task)


def test_bags_without_truth_are_not_trained_on():
    bags = drawn("regression", 20, 0)
    truth = bags.truth.copy()
    truth[3] = np.nan
    some = Bags.from_arrays(bags.embedding, bags.offset, truth=truth, task=bags.task)
    with pytest.raises(SplitError, match="1 of 20 training bags have no label"):
        spec("abmil").fit(some)


def test_bags_keep_their_truth_when_chosen_and_tell_it_in_the_digest():
    bags = drawn("survival", 30, 0)
    chosen = bags[[3, 7]]
    assert chosen.truth.tolist() == bags.truth[[3, 7]].tolist()
    assert bags[5].truth.tolist() == bags.truth[5].tolist()
    shuffled = bags[np.random.default_rng(0).permutation(30)]
    assert shuffled.digest == bags.digest
    assert drawn("survival", 30, 1).digest != bags.digest
