"""A feature set as a lazy data set: nothing is read early, and labels find their patches."""

from __future__ import annotations

import copy
import uuid

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import NotFound, OptionError
from histostore.store import Encoding, open_store
from histostore.store.backend import RemoteBackend
from histostore.store.dataset import PatchIndex
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, fragments, spec_of

SMALL = Encoding(chunk_bytes=64, shard_bytes=256)


@pytest.fixture
def backend():
    return FaultyBackend(RemoteBackend(f"memory://{uuid.uuid4()}"))


@pytest.fixture
def features(backend):
    """Three fragments; the third brings ``b`` again, which the first has already."""
    features = Store(backend, writable=True).create_feature_set(spec_of())
    views = ("identity", "rot90")
    for seed, ids in enumerate((["a", "b"], ["c"], ["b", "d"])):
        fragment = fragment_of(ids, counts=5 + seed, augmentations=views, seed=seed)
        features.commit(fragment, {}, encoding=SMALL)
    return features


def test_nothing_of_the_embedding_is_read_before_it_is_needed(features, backend):
    backend.paths.clear()
    dataset = features.to_xarray()
    assert not [path for path in backend.paths if "embedding" in path]
    assert dataset.embedding.dims == ("patch", "feature")
    one = dataset.sel(image_id="c").embedding
    assert not [path for path in backend.paths if "embedding" in path]
    one.load(scheduler="synchronous")
    read = [path for path in backend.paths if "embedding" in path]
    fragment = features.index["c", "identity"][0].fragment_id
    assert read
    assert all(fragment in path for path in read)


@pytest.mark.parametrize("augmentation", ["identity", "rot90"])
def test_the_data_set_holds_what_loading_gives(features, augmentation):
    dataset = features.to_xarray(augmentation)
    loaded = features.load(augmentation=augmentation)
    np.testing.assert_array_equal(dataset.embedding, loaded.embedding)
    np.testing.assert_array_equal(dataset.x, loaded.coords[:, 0])
    np.testing.assert_array_equal(dataset.y, loaded.coords[:, 1])
    np.testing.assert_array_equal(dataset.tissue, loaded.tissue)
    names = np.repeat(np.array(loaded.image_ids, object), np.diff(loaded.offset))
    np.testing.assert_array_equal(dataset.image_id, names)
    assert dataset.attrs == {"feature_set": features.name, "augmentation": augmentation}


@given(st.lists(fragments(n_features=2, dtype="float16"), min_size=1, max_size=3))
def test_selecting_an_image_equals_its_bag(several):
    store = open_store(f"memory://{uuid.uuid4()}", mode="a")
    features = store.create_feature_set(spec_of(n_features=2, dtype="float16"))
    for fragment in several:
        features.commit(fragment, {}, encoding=SMALL)
    augmentation = features.augmentations[0]
    dataset = features.to_xarray(augmentation)
    for image_id, view in features.index:
        if view == augmentation:
            bag = features.bag(image_id, view)
            chosen = dataset.sel(image_id=image_id).compute(scheduler="synchronous")
            np.testing.assert_array_equal(chosen.embedding, bag.embedding)
            np.testing.assert_array_equal(chosen.y, bag.coords[:, 1])
            assert set(chosen.image_id.values) == {image_id}


def test_images_are_selected_in_the_order_asked_for(features):
    dataset = features.to_xarray()
    chosen = dataset.sel(image_id=["d", "a"])
    expected = [features.bag(image).embedding for image in ("d", "a")]
    np.testing.assert_array_equal(chosen.embedding, np.concatenate(expected))
    again = chosen.sel(image_id="a")
    np.testing.assert_array_equal(again.embedding, expected[1])


def test_patches_are_selected_by_image_and_place(features):
    dataset = features.to_xarray()
    patch = dataset.isel(patch=3)
    found = dataset.sel(image_id="a", y=int(patch.y), x=int(patch.x))
    assert found.sizes["patch"] == 1
    np.testing.assert_array_equal(found.embedding[0], patch.embedding)
    middle = int(np.median(dataset.y))
    upper = dataset.sel(y=slice(None, middle))
    assert (upper.y <= middle).all()
    assert upper.sizes["patch"] == int((dataset.y <= middle).sum())
    some = dataset.y.values[[2, 7]]
    np.testing.assert_array_equal(dataset.sel(y=some).y, some)


def test_labels_that_are_not_there_are_named(features):
    dataset = features.to_xarray()
    with pytest.raises(NotFound, match="no image 'z'"):
        dataset.sel(image_id="z")
    with pytest.raises(NotFound, match="no patch at y=-5"):
        dataset.sel(image_id="a", y=-5)
    with pytest.raises(OptionError, match="not by a slice"):
        dataset.sel(image_id=slice("a", "b"))
    with pytest.raises(OptionError, match="exactly"):
        dataset.sel(y=3, method="nearest")
    with pytest.raises(OptionError, match="no step"):
        dataset.sel(y=slice(0, 9, 2))
    with pytest.raises(NotFound, match="rot180"):
        features.to_xarray("rot180")


def test_the_usual_words_of_xarray_work(features, tmp_path):
    dataset = features.to_xarray()
    bag = features.bag("c").embedding
    masked = dataset.where(dataset.image_id == "c", drop=True)
    np.testing.assert_array_equal(masked.embedding, bag)
    np.testing.assert_array_equal(
        dataset.isel(patch=(dataset.image_id == "c").values).embedding, bag
    )
    means = dataset.embedding.groupby("image_id").mean()
    np.testing.assert_allclose(means.sel(image_id="c"), bag.mean(axis=0), rtol=1e-6)
    halves = [dataset.isel(patch=slice(0, 8)), dataset.isel(patch=slice(8, None))]
    joined = xr.concat(halves, "patch")
    assert joined.identical(dataset)
    np.testing.assert_array_equal(joined.sel(image_id="c").embedding, bag)
    assert (dataset + dataset).sizes == dataset.sizes
    assert dataset.sortby("y").sel(image_id="c").sizes["patch"] == len(bag)
    plain = dataset.drop_indexes(["image_id", "y", "x"])
    again = plain.set_xindex(["image_id", "y", "x"], PatchIndex)
    assert again.sel(image_id="c").identical(dataset.sel(image_id="c"))
    assert plain.set_xindex("image_id").sel(image_id="c").sizes["patch"] == len(bag)
    # Workers of another process receive tasks by the protocol that copying follows.
    assert copy.deepcopy(features.to_xarray()).identical(dataset)


def test_an_indexed_name_cannot_be_changed_by_mistake(features):
    dataset = features.to_xarray()
    with pytest.raises(OptionError, match="drop_indexes"):
        dataset.rename(image_id="slide")
    assert "slide" in dataset.drop_indexes(["image_id", "y", "x"]).rename(image_id="slide")
