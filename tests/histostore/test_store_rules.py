"""Rules of docs/format.md that no other test holds the implementation to, one by one."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.encoders.base import EncoderIdentity
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.store.compact import compact
from histostore.store.describe import describe
from histostore.store.record import BLANK_DIGEST, parse_record, seal
from histostore.store.verify import verify
from histostore.testing import fragment_of, spec_of
from histostore.views import apply_view

ROOT = Path(__file__).parents[2]


@pytest.fixture
def features(tmp_path):
    return open_store(str(tmp_path), mode="a").create_feature_set(spec_of())


def again(tmp_path):
    return open_store(str(tmp_path)).feature_set()


def test_every_rule_is_held_by_a_test():
    text = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rules = re.findall(r"^- \*\*(F\d+\.\d+)\*\*", text, re.MULTILINE)
    rows = re.findall(r"^\| (F\d[^|]+) \| `[^`]+::[^`]+` \|$", text, re.MULTILINE)
    cited = {rule for row in rows for rule in row.split(", ")}
    assert len(rules) == len(set(rules)), "a rule has one meaning"
    assert cited == set(rules)


def test_a_folder_without_a_document_is_no_feature_set(features, tmp_path):
    """F1.2."""
    features.commit(fragment_of("a"), {})
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read-me.txt").write_text("nothing of a store")
    assert list(open_store(str(tmp_path))) == [features.name]
    assert verify(str(tmp_path)).ok


def test_rows_of_all_views_are_of_the_same_patches_in_the_same_order(tmp_path, monkeypatch):
    """F3.5, and F3.6."""

    class Corner:
        identity = EncoderIdentity(name="corner")
        n_features, batch_size = 12, 5

        def encode(self, patches):
            return patches[:, :2, :2].reshape(len(patches), 12).astype(np.float32)

    monkeypatch.setattr("histostore.build.options.load_encoder", lambda *_, **__: Corner())
    pixels = np.random.default_rng(0).integers(0, 255, (24, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "cohort.csv").write_text("image_id,path\na,a.png\n")
    views = ("identity", "rot90", "transpose")
    options = BuildOptions(
        encoder=EncoderOptions(name="corner-of-each-view"),
        grid=PatchGrid(patch_size=8),
        tissue=TissueFilter(method="none"),
        views=views,
    )
    build(str(tmp_path / "cohort.csv"), str(tmp_path / "store"), options)
    built = again(tmp_path / "store")
    patches = np.stack([pixels[y : y + 8, x : x + 8] for x, y in built.bag("a").coords])
    for view in views:
        expected = Corner().encode(apply_view(patches, view))
        np.testing.assert_array_equal(built.bag("a", view).embedding, expected)


def test_a_record_says_what_it_replaces_or_nothing_and_other_keys_are_let_be(features, tmp_path):
    """F5.10."""
    first = features.commit(fragment_of("a"), {})
    second = features.commit(fragment_of("a", seed=1), {}, replaces=[first])
    documents = {
        path.parent.name: json.loads(path.read_bytes())
        for path in tmp_path.glob("*/fragments/*/zarr.json")
    }
    ours = {name: each["attributes"]["histostore"] for name, each in documents.items()}
    assert "replaces" not in ours[first]
    assert ours[second]["replaces"] == [first]
    ours[second] |= {"record_sha256": BLANK_DIGEST, "of-a-later-version": {"any": ["thing"]}}
    content = seal(json.dumps(documents[second]).encode())
    record = parse_record(content, second, feature_set=features.spec.digest)
    assert record.replaces == (first,)
    assert record.image_ids == ("a",)


def test_what_was_committed_is_never_touched_again(features, tmp_path):
    """F6.3."""
    for seed, image_id in enumerate("abc"):
        features.commit(fragment_of(image_id, seed=seed), {})

    def contents():
        return {
            path: path.read_bytes() for path in tmp_path.glob("*/fragments/**/*") if path.is_file()
        }

    before = contents()
    compact(features)
    features.commit(fragment_of("abcd"), {})
    after = contents()
    assert len(after) > len(before)
    assert {path: after[path] for path in before} == before


def test_what_replaces_a_fragment_stands_in_its_place(features, tmp_path):
    """F7.1, F7.3: of a fragment's own id and those it replaces, the smallest decides."""
    first = features.commit(fragment_of("ab", seed=1), {})
    features.commit(fragment_of("cab", seed=2), {})
    new = fragment_of("ab", seed=3)
    last = features.commit(new, {}, replaces=[first])
    assert last > max(record.fragment_id for record in features.fragments[1:])
    there = again(tmp_path)
    assert there.image_ids == ("a", "b", "c")
    np.testing.assert_array_equal(there.load(["a", "b"]).embedding, new.embedding[0])
    assert there.snapshot == features.snapshot


def test_a_reader_needs_of_a_build_only_what_failed(features):
    """F8.2."""
    features.commit(fragment_of("a"), {})
    failed = {"image_id": "b", "url": "b.png", "reason": "it is no picture"}
    features.record_build({"failed": [failed], "of-a-later-version": 1})
    assert describe(features)["failed"] == [failed]
    features.record_build({})
    assert describe(features)["n_failed"] == 1


def test_a_build_record_begins_with_its_digest_whatever_else_it_holds():
    """F8.4."""
    url = f"memory://{uuid.uuid4()}"
    features = open_store(url, mode="a").create_feature_set(spec_of())
    document = {"failed": [], "cohort": '"record_sha256": "' + "1" * 64, "a": BLANK_DIGEST}
    build_id = features.record_build(document)
    content = features.backend.read(f"{features.name}/builds/{build_id}.json")
    assert content.startswith(b'{"record_sha256": "')
    assert next(iter(json.loads(content))) == "record_sha256"
    assert features.builds() == [document]
    features.backend.put(f"{features.name}/builds/{build_id}.json", b'{"failed": []}')
    assert features.builds() == [{"failed": []}]
