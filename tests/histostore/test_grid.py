"""Where patches lie: properties of any grid on any image."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import ImageError, OptionError
from histostore.grid import MAX_EDGE_PX, PatchGrid

sizes = st.integers(1, 400)


@st.composite
def grids(draw: st.DrawFn, *, overlap: bool = False) -> PatchGrid:
    patch = draw(st.integers(1, 150))
    stride = draw(st.none() | st.integers(1, patch if overlap else 300))
    return PatchGrid(patch, stride)


def test_the_lymphoma_grid_of_the_reference_systems() -> None:
    placement = PatchGrid(104).place(417, 312)
    assert len(placement) == 12
    assert placement.x.tolist() == [0, 104, 208, 312] * 3
    assert placement.y.tolist() == [0] * 4 + [104] * 4 + [208] * 4
    assert (placement.x.dtype, placement.y.dtype) == (np.int32, np.int32)


@given(grids(), sizes, sizes)
def test_origins_lie_inside_once_each_and_row_by_row(grid: PatchGrid, w: int, h: int) -> None:
    placement = grid.place(w, h)
    origins = list(zip(placement.y.tolist(), placement.x.tolist(), strict=True))
    assert origins
    assert origins == sorted(set(origins))
    assert origins[0] == (0, 0)
    assert all(0 <= x < w and 0 <= y < h for y, x in origins)


@given(grids(), sizes, sizes)
def test_a_patch_at_the_border_is_kept_if_half_of_it_lies_inside(
    grid: PatchGrid, w: int, h: int
) -> None:
    placement = grid.place(w, h)
    for origins, length in ((placement.x, w), (placement.y, h)):
        kept = set(origins.tolist())
        for origin in range(0, length, grid.stride):
            half_inside = 2 * min(grid.patch_size, length - origin) >= grid.patch_size
            assert (origin in kept) == (half_inside or origin == 0)


@given(grids(overlap=True), sizes, sizes)
def test_every_pixel_but_a_border_narrower_than_half_a_patch_lies_in_a_patch(
    grid: PatchGrid, w: int, h: int
) -> None:
    placement = grid.place(w, h)
    covered = np.zeros((h, w), bool)
    for x, y in zip(placement.x, placement.y, strict=True):
        covered[y : y + placement.edge_px, x : x + placement.edge_px] = True
    half = placement.edge_px / 2
    rows, columns = covered.any(axis=1), covered.any(axis=0)
    assert covered[np.ix_(rows, columns)].all()
    assert h - rows.sum() < half
    assert w - columns.sum() < half
    assert rows[: rows.sum()].all()
    assert columns[: columns.sum()].all()


@given(st.integers(1, 100), st.integers(1, 100), st.integers(1, 8), sizes, sizes)
def test_a_scale_enlarges_edge_and_stride_alike(
    patch: int, stride: int, scale: int, w: int, h: int
) -> None:
    scaled = PatchGrid(patch, stride, mpp=0.25 * scale).place(w, h, mpp=0.25)
    plain = PatchGrid(patch * scale, stride * scale).place(w, h)
    assert scaled.edge_px == plain.edge_px
    np.testing.assert_array_equal(scaled.x, plain.x)
    np.testing.assert_array_equal(scaled.y, plain.y)


def test_a_finer_grid_than_the_image_has_at_least_one_pixel() -> None:
    assert PatchGrid(2, mpp=0.1).place(3, 3, mpp=10.0).edge_px == 1


def test_an_image_smaller_than_a_patch_has_one_patch() -> None:
    placement = PatchGrid(256).place(5, 1)
    assert (placement.x.tolist(), placement.y.tolist(), placement.edge_px) == ([0], [0], 256)


def test_without_a_scale_the_mpp_of_the_image_does_not_matter() -> None:
    assert PatchGrid(64).place(640, 640, mpp=None).edge_px == 64
    assert PatchGrid(64).place(640, 640, mpp=0.1).edge_px == 64


def test_a_scale_needs_the_mpp_of_the_image() -> None:
    with pytest.raises(ImageError, match="cohort's mpp column"):
        PatchGrid(256, mpp=0.5).place(1000, 1000)


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_an_mpp_that_makes_no_sense_is_refused(mpp: float) -> None:
    with pytest.raises(ImageError, match="makes no sense"):
        PatchGrid(256, mpp=0.5).place(1000, 1000, mpp=mpp)


def test_an_mpp_that_would_ask_for_a_giant_patch_is_refused() -> None:
    with pytest.raises(ImageError, match=f"more than {MAX_EDGE_PX} px"):
        PatchGrid(256, mpp=0.5).place(1000, 1000, mpp=1e-6)


def test_a_patch_of_hardly_any_pixels_is_refused() -> None:
    assert PatchGrid(256, mpp=0.25).place(1000, 1000, mpp=2.0).edge_px == 32
    with pytest.raises(ImageError, match=r"would be 4 px .* ask for a coarser mpp"):
        PatchGrid(256, mpp=0.5).place(1152, 700, mpp=28.97)


def test_a_scale_finer_than_light_is_refused() -> None:
    with pytest.raises(OptionError, match=r"mpp=0\.001: give at least 0\.01"):
        PatchGrid(256, mpp=0.001)


def test_the_edge_is_that_of_every_place() -> None:
    grid = PatchGrid(100, 30, mpp=1.0)
    assert grid.edge_px(0.5) == grid.place(500, 500, 0.5).edge_px == 200


def test_a_billion_patches_are_refused() -> None:
    with pytest.raises(ImageError, match="larger stride"):
        PatchGrid(256, 1).place(100_000, 100_000)


def test_an_image_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="no pixels"):
        PatchGrid(256).place(0, 10)


@given(grids(), st.none() | st.floats(0.01, 50))
def test_a_grid_survives_json(grid: PatchGrid, mpp: float | None) -> None:
    grid = PatchGrid(grid.patch_size, grid.stride, mpp)
    assert PatchGrid.from_json(json.loads(json.dumps(grid.to_json()))) == grid


def test_equal_grids_are_equal_documents() -> None:
    a, b = PatchGrid(64, None, 1), PatchGrid(np.int64(64), 64, np.float32(1.0))
    assert a == b
    assert json.dumps(a.to_json()) == json.dumps(b.to_json())


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, None, 2**31])
def test_a_patch_size_is_a_positive_whole_number(value: object) -> None:
    with pytest.raises(OptionError, match="patch_size="):
        PatchGrid(value)


def test_a_patch_size_is_bounded() -> None:
    with pytest.raises(OptionError, match="at most"):
        PatchGrid(MAX_EDGE_PX + 1)


@pytest.mark.parametrize("value", [0, -1, 1.5, "64", True, 2**31])
def test_a_stride_is_a_positive_whole_number(value: object) -> None:
    with pytest.raises(OptionError, match="stride="):
        PatchGrid(64, value)


@pytest.mark.parametrize("value", [0, -0.5, float("nan"), float("inf"), "1", True])
def test_a_scale_is_a_positive_number(value: object) -> None:
    with pytest.raises(OptionError, match="mpp="):
        PatchGrid(64, mpp=value)
