"""What is asked of pixels at build time is done, named by the digest, and found again."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histostore
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build import pipeline as stream
from histostore.build.screening import screen
from histostore.build.specify import settle_stain, specify
from histostore.build.stain import load_target, measure_cohort
from histostore.cohort import Cohort
from histostore.encoders.base import EncoderIdentity
from histostore.errors import Ambiguous, FormatError, NotFound, OptionError
from histostore.grid import PatchGrid
from histostore.images.quality import COLUMNS, QualityFilter, patch_quality
from histostore.images.stain import StainTarget, map_onto
from histostore.images.tissue import TissueFilter
from histostore.views import PatchKey, apply_view
from tests.commands import BUILD, call

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)
OTHER = StainTarget(method="reinhard", values=((180.8, 148.6, 116.5), (35.4, 17.5, 11.1)))


def picture(seed):
    """Two smooth patches, two noisy ones, in pink."""
    rng = np.random.default_rng(seed)
    rgb = np.full((64, 64, 3), (200 - 10 * seed, 120, 170), np.uint8)
    rgb[:, 32:] = (rgb[:, 32:] * rng.uniform(0.5, 1.1, (64, 32, 3))).astype(np.uint8)
    return rgb


@pytest.fixture
def table(tmp_path):
    """Three images and a white one; the last two are held out."""
    pictures = [picture(0), picture(1), picture(2), np.full((64, 64, 3), 255, np.uint8)]
    rows = []
    for number, rgb in enumerate(pictures):
        Image.fromarray(rgb).save(tmp_path / f"{number}.png")
        split = "train" if number < 2 else "test"
        rows.append({"image_id": f"i{number}", "path": f"{number}.png", "split": split})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    return str(tmp_path / "cohort.csv")


class Mean:
    """Encodes a patch as its mean colour."""

    identity = EncoderIdentity(name="mean")
    n_features = 3
    batch_size = 3

    def encode(self, patches):
        return patches.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def mean_encoder(monkeypatch):
    monkeypatch.setattr(EncoderOptions, "load", lambda _: Mean())
    options = replace(OPTIONS, encoder=EncoderOptions(name=f"mean-{id(monkeypatch)}"))
    yield options
    from histostore.build import unit

    unit._load.cache_clear()


def only(url):
    return histostore.open(url).feature_set(None)


def test_quality_is_stored_beside_every_patch(table):
    build(table, "memory://quality-columns", OPTIONS)
    features = only("memory://quality-columns")
    assert "quality" not in features.spec.to_json()
    bag = features.bag("i1")
    for (x, y), at in zip(bag.coords.tolist(), range(4), strict=True):
        expected = patch_quality(picture(1)[None, y : y + 32, x : x + 32])
        for name in COLUMNS:
            np.testing.assert_array_equal(bag.columns[name][at], expected[name][0])


def test_patches_without_detail_are_left_out_and_an_image_without_any_is_flagged(table):
    options = replace(OPTIONS, quality=QualityFilter(min_sharpness=10))
    build(table, "memory://quality-filter", options)
    features = only("memory://quality-filter")
    assert features.spec.to_json()["quality"] == {"min_sharpness": 10.0}
    assert features.bag("i0").coords.tolist() == [[32, 0], [32, 32]]
    assert len(features.bag("i3")) == 1
    flags = {
        name: f for r in features.fragments for name, f in zip(r.image_ids, r.flags, strict=True)
    }
    assert [name for name, flag in flags.items() if "low-quality" in flag] == ["i3"]


def test_every_patch_of_an_image_is_changed_alike_and_white_is_flagged(table, mean_encoder):
    options = replace(mean_encoder, stain=OTHER)
    build(table, "memory://stain-pixels", options)
    features = only("memory://stain-pixels")
    for number in range(3):
        expected = map_onto(OTHER, picture(number)).apply(picture(number))
        bag = features.bag(f"i{number}")
        for vector, (x, y) in zip(bag.embedding, bag.coords, strict=True):
            np.testing.assert_allclose(
                vector, expected[y : y + 32, x : x + 32].mean(axis=(0, 1)), rtol=1e-5
            )
    np.testing.assert_array_equal(features.bag("i3").embedding, 255)
    (record,) = features.fragments
    assert [name for name, flag in zip(record.image_ids, record.flags, strict=True) if flag] == [
        "i3"
    ]
    assert record.flags[record.image_ids.index("i3")] == ("no-stain",)


@pytest.mark.parametrize("block", [1, 3, 64])
def test_drawn_views_do_not_depend_on_blocks(table, mean_encoder, monkeypatch, block):
    monkeypatch.setattr(stream, "BLOCK_PATCHES", block)
    url = f"memory://views-{block}"
    build(table, url, replace(mean_encoder, views=("identity", "jitter-1", "affine-2")))
    for view in ("jitter-1", "affine-2"):
        bag = only(url).bag("i2", view)
        for vector, (x, y) in zip(bag.embedding, bag.coords.tolist(), strict=True):
            patch = picture(2)[None, y : y + 32, x : x + 32]
            seen = apply_view(patch, view, [PatchKey("i2", x, y)])
            np.testing.assert_allclose(vector, seen.mean(axis=(0, 1, 2)), rtol=1e-5)


@pytest.mark.parametrize("method", ["reinhard", "macenko"])
def test_the_target_is_that_of_the_training_images(table, tmp_path, method):
    cohort = Cohort.read(table)
    measured = measure_cohort(cohort, method)
    assert measured == measure_cohort(cohort.select([0, 1]), method)
    assert measured != measure_cohort(
        Cohort.from_frame(cohort.table[["image_id", "path"]], table), method
    )


def test_held_out_images_alone_give_no_target(table):
    with pytest.raises(OptionError, match="--stain-from"):
        measure_cohort(Cohort.read(table).select([2, 3]), "reinhard")


def test_a_build_goes_on_with_the_target_that_the_store_has(table):
    """More images, or other ones, later: the statistics are those of the first day."""
    options = replace(OPTIONS, stain="reinhard")
    build(Cohort.read(table).select([0]), "memory://go-on", options)
    build(table, "memory://go-on", options)
    features = only("memory://go-on")
    assert sorted(features.image_ids) == ["i0", "i1", "i2", "i3"]
    assert features.spec.stain == measure_cohort(Cohort.read(table).select([0]), "reinhard")
    assert build(table, "memory://go-on", options).n_embedded == 0


def test_several_targets_in_a_store_must_be_told_apart(table):
    url = "memory://several-targets"
    build(table, url, replace(OPTIONS, stain="reinhard"))
    build(table, url, replace(OPTIONS, stain=OTHER))
    with pytest.raises(Ambiguous, match=r"--stain-from memory://several-targets/NAME: texture-"):
        build(table, url, replace(OPTIONS, stain="reinhard"))
    with pytest.raises(Ambiguous, match="several stain targets"):
        load_target(url)
    names = {features.spec.stain: name for name, features in histostore.open(url).items()}
    assert load_target(f"{url}/{names[OTHER]}").target == OTHER


def test_a_target_is_taken_from_another_store(table, tmp_path):
    build(table, "memory://training", replace(OPTIONS, stain="macenko"))
    cohort = Cohort.read(table)
    options, origin = settle_stain(OPTIONS, cohort, "memory://external", source="memory://training")
    assert options.stain == only("memory://training").spec.stain
    assert specify(options) == only("memory://training").spec
    assert origin.startswith("texture-")
    with pytest.raises(NotFound, match="normalised by reinhard"):
        load_target("memory://training", "reinhard")
    with pytest.raises(OptionError, match="give one"):
        settle_stain(options, cohort, "memory://external", source="memory://training")


def test_an_unknown_method_is_refused(table):
    with pytest.raises(OptionError, match="unknown stain normalisation 'vahadane'; known: none"):
        build(table, "memory://unknown-method", replace(OPTIONS, stain="vahadane"))


def test_the_command_line_measures_all_and_embeds_a_part(table, tmp_path):
    """Parts of a cohort, and a first try on few images, go to the same target as the whole."""
    store, words = tmp_path / "store", ("--stain", "reinhard", *BUILD)
    part = call("histostore", "build", table, store, *words, "--limit", "1")
    assert part.err == f"Note: stain target measured of {table}\n"
    features = only(str(store))
    assert features.image_ids == ("i0",)
    assert features.spec.stain == measure_cohort(Cohort.read(table), "reinhard")
    whole = call("histostore", "build", table, store, *words, "--json")
    assert whole.err == f"Note: stain target {features.name} in the store\n"
    assert whole.json["n_embedded"] == 3
    external = call("histostore", "build", table, tmp_path / "other", *BUILD, "--stain-from", store)
    assert external.code == 0
    assert only(str(tmp_path / "other")).name == features.name


def test_the_command_line_filters_and_screens(table, tmp_path):
    done = call("histostore", "build", table, tmp_path / "s", *BUILD, "--min-sharpness", "10")
    assert (done.code, only(str(tmp_path / "s")).spec.quality.min_sharpness) == (0, 10)
    (tmp_path / "0.png").write_bytes(b"this is no picture")
    done = call("histostore", "quality", table, "-o", tmp_path / "q.csv", "--min-sharpness", "0")
    assert done.code == 3
    assert "2 of 4 images pass (min_sharpness 0, min_dark_share 0.4)" in done.out


def test_a_target_is_taken_from_a_file(tmp_path):
    path = tmp_path / "published.json"
    path.write_text(json.dumps(OTHER.to_json()))
    assert load_target(str(path), "reinhard").target == OTHER
    path.write_text("{}")
    with pytest.raises(FormatError, match=r"published\.json: stain target"):
        load_target(str(path))


def test_a_feature_set_without_a_recorded_target_takes_no_more(table, monkeypatch):
    """As stores may hold that were written by others."""
    spec = replace(specify(OPTIONS), stain="macenko")
    with pytest.raises(OptionError, match="not recorded"):
        next(stream.encode_images([], spec, Mean(), ("identity",), pool=None))


def test_whole_images_are_measured_and_the_unreadable_do_not_pass(table, tmp_path):
    (tmp_path / "1.png").write_bytes(b"this is no picture")
    found = screen(Cohort.read(table))
    assert [image.passes for image in found.images] == [True, False, True, False]
    assert [image.image_id for image in found.failed] == ["i1"]
    found.write(str(tmp_path / "quality.csv"))
    frame = pd.read_csv(tmp_path / "quality.csv")
    assert list(frame.columns) == ["image_id", *COLUMNS, "passes", "reason"]
    assert frame["passes"].tolist() == [True, False, True, False]
    assert frame["dark-share"].isna().tolist() == [False, True, False, False]
    assert "2 of 4 images pass (min_sharpness 75, min_dark_share 0.4)" in found.to_text()
