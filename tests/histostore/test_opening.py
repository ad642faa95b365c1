"""What is no store, or not in one: refused in clear words, and left alone."""

from __future__ import annotations

import importlib.util
import json

import fsspec
import pytest
import zarr

from histostore.errors import (
    Ambiguous,
    FormatError,
    HistostoreError,
    MissingExtra,
    NotFound,
    OptionError,
    StorageError,
    VersionError,
)
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of

# What is not there ------------------------------------------------------------------------


def test_a_missing_store_is_said_to_be_missing(url):
    with pytest.raises(NotFound, match="no store at"):
        open_store(url)
    open_store(url, mode="a")
    assert list(open_store(url)) == []


def test_an_unknown_mode_is_refused(url):
    with pytest.raises(OptionError, match="mode='w'"):
        open_store(url, mode="w")


@pytest.mark.parametrize("mode", ["r", "a"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, mode):
    (tmp_path / "holiday.jpg").write_bytes(b"...")
    with pytest.raises(FormatError, match=r"not a histostore: it holds holiday\.jpg"):
        open_store(str(tmp_path), mode=mode)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("attributes", [{}, {"spatialdata_attrs": 1}])
def test_another_zarr_is_refused_naming_what_it_says_of_itself(tmp_path, mode, attributes):
    zarr.create_group(str(tmp_path), attributes=attributes)
    with pytest.raises(FormatError, match="Zarr, but no histostore") as caught:
        open_store(str(tmp_path), mode=mode)
    assert all(name in str(caught.value) for name in attributes)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"attributes": 3}', b"\xff"])
def test_metadata_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "zarr.json").write_bytes(content)
    with pytest.raises(FormatError, match="zarr"):
        open_store(str(tmp_path))


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "cohort.csv").write_text("image_id\n")
    for mode in ("r", "a"):
        with pytest.raises(HistostoreError, match=r"cohort\.csv"):
            open_store(str(tmp_path / "cohort.csv"), mode=mode)


def edit(path, change):
    document = json.loads(path.read_text())
    change(document["attributes"]["histostore"])
    path.write_text(json.dumps(document))


@pytest.mark.parametrize("where", ["zarr.json", "*/zarr.json", "*/fragments/*/zarr.json"])
def test_a_newer_format_is_refused_naming_both_versions(tmp_path, where):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a"]), {})
    (path,) = tmp_path.glob(where)
    edit(path, lambda ours: ours.update(format=12))
    with pytest.raises(VersionError, match=r"format 12;.* up to 1"):
        open_store(str(tmp_path)).feature_set()


def test_a_feature_set_whose_specification_was_edited_is_refused(tmp_path):
    name = open_store(str(tmp_path), mode="a").create_feature_set(spec_of()).name
    edit(tmp_path / name / "zarr.json", lambda ours: ours["spec"].update(n_features=5))
    store = open_store(str(tmp_path))
    assert list(store) == [name]
    with pytest.raises(FormatError, match=f"feature set {name}: .*digest"):
        store.feature_set()


def test_a_feature_set_under_a_wrong_name_is_refused(tmp_path):
    name = open_store(str(tmp_path), mode="a").create_feature_set(spec_of()).name
    (tmp_path / name).rename(tmp_path / "mine")
    with pytest.raises(FormatError, match=f"feature set mine: .* {name}"):
        open_store(str(tmp_path)).feature_set()


def test_a_fragment_of_another_feature_set_is_refused_by_name(tmp_path):
    store = open_store(str(tmp_path), mode="a")
    one, other = (store.create_feature_set(spec_of(name=name)) for name in ("one", "other"))
    fragment_id = one.commit(fragment_of(["a"]), {})
    (tmp_path / other.name / "fragments").mkdir()
    (tmp_path / one.name / "fragments" / fragment_id).rename(
        tmp_path / other.name / "fragments" / fragment_id
    )
    with pytest.raises(FormatError, match=f"fragment {fragment_id}: it belongs to feature set"):
        open_store(str(tmp_path))[other.name]


