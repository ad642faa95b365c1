"""What counts as tissue, and each patch's share of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2hsv

from histostore.errors import OptionError
from histostore.grid import PatchGrid
from histostore.images.tissue import METHODS, TissueFilter, tissue_mask, tissue_shares

WHITE, BLACK, GREY, PINK, PURPLE = (
    (250, 250, 250),
    (4, 2, 3),
    (60, 60, 60),
    (230, 160, 200),
    (90, 50, 120),
)
seeds = st.integers(0, 2**32 - 1)


def picture(*colours: tuple[int, int, int]) -> np.ndarray:
    """One column per colour."""
    return np.array([colours] * 4, np.uint8)


@pytest.mark.parametrize(
    ("method", "tissue"),
    [
        ("hsv", [False, False, False, True, True]),
        ("otsu", [False, True, True, False, True]),  # luminance knows no colour
        ("none", [True] * 5),
    ],
)
def test_what_each_method_calls_tissue(method: str, tissue: list[bool]) -> None:
    mask = tissue_mask(picture(WHITE, BLACK, GREY, PINK, PURPLE), method)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [tissue] * 4


@given(seeds)
def test_the_hsv_filter_is_that_of_scikit_image(seed: int) -> None:
    rgb = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    hsv = rgb2hsv(rgb)
    exact = (hsv[..., 1] >= 0.07 - 1e-12) & (hsv[..., 2] >= 0.1)
    np.testing.assert_array_equal(tissue_mask(rgb, "hsv"), exact)


@pytest.mark.parametrize("method", ["hsv", "otsu"])
@pytest.mark.parametrize("level", [0, 128, 221, 255])
def test_a_picture_of_one_grey_has_no_tissue(method: str, level: int) -> None:
    assert not tissue_mask(np.full((5, 6, 3), level, np.uint8), method).any()


def test_the_noise_of_an_empty_slide_is_no_tissue_to_otsu() -> None:
    noise = np.random.default_rng(0).integers(230, 256, (50, 50, 3), dtype=np.uint8)
    assert not tissue_mask(noise, "otsu").any()


def test_an_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="known: hsv, otsu, none"):
        tissue_mask(picture(WHITE), "hed")
    with pytest.raises(OptionError, match="known: hsv, otsu, none"):
        TissueFilter("hed")


@given(seeds, st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.integers(1, 20))
def test_shares_are_means_of_the_part_inside(
    seed: int, w: int, h: int, patch: int, stride: int
) -> None:
    mask = np.random.default_rng(seed).random((h, w)) < 0.5
    placement = PatchGrid(patch, stride).place(w, h)
    expected = [
        mask[y : y + patch, x : x + patch].mean()
        for x, y in zip(placement.x, placement.y, strict=True)
    ]
    shares = tissue_shares(mask, placement, w, h)
    assert shares.dtype == np.float32
    np.testing.assert_allclose(shares, expected, atol=1e-6)


@given(seeds, st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.integers(1, 30))
def test_shares_do_not_depend_on_the_scale_of_the_mask(
    seed: int, w: int, h: int, factor: int, patch: int
) -> None:
    small = np.random.default_rng(seed).random((h, w)) < 0.5
    full = small.repeat(factor, axis=0).repeat(factor, axis=1)
    placement = PatchGrid(patch).place(w * factor, h * factor)
    np.testing.assert_allclose(
        tissue_shares(small, placement, w * factor, h * factor),
        tissue_shares(full, placement, w * factor, h * factor),
        atol=1e-6,
    )


@given(
    st.sampled_from(METHODS),
    st.floats(0, 1),
    st.none() | st.integers(1, 10_000),
)
def test_a_filter_survives_json(method: str, share: float, top_k: int | None) -> None:
    tissue = TissueFilter(method, share, top_k)
    assert TissueFilter.from_json(json.loads(json.dumps(tissue.to_json()))) == tissue


def test_equal_filters_are_equal_documents() -> None:
    a, b = TissueFilter("hsv", 1, np.int64(3)), TissueFilter("hsv", 1.0, 3)
    assert a == b
    assert json.dumps(a.to_json()) == json.dumps(b.to_json())


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan"), "0.1", None, True])
def test_a_share_lies_between_none_and_all(share: object) -> None:
    with pytest.raises(OptionError, match="min_tissue="):
        TissueFilter("hsv", share)


@pytest.mark.parametrize("top_k", [0, -1, 1.5, "3", True])
def test_top_k_is_a_positive_whole_number(top_k: object) -> None:
    with pytest.raises(OptionError, match="top_k="):
        TissueFilter("hsv", 0.1, top_k)
