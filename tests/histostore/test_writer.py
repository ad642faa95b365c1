"""What a commit leaves behind: format 1 to the letter, open to every reader of Zarr."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given

from histostore.errors import OptionError
from histostore.store import Encoding, open_store
from histostore.store.backend import LocalBackend, RemoteBackend
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, fragments, spec_of

VIEWS = ("identity", "rot90", "flip-h")
SMALL = Encoding(chunk_bytes=64, shard_bytes=256)


@pytest.fixture
def committed(tmp_path):
    """A committed fragment of several chunks and shards: (fragment, its folder, its id)."""
    fragment = fragment_of(["a", "b/c", "ü'\""], counts=[5, 9, 3], augmentations=VIEWS)
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment, {"by": "a test"}, encoding=SMALL)
    return fragment, tmp_path / features.name / "fragments" / fragment_id, fragment_id


def test_the_store_and_the_feature_set_say_what_they_are(tmp_path):
    spec = spec_of()
    open_store(str(tmp_path), mode="a").create_feature_set(spec)
    root = json.loads((tmp_path / "zarr.json").read_text())
    ours = json.loads((tmp_path / spec.name / "zarr.json").read_text())
    assert root["attributes"]["histostore"] == {"format": 1}
    assert ours["attributes"]["histostore"]["spec"] == spec.to_json()
    assert ours["attributes"]["histostore"]["digest"] == spec.digest
    assert [each["node_type"] for each in (root, ours)] == ["group", "group"]
    assert zarr.open_group(str(tmp_path), mode="r")[spec.name].attrs["histostore"]["format"] == 1


def test_the_commit_record_says_what_is_in_it_and_by_which_digests(committed):
    fragment, folder, fragment_id = committed
    ours = json.loads((folder / "zarr.json").read_text())["attributes"]["histostore"]
    assert ours["format"] == 1
    assert ours["fragment"] == fragment_id
    assert ours["feature_set"] == spec_of().digest
    assert ours["image_id"] == list(fragment.image_ids)
    assert ours["n_patches"] == [5, 9, 3]
    assert ours["augmentation"] == list(VIEWS)
    assert ours["source"] == [source.to_json() for source in fragment.sources]
    assert ours["flags"] == [[], ["small-image"], []]
    assert ours["provenance"] == {"by": "a test"}
    stored = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "zarr.json"
    }
    assert ours["objects"] == {
        path: [len(content), hashlib.sha256(content).hexdigest()]
        for path, content in stored.items()
    }


def test_arrays_are_those_of_format_1(committed):
    fragment, folder, _ = committed
    group = zarr.open_group(str(folder), mode="r", use_consolidated=True)
    expected = {
        "embedding": (("augmentation", "patch", "feature"), "float32"),
        "offset": (("image_bound",), "int64"),
        "y": (("patch",), "int32"),
        "x": (("patch",), "int32"),
        "tissue": (("patch",), "float32"),
    }
    for name, (dimensions, kind) in expected.items():
        array = group[name]
        assert array.metadata.dimension_names == dimensions
        assert array.dtype == kind
        np.testing.assert_array_equal(array[...], getattr(fragment, name))
    assert list(group["image_id"][:]) == list(fragment.image_ids)
    assert list(group["augmentation"][:]) == list(VIEWS)
    embedding = json.loads((folder / "embedding" / "zarr.json").read_text())
    sharding = embedding["codecs"][0]["configuration"]
    assert sharding["index_location"] == "start"
    assert sharding["chunk_shape"][0] == 1
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"]


def test_every_chunk_ends_in_its_crc32c(committed):
    _, folder, _ = committed
    for path in folder.rglob("zarr.json"):
        document = json.loads(path.read_text())
        if document["node_type"] == "array":
            codecs = document["codecs"]
            if codecs[0]["name"] == "sharding_indexed":
                assert codecs[0]["configuration"]["index_codecs"][-1] == {"name": "crc32c"}
                codecs = codecs[0]["configuration"]["codecs"]
            assert codecs[-1] == {"name": "crc32c"}


@pytest.mark.parametrize("given_as", [str, Path.as_uri])
def test_xarray_opens_a_fragment_as_it_is(committed, given_as):
    fragment, folder, _ = committed
    dataset = xr.open_zarr(given_as(folder), consolidated=True)
    assert dataset.embedding.dims == ("augmentation", "patch", "feature")
    np.testing.assert_array_equal(dataset.embedding.values, fragment.embedding)
    rotated = dataset.sel(augmentation="rot90").embedding
    np.testing.assert_array_equal(rotated.values, fragment.embedding[1])
    assert dataset.image_id.values.tolist() == list(fragment.image_ids)


def test_tensorstore_opens_the_numeric_arrays_and_checks_them(committed):
    tensorstore = pytest.importorskip("tensorstore")
    fragment, folder, _ = committed

    def read(name):
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder / name)}}
        return tensorstore.open(store, read=True).result().read().result()

    for name in ("embedding", "offset", "y", "x", "tissue"):
        np.testing.assert_array_equal(read(name), getattr(fragment, name))
    shard = next((folder / "embedding").glob("c.*"))
    content = bytearray(shard.read_bytes())
    content[-10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"(?i)crc|checksum|digest"):
        read("embedding")


def test_zstd_is_read_back_the_same_by_us_and_by_zarr(tmp_path):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    fragment = fragment_of(["a", "b"], counts=[40, 30], augmentations=("identity", "rot90"))
    packed = Encoding(codec="zstd", chunk_bytes=256, shard_bytes=512)
    fragment_id = features.commit(fragment, {}, encoding=packed)
    group = zarr.open_group(str(tmp_path / features.name / "fragments" / fragment_id), mode="r")
    np.testing.assert_array_equal(group["embedding"][...], fragment.embedding)
    loaded = features.load(["b"], "rot90")
    np.testing.assert_array_equal(loaded.embedding, fragment.embedding[1, 40:])


def test_users_see_no_warning_of_zarr():
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        warnings.simplefilter("always")
        store = open_store(f"memory://{uuid.uuid4()}", mode="a")
        features = store.create_feature_set(spec_of())
        features.commit(fragment_of(["a"]), {})
        features.load()
    assert [str(each.message) for each in caught] == []


def test_a_fragment_of_another_shape_or_type_is_refused():
    store = open_store(f"memory://{uuid.uuid4()}", mode="a")
    features = store.create_feature_set(spec_of())
    with pytest.raises(OptionError, match=r"holds 5 features as float32.*has 4 as float32"):
        features.commit(fragment_of(["a"], n_features=5), {})
    with pytest.raises(OptionError, match=r"holds 4 features as float16"):
        features.commit(fragment_of(["a"], dtype="float16"), {})
    assert features.fragments == ()


@pytest.mark.parametrize("provenance", [{"a": object()}, {"a": float("nan")}])
def test_provenance_that_is_not_json_is_refused_before_anything_is_written(provenance):
    backend = FaultyBackend(RemoteBackend(f"memory://{uuid.uuid4()}"))
    features = Store(backend, writable=True).create_feature_set(spec_of())
    before = backend.requests["change"]
    with pytest.raises(OptionError, match="not JSON"):
        features.commit(fragment_of(["a"]), provenance)
    assert backend.requests["change"] == before


def test_a_store_opened_for_reading_is_not_written(tmp_path):
    open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    store = open_store(str(tmp_path))
    with pytest.raises(OptionError, match="open for reading"):
        store.create_feature_set(spec_of(name="other"))
    with pytest.raises(OptionError, match="open for reading"):
        store.feature_set().commit(fragment_of(["a"]), {})
    with pytest.raises(OptionError, match="open for reading"):
        store.feature_set().record_build({})


@given(fragments())
def test_the_record_is_put_last_and_alone(fragment):
    backend = FaultyBackend(RemoteBackend(f"memory://{uuid.uuid4()}"))
    spec = spec_of(n_features=fragment.n_features, dtype=str(fragment.embedding.dtype))
    features = Store(backend, writable=True).create_feature_set(spec)
    backend.paths.clear()
    fragment_id = features.commit(fragment, {}, encoding=SMALL)
    record = f"{features.name}/fragments/{fragment_id}/zarr.json"
    assert backend.paths.index(record) == len(backend.paths) - 1
    assert len(backend.paths) == len(features.fragments[0].objects) + 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to name open files")
def test_every_file_and_folder_is_flushed_before_the_record_is_named(tmp_path, monkeypatch):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    flushed, seen = [], {}
    fsync, replace = os.fsync, os.replace

    def noting_fsync(handle):
        flushed.append(Path(f"/proc/self/fd/{handle}").readlink())
        fsync(handle)

    def noting_replace(source, target):
        seen[Path(target)] = list(flushed)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "replace", noting_replace)
    monkeypatch.setattr(Path, "replace", noting_replace)
    fragment_id = features.commit(fragment_of(["a"], augmentations=VIEWS), {}, encoding=SMALL)
    folder = tmp_path / features.name / "fragments" / fragment_id
    (record, before), *others = seen.items()
    assert (record, others) == (folder / "zarr.json", [])
    inside = {path for path in folder.rglob("*") if path != record}
    assert inside | {folder, folder.parent, folder.parent.parent, tmp_path} <= set(before)
    for path in inside:
        # A folder's entries are flushed after they were made.
        if path.is_dir():
            last = len(before) - 1 - before[::-1].index(path)
            assert last > max(before.index(inner) for inner in path.iterdir())
    # The record itself is flushed before it is named, its folder after.
    assert before[-1].name.startswith(".zarr.json.")
    assert folder in flushed[len(before) :]


def test_a_build_record_is_kept_in_order(tmp_path):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    ids = []
    for number in range(3):
        ids.append(features.record_build({"failed": [["a", "no such file"]], "number": number}))
        Path(tmp_path / features.name / "builds" / f"{ids[-1]}.json").read_text()
    assert sorted(document["number"] for document in features.builds()) == [0, 1, 2]
    assert open_store(str(tmp_path)).feature_set().builds() == features.builds()


def test_a_local_folder_is_made_however_deep(tmp_path):
    backend = LocalBackend(str(tmp_path / "a" / "b"))
    backend.put("c/d.json", b"1")
    assert backend.read("c/d.json") == b"1"
    assert backend.names("c") == ["d.json"]
