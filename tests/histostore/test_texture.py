"""The texture encoder against scikit-image, and what every encoder promises."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, stats
from skimage.color import rgb2gray, rgb2hed, rgb2lab
from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

from histostore.encoders.base import Encoder
from histostore.encoders.texture import FEATURE_NAMES, load
from histostore.errors import EncoderError, OptionError

ENCODER = load(threads=1)
CIRCLES = ((8, 1), (16, 2), (24, 4))


# --- The reference: the same measures as scikit-image, scipy and numpy give them ---------------


def reference_images(patch):
    """Give grey and stretched haematoxylin, 8 bits."""
    grey = np.floor(rgb2gray(patch) * 255 + 0.5 + 1e-9)
    stain = rgb2hed(patch)[..., 0]
    low, high = np.percentile(stain, [1, 99])
    stretched = np.clip((stain - low) / (high - low), 0, 1) if high > low else stain * 0
    return grey.astype(np.uint8), np.floor(stretched * 255 + 0.5).astype(np.uint8)


def reference_colour(patch):
    planes = np.concatenate([rgb2hed(patch), rgb2lab(patch), rgb2gray(patch)[..., None]], axis=2)
    rows = []
    for plane in planes.reshape(-1, 7).T:
        if np.ptp(plane) < 1e-10:
            rows.append([plane[0], 0, 0, 0, *[plane[0]] * 5])
            continue
        shape = [stats.skew(plane), stats.kurtosis(plane)]
        rows.append([plane.mean(), plane.std(), *shape, *np.percentile(plane, [5, 25, 50, 75, 95])])
    return np.ravel(rows)


def reference_lbp(image):
    parts = []
    for points, radius in CIRCLES:
        codes = local_binary_pattern(image, points, radius, method="uniform")
        parts.append(np.bincount(codes.astype(int).ravel(), minlength=points + 2) / codes.size)
    return np.concatenate(parts)


def reference_glcm(image):
    angles = [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4]
    matrix = graycomatrix(image // 16, [1, 2, 4, 8], angles, levels=16, symmetric=True, normed=True)
    kinds = ("contrast", "homogeneity", "energy", "correlation", "dissimilarity")
    values = np.stack(
        [graycoprops(matrix, kind) for kind in kinds], axis=1
    )  # distance, kind, angle
    return np.stack([values.mean(axis=2), values.std(axis=2)], axis=2).ravel()


def reference_power(image):
    density = np.abs(np.fft.fft2(image - image.mean())) ** 2 / image.size
    frequency = np.fft.fftfreq(len(image))
    radius = np.hypot(frequency[:, None], frequency)
    ring = np.ceil(radius / 0.5 * 12 - 1e-9) - 1  # a ring holds its outer edge
    means = [density[ring == k].mean() if (ring == k).any() else 0 for k in range(12)]
    return np.log(np.array(means) + 1 / 12)


def reference(patch):
    """Give all 275 features of one patch."""
    images = reference_images(patch)
    return np.concatenate(
        [
            reference_colour(patch),
            *[reference_lbp(image) for image in images],
            *[reference_glcm(image) for image in images],
            *[reference_power(image) for image in images],
        ]
    )


def exact_lbp(image):
    """Give the patterns with exact sums in integers, so that a tie is a tie."""
    one = 100_000  # positions have five decimals
    pad = np.pad(image.astype(np.int64), 5)
    rows, columns = image.shape
    parts = []
    for points, radius in CIRCLES:
        angle = 2 * np.pi * np.arange(points) / points
        bits = []
        for sine, cosine in zip(np.sin(angle), np.cos(angle), strict=True):
            y, down = divmod(round(-radius * sine * one), one)
            x, right = divmod(round(radius * cosine * one), one)
            value = 0
            for dy, dx, weight in (
                (0, 0, (one - down) * (one - right)),
                (0, 1, (one - down) * right),
                (1, 0, down * (one - right)),
                (1, 1, down * right),
            ):
                top, left = 5 + y + dy, 5 + x + dx
                value = value + weight * pad[top : top + rows, left : left + columns]
            bits.append(value >= one**2 * image.astype(np.int64))
        bits = np.stack(bits)
        changes = (bits != np.roll(bits, 1, axis=0)).sum(axis=0)
        codes = np.where(changes <= 2, bits.sum(axis=0), points + 1)
        parts.append(np.bincount(codes.ravel(), minlength=points + 2) / codes.size)
    return np.concatenate(parts)


# --- Patches -----------------------------------------------------------------------------------


def noise(seed, size, smooth=0.0, low=0, high=256):
    """Give a patch of noise, smooth to look like tissue, its channels alike but not equal."""
    rng = np.random.default_rng(seed)
    patch = rng.uniform(low, high, (size, size, 3))
    if smooth:
        patch = ndimage.gaussian_filter(patch, (smooth, smooth, 0.5), mode="wrap")
        spread = np.ptp(patch, axis=(0, 1), keepdims=True) + 1e-9
        patch = low + (patch - patch.min(axis=(0, 1))) / spread * (high - 1 - low)
    return patch.astype(np.uint8)


def flat(colour, size=32):
    return np.full((size, size, 3), colour, np.uint8)


def two_level(size=32):
    patch = flat((255, 255, 255), size)
    patch[: size // 2] = (90, 40, 140)
    return patch


SPECIAL = {
    "black": flat(0),
    "white": flat(255),
    "grey": flat(77),
    "pink": flat((230, 180, 210)),
    "two levels": two_level(),
    "one black pixel": np.where(np.arange(32 * 32 * 3).reshape(32, 32, 3) < 3, 0, 255).astype("u1"),
    "grey noise": np.repeat(noise(1, 32)[..., :1], 3, axis=2),
    "almost white": noise(2, 32, low=254),
    "one pixel": flat((1, 2, 3), 1),
    "two pixels": noise(3, 2),
    "seven pixels": noise(4, 7),
}

patches = st.builds(
    noise,
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([16, 17, 24, 31, 40, 104]),
    smooth=st.sampled_from([0.0, 0.7, 1.5, 3.0]),
    low=st.sampled_from([0, 40, 150]),
    high=st.sampled_from([200, 256]),
)


def encode(patch):
    return ENCODER.encode(patch[None])[0]


def family(name):
    return np.array([full.startswith(name) for full in FEATURE_NAMES])


# --- Agreement with the reference --------------------------------------------------------------


@given(patches)
@settings(max_examples=30)
def test_colour_agrees_with_scikit_image_and_scipy(patch):
    np.testing.assert_allclose(
        encode(patch)[family("colour")], reference_colour(patch), rtol=2e-6, atol=2e-6
    )


@given(patches)
@settings(max_examples=30)
def test_co_occurrence_agrees_with_scikit_image(patch):
    expected = np.concatenate([reference_glcm(image) for image in reference_images(patch)])
    np.testing.assert_allclose(encode(patch)[family("glcm")], expected, rtol=1e-5, atol=2e-6)


@given(patches)
@settings(max_examples=30)
def test_power_agrees_with_numpy(patch):
    expected = np.concatenate([reference_power(image) for image in reference_images(patch)])
    np.testing.assert_allclose(encode(patch)[family("power")], expected, rtol=1e-4, atol=1e-4)


@given(patches)
@settings(max_examples=30)
def test_patterns_agree_with_exact_arithmetic(patch):
    expected = np.concatenate([exact_lbp(image) for image in reference_images(patch)])
    one_pixel = 1 / patch[..., 0].size
    assert np.abs(encode(patch)[family("lbp")] - expected).max() <= 1.01 * one_pixel


@given(st.integers(0, 2**32 - 1), st.sampled_from([16, 40, 104]))
@settings(max_examples=15)
def test_patterns_agree_with_scikit_image_where_there_are_no_ties(seed, size):
    patch = noise(seed, size)
    expected = np.concatenate([reference_lbp(image) for image in reference_images(patch)])
    # A tie needs five equal pixels, but for the dark frame; rounding then decides there.
    assert np.abs(encode(patch)[family("lbp")] - expected).sum() <= 12 / size**2 + 0.005


@pytest.mark.parametrize("value", [0, 1, 77, 200, 255])
def test_a_flat_neighbourhood_is_a_tie_whatever_its_value(value):
    names = dict(zip(FEATURE_NAMES, encode(flat(value, 64)), strict=True))
    for points, radius in CIRCLES:
        # Black stays a tie at the frame too; else only what the circle keeps inside is flat.
        inside = 1.0 if value == 0 else ((64 - 2 * radius) / 64) ** 2
        assert names[f"lbp.grey.r{radius}.ones{points}"] == pytest.approx(inside)


@pytest.mark.parametrize("name", SPECIAL)
def test_special_patches_agree_with_the_reference(name):
    patch = SPECIAL[name]
    ours, expected = encode(patch), reference(patch)
    rest = ~family("lbp")
    np.testing.assert_allclose(ours[rest], expected[rest], rtol=2e-5, atol=2e-5)
    exact = np.concatenate([exact_lbp(image) for image in reference_images(patch)])
    np.testing.assert_allclose(ours[~rest], exact, atol=1.01 / patch[..., 0].size)


# --- What an encoder promises ------------------------------------------------------------------


def test_it_is_an_encoder_with_an_identity():
    assert isinstance(ENCODER, Encoder)
    assert ENCODER.n_features == len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 275
    assert ENCODER.identity == load(threads=2, batch_size=7).identity
    document = ENCODER.identity.to_json()
    assert document["name"] == "texture"
    assert document["weights"] == "none"
    assert document["preprocessing"]["version"] == 1


@pytest.mark.parametrize("name", SPECIAL)
def test_every_patch_gives_finite_float32(name):
    embedding = ENCODER.encode(SPECIAL[name][None])
    assert embedding.dtype == np.float32
    assert embedding.shape == (1, 275)
    assert np.isfinite(embedding).all()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.sampled_from([1, 2, 3, 5, 16, 33]),
    st.integers(1, 255),
)
def test_any_picture_gives_finite_numbers(seed, n_colours, size, spread):
    rng = np.random.default_rng(seed)
    colours = (rng.integers(0, 256) + rng.integers(0, spread + 1, (n_colours, 3))).clip(0, 255)
    patch = colours[rng.integers(0, n_colours, (size, size))].astype(np.uint8)
    assert np.isfinite(encode(patch)).all()


def test_a_batch_equals_one_by_one_whatever_the_threads():
    batch = np.stack([noise(seed, 40, smooth=seed % 3) for seed in range(37)])
    together = ENCODER.encode(batch)
    np.testing.assert_array_equal(together, np.stack([encode(patch) for patch in batch]))
    for threads in (2, 3, 16):
        np.testing.assert_array_equal(together, load(threads=threads).encode(batch))


def test_a_row_depends_on_its_patch_alone():
    batch = np.stack([noise(seed, 24) for seed in range(9)])
    before = ENCODER.encode(batch)
    batch[4] = 255
    after = ENCODER.encode(batch)
    others = np.arange(9) != 4
    np.testing.assert_array_equal(before[others], after[others])
    assert (before[4] != after[4]).any()


@pytest.mark.parametrize(
    "strange",
    [
        pytest.param(np.asfortranarray, id="column order"),
        pytest.param(lambda batch: batch.repeat(2, axis=1)[:, ::2], id="every second row"),
        pytest.param(lambda batch: batch[..., ::-1].copy()[..., ::-1], id="negative strides"),
        pytest.param(
            lambda batch: np.frombuffer(batch.tobytes(), "u1").reshape(batch.shape), id="read-only"
        ),
    ],
)
def test_any_memory_layout_gives_the_same(strange):
    batch = np.stack([noise(seed, 24) for seed in range(3)])
    np.testing.assert_array_equal(ENCODER.encode(strange(batch)), ENCODER.encode(batch))


def test_the_input_is_left_alone():
    batch = noise(0, 32)[None]
    copy = batch.copy()
    ENCODER.encode(batch)
    np.testing.assert_array_equal(batch, copy)


def test_no_patches_give_no_rows():
    assert ENCODER.encode(np.empty((0, 32, 32, 3), np.uint8)).shape == (0, 275)


@given(patches, st.integers(0, 3), st.booleans())
@settings(max_examples=20)
def test_turning_or_flipping_a_patch_changes_nothing(patch, turns, mirrored):
    turned = np.rot90(patch[:, ::-1] if mirrored else patch, turns)
    np.testing.assert_allclose(encode(turned), encode(patch), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("smooth", [0.7, 1.5])
def test_rings_mean_the_same_at_any_patch_size(smooth):
    whole = noise(5, 208, smooth)
    quarters = np.stack([whole[y : y + 104, x : x + 104] for y in (0, 104) for x in (0, 104)])
    rings = family("power.grey")
    difference = encode(whole)[rings] - ENCODER.encode(quarters)[:, rings].mean(axis=0)
    # The lowest ring holds few coefficients; leakage lifts the empty high ones.
    assert np.abs(difference[1:5]).max() < 0.5


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        pytest.param(np.zeros((2, 8, 8, 3)), "float64", id="dtype"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), "shape (8, 8, 3)", id="no batch axis"),
        pytest.param(np.zeros((2, 8, 9, 3), np.uint8), "shape (2, 8, 9, 3)", id="not square"),
        pytest.param(np.zeros((2, 8, 8, 4), np.uint8), "shape (2, 8, 8, 4)", id="four channels"),
        pytest.param(np.zeros((2, 0, 0, 3), np.uint8), "shape (2, 0, 0, 3)", id="no pixels"),
    ],
)
def test_wrong_input_is_refused_with_what_was_seen(batch, said):
    with pytest.raises(OptionError) as caught:
        ENCODER.encode(batch)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"weights": "w.safetensors"}, EncoderError, "texture needs no weights"),
        ({"device": "cuda"}, EncoderError, "cuda"),
        ({"precision": "bfloat16"}, EncoderError, "bfloat16"),
        ({"batch_size": 0}, OptionError, "batch_size is 0"),
        ({"threads": 0}, OptionError, "threads is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        load(**options)


def test_defaults_follow_the_cores_at_hand():
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert load().threads == cores
    assert load(batch_size=5, device="cpu").batch_size == 5
