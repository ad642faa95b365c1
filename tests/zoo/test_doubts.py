"""What is odd in a cohort is said before training; of what nothing can be learned is refused."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.cohort import Cohort
from tests.commands import BUILD, call, make_cohort
from zoo.bags import Bags
from zoo.doubts import alike, doubts
from zoo.errors import SplitError
from zoo.fit import fit_run
from zoo.heads import spec
from zoo.recipes import Recipe
from zoo.split import Fold, Split
from zoo.tasks import Task


def said(task=None, truth=None, classes=("a", "b"), **columns):
    """Doubt a cohort of four images."""
    rows = {"image_id": list("wxyz"), "path": ["p.png"] * 4, **columns}
    import pandas as pd

    cohort = Cohort.from_frame(pd.DataFrame(rows), check_files=False)
    return doubts(cohort, task or Task(), classes, np.array(truth or [0, 1, 0, 1]))


def test_a_cohort_in_which_nothing_is_odd_is_passed_over_in_silence():
    assert said() == []
    assert said(classes=("10", "100"), patient_id=["p1", "p10", "p01", "1"]) == []


@pytest.mark.parametrize(
    "names",
    [
        ("Tumour", "tumour"),
        ("a  b", "a b"),
        ("ä", "a\u0308"),
        ("1", "1.0"),
        ("1", "001"),
        ("False", "false"),
        ("straße", "STRASSE"),
    ],
)
def test_one_name_in_two_spellings_is_found(names):
    assert [set(group) for group in alike([*names, "other"])] == [set(names)]


@pytest.mark.parametrize(
    "names", [("1", "10"), ("a1", "a01"), ("1.5", "1.50"), ("a", "b"), ("-1", "1")]
)
def test_names_that_may_well_differ_are_not(names):
    assert alike(names) == []


def test_labels_and_patients_in_two_spellings_are_told_of():
    (line,) = said(classes=("Normal", "normal"))
    assert "'Normal' and 'normal'" in line
    (line,) = said(patient_id=["P1", "p1", "2", "3"])
    assert "'P1' and 'p1'" in line
    assert "another fold" in line


def test_words_for_nothing_and_patients_that_are_not_named_are_told_of():
    (line,) = said(classes=("NA", "b"), truth=[0, 1, 1, 1])
    assert "'NA' (1 image)" in line
    assert said(patient_id=["nan", "nan", "p", "q"])[0].count("'nan' (2 images)") == 1
    (line,) = said(patient_id=["p", "q", None, None])
    assert line == "2 images have no patient_id: each is taken for a patient of its own"


def test_a_label_that_all_images_have_is_told_of():
    task = Task.of("multi-label", "er,pr")
    truth = [[0, 1], [1, 1], [0, 1], [1, 1]]
    assert said(task, truth, ("er", "pr")) == [
        "'pr' is the same for all images: its scores say nothing"
    ]


def test_the_command_says_it_and_trains(tmp_path):
    table = make_cohort(tmp_path, classes=("Benign", "malignant", "benign"))
    assert call("histostore", "build", table, tmp_path / "store", *BUILD).code == 0
    words = ("--head", "logistic", "--folds", 2, "--workers", 1, "-o", tmp_path / "run")
    done = call("zoo", "fit", tmp_path / "store", table, *words)
    assert done.code == 0
    assert done.err.startswith("Note: classes of 'label' differ in spelling alone")


def test_a_fold_of_which_nothing_can_be_learned_is_refused_before_any_work(tmp_path):
    """Of ten patients one died: where that one is tested, all that is left is censored."""
    truth = np.stack([np.arange(1.0, 11.0), np.arange(10) == 9], axis=1)
    task = Task.of("survival", "years,dead")
    bags = Bags.from_arrays(np.eye(10), np.arange(11), truth=truth, task=task)
    folds = tuple(
        Fold(
            number=k,
            train=np.flatnonzero(np.arange(10) % 2 != k),
            validation=np.array([], int),
            test=np.flatnonzero(np.arange(10) % 2 == k),
        )
        for k in range(2)
    )
    split = Split(
        folds=folds,
        image_ids=bags.image_ids,
        patient_ids=bags.patient_ids,
        method="k-fold",
        n_folds=2,
    )
    with pytest.raises(SplitError, match=r"fold 1 has 5 images .*: dead has no event"):
        fit_run(bags, spec("abmil"), out=tmp_path / "run", split=split, recipe=Recipe(epochs=1))
    assert not (tmp_path / "run").exists()
