"""Normalised images look like the target, and like nothing else."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histostore.colour import luma, to_lab
from histostore.errors import FormatError, OptionError
from histostore.images.stain import StainTarget, map_onto, measure, pool

PUBLISHED = StainTarget(method="reinhard", values=((180.8, 148.6, 116.5), (35.4, 17.5, 11.1)))
HEMATOXYLIN, EOSIN = np.array([0.60, 0.72, 0.35]), np.array([0.20, 0.85, 0.49])
METHODS = pytest.mark.parametrize("method", ["reinhard", "macenko"])


def slide(seed, *, stains=(HEMATOXYLIN, EOSIN), strength=1.0, size=96):
    """Paint nuclei on stroma, a third of it glass, by the law of Beer and Lambert."""
    rng = np.random.default_rng(seed)
    unit = np.array([each / np.linalg.norm(each) for each in stains])
    # Pixels of one stain alone are what the percentiles of direction look for.
    kinds = rng.choice(4, size=(size, size), p=[0.3, 0.3, 0.2, 0.2])
    amounts = np.array([[0, 0], [1, 0.02], [0.02, 1], [0.6, 0.6]])[kinds]
    amounts = amounts * rng.uniform(0.7, 1.3, (size, size, 1)) * strength
    return (255 * np.exp(-amounts @ unit)).round().astype(np.uint8)


def angle(one, other):
    cosine = np.dot(one, other) / np.linalg.norm(one) / np.linalg.norm(other)
    return np.degrees(np.arccos(min(1, cosine)))


@pytest.mark.parametrize("strength", [0.6, 1.0, 1.8])
@pytest.mark.parametrize(
    "stains",
    [(HEMATOXYLIN, EOSIN), ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11)), ((0.5, 0.7, 0.5), EOSIN)],
    ids=["usual", "ruifrok", "near"],
)
def test_macenko_finds_planted_stains(stains, strength):
    stains = [np.array(each) for each in stains]
    found = measure(slide(3, stains=stains, strength=strength), "macenko")
    for expected, vector in zip(stains, found.values[0], strict=True):
        assert angle(expected, vector) < 2.5
    np.testing.assert_allclose(found.values[1], 1.28 * strength, rtol=0.1)


@given(st.integers(0, 100), st.floats(0.7, 1.5), st.floats(-0.15, 0.15))
def test_reinhard_gives_tissue_the_mean_and_spread_of_the_target(seed, strength, tint):
    # Darker than the target: what is near white, fades out, or is clipped, is another matter.
    target = StainTarget(method="reinhard", values=((120, 150, 115), (22, 6, 5)))
    picture = slide(seed, stains=(HEMATOXYLIN + tint, EOSIN), strength=strength)
    tissue = luma(picture) < 220
    lab = to_lab(map_onto(target, picture).apply(picture))[tissue]
    np.testing.assert_allclose(lab.mean(axis=0), target.values[0], atol=0.6)
    np.testing.assert_allclose(lab.std(axis=0), target.values[1], atol=0.6)


@METHODS
def test_an_image_that_looks_like_the_target_stays_as_it_is(method):
    picture = slide(5)
    target = pool(method, [measure(picture, method)])
    changed = map_onto(target, picture).apply(picture)
    assert np.abs(changed.astype(int) - picture).max() <= 2


@METHODS
def test_to_normalise_twice_is_to_normalise_once(method):
    target = pool(method, [measure(slide(1), method)])
    picture = slide(2, stains=(HEMATOXYLIN + 0.1, EOSIN), strength=0.8)
    once = map_onto(target, picture).apply(picture)
    twice = map_onto(target, once).apply(once)
    assert np.abs(twice.astype(int) - once).mean() < 1.0


@METHODS
def test_normalised_images_look_alike(method):
    cohort = [slide(n, strength=0.7 + 0.2 * n) for n in range(4)]
    target = pool(method, [measure(each, method) for each in cohort])
    changed = [map_onto(target, each).apply(each) for each in cohort]

    def spread(pictures):
        return np.ptp([to_lab(each)[luma(each) < 220].mean(axis=0) for each in pictures], axis=0)

    assert (spread(changed)[0] < spread(cohort)[0] / 5).all()


@METHODS
@given(seed=st.integers(0, 1000))
def test_glass_stays_white(method, seed):
    picture = slide(seed % 7, strength=0.8)
    target = pool(method, [measure(slide(8), method)])
    glass = (picture == 255).all(axis=2)
    changed = map_onto(target, picture).apply(picture)
    assert glass.any()
    assert (changed[glass] == 255).all()


@METHODS
@pytest.mark.parametrize(
    "picture",
    [
        np.full((32, 32, 3), 255, np.uint8),
        np.zeros((32, 32, 3), np.uint8),
        np.full((3, 3, 3), 150, np.uint8),
        np.repeat(np.random.default_rng(0).integers(0, 256, (64, 64, 1), np.uint8), 3, axis=2),
    ],
    ids=["white", "black", "tiny", "grey"],
)
def test_what_has_no_stain_is_not_measured(method, picture):
    assert measure(picture, method) is None
    assert map_onto(pool(method, [measure(slide(1), method)]), picture) is None


@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(0, 5))
def test_pooled_moments_are_those_of_all_pixels_together(seeds, at):
    pictures = [slide(seed, strength=0.5 + seed / 50, size=24) for seed in seeds]
    target = pool("reinhard", [measure(picture, "reinhard") for picture in pictures])
    lab = np.concatenate([to_lab(picture)[luma(picture) < 220] for picture in pictures])
    np.testing.assert_allclose(target.values[0], lab.mean(axis=0), atol=0.006)
    np.testing.assert_allclose(target.values[1], lab.std(axis=0), atol=0.006)
    turned = pictures[at % len(pictures) :] + pictures[: at % len(pictures)]
    assert pool("reinhard", [measure(each, "reinhard") for each in turned]) == target


def test_the_published_target_is_in_these_units():
    """An H&E image of ordinary colours lies near the means published for BreaKHis."""
    found = measure(slide(0, strength=0.5), "reinhard")
    assert np.abs(found.values[0] - PUBLISHED.values[0]).max() < 30


@pytest.mark.real
@METHODS
def test_real_images_of_three_colours_become_alike(method, real_data):
    files = [sorted((real_data / "lymphoma" / name).iterdir())[3] for name in ("CLL", "FL", "MCL")]
    pictures = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    target = pool(method, [measure(picture, method) for picture in pictures])

    def means(images):
        return np.array([to_lab(each)[luma(each) < 220].mean(axis=0) for each in images])

    before = means(pictures)
    after = means([map_onto(target, each).apply(each) for each in pictures])
    assert (np.ptp(after, axis=0) < np.ptp(before, axis=0)).all()
    if method == "reinhard":
        np.testing.assert_allclose(after, np.tile(target.values[0], (3, 1)), atol=3)


@METHODS
def test_a_target_survives_being_written_down(method):
    target = pool(method, [measure(slide(4), method)])
    assert StainTarget.from_json(json.loads(json.dumps(target.to_json()))) == target


@METHODS
def test_nothing_to_pool_is_refused(method):
    with pytest.raises(OptionError, match="enough stain"):
        pool(method, [])


@pytest.mark.parametrize(
    "document",
    [
        "reinhard",
        {},
        {"method": "vahadane", "target": {}},
        {"method": "reinhard", "target": {"mean": [1, 2, 3]}},
        {"method": "reinhard", "target": {"mean": [1, 2, 3], "sd": [1, 2]}},
        {"method": "reinhard", "target": {"mean": [1, 2, 3], "sd": [1, 2, 0]}},
        {"method": "reinhard", "target": {"mean": [1, 2, "x"], "sd": [1, 2, 3]}},
        {"method": "reinhard", "target": {"mean": [1, 2, float("nan")], "sd": [1, 2, 3]}},
        {"method": "macenko", "target": {"stains": [[1, 0, 0], [2, 0, 0]], "amounts": [1, 1]}},
        {"method": "macenko", "target": {"stains": [[0, 0, 0], [2, 0, 0]], "amounts": [1, 1]}},
        {**PUBLISHED.to_json(), "sugar": 1},
    ],
    ids=str,
)
def test_a_document_that_is_no_target_is_refused(document):
    with pytest.raises(FormatError, match="stain target"):
        StainTarget.from_json(document)
