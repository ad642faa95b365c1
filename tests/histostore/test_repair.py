"""What is damaged is mended, from the images, and nothing else is touched."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.repair import repair
from histostore.cohort import Cohort
from histostore.errors import FormatError
from histostore.files import stat
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import Encoding, open_store
from histostore.store.layout import metadata_path
from histostore.store.record import seal
from histostore.store.verify import VerifyReport, verify
from histostore.testing import fragment_of, spec_of
from tests.histostore.damage import damage, objects, small_store

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
    views=("identity", "rot90"),
)


@pytest.fixture
def built(tmp_path):
    """A store built from four images, two in each of two fragments: (url, cohort)."""
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image_id": f"image-{number}", "path": f"{number}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = Cohort.read(str(tmp_path / "cohort.csv"))
    for part in (cohort.select([0, 1]), cohort.select([2, 3])):
        build(part, str(tmp_path / "store"), OPTIONS)
    return str(tmp_path / "store"), cohort


@pytest.fixture
def url(tmp_path):
    return small_store(tmp_path)


def rows_of(url):
    features = open_store(url).feature_set()
    chosen = sorted(features.image_ids)
    return [
        (view, bag.embedding.tobytes(), bag.coords.tobytes(), bag.tissue.tobytes())
        for view in features.augmentations
        for bag in (features.bag(image_id, view) for image_id in chosen)
    ]


@pytest.mark.parametrize(
    "pattern",
    [
        "embedding/c.0.0.0",
        "y/c.0",
        "x/c.0",
        "tissue/c.0",
        "embedding/zarr.json",
        "image_id/c.0",
        "offset/c.0",
    ],
)
def test_what_is_damaged_is_embedded_again_and_nothing_else_is_touched(built, pattern):
    url, _ = built
    before = rows_of(url)
    path = damage(url, f"*/fragments/*/{pattern}")
    others = {each: each.read_bytes() for each in objects(url)}
    report = repair(url, EncoderOptions(threads=1))
    [outcome] = report.outcomes
    assert not outcome.kept
    assert verify(url).ok
    assert verify(url).n_replaced == 1
    assert rows_of(url) == before
    # Only rows that may be damaged are computed again: names and metadata need none.
    rows_hit = path.name != "zarr.json" and path.parent.name in ("embedding", "y", "x", "tissue")
    assert outcome.embedded == (("image-0", "image-1") if rows_hit else ())
    assert {each: each.read_bytes() for each in others} == others
    assert repair(url).outcomes == ()


def test_only_the_images_of_a_damaged_shard_are_embedded_again(tmp_path, built, monkeypatch):
    url, _ = built
    features = open_store(url, mode="a").feature_set()
    before = rows_of(url)
    from histostore.store.compact import compact

    compact(features, encoding=Encoding(chunk_bytes=6 * 275 * 4, shard_bytes=6 * 275 * 4))
    merged = features.fragments[0]
    assert merged.image_ids == tuple(f"image-{n}" for n in range(4))
    # One shard holds the six patches of one image in one view.
    damage(url, f"*/fragments/{merged.fragment_id}/embedding/c.1.2.0")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert (outcome.embedded, outcome.n_copied) == (("image-2",), 3)
    assert rows_of(url) == before


def test_a_swapped_object_is_not_believed_although_its_checksums_hold(built):
    url, _ = built
    before = rows_of(url)
    one, other = sorted(Path(url).glob("*/fragments/*/embedding/c.0.0.0"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    report = repair(url, EncoderOptions(threads=1))
    assert len(report.mended) == 2
    assert rows_of(url) == before


def test_a_flipped_bit_of_a_commit_record_is_turned_back(built):
    url, _ = built
    before = {path: path.read_bytes() for path in objects(url)}
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    for at in range(5, path.stat().st_size, 397):
        damage(url, path.relative_to(url).as_posix(), at)
        with pytest.raises(FormatError):
            open_store(url).feature_set()
        assert len(repair(url).mended) == 1
        assert {each: each.read_bytes() for each in objects(url)} == before


def test_a_commit_record_with_more_damage_is_replaced_or_made_way_for(built):
    """It is believed in what the arrays say too, or set aside for the next build."""
    url, cohort = built
    before = rows_of(url)
    copy = url + "-copy"
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    size, outcomes = path.stat().st_size, []
    second = path.read_bytes().index(b'"numpy": "') + 10  # in the provenance
    for at in range(3, size, 257):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(url, copy)
        damage(copy, path.relative_to(url).as_posix(), at)
        damage(copy, path.relative_to(url).as_posix(), second)
        [outcome] = repair(copy, EncoderOptions(threads=1)).outcomes
        outcomes.append("kept" if outcome.kept else "copied" if outcome.n_copied else "embedded")
        if outcome.kept:
            assert "run histostore build" in outcome.kept
            assert build(cohort, copy, OPTIONS).n_embedded == 2
        assert verify(copy).ok
        assert rows_of(copy) == before
    assert outcomes.count("copied") > len(outcomes) // 5
    assert "kept" in outcomes


def test_a_sound_fragment_in_a_wrong_place_is_kept(url):
    folder = min(Path(url).glob("*/fragments/*"))
    shutil.copytree(folder, folder.with_name("1" + folder.name[1:]))
    [kept] = repair(url).kept
    assert f"that of fragment {folder.name}" in kept.kept


def test_sources_that_are_gone_or_changed_leave_everything_as_it_was(built, tmp_path):
    url, cohort = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    before = {path: path.read_bytes() for path in objects(url)}
    (tmp_path / "0.png").rename(tmp_path / "moved.png")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert "image-0 is not at" in outcome.kept
    assert {path: path.read_bytes() for path in objects(url)} == before
    assert not verify(url).ok
    frame = cohort.table.assign(path=["moved.png", "1.png", "2.png", "3.png"])
    frame.to_csv(tmp_path / "moved.csv", index=False)
    moved = Cohort.read(str(tmp_path / "moved.csv"))
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=moved).outcomes
    assert outcome.embedded == ("image-0", "image-1")
    assert verify(url).ok
    assert open_store(url).feature_set().sources["image-0"].url.endswith("moved.png")


def test_a_changed_image_is_embedded_again_only_on_request(built, tmp_path):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "1.png")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert "image-1 has changed" in outcome.kept
    [outcome] = repair(url, EncoderOptions(threads=1), accept_changed=True).outcomes
    assert not outcome.kept
    assert len(open_store(url).feature_set().bag("image-1").embedding) == 4


def test_another_encoder_of_the_same_name_is_refused(built, monkeypatch):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    load = EncoderOptions.load

    def other(self):
        encoder = load(self)

        class Other:
            identity = replace(encoder.identity, weights="sha256:" + "1" * 64)
            n_features, batch_size, encode = encoder.n_features, encoder.batch_size, encoder.encode

        return Other()

    monkeypatch.setattr(EncoderOptions, "load", other)
    [outcome] = repair(url).outcomes
    assert "texture is not here what it was" in outcome.kept
    assert "sha256:111" in outcome.kept


def test_an_encoder_that_cannot_be_had_is_a_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    source = stat(str(tmp_path / "a.png"))
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(replace(fragment_of(["a"]), sources=(source,)), {})
    damage(str(tmp_path / "store"), "*/fragments/*/embedding/c.0.0.0")
    [outcome] = repair(str(tmp_path / "store")).outcomes
    assert "'test'" in outcome.kept  # the encoder of spec_of, which no catalogue has


def test_documents_are_mended_where_it_is_known_what_they_were(url):
    name = next(iter(open_store(url)))
    root, ours = Path(url, metadata_path()), Path(url, metadata_path(name))
    log = next(Path(url, name, "builds").iterdir())
    before = root.read_bytes(), ours.read_bytes(), log.read_bytes()
    for path, at in ((root, 40), (ours, 333), (log, -9)):
        content = bytearray(path.read_bytes())
        content[at] ^= 2
        path.write_bytes(content)
    assert len(repair(url).mended) == 2
    assert len(repair(url).mended) == 1  # the log: seen once the feature set can be read
    assert verify(url).ok
    assert (root.read_bytes(), ours.read_bytes(), log.read_bytes()) == before
    root.unlink()
    ours.write_bytes(b"{}")
    [kept] = repair(url).kept
    assert "histostore build with the same options" in kept.kept
    ours.unlink()
    open_store(url, mode="a").create_feature_set(spec_of())
    assert verify(url).ok
    assert ours.read_bytes() == before[1]


def test_a_record_of_a_newer_format_is_never_touched(url):
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    document = json.loads(path.read_bytes().replace(b'"format": 1', b'"format": 9'))
    document["attributes"]["histostore"]["record_sha256"] = "0" * 64
    content = seal(json.dumps(document).encode())
    path.write_bytes(content)
    [kept] = repair(url).kept
    assert "upgrade" in kept.kept
    assert path.read_bytes() == content


def test_a_report_is_json_and_text(built):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    report = repair(url, EncoderOptions(threads=1))
    assert isinstance(report.before, VerifyReport)
    document = json.loads(json.dumps(report.to_json()))
    assert (document["n_mended"], document["n_kept"]) == (1, 0)
    assert "2 images embedded again" in report.to_text()
