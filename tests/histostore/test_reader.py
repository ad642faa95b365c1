"""What a store gives back: the rows that were put in, quickly, and clear words otherwise."""

from __future__ import annotations

import copy
import shutil
import uuid

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.store import Encoding, open_store
from histostore.store.backend import RemoteBackend, open_backend
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, fragments, spec_of

encodings = st.builds(
    Encoding,
    codec=st.sampled_from(["none", "zstd"]),
    chunk_bytes=st.integers(1, 100),
    shard_bytes=st.integers(1, 400),
)


def fresh_memory():
    return f"memory://{uuid.uuid4()}"


# Round trips ------------------------------------------------------------------------------


@given(fragments(), encodings)
def test_whatever_is_committed_is_read_back_as_it_was(fragment, encoding):
    url = fresh_memory()
    spec = spec_of(n_features=fragment.n_features, dtype=str(fragment.embedding.dtype))
    open_store(url, mode="a").create_feature_set(spec).commit(fragment, {}, encoding=encoding)
    features = open_store(url).feature_set()
    assert features.image_ids == fragment.image_ids
    assert features.augmentations == fragment.augmentations
    assert [features.sources[image_id] for image_id in features.image_ids] == [*fragment.sources]
    for view, augmentation in enumerate(fragment.augmentations):
        loaded = features.load(augmentation=augmentation)
        assert loaded.embedding.dtype == fragment.embedding.dtype
        assert loaded.embedding.tobytes() == fragment.embedding[view].tobytes()  # −0 too
        np.testing.assert_array_equal(loaded.offset, fragment.offset)
        np.testing.assert_array_equal(loaded.coords, np.stack([fragment.x, fragment.y], axis=1))
        np.testing.assert_array_equal(loaded.tissue, fragment.tissue)
        for image, image_id in enumerate(fragment.image_ids):
            rows = slice(*fragment.offset[image : image + 2])
            bag = features.bag(image_id, augmentation)
            np.testing.assert_array_equal(bag.embedding, fragment.embedding[view, rows])
            np.testing.assert_array_equal(bag.coords[:, 1], fragment.y[rows])
            np.testing.assert_array_equal(bag.tissue, fragment.tissue[rows])


@settings(max_examples=30)
@given(
    st.lists(fragments(n_features=3, dtype="float32"), min_size=1, max_size=3), encodings, st.data()
)
def test_loading_equals_the_general_way_through_zarr(several, encoding, data):
    url = fresh_memory()
    features = open_store(url, mode="a").create_feature_set(spec_of(n_features=3))
    for fragment in several:
        features.commit(fragment, {}, encoding=encoding)
    augmentation = data.draw(st.sampled_from(features.augmentations))
    there = [image_id for image_id, view in features.index if view == augmentation]
    chosen = data.draw(st.lists(st.sampled_from(there), max_size=6))
    loaded = features.load(chosen, augmentation)
    assert loaded.image_ids == tuple(chosen)
    for image, image_id in enumerate(chosen):
        record, rows = features.index[image_id, augmentation]
        group = zarr.open_group(
            f"{url}/{features.name}/fragments/{record.fragment_id}", mode="r", use_consolidated=True
        )
        view = record.augmentations.index(augmentation)
        ours = slice(*loaded.offset[image : image + 2])
        np.testing.assert_array_equal(loaded.embedding[ours], group["embedding"][view, rows])
        np.testing.assert_array_equal(loaded.coords[ours, 0], group["x"][rows])
        np.testing.assert_array_equal(loaded.coords[ours, 1], group["y"][rows])
        np.testing.assert_array_equal(loaded.tissue[ours], group["tissue"][rows])


def test_every_storage_gives_the_same_rows(url):
    store = open_store(url, mode="a")
    features = store.create_feature_set(spec_of())
    fragment = fragment_of(["a", "b"], counts=[4, 2])
    features.commit(fragment, {})
    again = open_store(url).feature_set()
    np.testing.assert_array_equal(again.load().embedding, fragment.embedding[0])
    assert again.snapshot == features.snapshot
    copied = copy.deepcopy(open_backend(url))  # as workers get it, by the same protocol
    assert copied.names("") == [again.name, "zarr.json"]
    sent = copy.deepcopy(features)
    np.testing.assert_array_equal(sent.load().embedding, fragment.embedding[0])
    sent.commit(fragment_of(["c"]), {})
    assert "c" in sent.image_ids


