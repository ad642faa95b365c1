"""Squares read from a pyramid are those of level 0, at the cost of the level that is needed."""

from __future__ import annotations

import io
from contextlib import closing

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from histostore.grid import PatchGrid
from histostore.images.levels import PyramidReader, choose_level, read_square, reductions
from histostore.images.memory import MemoryReader
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.images.tiff import TiffReader
from histostore.images.tissue import TissueFilter
from tests.slides import reduced, scene, write_pyramid

WIDTH, HEIGHT = 773, 515


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slide") / "a.tif"
    write_pyramid(path, scene(WIDTH, HEIGHT), 2, 4, 8, mpp=0.25)
    with closing(open_image(str(path))) as reader:
        yield reader


def test_a_tiff_tells_its_levels(slide):
    assert isinstance(slide, PyramidReader)
    assert slide.level_sizes == ((773, 515), (386, 257), (193, 128), (96, 64))
    np.testing.assert_array_equal(
        slide.level_region(2, 10, 20, 30, 40), reduced(scene(WIDTH, HEIGHT), 4)[20:60, 10:40]
    )


@given(data=st.data())
def test_a_square_of_a_pyramid_is_that_of_level_0(slide, data):
    edge = data.draw(st.integers(2, 300))
    x = data.draw(st.integers(0, WIDTH - (edge + 1) // 2 - 1).filter(lambda x: x >= 0))
    y = data.draw(st.integers(0, max(0, HEIGHT - (edge + 1) // 2 - 1)))
    size = data.draw(st.integers(max(1, edge // 9), edge))
    flat = MemoryReader(scene(WIDTH, HEIGHT))
    pixels = read_square(slide, x, y, edge, size).astype(int)
    assert pixels.shape == (size, size, 3)
    inside = (min(size, (HEIGHT - y) * size // edge), min(size, (WIDTH - x) * size // edge))
    difference = np.abs(pixels - read_square(flat, x, y, edge, size))[: inside[0], : inside[1]]
    # Smooth colours: averages over boxes and over triangles, and a border cut off, differ a bit.
    assert difference.size == 0 or difference.mean() < 6


@given(
    st.lists(st.integers(1, 6), max_size=5),
    st.integers(1000, 5000),
    st.integers(1000, 5000),
    st.floats(0.1, 100),
)
def test_a_level_that_is_chosen_is_the_smallest_that_is_fine_enough(steps, width, height, wanted):
    factors = np.cumprod([1, *steps]).tolist()
    sizes = [(width // by, height // by) for by in factors if min(width, height) // by > 10]
    level = choose_level(sizes, wanted)
    by = [max(each) for each in reductions(sizes)]
    assert level == 0 or by[level] <= wanted
    assert all(each > wanted for each, size in zip(by, sizes, strict=True) if size < sizes[level])


def test_a_whole_factor_is_told_from_a_level_that_was_cut_off():
    assert reductions([(1001, 999), (500, 499), (501, 500)]) == ((1, 1), (2, 2), (2, 2))
    assert reductions([(1000, 1000), (300, 300)])[1] == pytest.approx((3.333, 3.333), abs=1e-3)


class CountingFile(io.BytesIO):
    """Counts the bytes that were read from it."""

    n_read = 0

    def read(self, size=-1, /):
        data = super().read(size)
        self.n_read += len(data)
        return data


def test_only_the_level_that_is_needed_is_read():
    file = CountingFile()
    base = scene(1024, 1024)
    with tifffile.TiffWriter(file) as writer:
        kind = {"photometric": "rgb", "tile": (64, 64)}
        for factor in (1, 4):
            writer.write(reduced(base, factor), subfiletype=int(factor > 1), **kind)
    reader = TiffReader(file, "a.tif", mpp=0.25)
    selection = select_patches(reader, PatchGrid(64, mpp=1.0), TissueFilter("none"))
    before = file.n_read
    read_patches(reader, selection, 64)
    n_pixels = 256 * 256
    assert n_pixels * 3 <= file.n_read - before < 2 * n_pixels * 3


def test_at_full_scale_level_0_is_read(slide):
    for edge, size in ((64, 64), (40, 64), (63, 32)):
        expected = read_square(MemoryReader(scene(WIDTH, HEIGHT)), 100, 50, edge, size)
        np.testing.assert_array_equal(read_square(slide, 100, 50, edge, size), expected)


def test_levels_are_put_upright_with_level_0():
    pixels = scene(200, 100)
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for factor in (1, 2):
            stored = np.rot90(reduced(pixels, factor))
            writer.write(
                np.ascontiguousarray(stored),
                photometric="rgb",
                tile=(16, 16),
                subfiletype=int(factor > 1),
                extratags=[(274, "H", 1, 6, True)],
            )
    reader = TiffReader(file, "a.tif")
    assert reader.level_sizes == ((200, 100), (100, 50))
    np.testing.assert_array_equal(reader.region(0, 0, 200, 100), pixels)
    np.testing.assert_array_equal(
        reader.level_region(1, 10, 5, 60, 40), reduced(pixels, 2)[5:45, 10:70]
    )
