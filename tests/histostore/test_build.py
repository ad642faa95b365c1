"""A build computes each row once, whatever happens to it on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

import histostore
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.pipeline import prefetch
from histostore.encoders.base import EncoderIdentity
from histostore.errors import OptionError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)


def picture(seed, width=96, height=64):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def table(tmp_path):
    """A cohort of six small images, one of them broken."""
    rows = []
    for number in range(6):
        path = tmp_path / f"image-{number}.png"
        Image.fromarray(picture(number)).save(path)
        rows.append({"image_id": f"image-{number}", "path": path.name, "label": "ab"[number % 2]})
    (tmp_path / "image-3.png").write_bytes(b"this is no picture")
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    return str(tmp_path / "cohort.csv")


def everything(url, view="identity"):
    features = histostore.open(url).feature_set(None)
    loaded = features.load(sorted(features.image_ids), augmentation=view)
    return loaded.image_ids, loaded.offset, loaded.embedding


def same(left, right):
    return left[0] == right[0] and all(
        np.array_equal(a, b) for a, b in zip(left[1:], right[1:], strict=True)
    )


def test_a_broken_image_is_recorded_and_the_rest_is_embedded(table, tmp_path):
    report = build(table, str(tmp_path / "store"), OPTIONS)
    assert [failure.image_id for failure in report.failed] == ["image-3"]
    assert report.n_embedded == 5
    features = histostore.open(str(tmp_path / "store")).feature_set(None)
    assert sorted(features.image_ids) == [f"image-{n}" for n in (0, 1, 2, 4, 5)]
    assert [item["image_id"] for item in features.builds()[-1]["failed"]] == ["image-3"]


def test_a_second_build_does_nothing_but_try_the_failed_again(table, tmp_path):
    store = str(tmp_path / "store")
    build(table, store, OPTIONS)
    before = everything(store)
    again = build(table, store, OPTIONS)
    assert (again.n_done, again.n_embedded, len(again.failed)) == (5, 0, 1)
    Image.fromarray(picture(3)).save(tmp_path / "image-3.png")
    mended = build(table, store, OPTIONS)
    assert (mended.n_done, mended.n_embedded, mended.failed) == (5, 1, ())
    assert set(before[0]) < set(everything(store)[0])
    assert build(table, store, OPTIONS).n_embedded == 0


def test_views_added_later_equal_views_built_at_once(table, tmp_path):
    both = BuildOptions(
        encoder=OPTIONS.encoder,
        grid=OPTIONS.grid,
        tissue=OPTIONS.tissue,
        views=("identity", "rot90"),
    )
    build(table, str(tmp_path / "once"), both)
    build(table, str(tmp_path / "later"), OPTIONS)
    build(table, str(tmp_path / "later"), both)
    for view in both.views:
        assert same(
            everything(str(tmp_path / "once"), view), everything(str(tmp_path / "later"), view)
        )


def test_rows_are_the_encoders_own_answer_to_each_patch(table, tmp_path):
    build(table, str(tmp_path / "store"), OPTIONS)
    features = histostore.open(str(tmp_path / "store")).feature_set(None)
    bag = features.bag("image-2")
    encoder = OPTIONS.encoder.load()
    pixels = picture(2)
    for (x, y), row in zip(bag.coords, bag.embedding, strict=True):
        np.testing.assert_allclose(
            encoder.encode(pixels[None, y : y + 32, x : x + 32])[0], row, rtol=1e-6
        )


def test_a_store_in_memory_is_built_alike(table, tmp_path):
    url = f"memory://{uuid.uuid4()}"
    build(table, url, OPTIONS)
    build(table, str(tmp_path / "store"), OPTIONS)
    assert same(everything(url), everything(str(tmp_path / "store")))


def test_worker_processes_give_the_same_rows(table, tmp_path):
    pytest.importorskip("distributed")
    build(table, str(tmp_path / "threads"), OPTIONS)
    report = build(table, str(tmp_path / "workers"), OPTIONS, workers=2)
    assert report.n_embedded == 5
    assert same(everything(str(tmp_path / "threads")), everything(str(tmp_path / "workers")))


def test_workers_cannot_write_into_this_process_memory(table):
    with pytest.raises(OptionError, match="memory"):
        build(table, "memory://x", OPTIONS, workers=2)


def test_an_encoder_that_fails_stops_the_build_and_what_was_committed_stays(
    table, tmp_path, monkeypatch
):
    class Failing:
        identity = EncoderIdentity(name="failing")
        n_features, batch_size = 4, 6

        def encode(self, patches):
            raise MemoryError("no more")

    monkeypatch.setattr("histostore.build.options.load_encoder", lambda *_, **__: Failing())
    options = BuildOptions(encoder=EncoderOptions(name="failing"), grid=OPTIONS.grid)
    with pytest.raises(MemoryError):
        build(table, str(tmp_path / "store"), options)
    assert histostore.open(str(tmp_path / "store")).feature_set(None).fragments == ()


def test_an_embedding_that_float16_cannot_hold_is_refused(table, tmp_path, monkeypatch):
    class Large:
        identity = EncoderIdentity(name="large")
        n_features, batch_size = 4, 6

        def encode(self, patches):
            return np.full((len(patches), 4), 1e6, np.float32)

    monkeypatch.setattr("histostore.build.options.load_encoder", lambda *_, **__: Large())
    options = BuildOptions(encoder=EncoderOptions(name="large"), grid=OPTIONS.grid, dtype="float16")
    with pytest.raises(OptionError, match="float32"):
        build(table, str(tmp_path / "store"), options)


def test_progress_ends_at_the_number_of_images(table, tmp_path):
    seen = []
    build(table, str(tmp_path / "store"), OPTIONS, progress=seen.append)
    assert [now.n_images for now in seen] == list(range(1, 7))
    assert (seen[-1].n_total, seen[-1].n_failed) == (6, 1)


def test_any_reader_of_zarr_opens_a_fragment(table, tmp_path):
    build(table, str(tmp_path / "store"), OPTIONS)
    features = histostore.open(str(tmp_path / "store")).feature_set(None)
    [fragment] = (tmp_path / "store" / features.name / "fragments").iterdir()
    plain = xr.open_zarr(fragment)
    assert plain["embedding"].dims == ("augmentation", "patch", "feature")
    ids, offset = plain["image_id"].values, plain["offset"].values
    for number, image_id in enumerate(ids):
        rows = plain["embedding"].values[0, offset[number] : offset[number + 1]]
        np.testing.assert_array_equal(rows, features.bag(str(image_id)).embedding)


def test_a_killed_build_resumes_to_the_same_rows(tmp_path):
    """Kill a real process at several moments, then build again and compare."""
    rows = []
    for number in range(150):
        path = tmp_path / f"{number}.png"
        Image.fromarray(picture(number)).save(path)
        rows.append({"image_id": f"{number:03}", "path": path.name})
    cohort = tmp_path / "cohort.csv"
    pd.DataFrame(rows).to_csv(cohort, index=False)
    build(str(cohort), str(tmp_path / "whole"), OPTIONS)
    expected = everything(str(tmp_path / "whole"))
    command = [
        *(sys.executable, "-c", "import cli; cli.histostore_main()", "build", str(cohort)),
        *(str(tmp_path / "killed"), "--patch-size", "32", "--tissue", "none", "--threads", "1"),
    ]
    survived = []
    for images_there in (0, 1, 65):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and committed(tmp_path / "killed") < images_there:
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        survived.append(committed(tmp_path / "killed"))
    report = build(str(cohort), str(tmp_path / "killed"), OPTIONS)
    assert report.n_embedded == 150 - survived[-1]
    assert same(everything(str(tmp_path / "killed")), expected)


def committed(store):
    """Images a reader sees in a store that may not be there yet."""
    if not (store / "zarr.json").exists():
        return 0
    found = histostore.open(str(store))
    return sum(len(features.image_ids) for features in found.values())


def test_reading_ahead_keeps_order_and_its_bound():
    from concurrent.futures import ThreadPoolExecutor

    running = []
    with ThreadPoolExecutor(3) as pool:
        results = prefetch(pool, lambda n: running.append(n) or n * n, iter(range(50)), depth=4)
        first = next(results)
        assert first == 0
        assert len(running) <= 4
        assert list(results) == [n * n for n in range(1, 50)]
