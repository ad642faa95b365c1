"""Columns per patch beside the seven arrays: kept, checked, merged, mended, and never needed."""

from __future__ import annotations

import json
import uuid
from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.bridges import export_layout
from histostore.errors import FormatError
from histostore.store import Encoding, open_store
from histostore.store.compact import compact
from histostore.store.layout import is_column_name
from histostore.store.record import parse_record, seal
from histostore.store.verify import verify
from histostore.testing import fragment_of, spec_of

COLUMN_NAMES = st.from_regex(r"[a-z][a-z0-9-]{0,9}", fullmatch=True).filter(is_column_name)


def with_columns(fragment, names, seed=0):
    generator = np.random.default_rng([seed, fragment.n_patches])
    columns = {name: generator.random(fragment.n_patches, np.float32) for name in names}
    return replace(fragment, columns=columns)


def empty(url):
    return open_store(url, mode="a").create_feature_set(spec_of())


@given(st.lists(COLUMN_NAMES, unique=True, max_size=3), st.integers(4, 300))
@settings(max_examples=20)
def test_columns_come_back_as_they_were(names, shard_bytes):
    url = f"memory://{uuid.uuid4()}"
    fragment = with_columns(fragment_of("abc", counts=[5, 1, 9]), names)
    empty(url).commit(fragment, {}, encoding=Encoding(shard_bytes=shard_bytes))
    features = open_store(url).feature_set()
    loaded = features.load()
    assert list(loaded.columns) == names
    assert dict(loaded.columns).keys() == set(names)
    for name, column in fragment.columns.items():
        np.testing.assert_array_equal(loaded.columns[name], column)
        np.testing.assert_array_equal(features.bag("c").columns[name], column[6:])
        variable = features.to_xarray()[name]
        assert variable.dims == ("patch",)
        np.testing.assert_array_equal(variable.sel(image_id="a"), column[:5])
    assert verify(url).ok


def test_a_reader_needs_no_column_and_asks_for_none(tmp_path):
    plain, more = str(tmp_path / "plain"), str(tmp_path / "more")
    fragment = fragment_of("abc", counts=4)
    empty(plain).commit(fragment, {})
    empty(more).commit(with_columns(fragment, ["sharpness", "brightness"]), {})
    one, other = (open_store(url).feature_set() for url in (plain, more))
    np.testing.assert_array_equal(one.load().embedding, other.load().embedding)
    np.testing.assert_array_equal(one.load().tissue, other.load().tissue)
    assert not one.load().columns
    assert one.bag("a").columns == {}
    assert "sharpness" not in one.load().columns
    with pytest.raises(KeyError):
        one.load().columns["sharpness"]


def test_rows_of_which_a_column_was_not_stored_read_as_nan():
    url = f"memory://{uuid.uuid4()}"
    features = empty(url)
    features.commit(fragment_of("ab"), {})
    column = with_columns(fragment_of("cd"), ["sharpness"])
    features.commit(column, {})
    found = features.load(["d", "a", "c"]).columns["sharpness"]
    expected = column.columns["sharpness"]
    np.testing.assert_array_equal(found, [*expected[3:], *[np.nan] * 3, *expected[:3]])
    assert not features.load(["a", "b"]).columns
    assert features.bag("b").columns == {}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"tissue": np.ones(3, "f4")}, "not one in use"),
        ({"patch": np.ones(3, "f4")}, "not one in use"),
        ({"feature": np.ones(3, "f4")}, "not one in use"),
        ({"Sharpness": np.ones(3, "f4")}, "a name is like"),
        ({"a/b": np.ones(3, "f4")}, "a name is like"),
        ({"": np.ones(3, "f4")}, "a name is like"),
        ({"sharpness": np.ones(3, "f8")}, "sharpness is float64"),
        ({"sharpness": np.ones((3, 1), "f4")}, "(3, 1)"),
        ({"sharpness": np.ones(2, "f4")}, "(2,)"),
        ({"sharpness": np.array([1, np.nan, 1], "f4")}, "not finite at patch 1"),
        ({"sharpness": np.array([1, 1, np.inf], "f4")}, "not finite at patch 2"),
    ],
    ids=str,
)
def test_columns_that_do_not_fit_are_refused(columns, message):
    with pytest.raises(FormatError) as caught:
        replace(fragment_of("a"), columns=columns)
    assert message in " ".join(caught.value.problems)


def test_damage_to_a_column_is_found_and_named(tmp_path):
    features = empty(str(tmp_path))
    features.commit(with_columns(fragment_of("ab"), ["sharpness"]), {})
    [path] = tmp_path.glob("*/fragments/*/sharpness/c.0")
    content = bytearray(path.read_bytes())
    content[1] ^= 4
    path.write_bytes(content)
    [problem] = verify(str(tmp_path)).problems
    assert (problem.path, problem.image_ids) == ("sharpness/c.0", ("a", "b"))
    path.unlink()
    [problem] = verify(str(tmp_path)).problems
    assert problem.what == "its object is missing"
    with pytest.raises(FormatError, match="sharpness"):
        open_store(str(tmp_path)).feature_set().load().columns["sharpness"]
    assert len(open_store(str(tmp_path)).feature_set().load().tissue) == 6


def test_compact_keeps_columns_and_merges_only_what_has_the_same():
    url = f"memory://{uuid.uuid4()}"
    features = empty(url)
    columns = {"a": (), "b": ("sharpness",), "c": ("sharpness",), "d": (), "e": ("brightness",)}
    for image_id, names in columns.items():
        features.commit(with_columns(fragment_of([image_id]), names, ord(image_id)), {})
    before = {image_id: features.bag(image_id) for image_id in columns}
    report = compact(features)
    assert report.n_after == 3
    for image_id, bag in before.items():
        after = open_store(url).feature_set().bag(image_id)
        np.testing.assert_array_equal(after.embedding, bag.embedding)
        assert after.columns.keys() == bag.columns.keys()
        for name, column in bag.columns.items():
            np.testing.assert_array_equal(after.columns[name], column)
    kinds = sorted(tuple(sorted(record.columns)) for record in features.fragments)
    assert [kind for kind, _ in groupby(kinds)] == [(), ("brightness",), ("sharpness",)]


def test_a_record_that_gives_a_column_another_length_is_refused(tmp_path):
    features = empty(str(tmp_path))
    fragment_id = features.commit(with_columns(fragment_of("ab"), ["sharpness"]), {})
    [path] = tmp_path.glob("*/fragments/*/zarr.json")
    document = json.loads(path.read_bytes())
    document["consolidated_metadata"]["metadata"]["sharpness"]["shape"] = [5]
    document["attributes"]["histostore"]["record_sha256"] = "0" * 64
    content = seal(json.dumps(document).encode())
    with pytest.raises(FormatError, match="sharpness"):
        parse_record(content, fragment_id, feature_set=features.spec.digest)


def test_exports_are_what_they_were_without_columns(tmp_path):
    fragment = fragment_of("ab")
    for name, stored in (("plain", fragment), ("more", with_columns(fragment, ["sharpness"]))):
        empty(str(tmp_path / name)).commit(stored, {})
        export_layout(str(tmp_path / name), str(tmp_path / f"{name}.npz"), "npz")
    with (
        np.load(tmp_path / "plain.npz", allow_pickle=False) as plain,
        np.load(tmp_path / "more.npz", allow_pickle=False) as more,
    ):
        assert plain.files == more.files
