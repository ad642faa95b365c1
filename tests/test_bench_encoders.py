"""The benchmarks of encoders compute what they say."""

from __future__ import annotations

import re
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from benchmarks import arithmetic, bench_precision, orders
from benchmarks.bench_build import N_TILED, SIDE, Images, agree, all_patches, cost_of_a_build
from benchmarks.peaks import options_of
from histostore import Cohort
from histostore.images.readers import open_image
from histostore.synthetic import make_cohort


@given(st.integers(0, 2**32 - 1))
def test_macro_f1_of_resamples_is_that_of_the_images_drawn(seed):
    rng = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1, 2], rng.integers(0, 3, 17)])
    guessed = rng.integers(0, 3, (2, len(labels)))
    weights = rng.integers(0, 3, (4, len(labels)))
    weights[:, :3] += 1  # every class is drawn
    scores = bench_precision.macro_f1(guessed, labels, weights)
    for one, row in zip(guessed, scores, strict=True):
        for count, score in zip(weights, row, strict=True):
            drawn = np.repeat(np.arange(len(labels)), count)
            assert score == pytest.approx(f1_score(labels[drawn], one[drawn], average="macro"))


def test_a_row_says_what_was_not_run_and_hides_times_of_a_busy_machine():
    row = {"encoder": "e", "precision": "bfloat16", "stored": "float16", "speed": 1.75}
    row |= {"error_median": 0.01, "error_max": 0.02, "seed_sd": 0.01}
    row |= {key: {"value": 0.5, "low": 0.25, "high": 0.75} for key in ("macro_f1", "change")}
    skipped = {
        "encoder": "e",
        "precision": "float16",
        "stored": "float16",
        "not_run": "no GPU here",
    }
    document = {"machine": {"cores": 2}, "load": [0.1, 1.2], "rows": [row, skipped]}
    quiet = bench_precision.table(document)
    busy = bench_precision.table({**document, "load": [0.1, 3.0]})
    assert "| 1.75 |" in quiet
    assert "1.75" not in busy
    assert "not run: no GPU here" in quiet
    assert len({line.count("|") for line in quiet.splitlines()}) == 1


def test_vectors_that_are_not_the_same_are_no_row():
    vectors = np.ones((3, 4), np.float32)
    agree(vectors, vectors * (1 + 1e-6), "float32")
    with pytest.raises(ValueError, match=r"differ by up to 0\.01"):
        agree(vectors * 1.01, vectors, "float32")
    with pytest.raises(ValueError, match="differ"):
        agree(np.full((3, 4), np.nan), vectors, "bfloat16")


def test_a_build_is_held_against_the_bare_encoder_and_a_loop(tmp_path):
    table = make_cohort(tmp_path, n_images=1, image_px=SIDE, seed=0)
    options = options_of(patch=256, name="texture", threads=1)
    cohort = Cohort.read(str(table))
    rows = cost_of_a_build("texture", cohort, options, target=None, turns=1)
    assert [row.name.partition(" ÷")[0] for row in rows] == ["bare forward", "straight loop"]
    for row in rows:
        assert row.ratio == row.theirs_s / row.ours_s
        assert "patches/s, reading them alone" in row.baseline
        assert "peak memory of the build" in row.baseline
        assert "peak memory of the loop" in row.baseline


def test_orders_of_work_read_the_patches_that_a_build_reads(tmp_path, real_data):
    url = str(real_data / "wsi" / "kidney-48-5-ihc.tif")  # 1493 × 901: patches hang over the border
    with closing(open_image(url)) as reader:
        corners = orders.corners(reader, 256)
    read = all_patches(url, options_of(patch=256))
    with closing(orders.OnePatchEach(url, corners, 256, np.asarray)) as each:
        np.testing.assert_array_equal(np.stack([each[row][0] for row in range(len(each))]), read)
    orders.straight_loop([url], Mean(), 256, tmp_path)
    left = np.load(tmp_path / "0.npz")
    np.testing.assert_array_equal(left["features"], Mean().encode(read))
    np.testing.assert_array_equal(left["coords"], corners)


class Mean:
    """Encodes a patch as its mean colour."""

    batch_size = 5

    def encode(self, patches):
        return patches.mean(axis=(1, 2))


def test_real_images_are_named_and_other_machines_say_synthetic(real_data, tmp_path):
    slide, slides, tiled = Images.real(tmp_path / "tables")
    assert slide.cohort.urls == slides.cohort.urls[:1]
    assert all(Path(url).is_relative_to(real_data) for url in slides.cohort.urls)
    assert len(tiled.cohort) == N_TILED
    drawn = Images.synthetic(tmp_path / "drawn", 1)
    assert {images.told for images in (slide, slides, tiled)}.isdisjoint({drawn.told})


@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_a_forward_pass_in_every_arithmetic_gives_the_vectors(monkeypatch):
    monkeypatch.setattr(arithmetic, "BATCH", 2)
    plain = {what: way for what, way in arithmetic.WAYS.items() if way.dtype != "float16"}
    monkeypatch.setattr(arithmetic, "WAYS", plain)
    monkeypatch.setattr(arithmetic, "_compiler", lambda: None)
    rows = list(arithmetic.forward_times("small", "test_resnet.r160_in1k", turns=1))
    assert len(rows) == len(plain)
    for row, (what, way) in zip(rows, plain.items(), strict=True):
        assert row.name == f"float32, channels first ÷ {what}, small, a batch of 2"
        assert (row.not_run == "no C++ compiler here") == way.compiled
        if not way.compiled:
            error = float(re.search(r"differ by up to (\S+) %", row.baseline)[1])
            assert error < (2 if "bfloat16" in what else 0.01)
