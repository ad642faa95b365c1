"""Stores written once and never again: every later version must read their very bytes."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from histostore.errors import VersionError
from histostore.store import open_store

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
FLOAT32, FLOAT16 = "golden-encoder-4cf0e464", "golden-b14fd1f7"
SNAPSHOTS = {
    FLOAT32: "787b36065342a5d6d950fade407923da08dba41b828be1c94faac599ea08bc6e",
    FLOAT16: "4a56566c8834f16dbbf144035dc93005412f01b2fa102ab5d7cc3e6da9c66ed5",
}
DIGESTS = {
    FLOAT32: "4cf0e4642263e2b843f41a8e21a31898fa5f91a35adb4987df8cfacde4dd1931",
    FLOAT16: "b14fd1f7c05ac873dcd0bfb4ad51c0f062705780a1cffbe30571ab0ecfcf3fec",
}


@pytest.fixture(scope="module")
def made():
    """What the script that made the store says is in it."""
    spec = importlib.util.spec_from_file_location("golden_make", HERE / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def store():
    return open_store(str(HERE / "store-v1"))


@pytest.mark.parametrize(("name", "kind"), [(FLOAT32, "float32"), (FLOAT16, "float16")])
def test_the_store_of_format_1_is_read_for_ever(store, made, name, kind):
    """F7.3, F7.4, F9.3: names, digests and order are those of the day it was written."""
    features = store[name]
    assert set(store) == {FLOAT32, FLOAT16}
    assert features.spec.digest == DIGESTS[name]
    assert features.spec.dtype == kind
    assert features.snapshot == SNAPSHOTS[name]
    assert features.augmentations == made.VIEWS
    order = range(5) if kind == "float32" else reversed(range(5))
    assert features.image_ids == tuple(made.IMAGE_IDS[image] for image in order)


@pytest.mark.parametrize("view", [0, 1])
def test_every_number_of_half_precision_is_where_it_was(store, made, view):
    """F3, F4: compressed chunks, both views."""
    features = store[FLOAT16]
    for image, image_id in enumerate(made.IMAGE_IDS):
        bag = features.bag(image_id, made.VIEWS[view])
        np.testing.assert_array_equal(bag.embedding, made.values(image, view, "float16"))
        np.testing.assert_array_equal(bag.coords, made.coords(image))
        assert np.array_equal(np.signbit(bag.embedding[0, 0]), view == 1)


def test_every_number_of_single_precision_is_where_it_was(store, made):
    """F3, F4, F7.1, F7.2: several shards; the smallest id wins; views from several fragments."""
    features = store[FLOAT32]
    shifts = {(3, 0): np.float32(100)}
    for image, image_id in enumerate(made.IMAGE_IDS):
        for view, name in enumerate(made.VIEWS):
            if (image, view) == (4, 0):
                assert (image_id, name) not in features.index
                continue
            bag = features.bag(image_id, name)
            expected = made.values(image, view, "float32") - shifts.get((image, view), 0)
            np.testing.assert_array_equal(bag.embedding, expected.astype("float32"))
            np.testing.assert_array_equal(bag.coords, made.coords(image))
    loaded = features.load()
    assert loaded.image_ids == made.IMAGE_IDS[:4]
    assert loaded.offset.tolist() == [0, 1, 5, 7, 10]
    # Rows of two fragments, each with its own scale of tissue; the loser's rows left out.
    whole, part = np.linspace(0, 1, 7, dtype="f4"), np.linspace(0, 1, 7, dtype="f4")[4:]
    np.testing.assert_array_equal(loaded.tissue, np.concatenate([whole, part]))


def test_what_stands_beside_the_numbers_is_there(store, made):
    """F5.7 to F5.9, F8: sources, flags, provenance and the record of a build."""
    features = store[FLOAT32]
    sources = features.sources
    assert sources["plain"].size is None
    assert sources["🔬"].url == "s3://bucket/🔬.svs"
    first = features.fragments[0]
    assert [record.fragment_id[:12] for record in features.fragments] == [
        "019300000000",
        "019300000001",
        "019300000002",
    ]
    assert first.flags == (("small-image",), (), ())
    assert first.provenance == {"versions": {"histostore": "1"}}
    assert features.builds() == [
        {"failed": [{"image_id": "broken", "url": "b.png", "reason": "no image"}]}
    ]
    assert features.spec.encoder.preprocessing == {
        "mean": [0.5, 1e-05],
        "input_px": 224,
        "größe": 1.0,
    }


def test_todays_writer_writes_what_a_reader_of_that_day_knows(made, tmp_path):
    """F9.3: the same content, written now, is equal in every field that readers go by."""
    made.make(tmp_path / "store")
    for name, features in open_store(str(HERE / "store-v1")).items():
        again = open_store(str(tmp_path / "store"))[name]
        assert again.snapshot == features.snapshot
        for old, new in zip(features.fragments, again.fragments, strict=True):
            assert new.arrays == old.arrays
            assert new.image_ids == old.image_ids


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("where", ["", f"{FLOAT16}", f"{FLOAT16}/fragments/*"])
def test_a_store_of_format_2_is_refused_naming_both_versions(tmp_path, where, mode):
    """F9.2: wherever the number stands, and before anything is written."""
    folder = tmp_path / "store"
    shutil.copytree(HERE / "store-v1", folder)
    (path,) = folder.glob(f"{where}/zarr.json".lstrip("/"))
    document = json.loads(path.read_text(encoding="utf-8"))
    document["attributes"]["histostore"]["format"] = 2
    path.write_text(json.dumps(document), encoding="utf-8")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(VersionError, match=r"format 2; .* reads up to 1"):
        open_store(str(folder), mode=mode)[FLOAT16]
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_every_rule_named_beside_a_test_exists_and_so_does_the_test():
    """The table of docs/format.md points at real tests and real rules."""
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rules = set(re.findall(r"^- \*\*(F\d\.\d+)\*\*", text, re.MULTILINE))
    rows = re.findall(r"^\| (F[^|]+) \| `([^`]+)::([^`]+)` \|$", text, re.MULTILINE)
    assert len(rows) > 20
    for cited, file, test in rows:
        assert set(cited.split(", ")) <= rules, cited
        source = (ROOT / file).read_text(encoding="utf-8")
        assert f"def {test}(" in source, f"{file}::{test}"