def test_a_fragment_under_a_wrong_name_is_refused(tmp_path):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment_of(["a"]), {})
    folder = tmp_path / features.name / "fragments"
    (folder / fragment_id).rename(folder / "copy")
    with pytest.raises(FormatError, match=f"fragment copy: .* fragment {fragment_id}"):
        open_store(str(tmp_path)).feature_set()


@pytest.mark.parametrize(
    "leave",
    [
        lambda folder: (folder / "embedding").mkdir(),
        lambda folder: zarr.create_group(str(folder)),
        lambda folder: zarr.create_group(str(folder), attributes={"histostore": {"format": 1}}),
        lambda folder: (folder / ".zarr.json.1234").write_bytes(b"{"),
    ],
    ids=["no metadata", "an empty group", "attributes alone", "a half-made put"],
)
def test_what_was_not_committed_counts_for_nothing(tmp_path, leave):
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a"]), {})
    folder = tmp_path / features.name / "fragments" / "000000000000-0123456789abcdef"
    folder.mkdir()
    leave(folder)
    again = open_store(str(tmp_path)).feature_set()
    assert again.image_ids == ("a",)
    assert again.snapshot == features.snapshot


def test_feature_sets_that_are_not_there_are_answered_with_those_that_are(url):
    store = open_store(url, mode="a")
    with pytest.raises(NotFound, match="no feature set yet"):
        store.feature_set()
    with pytest.raises(NotFound, match="no feature set yet"):
        store["x"]
    one = store.create_feature_set(spec_of(name="one"))
    assert store.feature_set() is one
    two = store.create_feature_set(spec_of(name="two"))
    with pytest.raises(Ambiguous, match=f"{one.name}, {two.name}"):
        store.feature_set()
    with pytest.raises(NotFound, match=f"did you mean '{two.name}'.*{one.name}"):
        store.feature_set(two.name[:-1])
    assert store.get("nothing") is None


def test_images_and_views_that_are_not_there_are_answered_with_those_that_are(url):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    with pytest.raises(NotFound, match="no fragment yet"):
        features.load()
    features.commit(fragment_of(["image-7", "image-8"]), {})
    features.commit(fragment_of(["b"], augmentations=("rot90",)), {})
    with pytest.raises(NotFound, match="nearest: 'image-7'"):
        features.bag("image7")
    with pytest.raises(NotFound, match="'q' and 1 more; it holds 3"):
        features.load(["q", "image-7", "r"])
    with pytest.raises(NotFound, match=r"'b' not in view 'identity'; in rot90"):
        features.bag("b")
    with pytest.raises(NotFound, match=r"no view 'rot270'; it holds identity, rot90"):
        features.load(augmentation="rot270")


def test_loading_no_image_is_an_empty_answer(url):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a"]), {})
    loaded = features.load([])
    assert loaded.embedding.shape == (0, 4)
    assert loaded.coords.shape == (0, 2)
    assert loaded.offset.tolist() == [0]


# Storages that refuse ---------------------------------------------------------------------


def test_an_unknown_protocol_is_one_line():
    with pytest.raises(StorageError, match="nosuch://bucket") as caught:
        open_store("nosuch://bucket/store")
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("s3fs") is not None, reason="s3fs is installed")
def test_a_missing_driver_is_answered_with_the_command_that_installs_it():
    with pytest.raises(MissingExtra, match=r"pip install 'histostore\[s3\]'"):
        open_store("s3://bucket/store")


def test_no_storage_option_is_ever_shown():
    secret = "hunter2-hunter2"

    class Leaky(fsspec.AbstractFileSystem):
        protocol = "leaky"

        def cat_file(self, path, start=None, end=None):
            raise OSError(f"403 for {path} with key {secret}\nand more")

    fsspec.register_implementation("leaky", Leaky, clobber=True)
    with pytest.raises(StorageError) as caught:
        open_store("leaky://bucket/store", {"key": secret})
    assert secret not in str(caught.value)
    assert "403 for" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):
        open_store(str(tmp_path / "file" / "store"), mode="a")
