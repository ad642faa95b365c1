"""Which patches are kept, and their pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import ImageError
from histostore.grid import PatchGrid
from histostore.images.memory import MemoryReader
from histostore.images.patches import NO_TISSUE, SMALL_IMAGE, read_patches, select_patches
from histostore.images.readers import Reader
from histostore.images.tissue import TissueFilter

PINK = (230, 160, 200)


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Noise on white, tissue in some places."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rgb = np.full((height, width, 3), 255, np.uint8)
    rgb[rng.random((height, width)) < draw(st.floats(0, 1))] = PINK
    return rgb


grids = st.builds(PatchGrid, st.integers(1, 40), st.none() | st.integers(1, 40))
filters = st.builds(
    TissueFilter,
    st.sampled_from(["hsv", "otsu", "none"]),
    st.floats(0, 1),
    st.none() | st.integers(1, 6),
)


def white(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 255, np.uint8)


def test_a_memory_reader_is_a_reader() -> None:
    reader: Reader = MemoryReader(white(2, 3), mpp=0.5)
    assert isinstance(reader, Reader)
    assert (reader.width_px, reader.height_px, reader.mpp) == (3, 2, 0.5)


@given(pictures(), grids, filters)
def test_the_kept_patches_are_those_with_the_most_tissue(
    rgb: np.ndarray, grid: PatchGrid, tissue: TissueFilter
) -> None:
    selection = select_patches(MemoryReader(rgb), grid, tissue)
    kept, shares = selection.kept, selection.tissue
    assert kept.dtype == np.int64
    assert shares.shape == (len(selection.placement),)
    assert len(kept) >= 1
    assert (np.diff(kept) > 0).all()
    enough = np.flatnonzero(shares >= np.float32(tissue.min_tissue))
    if len(enough) == 0:
        assert NO_TISSUE in selection.flags
        assert len(kept) == 1
        assert shares[kept[0]] == shares.max()
        return
    assert NO_TISSUE not in selection.flags
    assert set(kept) <= set(enough)
    assert len(kept) == min(len(enough), tissue.top_k or len(enough))
    rejected = np.setdiff1d(enough, kept)
    # Best first, and of equal ones the first in the grid.
    worst = min((shares[i], -i) for i in kept)
    assert all((shares[i], -i) < worst for i in rejected)


@given(pictures(), grids, filters)
def test_patches_are_the_pixels_of_the_picture_reflected_at_its_border(
    rgb: np.ndarray, grid: PatchGrid, tissue: TissueFilter
) -> None:
    size = grid.patch_size
    selection = select_patches(MemoryReader(rgb), grid, tissue)
    patches = read_patches(MemoryReader(rgb), selection, size)
    assert patches.shape == (len(selection.kept), size, size, 3)
    assert patches.dtype == np.uint8
    rows = np.pad(np.arange(rgb.shape[0]), (0, size), mode="reflect")
    columns = np.pad(np.arange(rgb.shape[1]), (0, size), mode="reflect")
    for number, patch in zip(selection.kept, patches, strict=True):
        x, y = selection.placement.x[number], selection.placement.y[number]
        inside = rgb[y : y + size, x : x + size]
        np.testing.assert_array_equal(patch[: inside.shape[0], : inside.shape[1]], inside)
        if inside.shape[:2] == rgb.shape[:2]:
            np.testing.assert_array_equal(patch, rgb[np.ix_(rows[:size], columns[:size])])


@given(pictures(), grids)
def test_a_part_of_a_selection_reads_a_part_of_the_patches(
    rgb: np.ndarray, grid: PatchGrid
) -> None:
    reader = MemoryReader(rgb)
    selection = select_patches(reader, grid, TissueFilter("none"))
    part = replace(selection, kept=selection.kept[1::2])
    np.testing.assert_array_equal(
        read_patches(reader, part, grid.patch_size),
        read_patches(reader, selection, grid.patch_size)[1::2],
    )


def test_the_border_is_mirrored_without_repeating_the_last_pixel() -> None:
    row = np.array([[[1] * 3, [2] * 3, [3] * 3]], np.uint8)
    reader = MemoryReader(row)
    selection = select_patches(reader, PatchGrid(4), TissueFilter("none"))
    assert read_patches(reader, selection, 4)[0, :, :, 0].tolist() == [[1, 2, 3, 2]] * 4


@pytest.mark.parametrize("level", [0, 128, 255])
def test_an_empty_picture_keeps_its_central_patch_and_says_so(level: int) -> None:
    reader = MemoryReader(np.full((50, 50, 3), level, np.uint8))
    selection = select_patches(reader, PatchGrid(10), TissueFilter())
    assert selection.kept.tolist() == [12]
    assert selection.flags == (NO_TISSUE,)
    assert not selection.tissue.any()


def test_a_nearly_empty_picture_keeps_its_best_patch() -> None:
    rgb = white(50, 50)
    rgb[45, 45] = PINK
    selection = select_patches(MemoryReader(rgb), PatchGrid(10), TissueFilter())
    assert selection.kept.tolist() == [24]
    assert selection.flags == (NO_TISSUE,)


@pytest.mark.parametrize(
    ("height", "width", "n_patches", "flags"),
    [
        (1, 1, 1, (SMALL_IMAGE, NO_TISSUE)),
        (1, 640, 10, (SMALL_IMAGE, NO_TISSUE)),
        (640, 1, 10, (SMALL_IMAGE, NO_TISSUE)),
        (5, 2000, 31, (SMALL_IMAGE, NO_TISSUE)),  # 2000 = 31 × 64 + 16: less than half
        (2000, 5, 31, (SMALL_IMAGE, NO_TISSUE)),
        (64, 64, 1, (NO_TISSUE,)),
    ],
)
def test_tiny_and_thin_pictures(
    height: int, width: int, n_patches: int, flags: tuple[str, ...]
) -> None:
    reader = MemoryReader(white(height, width))
    selection = select_patches(reader, PatchGrid(64), TissueFilter())
    assert len(selection.placement) == n_patches
    assert selection.flags == flags
    assert (read_patches(reader, selection, 64) == 255).all()


@pytest.mark.parametrize("mpp", [0.25, 1.0])
def test_a_scale_resizes_every_patch(mpp: float) -> None:
    rgb = np.zeros((128, 128, 3), np.uint8)
    rgb[:64, :64], rgb[:64, 64:], rgb[64:, :64], rgb[64:, 64:] = 10, 60, 110, 160
    reader = MemoryReader(rgb, mpp=mpp)
    grid = PatchGrid(round(64 * mpp / 0.5), mpp=0.5)
    selection = select_patches(reader, grid, TissueFilter("none"))
    assert selection.placement.edge_px == 64
    patches = read_patches(reader, selection, grid.patch_size)
    assert patches.shape == (4, grid.patch_size, grid.patch_size, 3)
    for patch, level in zip(patches, (10, 60, 110, 160), strict=True):
        assert (patch == level).all()


def test_reducing_averages_instead_of_skipping_pixels() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2 * 200
    rgb = np.repeat(checks[..., None], 3, axis=2).astype(np.uint8)
    reader = MemoryReader(rgb, mpp=0.25)
    selection = select_patches(reader, PatchGrid(16, mpp=1.0), TissueFilter("none"))
    inner = read_patches(reader, selection, 16)[0, 2:-2, 2:-2]
    assert abs(inner.astype(int) - 100).max() <= 3


def test_a_scale_without_the_mpp_of_the_picture_is_an_error() -> None:
    with pytest.raises(ImageError, match="mpp column"):
        select_patches(MemoryReader(white(9, 9)), PatchGrid(4, mpp=0.5), TissueFilter())


@given(pictures(), st.integers(1, 70))
def test_a_thumbnail_is_never_larger_than_asked_nor_than_the_picture(
    rgb: np.ndarray, max_px: int
) -> None:
    small = MemoryReader(rgb).thumbnail(max_px)
    assert max(small.shape[:2]) <= max_px
    assert small.shape[0] <= rgb.shape[0]
    assert small.shape[1] <= rgb.shape[1]


@pytest.mark.parametrize(
    "box", [(-1, 0, 1, 1), (0, 0, 0, 1), (0, 0, 4, 1), (3, 0, 1, 1), (0, 2, 1, 1)]
)
def test_a_region_outside_the_picture_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(ImageError, match="not inside the image of 3×2 px"):
        MemoryReader(white(2, 3)).region(*box)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((2, 3), np.uint8),
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((2, 3, 3), np.float32),
        np.zeros((0, 3, 3), np.uint8),
    ],
)
def test_a_memory_reader_takes_rgb_bytes_only(pixels: np.ndarray) -> None:
    with pytest.raises(ImageError, match="give uint8"):
        MemoryReader(pixels)