@pytest.mark.parametrize("root", ["", "deep"])
def test_a_store_is_read_from_an_archive(tmp_path, root):
    features = open_store(tmp_path / "in" / root, mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a", "b"]), {})
    archive = shutil.make_archive(str(tmp_path / "out"), "zip", tmp_path / "in")
    store = open_store(f"zip://{root}::{archive}")
    assert dict(store).keys() == {features.name}
    assert store.feature_set().snapshot == features.snapshot
    np.testing.assert_array_equal(
        store.feature_set().bag("b").embedding, features.bag("b").embedding
    )


# Several fragments ------------------------------------------------------------------------


def test_the_smallest_id_wins_and_every_row_is_there_once(url):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    first = fragment_of(["a", "b"], seed=1)
    second = fragment_of(["b", "c"], seed=2, augmentations=("identity", "rot90"))
    ids = [features.commit(fragment, {}) for fragment in (first, second)]
    winner, loser = (first, second) if ids[0] < ids[1] else (second, first)
    loaded = open_store(url).feature_set().load(["a", "b", "c"])
    at = winner.image_ids.index("b") * 3
    np.testing.assert_array_equal(loaded.embedding[3:6], winner.embedding[0, at : at + 3])
    assert loaded.offset.tolist() == [0, 3, 6, 9]
    assert features.load(augmentation="rot90").image_ids == ("b", "c")
    record, rows = features.index["b", "identity"]
    assert (record.fragment_id, rows) == (min(ids), slice(at, at + 3))
    assert loser is not winner
    assert set(features.index) == {
        ("a", "identity"),
        ("b", "identity"),
        ("c", "identity"),
        ("b", "rot90"),
        ("c", "rot90"),
    }
    assert ("a", "rot90") not in features.index
    assert len(features.index) == 5


@given(
    st.lists(st.lists(st.sampled_from("abcde"), min_size=1, unique=True), min_size=1, max_size=4)
)
def test_commits_in_any_order_mean_the_same(batches):
    url = fresh_memory()
    features = open_store(url, mode="a").create_feature_set(spec_of())
    for seed, batch in enumerate(batches):
        features.commit(fragment_of(batch, seed=seed), {})
    again = open_store(url).feature_set()
    assert again.snapshot == features.snapshot
    assert sorted(again.image_ids) == sorted({image for batch in batches for image in batch})
    for image in again.image_ids:
        owners = [record for record in again.fragments if image in record.image_ids]
        assert again.index[image, "identity"][0].fragment_id == owners[0].fragment_id
    np.testing.assert_array_equal(again.load().embedding, features.load().embedding)


def test_a_feature_set_shows_one_moment_until_it_is_refreshed(url):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    other = open_store(url, mode="a").feature_set()
    features.commit(fragment_of(["a"]), {})
    assert (other.image_ids, features.image_ids) == ((), ("a",))
    before = other.snapshot
    other.refresh()
    assert other.image_ids == ("a",)
    assert other.snapshot == features.snapshot != before


def test_making_a_feature_set_twice_is_making_it_once(url):
    store = open_store(url, mode="a")
    features = store.create_feature_set(spec_of())
    features.commit(fragment_of(["a"]), {})
    again = open_store(url, mode="a").create_feature_set(spec_of())
    assert again.image_ids == ("a",)
    assert list(open_store(url)) == [spec_of().name]


def test_feature_sets_do_not_mix(url):
    store = open_store(url, mode="a")
    for dtype in ("float32", "float16"):
        spec = spec_of(name=dtype, dtype=dtype)
        store.create_feature_set(spec).commit(fragment_of(["a"], dtype=dtype), {})
    again = open_store(url)
    assert len(again) == 2
    assert {str(features.load().embedding.dtype) for features in again.values()} == {
        "float16",
        "float32",
    }


# Requests ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_fragments", [0, 1, 7])
def test_opening_costs_one_listing_and_one_read_per_fragment(n_fragments):
    url = fresh_memory()
    features = open_store(url, mode="a").create_feature_set(spec_of())
    for number in range(n_fragments):
        features.commit(fragment_of([f"{number}-{image}" for image in range(5)]), {})
    backend = FaultyBackend(open_backend(url))
    features = Store(backend, writable=False).feature_set()
    assert len(features.index) == 5 * n_fragments
    assert backend.requests == {"list": 2, "read": 1 + n_fragments} if n_fragments else True
    features.refresh()
    assert backend.requests["list"] == 3
    assert backend.requests["read"] == 1 + n_fragments  # records never change


def test_loading_one_view_opens_each_shard_once():
    backend = FaultyBackend(RemoteBackend(fresh_memory()))
    features = Store(backend, writable=True).create_feature_set(spec_of())
    for number in range(3):
        images = [f"{number}-{image}" for image in range(4)]
        features.commit(fragment_of(images, augmentations=("identity", "rot90")), {})
    features.load()
    assert backend.requests["open"] == 3
    assert all(path.endswith("embedding/c.0.0.0") for path in backend.paths[-3:])


def test_places_are_read_only_when_they_are_asked_for():
    backend = FaultyBackend(RemoteBackend(fresh_memory()))
    features = Store(backend, writable=True).create_feature_set(spec_of())
    features.commit(fragment_of(["a", "b"]), {})
    loaded = features.load()
    assert backend.requests["open"] == 1
    assert loaded.coords is loaded.coords
    assert backend.requests["open"] == 3
