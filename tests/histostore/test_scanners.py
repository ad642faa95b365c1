"""Slides of Leica, Ventana, Hamamatsu and 3DHISTECH: made here, opened by OpenSlide, read by us."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest

import histostore
from histostore.errors import ImageError
from histostore.images.levels import read_square
from histostore.images.readers import open_image
from tests.commands import BUILD, call, write_table
from tests.scanners import write_bif, write_mrxs, write_ndpi, write_scn
from tests.slides import reduced, scene

if TYPE_CHECKING:
    from pathlib import Path

openslide = pytest.importorskip("openslide", reason="OpenSlide is not installed")
from histostore.images.openslide import OpenSlideReader  # noqa: E402

PIXELS = scene(256, 192)


@dataclass(frozen=True)
class Slide:
    """A slide of 0.5 µm/px, and what is known of it."""

    path: Path
    vendor: str
    """Who OpenSlide takes it for."""
    margin: int
    """Bare glass around what was scanned, px."""
    factor: int
    """Of level 1."""
    error: int
    """Greatest difference of a pixel, of those whose tiles are JPEG."""

    @property
    def expected(self):
        edges = (self.margin, self.margin)
        return np.pad(PIXELS, (edges, edges, (0, 0)), constant_values=255)


@pytest.fixture(
    params=[
        pytest.param((write_scn, "leica", 32, 4, 0), id="scn"),
        pytest.param((write_bif, "ventana", 0, 2, 0), id="bif"),
        pytest.param((write_ndpi, "hamamatsu", 0, 2, 5), id="ndpi"),
        pytest.param((write_mrxs, "mirax", 0, 2, 5), id="mrxs"),
    ]
)
def slide(request, tmp_path):
    write, *known = request.param
    suffix = write.__name__.removeprefix("write_")
    return Slide(write(tmp_path / f"slide.{suffix}", PIXELS, mpp=0.5), *known)


def assert_close(seen, expected, error):
    assert seen.shape == expected.shape
    assert np.abs(seen.astype(int) - expected).max() <= error


def test_openslide_takes_it_for_its_scanner_s(slide):
    assert openslide.OpenSlide.detect_format(str(slide.path)) == slide.vendor


def test_pixels_scale_and_levels_are_those_that_were_written(slide):
    expected = slide.expected
    height, width = expected.shape[:2]
    small = reduced(expected, slide.factor)
    with closing(open_image(str(slide.path))) as reader:
        assert isinstance(reader, OpenSlideReader)
        assert (reader.width_px, reader.height_px, reader.mpp) == (width, height, 0.5)
        assert reader.level_sizes[1] == (width // slide.factor, height // slide.factor)
        assert_close(reader.region(0, 0, width, height), expected, slide.error)
        # Over the border of tiles, and of what was scanned.
        assert_close(reader.region(17, 23, 75, 51), expected[23:74, 17:92], slide.error)
        level = reader.level_region(1, 3, 5, 40, 30)
        assert_close(level, small[5:35, 3:43], slide.error)
        assert_close(reader.thumbnail(width // slide.factor), small, slide.error)


def test_a_patch_at_another_scale_comes_from_its_level(slide):
    expected, edge = slide.expected, 32 * slide.factor
    with closing(open_image(str(slide.path))) as reader:
        patch = read_square(reader, 64, 64, edge, 32)
    whole = expected[64 : 64 + edge, 64 : 64 + edge]
    assert_close(patch, reduced(whole, slide.factor), slide.error + 1)


def test_a_slide_far_away_is_the_same(slide):
    fs = fsspec.filesystem("memory")
    for file in slide.path.parent.rglob("*.*"):
        fs.pipe_file(f"/far/{file.relative_to(slide.path.parent)}", file.read_bytes())
    width, height = slide.expected.shape[1::-1]
    with closing(open_image(f"memory://far/{slide.path.name}")) as reader:
        assert_close(reader.region(0, 0, width, height), slide.expected, slide.error)


def test_build_embeds_it_at_the_scale_asked_for(slide):
    table = write_table(
        slide.path.parent / "cohort.csv", [{"image_id": "a", "path": slide.path.name}]
    )
    store = slide.path.parent / "store"
    done = call("histostore", "build", table, store, *BUILD, "--encoder", "texture", "--mpp", "1")
    assert done.code == 0, done.err
    (features,) = histostore.open(str(store)).values()
    height, width = slide.expected.shape[:2]
    places = [[x, y] for y in range(0, height, 64) for x in range(0, width, 64)]
    assert features.bag("a").coords.tolist() == places


def test_a_slide_cut_short_is_refused_in_one_line(slide):
    data = max(slide.path.parent.rglob("*.*"), key=lambda file: file.stat().st_size)
    data.write_bytes(data.read_bytes()[: data.stat().st_size // 3])
    with (
        pytest.raises(ImageError, match=slide.path.name) as caught,
        closing(open_image(str(slide.path))) as reader,
    ):
        reader.region(0, 0, reader.width_px, reader.height_px)
    assert "\n" not in str(caught.value)
