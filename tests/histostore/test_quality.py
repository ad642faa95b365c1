"""Quality is measured as published, and a filter leaves every image a patch."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from histostore.colour import luma
from histostore.errors import FormatError, OptionError
from histostore.grid import PatchGrid
from histostore.images.memory import MemoryReader
from histostore.images.patches import select_patches
from histostore.images.quality import COLUMNS, QualityFilter, keep_passing, patch_quality
from histostore.images.tissue import TissueFilter


@given(st.integers(0, 3), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_every_number_is_that_of_the_definition(n, height, width, seed):
    patches = np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)
    found = patch_quality(patches)
    assert tuple(found) == COLUMNS
    for at, patch in enumerate(patches):
        grey = luma(patch).astype(np.float64)
        laplacian = ndimage.laplace(grey, mode="mirror")
        np.testing.assert_allclose(found["sharpness"][at], laplacian.var(), rtol=1e-5, atol=1e-3)
        np.testing.assert_allclose(found["brightness"][at], grey.mean(), rtol=1e-6)
        np.testing.assert_allclose(found["dark-share"][at], (grey < 220).mean(), rtol=1e-6)


def test_opencv_agrees_about_sharpness():
    cv2 = pytest.importorskip("cv2")
    patch = np.random.default_rng(1).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    theirs = cv2.Laplacian(cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var()
    # Their grey is rounded from fewer bits, and may be one level off.
    np.testing.assert_allclose(patch_quality(patch[None])["sharpness"], theirs, rtol=1e-3)


def test_blur_lowers_sharpness_and_leaves_brightness():
    sharp = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    blurred = ndimage.gaussian_filter(sharp, (0, 2, 2, 0))
    before, after = patch_quality(sharp), patch_quality(blurred)
    assert after["sharpness"][0] < before["sharpness"][0] / 50
    np.testing.assert_allclose(after["brightness"], before["brightness"], atol=2)


def chosen(shares, top_k=None):
    """A picture whose three patches have these shares of a dark pink, in noise and without."""
    patches = [np.full((8, 8, 3), 255, np.uint8) for _ in shares]
    for patch, share in zip(patches, shares, strict=True):
        patch.reshape(-1, 3)[: round(64 * share)] = (200, 100, 150)
    reader = MemoryReader(np.concatenate(patches, axis=1))
    selection = select_patches(reader, PatchGrid(8), TissueFilter(method="none", top_k=top_k))
    return selection, patch_quality(np.stack(patches))


def test_patches_that_do_not_pass_are_dropped():
    selection, quality = chosen([0.5, 0.2, 0.4])
    for least, expected in ((0.1, [0, 1, 2]), (0.3, [0, 2]), (0.45, [0])):
        kept = keep_passing(selection, quality, QualityFilter(min_dark_share=least), None)
        assert (kept.kept.tolist(), kept.flags) == (expected, ())


def test_a_share_that_just_suffices_suffices():
    _, quality = chosen([0.25])
    assert QualityFilter(min_dark_share=0.25).passes(quality).tolist() == [True]


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 1), st.floats(0, 1e5))
def test_every_image_keeps_a_patch_and_says_so_if_it_is_no_good(shares, share, sharpness):
    selection, quality = chosen(shares)
    wanted = QualityFilter(min_dark_share=share, min_sharpness=sharpness)
    kept = keep_passing(selection, quality, wanted, 1)
    assert len(kept.kept) == 1
    assert ("low-quality" in kept.flags) == (not wanted.passes(quality).any())


def test_the_best_by_tissue_are_taken_of_those_that_pass():
    selection, quality = chosen([0.9, 0.0, 0.6])
    selection.tissue[:] = (0.2, 0.9, 0.3)
    kept = keep_passing(selection, quality, QualityFilter(min_dark_share=0.5), 1)
    assert (kept.kept.tolist(), kept.flags) == ([2], ())


@given(st.none() | st.floats(0, 1e6), st.none() | st.floats(0, 1))
def test_a_filter_survives_being_written_down(sharpness, share):
    wanted = QualityFilter(min_sharpness=sharpness, min_dark_share=share)
    assert QualityFilter.from_json(json.loads(json.dumps(wanted.to_json()))) == wanted
    assert bool(wanted) == (sharpness is not None or share is not None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_sharpness": -1},
        {"min_sharpness": float("nan")},
        {"min_sharpness": float("inf")},
        {"min_dark_share": 40},  # per cent
        {"min_dark_share": True},
        {"min_sharpness": "75"},
    ],
    ids=str,
)
def test_nonsense_is_refused(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        QualityFilter(**wrong)


def test_an_unknown_key_is_refused():
    with pytest.raises(FormatError, match="sugar"):
        QualityFilter.from_json({"sugar": 1})
