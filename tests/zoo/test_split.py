"""Splits: no patient on two sides for any cohort, balanced, and the same for any row order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from zoo.errors import LeakError, SplitError
from zoo.split import Fold, Split


@st.composite
def cohorts(draw):
    """Labels and patients of any shape, some of which cannot be split."""
    n_patients, k = draw(st.integers(2, 30)), draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    patients = rng.integers(n_patients, size=draw(st.integers(2, 80)))
    labels = rng.integers(k, size=len(patients))
    if draw(st.booleans()):  # one class per patient, as in most clinical cohorts
        labels = rng.integers(k, size=n_patients)[patients]
    return labels, [f"patient {p}" for p in patients]


def k_fold(cohort, *args, **kwargs):
    try:
        return Split.k_fold(*cohort, *args, **kwargs)
    except SplitError:
        return assume(False)


@given(cohorts(), st.integers(2, 5), st.integers(1, 3), st.integers(0, 9))
def test_every_image_is_tested_once_per_repeat_and_no_patient_stands_on_two_sides(
    cohort, n_folds, repeats, seed
):
    split = k_fold(cohort, n_folds, seed, repeats)
    labels, patients = np.array(cohort[0]), np.array(cohort[1])
    assert [fold.number for fold in split] == list(range(n_folds * repeats))
    for repeat in range(repeats):
        folds = split.folds[repeat * n_folds : (repeat + 1) * n_folds]
        tested = np.concatenate([fold.test for fold in folds])
        assert np.array_equal(np.sort(tested), np.arange(len(labels)))
    for fold in split:
        sides = [set(patients[rows]) for rows in fold.parts.values()]
        assert sum(map(len, sides)) == len(set(patients))
        assert sum(map(len, fold.parts.values())) == len(labels)
        assert set(labels[fold.train]) == set(labels)


@given(cohorts(), st.integers(0, 9), st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_plays_no_part(cohort, seed, shuffle):
    labels, patients = np.array(cohort[0]), np.array(cohort[1])
    images = np.array([f"image {i}" for i in range(len(labels))])
    there = k_fold(cohort, 3, seed, image_ids=images.tolist())
    order = np.random.default_rng(shuffle).permutation(len(labels))
    here = Split.k_fold(
        labels[order], patients[order].tolist(), 3, seed, image_ids=images[order].tolist()
    )
    assert here.digest == there.digest


@given(st.integers(2, 4), st.integers(2, 6), st.integers(0, 99))
def test_one_image_per_patient_is_plain_stratification(k, n_folds, seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(k), n_folds), rng.integers(k, size=37)])
    split = Split.k_fold(labels, [f"p{i}" for i in range(len(labels))], n_folds, seed)
    counts = np.array([np.bincount(labels[fold.test], minlength=k) for fold in split])
    assert (np.ptp(counts, axis=0) <= 1).all()
    sizes = [len(fold.test) for fold in split]
    assert max(sizes) - min(sizes) <= k


@pytest.mark.parametrize(("n_images", "n_patients"), [(400, 80), (2000, 60), (3000, 1500)])
def test_grouped_folds_are_as_balanced_as_those_of_scikit_learn(n_images, n_patients):
    from sklearn.model_selection import StratifiedGroupKFold

    def imbalance(tests):
        shares = [np.bincount(labels[test], minlength=4) / np.bincount(labels) for test in tests]
        return np.abs(np.array(shares) - 0.2).max()

    ours, theirs = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        patients = rng.integers(n_patients, size=n_images)
        usual = rng.integers(4, size=n_patients)[patients]
        labels = np.where(rng.random(n_images) < 0.7, usual, rng.integers(4, size=n_images))
        split = Split.k_fold(labels, [f"p{p}" for p in patients], 5, seed)
        ours.append(imbalance([fold.test for fold in split]))
        other = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        theirs.append(imbalance([test for _, test in other.split(labels, labels, patients)]))
    assert np.mean(ours) <= 1.25 * np.mean(theirs)


def test_a_seed_decides_the_folds_and_repeats_differ():
    cohort = ["a", "b"] * 30, [f"p{i}" for i in range(60)]
    digests = [Split.k_fold(*cohort, 5, seed).digest for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
    split = Split.k_fold(*cohort, 5, 0, 2)
    assert not np.array_equal(split.folds[0].test, split.folds[5].test)


def test_the_validation_part_is_about_the_share_asked_for_and_stratified():
    labels = np.array([0] * 200 + [1] * 100)
    for fold in Split.k_fold(labels, [f"p{i}" for i in range(300)], 5):
        assert np.bincount(labels[fold.validation]).tolist() == [20, 10]
    none = Split.k_fold(labels, [f"p{i}" for i in range(300)], 5, validation_share=0)
    assert all(len(fold.validation) == 0 for fold in none)


def test_leaving_one_patient_out_tests_each_patient_alone():
    labels = ["a", "b", "a", "b", "a", "b"]
    patients = ["p2", "p2", "p1", "p1", "p10", "p10"]
    split = Split.leave_one_patient_out(labels, patients)
    assert [fold.name for fold in split] == ["p1", "p10", "p2"]
    assert [fold.test.tolist() for fold in split] == [[2, 3], [4, 5], [0, 1]]


def test_a_column_decides_the_parts_and_a_validation_part_is_made_where_none_is_named():
    labels, patients = ["a", "b"] * 10, [f"p{i}" for i in range(20)]
    told = ["train"] * 12 + ["Val"] * 2 + ["valid", "validation"] + ["test"] * 4
    (fold,) = Split.from_column(told, labels, patients)
    assert fold.validation.tolist() == [12, 13, 14, 15]
    assert fold.test.tolist() == [16, 17, 18, 19]
    (made,) = Split.from_column(["train"] * 16 + ["test"] * 4, labels, patients)
    assert len(made.validation) == 2
    assert made.test.tolist() == [16, 17, 18, 19]


@pytest.mark.parametrize("validation", [[], ["validation"]])
def test_a_column_that_puts_a_patient_on_two_sides_is_refused(validation):
    told = ["train", "train", "test", "test", *validation]
    labels = ["a", "b", "a", "b", "a"][: len(told)]
    with pytest.raises(LeakError, match=r"1 patient on two sides \(p1\)"):
        Split.from_column(told, labels, ["p0", "p1", "p2", "p1", "p4"][: len(told)])


def test_a_leak_is_found_however_the_split_was_made():
    fold = Fold(number=0, train=np.array([0]), validation=np.array([1]), test=np.array([2]))
    with pytest.raises(LeakError, match="1 patient on two sides"):
        Split(
            folds=(fold,),
            image_ids=("i", "j", "k"),
            patient_ids=("p", "p", "q"),
            method="column",
            n_folds=1,
        )


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ([0, 0], [1], "names a row twice"),
        ([0], [0], "names a row twice"),
        ([0], [3], "not among 3 images"),
        ([], [1], "0 images to train"),
        ([1], [], "0 to test"),
    ],
)
def test_folds_that_make_no_sense_are_refused(train, test, message):
    fold = Fold(
        number=0,
        train=np.array(train, dtype=np.int64),
        validation=np.array([], dtype=np.int64),
        test=np.array(test, dtype=np.int64),
    )
    with pytest.raises(SplitError, match=message):
        Split(
            folds=(fold,),
            image_ids=("i", "j", "k"),
            patient_ids=("p", "q", "r"),
            method="column",
            n_folds=1,
        )


@pytest.mark.parametrize(
    ("labels", "patients", "n_folds", "message"),
    [
        (["a"] * 4, "pqrs", 2, "4 images of class a: a split needs at least two classes"),
        ([], "", 2, "no image: a split needs"),
        (["a", "b"] * 4, "pqpqpqpq", 3, "2 patients for 3 folds"),
        (["a"] * 6 + ["b"] * 2, "abcdefgh", 3, "fewer images than 3 folds: a 6, b 2"),
        (["a", "b"] * 4, "abcdefgh", 1, "n_folds=1"),
        (["a", "a", "a", "b", "b"], "pqrss", 2, "no training image of a class: b 1 patients"),
        (["a", "b"], "pqr", 2, "2 labels for 3 patient_ids"),
    ],
)
def test_a_cohort_that_cannot_be_split_is_refused_with_the_counts(
    labels, patients, n_folds, message
):
    with pytest.raises(SplitError, match=message):
        Split.k_fold(labels, list(patients), n_folds)


def test_unknown_parts_doubled_images_and_shares_out_of_range_are_refused():
    labels, patients = ["a", "b"] * 4, list("abcdefgh")
    with pytest.raises(SplitError, match="holds 'tset', an empty cell: use train"):
        Split.from_column(["train"] * 6 + ["tset", None], labels, patients)
    with pytest.raises(SplitError, match="1 different image_ids for 8 images"):
        Split.k_fold(labels, patients, 2, image_ids=["same"] * 8)
    with pytest.raises(SplitError, match=r"share 1\.0"):
        Split.k_fold(labels, patients, 2, validation_share=1.0)
    with pytest.raises(SplitError, match="split seed is -1: give a whole number of at least 0"):
        Split.k_fold(labels, patients, 2, seed=-1)
