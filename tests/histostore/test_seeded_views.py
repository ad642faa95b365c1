"""A view with a number depends on the patch's key, and on nothing else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from histostore.errors import OptionError
from histostore.views import FAMILIES, PatchKey, apply_view, is_seeded, parse_views
from histostore.views.seeded import draw
from histostore.views.warp import warp

NAMES = tuple(f"{family}-{number}" for family in FAMILIES for number in (1, 2))
FINGERPRINT = """
import hashlib, numpy as np
from histostore.views import PatchKey, apply_view
patch = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(1, 4, 5, 3) * 4
print([apply_view(patch, name, [PatchKey("ü/1", 256, 0)]).ravel()[:6].tolist() for name in %r])
"""


def patches(n, seed=0, size=12):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def keys(n):
    return [PatchKey(f"image-{at // 3}", 12 * (at % 3), 0) for at in range(n)]


@given(st.sampled_from(NAMES), st.permutations(range(6)), st.integers(0, 6))
def test_any_order_and_any_batches_give_the_same_pixels(name, order, cut):
    whole = apply_view(patches(6), name, keys(6))
    for part in (order[:cut], order[cut:]):
        some = apply_view(patches(6)[list(part)], name, [keys(6)[at] for at in part])
        np.testing.assert_array_equal(some, whole[list(part)])


@pytest.mark.parametrize("name", NAMES)
def test_a_view_keeps_shape_and_type_and_leaves_its_argument_alone(name):
    batch = patches(4)
    view = apply_view(batch, name, keys(4))
    assert (view.shape, view.dtype, view.flags.c_contiguous) == (batch.shape, np.uint8, True)
    np.testing.assert_array_equal(batch, patches(4))
    assert (view != batch).any()


def test_another_process_gives_the_same_pixels():
    run = [sys.executable, "-c", FINGERPRINT % (NAMES,)]
    seen = subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    # Written down once: what is in a store under these names was made of these pixels.
    assert seen == (
        "[[12, 15, 19, 21, 25, 28], [24, 27, 31, 34, 38, 42], [1, 7, 11, 15, 23, 26], "
        "[2, 11, 11, 17, 26, 23], [39, 43, 47, 43, 47, 51], [33, 37, 41, 42, 46, 50]]"
    )


@given(st.text(max_size=5), st.integers(0, 2**31), st.integers(0, 2**31))
def test_draws_fill_their_range_and_differ_by_every_part_of_the_key(image_id, x, y):
    key = PatchKey(image_id, x, y)
    drawn = draw("jitter-1", key)
    assert drawn.shape == (8,)
    assert (np.abs(drawn) <= 1).all()
    others = [
        draw("jitter-2", key),
        draw("affine-1", key),
        draw("jitter-1", key._replace(image_id=image_id + "x")),
        draw("jitter-1", key._replace(x=x + 1)),
        draw("jitter-1", PatchKey(image_id, y, x)) if x != y else drawn + 1,
    ]
    assert all((drawn != other).any() for other in others)


def test_draws_are_even():
    drawn = np.array([draw("jitter-1", PatchKey("a", x, 0)) for x in range(2000)])
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.06)
    np.testing.assert_allclose(drawn.std(axis=0), 1 / np.sqrt(3), atol=0.04)
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 0.1


@pytest.mark.parametrize("name", ["stain-jitter-1", "affine-1"])
def test_glass_stays_white(name):
    white = np.full((3, 8, 8, 3), 255, np.uint8)
    np.testing.assert_array_equal(apply_view(white, name, keys(3)), white)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
def test_moving_pixels_is_what_scipy_does(seed, height, width):
    rng = np.random.default_rng(seed)
    patch = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    matrix = np.eye(2) + rng.normal(size=(2, 2)) / 4
    shift = rng.normal(size=2) * 3
    middle = (np.array([height, width]) - 1) / 2
    expected = np.stack(
        [
            ndimage.affine_transform(
                np.pad(patch[..., k].astype(float), 40, mode="reflect"),
                matrix,
                offset=middle + 40 + shift - matrix @ (middle + 40),
                order=1,
            )[40 : 40 + height, 40 : 40 + width]
            for k in range(3)
        ],
        axis=-1,
    )
    # 65,536ths of a pixel, on an edge of up to 255 levels; and a half for rounding.
    np.testing.assert_allclose(warp(patch, matrix, shift), expected, atol=0.6)


def test_a_shift_by_whole_pixels_is_a_roll_with_reflected_rim():
    patch = patches(1, size=8)[0]
    moved = warp(patch, np.eye(2), np.array([2.0, -1.0]))
    np.testing.assert_array_equal(moved[:-2, 1:], patch[2:, :-1])
    np.testing.assert_array_equal(moved[:-2, 0], patch[2:, 1])


def test_moves_stay_small():
    """A dot in the middle of a patch stays within the shift, a tenth of the edge."""
    size = 40
    batch = np.zeros((50, size, size, 3), np.uint8)
    batch[:, 19:21, 19:21] = 255
    moved = apply_view(batch, "affine-1", [PatchKey("a", at, 0) for at in range(50)])
    weight = moved[..., 0].astype(float)
    across = np.arange(size)
    y = (weight.sum(axis=2) * across).sum(axis=1) / weight.sum(axis=(1, 2))
    x = (weight.sum(axis=1) * across).sum(axis=1) / weight.sum(axis=(1, 2))
    away = np.abs(np.stack([y, x]) - 19.5)
    assert away.max() < size / 10 + 1
    assert away.max() > size / 20


def test_colour_jitter_is_brightness_contrast_saturation_one_after_the_other():
    patch, key = patches(1), PatchKey("a", 0, 0)
    brightness, contrast, saturation = 1 + 0.2 * draw("jitter-1", key)[:3]
    weights = np.array([0.299, 0.587, 0.114])
    pixels = patch.astype(float) * brightness
    mean = (pixels @ weights).mean()
    pixels = (pixels - mean) * contrast + mean
    grey = (pixels @ weights)[..., None]
    pixels = (pixels - grey) * saturation + grey
    view = apply_view(patch, "jitter-1", [key])
    np.testing.assert_allclose(view, np.clip(pixels, 0, 255), atol=0.6)


def test_a_view_with_a_number_needs_keys():
    for given_keys in (None, keys(1)):
        with pytest.raises(OptionError, match="a key for each of 2"):
            apply_view(patches(2), "jitter-1", given_keys)


@pytest.mark.parametrize("text", ["jitter", "jitter-0", "jitter-01", "jitter:0", "rot90-1", "x-1"])
def test_numbers_begin_at_one(text):
    assert not is_seeded(text)
    with pytest.raises(OptionError, match=r"unknown view .*jitter-<n>"):
        parse_views(text)


def test_the_seven_views_of_published_test_time_augmentation_have_names():
    """Identity, both flips, their combination (which is a half turn), and three rotations."""
    names = parse_views("identity,flip-h,flip-v,rot180,rot90,rot270")
    both = apply_view(apply_view(patches(1), "flip-h"), "flip-v")
    np.testing.assert_array_equal(both, apply_view(patches(1), "rot180"))
    assert len(names) == 6  # two of the seven are one
