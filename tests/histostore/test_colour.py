"""Colours are what others say they are, and a map that changes nothing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from skimage.color import rgb2lab

from histostore.colour import densities, lab_sums, luma, map_density, map_lab, map_rgb, to_lab


@st.composite
def pictures(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 9)), draw(st.integers(1, 9)), 3)
    return rng.integers(0, 256, shape, dtype=np.uint8)


@given(pictures())
def test_lab_is_that_of_scikit_image_in_the_units_of_opencv(pixels):
    expected = rgb2lab(pixels) * (2.55, 1, 1) + (0, 128, 128)
    np.testing.assert_allclose(to_lab(pixels), expected, atol=0.01)


@pytest.mark.parametrize(
    ("rgb", "lab"),
    [
        ((255, 255, 255), (255, 128, 128)),
        ((0, 0, 0), (0, 128, 128)),
        ((255, 0, 0), (136, 208, 195)),  # OpenCV's documentation of its conversion
        ((0, 0, 255), (82, 207, 20)),
    ],
)
def test_known_colours_in_lab(rgb, lab):
    np.testing.assert_allclose(to_lab(np.array(rgb, np.uint8)), lab, atol=0.6)


def test_every_grey_is_neutral():
    grey = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    np.testing.assert_allclose(to_lab(grey)[:, 1:], 128, atol=1e-9)


@given(pictures())
def test_grey_is_within_a_level_of_the_weighted_sum(pixels):
    np.testing.assert_allclose(luma(pixels), pixels @ (0.299, 0.587, 0.114), atol=0.51)


@given(pictures())
def test_maps_that_change_nothing_change_nothing(pixels):
    np.testing.assert_array_equal(map_lab(pixels, np.ones(3), np.zeros(3)), pixels)
    np.testing.assert_array_equal(map_rgb(pixels, np.eye(3), np.zeros(3)), pixels)
    # Black counts as 1 in density.
    np.testing.assert_array_equal(
        map_density(pixels, np.eye(3), np.zeros(3)), np.maximum(pixels, 1)
    )


@given(pictures(), st.integers(0, 2**32 - 1))
def test_a_map_of_densities_is_the_formula(pixels, seed):
    rng = np.random.default_rng(seed)
    matrix, shift = rng.normal(size=(3, 3)), rng.normal(size=3) / 10
    density = densities(pixels) @ matrix.T + shift
    expected = 255 * np.exp(-np.clip(density, 0, np.log(255)))
    np.testing.assert_allclose(map_density(pixels, matrix, shift), expected, atol=0.55)


@given(pictures(), st.integers(0, 2**32 - 1))
def test_white_stays_white_in_lab_whatever_tissue_becomes(pixels, seed):
    rng = np.random.default_rng(seed)
    pixels[0, 0] = 255
    changed = map_lab(pixels, rng.uniform(0.5, 2, 3), rng.normal(size=3) * 50)
    assert changed[0, 0].tolist() == [255, 255, 255]


@given(pictures())
def test_sums_are_over_dark_pixels_alone(pixels):
    n, total, squares = lab_sums(pixels)
    lab = to_lab(pixels)[luma(pixels) < 220] - 128
    assert n == len(lab)
    np.testing.assert_allclose(total, lab.sum(axis=0), atol=1e-6)
    np.testing.assert_allclose(squares, (lab**2).sum(axis=0), rtol=1e-9, atol=1e-6)


def test_arrays_that_are_not_contiguous_are_read_right():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(to_lab(pixels[::2, ::-1]), to_lab(pixels)[::2, ::-1])
