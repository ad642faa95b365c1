"""Pixels that networks are trained on: decoded once, kept whole; bad images, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from histostore.cohort import Cohort
from histostore.errors import CohortError, ImageError, OptionError
from histostore.synthetic import make_cohort
from tests.commands import call
from tests.zoo.finetuning import AMIL, quick
from zoo.errors import NotSupported, RecipeError, RunError, SplitError
from zoo.finetune.checkpoint import load_network, write_tensors
from zoo.finetune.loader import Draw, PixelLoader
from zoo.finetune.pixels import PixelPlan, read_pixels
from zoo.finetune.predicting import attention_of
from zoo.finetune.running import prepare_images
from zoo.finetune.spec import FinetuneSpec
from zoo.fit import make_split
from zoo.run import Run

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Forty-eight images of twelve patients, two classes; each cell of 28 px is known."""
    folder = tmp_path_factory.mktemp("cohort")
    return Path(make_cohort(folder, n_images=48, image_px=112, patch_px=28, planted_share=0.5))


def test_loader_processes_change_no_pixel(table):
    pixels = prepare_images(Cohort.read(table), AMIL).pixels
    draws = [[Draw(row, "right-angles", 3, 1, row)] for row in range(6)]
    draws.append([Draw(0, view="rot90")])
    here = list(PixelLoader(pixels).batches(draws))
    loader = PixelLoader(pixels, workers=1)
    for _ in range(2):  # the process serves several passes
        for mine, theirs in zip(here, loader.batches(draws), strict=True):
            assert torch.equal(mine, theirs)
    assert not torch.equal(here[0], here[1])


def test_images_are_decoded_once_for_all_runs_and_again_when_they_change(
    table, tmp_path, monkeypatch
):
    folder = tmp_path / "moved"
    shutil.copytree(table.parent / "images", folder / "images")
    shutil.copy(table, folder / "cohort.csv")
    plan, cache = PixelPlan(px=16), tmp_path / "cache"
    first = read_pixels(Cohort.read(folder / "cohort.csv"), plan, cache=cache)
    opened = []
    from histostore.images.readers import open_image

    def counted(url, *args):
        opened.append(url)
        return open_image(url, *args)

    monkeypatch.setattr("zoo.finetune.pixels.open_image", counted)
    again = read_pixels(Cohort.read(folder / "cohort.csv"), plan, cache=cache)
    assert not opened
    assert np.array_equal(first.rows, again.rows)
    shutil.copy(folder / "images" / "image-0001.png", folder / "images" / "image-0000.png")
    changed = read_pixels(Cohort.read(folder / "cohort.csv"), plan, cache=cache)
    assert len(opened) == 48
    assert np.array_equal(changed.image(0), changed.image(1))


def test_a_flipped_bit_in_the_cache_is_found_and_the_images_are_decoded_anew(table, tmp_path):
    cohort, plan = Cohort.read(table), PixelPlan(px=16)
    before = np.array(read_pixels(cohort, plan, cache=tmp_path).rows)
    (path,) = tmp_path.glob("pixels-*/pixels.bin")
    content = bytearray(path.read_bytes())
    content[777] ^= 4
    path.write_bytes(content)
    assert np.array_equal(read_pixels(cohort, plan, cache=tmp_path).rows, before)


def test_a_grid_of_28_px_on_breakhis_gives_400_patches_and_tissue_decides_where_it_gives_more(
    real_data,
):
    from histostore.images.readers import open_image

    path = next((real_data / "breakhis-sample").glob("*.png"))
    reader = open_image(str(path))
    pixels, boxes = PixelPlan(px=28, patches=400).read(reader)
    assert pixels.shape == (400, 28, 28, 3)
    assert boxes[0].tolist() == [0, 0, 28, 28]
    fewer, some = PixelPlan(px=28, patches=50).read(reader)
    assert fewer.shape == (50, 28, 28, 3)
    kept = {tuple(box) for box in boxes.tolist()}
    assert {tuple(box) for box in some.tolist()} < kept


def test_bad_images_are_recorded_and_left_out_and_the_rest_is_trained(table, tmp_path):
    folder = tmp_path / "cohort"
    shutil.copytree(table.parent, folder)
    (folder / "images" / "image-0000.png").write_bytes(b"")
    (folder / "images" / "image-0005.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    done = call(
        "zoo", "finetune", folder / "cohort.csv", "--model", "amil-cnn", "--folds", 2,
        "--set", "epochs=1", "--device", "cpu", "-o", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 3
    assert "left out image-0000: " in done.err
    told = Run.load(tmp_path / "run").document["cohort"]
    assert (told["n_images"], told["n_failed"]) == (46, 2)
    assert sorted(told["failed"]) == ["image-0000", "image-0005"]
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="cannot be read"):
        prepare_images(Cohort.read(folder / "cohort.csv"), AMIL)
    (folder / "images" / "image-0000.png").unlink()
    with pytest.raises(CohortError, match="no such file"):
        Cohort.read(folder / "cohort.csv")


@pytest.mark.parametrize(
    ("spec", "settings", "error", "says"),
    [
        (FinetuneSpec(model="smal-cnn"), {}, RecipeError, "did you mean 'small-cnn'"),
        (FinetuneSpec(model="small-cnn", patches=9), {}, OptionError, "sees whole images"),
        (FinetuneSpec(model="small-cnn", weights="w.pt"), {}, RecipeError, "leave --weights out"),
        (AMIL, {"class_weights": "balanced"}, RecipeError, "batches of one bag"),
        (AMIL, {"lr": 10, "optimiser": "sgd"}, RecipeError, "lower lr"),
        (AMIL, {"epoch": 3}, RecipeError, "did you mean 'epochs'"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(
    table, tmp_path, spec, settings, error, says
):
    with pytest.raises(error, match=says) as caught:
        quick(table, tmp_path / "run", spec, **{"epochs": 3, **settings})
    assert "\n" not in str(caught.value)


def test_a_split_of_other_images_is_refused(table, tmp_path):
    fewer = prepare_images(Cohort.read(table).limit(40), AMIL)
    with pytest.raises(SplitError, match="40 other images"):
        quick(table, tmp_path / "run", split=make_split(fewer.images, folds=2))
    assert not (tmp_path / "run").exists()


def test_whole_images_have_no_attention_and_a_file_of_something_else_is_no_network(tmp_path):
    spec = FinetuneSpec(model="small-cnn", px=32)
    with pytest.raises(NotSupported, match="sees whole images"):
        attention_of(spec.network(2, seed=0), torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    write_tensors(tmp_path / "w", "checkpoint", {}, {"x": torch.zeros(1)})
    with pytest.raises(RunError, match="not a network"):
        load_network(tmp_path / "w")
    (tmp_path / "w").write_bytes(b"\x80\x04nothing")
    with pytest.raises(RunError, match="not a network that can be read"):
        load_network(tmp_path / "w")
