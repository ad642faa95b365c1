"""Previews: kept patches bright, the rest dark, every image accounted for."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histostore.cohort import Cohort
from histostore.errors import StorageError
from histostore.grid import PatchGrid
from histostore.images.contact_sheet import preview_cohort
from histostore.images.memory import MemoryReader
from histostore.images.patches import select_patches
from histostore.images.preview import draw_preview
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from tests.commands import call, make_cohort, write_table
from tests.slides import scene, write_pyramid


def slide(width=600, height=400):
    pixels = np.full((height, width, 3), 250, np.uint8)
    pixels[100:300, 200:400] = (200, 90, 150)
    return MemoryReader(pixels, mpp=0.5)


def test_kept_patches_are_as_they_are_and_all_else_is_dark():
    reader = slide()
    selection = select_patches(reader, PatchGrid(100), TissueFilter())
    picture = np.asarray(draw_preview(reader, selection, title="a"))
    assert picture.shape[1] == 600
    inner = picture[105:195, 205:295]
    assert (inner == (200, 90, 150)).all()
    assert (picture[5:95, 5:95] < 140).all()
    assert tuple(picture[150, 200]) == (0, 190, 140)
    assert (picture[400:] > 240).mean() > 0.8  # the caption
    assert (picture[400:] < 100).any()


@settings(max_examples=25)
@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 400), st.booleans())
def test_any_image_and_grid_can_be_drawn(width, height, patch, scaled):
    reader = MemoryReader(np.full((height, width, 3), 90, np.uint8), mpp=0.25 if scaled else None)
    patch = max(patch, max(width, height) // 300)
    selection = select_patches(reader, PatchGrid(patch), TissueFilter("none"))
    picture = draw_preview(reader, selection, patch_size=patch, title="Ünïcode 図")
    assert max(picture.width, picture.height - 200) <= 1024
    assert picture.mode == "RGB"


def test_small_patches_are_outlined_together():
    reader = slide(3000, 2000)
    selection = select_patches(reader, PatchGrid(10), TissueFilter())
    picture = np.asarray(draw_preview(reader, selection))
    outline = (picture == (0, 190, 140)).all(axis=-1).sum()
    assert 0 < outline < 4 * 200  # the rim of the square, not every patch


def test_a_slide_is_drawn_from_its_pyramid(tmp_path):
    path = write_pyramid(tmp_path / "a.tif", scene(2048, 1024), 4, mpp=0.5)
    with closing(open_image(str(path))) as reader:
        reader.region = None  # level 0 is not asked
        selection = select_patches(reader, PatchGrid(256), TissueFilter("none"))
        assert draw_preview(reader, selection, max_px=512).width == 512


def test_every_image_has_a_picture_or_a_reason(tmp_path):
    make_cohort(tmp_path, n=3)
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    rows = [{"image_id": f"<b>/{n}", "path": f"images/{n}.png"} for n in range(3)]
    cohort = Cohort.read(write_table(tmp_path / "cohort.csv", rows))
    seen = []
    report = preview_cohort(
        cohort,
        tmp_path / "out" / "deep",
        PatchGrid(32),
        TissueFilter(),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [image.image_id for image in report.failed] == ["<b>/1"]
    page = (tmp_path / "out" / "deep" / "index.html").read_text()
    assert "<b>/" not in page
    assert "is no PNG file" in page
    for image in report.images[::2]:
        assert image.file in page
        assert (image.n_kept, image.n_patches) == (6, 6)
        Image.open(tmp_path / "out" / "deep" / image.file).verify()
    assert "2 of 3 images, 12 of 12 patches kept" in report.to_text()


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "out").write_text("a file")
    cohort = Cohort.read(make_cohort(tmp_path, n=1))
    with pytest.raises(StorageError, match="out: "):
        preview_cohort(cohort, tmp_path / "out", PatchGrid(32), TissueFilter())


def test_the_command_draws_and_says_what_failed(tmp_path):
    table = make_cohort(tmp_path, n=3)
    words = ("preview", table, "-o", tmp_path / "out", "--patch-size", "32", "--limit", "2")
    done = call("histostore", *words, "--json")
    assert done.code == 0
    assert [image["n_kept"] for image in done.json["images"]] == [6, 6]
    failed = call("histostore", *words, "--mpp", "0.5")
    assert failed.code == 3
    assert "i1: " in failed.out
    assert "give it in the cohort's mpp column" in failed.out


@pytest.mark.real
def test_real_slides_are_drawn(real_data, tmp_path):
    paths = sorted((real_data / "wsi").glob("*"))
    rows = [{"image_id": path.name, "path": str(path)} for path in paths if path.suffix != ".dcm"]
    table = write_table(tmp_path / "cohort.csv", rows)
    report = preview_cohort(Cohort.read(table), tmp_path / "out", PatchGrid(104), TissueFilter())
    assert [image.image_id for image in report.failed] == ["broken.svs"]
    kept = {image.image_id: image.n_kept for image in report.images}
    assert kept["kidney-48-5-ihc.tif"] == 1
    assert kept["tcga-cr-7395-01a-01-ts1.svs"] > 900
