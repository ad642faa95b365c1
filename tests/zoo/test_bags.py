"""Bags: from a real store or from arrays, chosen without copying, never empty."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.cohort import Cohort
from histostore.encoders.base import EncoderIdentity
from histostore.errors import NotFound, OptionError
from histostore.files import Source
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.store import Fragment, open_store
from zoo.bags import Bags
from zoo.errors import EmptyBag

LENGTHS = {"i0": 2, "i1": 1, "i2": 3, "i3": 1, "i4": 2}


@pytest.fixture
def features(tmp_path):
    """A feature set of five images in two fragments and two views, in half precision."""
    spec = FeatureSpec(
        encoder=EncoderIdentity(name="test"),
        n_features=4,
        grid=PatchGrid(patch_size=8),
        tissue=TissueFilter(),
        dtype="float16",
    )
    found = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec)
    rng = np.random.default_rng(0)
    for images in (["i0", "i1", "i2"], ["i3", "i4"]):
        offset = np.cumsum([0, *(LENGTHS[image] for image in images)])
        n = int(offset[-1])
        fragment = Fragment(
            embedding=rng.normal(size=(2, n, 4)).astype(np.float16),
            augmentations=("identity", "rot90"),
            image_ids=tuple(images),
            offset=offset,
            y=np.arange(n, dtype=np.int32),
            x=10 * np.arange(n, dtype=np.int32),
            tissue=np.ones(n, np.float32),
            sources=tuple(Source(url=f"{i}.png", size=1, version=None) for i in images),
            flags=((),) * len(images),
        )
        found.commit(fragment, {})
    return found


def cohort(image_ids, labels, patients=None):
    frame = pd.DataFrame({"image_id": image_ids, "path": [f"{i}.png" for i in image_ids]})
    frame["label"] = labels
    if patients is not None:
        frame["patient_id"] = patients
    return Cohort.from_frame(frame, url="cohort.csv", check_files=False)


def test_bags_of_a_store_hold_the_labelled_images_in_the_order_of_the_cohort(features):
    table = cohort(["i3", "i0", "i1", "i4"], ["b", "a", None, "a"], ["p", "p", "q", "r"])
    bags = Bags(features, table)
    assert bags.image_ids == ("i3", "i0", "i4")
    assert bags.patient_ids == ("p", "p", "r")
    assert bags.classes == ("a", "b")
    assert bags.labels.tolist() == [1, 0, 0]
    assert bags.n_unlabelled == 1
    assert bags.embedding.dtype == np.float32
    assert bags.source["store"]["snapshot"] == features.snapshot
    for bag in bags:
        stored = features.bag(bag.image_id)
        assert np.array_equal(bag.embedding, stored.embedding.astype(np.float32))
        assert np.array_equal(bag.coords, stored.coords)


def test_the_table_may_be_a_cohort_a_data_frame_or_a_file(features, tmp_path):
    table = cohort(["i3", "i0"], ["b", "a"])
    table.table.to_csv(tmp_path / "cohort.csv", index=False)
    for given_as in (table.table, tmp_path / "cohort.csv", str(tmp_path / "cohort.csv")):
        assert Bags(features, given_as).digest == Bags(features, table).digest


def test_another_view_gives_its_own_embeddings(features):
    table = cohort(["i0", "i2"], ["a", "b"])
    turned = Bags(features, table, augmentation="rot90")
    assert turned.augmentation == "rot90"
    assert np.array_equal(
        turned[1].embedding, features.bag("i2", "rot90").embedding.astype(np.float32)
    )
    with pytest.raises(NotFound):
        Bags(features, table, augmentation="rot180")


def test_images_that_are_not_in_the_store_are_named_and_counted(features):
    images = ["i0", "n1", "n2", "n3", "n4"]
    with pytest.raises(NotFound, match=r"4 images \(n1, n2, n3, …\).*run histostore build"):
        Bags(features, cohort(images, ["a"] * 5))
    # One without a label need not be there.
    assert len(Bags(features, cohort(["i0", "n1"], ["a", None]))) == 1


def test_a_target_the_cohort_lacks_is_refused_with_its_columns(features):
    with pytest.raises(OptionError, match=r"no column 'grade'.*image_id, path, label"):
        Bags(features, cohort(["i0"], ["a"]), target="grade")


def test_images_to_predict_need_no_cohort(features):
    bags = Bags.unlabelled(features, classes=("a", "b"))
    assert bags.image_ids == ("i0", "i1", "i2", "i3", "i4")
    assert bags.labels.tolist() == [-1] * 5
    assert Bags.unlabelled(features, ["i4", "i0"]).lengths.tolist() == [2, 2]


@st.composite
def arrays(draw):
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=12))
    offset = np.cumsum([0, *lengths])
    rows = np.arange(offset[-1] * 2, dtype=np.float32).reshape(-1, 2)
    labels = draw(st.lists(st.sampled_from("abc"), min_size=len(lengths), max_size=len(lengths)))
    return Bags.from_arrays(rows, offset, labels=labels, coords=rows.astype(np.int32))


@given(arrays(), st.data())
def test_choosing_bags_is_choosing_from_a_list(bags, data):
    index = data.draw(st.lists(st.integers(-len(bags), len(bags) - 1), max_size=20))
    chosen = bags[index]
    expected = [bags[i] for i in index]
    assert chosen.image_ids == tuple(bag.image_id for bag in expected)
    assert chosen.labels.tolist() == [bag.label for bag in expected]
    assert chosen.lengths.tolist() == [len(bag) for bag in expected]
    whole = [bag.embedding for bag in expected] or [np.empty((0, 2), np.float32)]
    assert np.array_equal(chosen.embedding, np.concatenate(whole))
    assert np.array_equal(chosen.coords, chosen.embedding.astype(np.int32))
    assert chosen.offset[-1] == len(chosen.embedding)
    if index:
        inner = data.draw(st.lists(st.integers(0, len(index) - 1), min_size=1))
        assert chosen[inner].image_ids == tuple(chosen.image_ids[i] for i in inner)
    mask = np.array([bag.label == 0 for bag in bags], dtype=bool)
    assert bags[mask].image_ids == tuple(bag.image_id for bag in bags if bag.label == 0)


def test_a_piece_is_a_view_and_nothing_is_copied_until_asked_for():
    rows = np.zeros((6, 2), np.float32)
    bags = Bags.from_arrays(rows, [0, 2, 3, 6], labels=["a", "b", "a"])
    assert np.shares_memory(bags.embedding, rows)
    assert np.shares_memory(bags[1:].embedding, rows)
    assert bags[[2, 0]]._embedding is None


def test_bags_are_a_data_set_for_torch():
    from torch.utils.data import DataLoader

    bags = Bags.from_arrays(np.eye(3), [0, 1, 3], labels=["a", "b"])
    seen = list(DataLoader(bags, batch_size=None))
    assert [bag.image_id for bag in seen] == ["0", "1"]
    assert [len(bag) for bag in seen] == [1, 2]
    with pytest.raises(IndexError):
        bags[2]


def test_the_digest_knows_images_patients_and_labels_but_not_their_order():
    def digest(order, labels="aba", patients="pqr"):
        return Bags.from_arrays(
            np.zeros((3, 1)),
            range(4),
            labels=[labels[i] for i in order],
            image_ids=[f"i{i}" for i in order],
            patient_ids=[patients[i] for i in order],
        ).digest

    assert digest([0, 1, 2]) == digest([2, 0, 1])
    assert digest([0, 1, 2]) != digest([0, 1, 2], labels="abb")
    assert digest([0, 1, 2]) != digest([0, 1, 2], patients="pqq")


def test_labels_may_be_numbers_and_may_be_missing():
    named = Bags.from_arrays(np.zeros((2, 1)), [0, 1, 2], labels=["b", None], classes=("a", "b"))
    coded = Bags.from_arrays(np.zeros((2, 1)), [0, 1, 2], labels=[1, -1], classes=("a", "b"))
    assert named.labels.tolist() == coded.labels.tolist() == [1, -1]
    plain = Bags.from_arrays(np.zeros((2, 1)), [0, 1, 2], labels=[1, 0])
    assert plain.classes == ("0", "1")
    assert repr(plain) == "Bags(2 images, 2 patches, 1 features, classes 0, 1)"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"offset": [0, 2, 2]}, EmptyBag, r"1 image \(1\) without any patch"),
        ({"offset": [[0, 1, 2]]}, OptionError, "offset run from 0 to its length"),
        (
            {"embedding": [[1.0], [np.nan]]},
            OptionError,
            r"1 of 2 patches hold NaN .* 1 image \(1\)",
        ),
        ({"embedding": [[np.inf, -np.inf], [0, 0]]}, OptionError, r"in 1 image \(0\)"),
        ({"offset": [0, 1, 3]}, OptionError, "offset run from 0 to its length"),
        ({"offset": [1, 1, 2]}, OptionError, "offset run from 0"),
        ({"offset": []}, OptionError, "offset run from 0"),
        ({"embedding": np.zeros(2)}, OptionError, "embedding must be"),
        ({"labels": ["a"]}, OptionError, "labels has 1 entries where 2"),
        ({"labels": ["a", "c"], "classes": ["a", "b"]}, OptionError, r"\['c'\] are not among"),
        ({"labels": [0, 2], "classes": ["a", "b"]}, OptionError, r"\[2\] are not among"),
        ({"patient_ids": ["p"]}, OptionError, "patient_ids has 1"),
        ({"coords": np.zeros((1, 2))}, OptionError, "coords has 1"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, error, message):
    given_arrays = {"embedding": np.zeros((2, 1)), "offset": [0, 1, 2], "labels": ["a", "b"]}
    with pytest.raises(error, match=message):
        Bags.from_arrays(**given_arrays | change)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([0.0, 1.0, np.nan], ("0", "1")),
        ([0.5, 1.0, 0.5], ("0.5", "1")),
        (np.array([True, False, True]), ("False", "True")),
        (pd.Series(["b", None, "a"]), ("a", "b")),
    ],
)
def test_labels_that_are_no_text_are_named_as_a_table_would_name_them(labels, classes):
    bags = Bags.from_arrays(np.eye(3), range(4), labels=labels, image_ids=[7, 8, 9])
    frame = pd.DataFrame({"image_id": [7, 8, 9], "path": "p.png", "label": labels})
    table = Cohort.from_frame(frame, check_files=False)
    assert bags.classes == classes
    assert bags.image_ids == table.image_ids
    told = [None if k < 0 else classes[k] for k in bags.labels]
    assert told == table.column("label").tolist()
