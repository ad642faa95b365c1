"""The steps of the cell-graph encoder, each against brute force or another library."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.sparse.csgraph import minimum_spanning_tree
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist
from skimage.color import rgb2hed
from skimage.measure import label as components
from skimage.measure import regionprops

from histostore.encoders import _cells_graphs as graphs
from histostore.encoders import _cells_mask as masks
from histostore.encoders import _cells_shapes as shapes
from histostore.encoders import _cells_split as split
from histostore.encoders import _cells_stain as stain

SIZE = 100
seeds = st.integers(0, 2**32 - 1)


def blobs(seed, shape=(37, 41), smooth=1.5):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).standard_normal(shape), smooth)
    return (image > 0).astype(np.uint8)


def image_of(seed, shape=(23, 31), most=3000):
    return np.random.default_rng(seed).integers(0, most, shape, dtype=np.int32)


def points_of(seed, n):
    return np.random.default_rng(seed).uniform(0, SIZE - 1, (n, 2))


# --- Pixels ------------------------------------------------------------------------------------


def test_stains_are_those_of_scikit_image_but_for_its_units():
    patch = np.random.default_rng(0).integers(1, 256, (20, 20, 3), np.uint8)
    amounts = np.empty((2, 20, 20), np.int32)
    stain.separate(patch, amounts[0], amounts[1])
    # It counts density in units of ln(10⁶), and does not scale its vectors to length one.
    lengths = np.linalg.norm([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]], axis=1)
    expected = rgb2hed(patch)[..., :2].transpose(2, 0, 1) * np.log(1e6)
    expected = np.minimum(expected * lengths[:, None, None], 8 - 1 / stain.UNIT)
    np.testing.assert_allclose(amounts / stain.UNIT, expected, atol=0.51 / stain.UNIT)


@given(seeds, st.integers(0, 3))
@settings(max_examples=20)
def test_smoothing_is_a_convolution(seed, rounds):
    expected = image_of(seed)
    seen = stain.smooth(expected, rounds)
    for _ in range(rounds):
        for axis in (0, 1):
            expected = ndimage.convolve1d(expected, [1, 2, 1], axis=axis, mode="nearest")
    np.testing.assert_array_equal(seen, expected)


@given(seeds, st.integers(1, 12))
@settings(max_examples=20)
def test_surroundings_are_means_of_what_the_image_holds(seed, reach):
    image = image_of(seed)
    window = np.ones(2 * reach + 1)
    sums, counts = image.astype(np.float64), np.ones(image.shape)
    for axis in (0, 1):
        sums = ndimage.convolve1d(sums, window, axis=axis, mode="constant")
        counts = ndimage.convolve1d(counts, window, axis=axis, mode="constant")
    np.testing.assert_array_equal(masks.surroundings(image, reach), sums.round() // counts.round())


@given(seeds, st.integers(1, 300))
@settings(max_examples=20)
def test_otsu_parts_best(seed, step):
    image = image_of(seed) + image_of(seed + 1) ** 2 // 2000
    bins = image // step

    def between(at):
        low, high = bins[bins < at], bins[bins >= at]
        return low.size * high.size * (high.mean() - low.mean()) ** 2

    found = masks.otsu(image, step)
    assert found % step == 0
    candidates = range(bins.min() + 1, bins.max() + 1)
    best = max((between(at) for at in candidates), default=0)
    assert (between(found // step) if best else 0) == pytest.approx(best)


def test_a_flat_image_has_no_threshold():
    assert masks.otsu(np.full((3, 3), 70, np.int32), 16) == 0


@given(seeds)
@settings(max_examples=20)
def test_opening_and_filling_agree_with_scipy(seed):
    mask = blobs(seed, smooth=1.0)
    cross = ndimage.generate_binary_structure(2, 1)
    eroded = ndimage.binary_erosion(mask, cross, border_value=1)
    np.testing.assert_array_equal(masks.opened(mask), ndimage.binary_dilation(eroded, cross))
    filled = mask.copy()
    masks.fill_holes(filled, mask.size)
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(mask))


def test_large_holes_stay():
    mask = np.ones((12, 20), np.uint8)
    mask[3:6, 3:6], mask[3:6, 10:14] = 0, 0
    masks.fill_holes(mask, 9)
    assert mask[4, 4]
    assert not mask[4, 11]


@given(seeds, st.integers(2, 30))
@settings(max_examples=20)
def test_depth_is_the_distance_to_the_outside(seed, most):
    mask = blobs(seed, smooth=3.0)
    mask[0, 0] = 0
    expected = np.minimum(ndimage.distance_transform_edt(mask), most)
    np.testing.assert_allclose(split.depth(mask, most, 1024) / 1024, expected, atol=0.001)


# --- Hills -------------------------------------------------------------------------------------


def two_hills(apart, low=80.0):
    y, x = np.mgrid[:31, :61]
    heights = [np.exp(-((x - u) ** 2 + (y - 15) ** 2) / 50) for u in (20, 20 + apart)]
    return (np.maximum(100 * heights[0], low * heights[1]) * 100).astype(np.int32)


@pytest.mark.parametrize(("apart", "share", "n"), [(16, 0.8, 2), (16, 0.2, 1), (4, 0.8, 1)])
def test_hills_are_one_where_the_saddle_is_high(apart, share, n):
    land = two_hills(apart)
    hill = split.hills(land, np.ones(land.shape, np.uint8), share)
    assert len(np.unique(hill)) == n
    assert hill.ravel()[land.argmax()] == land.argmax()


def test_hills_keep_to_the_mask_and_never_touch_across_the_sea():
    land = two_hills(16)
    mask = (land > 500).astype(np.uint8)
    mask[:, 28] = 0
    hill = split.hills(land, mask, 0.0)
    np.testing.assert_array_equal(hill >= 0, mask > 0)
    assert len(np.unique(hill[hill >= 0])) == 2


@given(seeds)
@settings(max_examples=20)
def test_with_no_saddle_too_low_hills_are_connected_parts(seed):
    mask = blobs(seed)
    hill = split.hills(image_of(seed, mask.shape), mask, 0.0)
    label, n = split.numbered(hill, 1, mask.size)
    expected, n_expected = ndimage.label(mask, np.ones((3, 3)))
    assert n == n_expected
    np.testing.assert_array_equal(label, expected)


def test_sizes_that_do_not_fit_go():
    hill = np.repeat(np.array([0, 1, 1, 1, 4, 4, -1], np.int32), 2)[None]
    label, n = split.numbered(hill, 3, 5)
    assert n == 1
    np.testing.assert_array_equal(np.unique(label[hill == 4]), [1])
    assert (label > 0).sum() == 4


@given(seeds)
@settings(max_examples=20)
def test_the_relief_that_varies_more_counts(seed):
    fine, coarse = (image_of(seed + k, (9, 12)) - 500 for k in (0, 1))
    mask = np.ones(fine.shape, np.uint8)
    weak = np.zeros(fine.shape, np.int32)
    strong = np.full(fine.shape, 10_000, np.int32)
    assert np.abs(split.weighed(fine, coarse, strong, weak) - fine).max() <= 1
    assert np.abs(split.weighed(fine, coarse, weak, strong) - coarse).max() <= 1
    between = split.weighed(fine, coarse, strong, strong)
    np.testing.assert_array_equal(between, np.floor((fine + coarse) / 2))
    np.testing.assert_array_equal(split.squares(fine, mask), (fine // 64) ** 2)
    assert not split.squares(fine, 1 - mask).any()


# --- Shapes ------------------------------------------------------------------------------------


@given(seeds)
@settings(max_examples=20)
def test_shapes_agree_with_scikit_image(seed):
    label = components(blobs(seed), connectivity=2).astype(np.int32)
    amount = image_of(seed, label.shape)
    table = shapes.measure(label, label.max(), amount)
    seen = {name: table[:, k] for k, name in enumerate(shapes.SHAPES)}
    for k, region in enumerate(regionprops(label, intensity_image=amount / 1024)):
        y, x = region.centroid
        # A pixel has an extent there as well as here: 1/12, under the root 16 times.
        axes = np.sqrt(np.array([region.axis_major_length, region.axis_minor_length]) ** 2 + 4 / 3)
        inside = region.image_intensity[region.image]
        expected = [x, y, region.area, *axes, inside.mean(), inside.std(), inside.sum()]
        names = ["x", "y", "area", "major", "minor", "amount", "grain", "total"]
        np.testing.assert_allclose([seen[name][k] for name in names], expected, atol=1e-6)
        corners = (region.coords[:, None] + [[0, 0], [0, 1], [1, 0], [1, 1]]).reshape(-1, 2)
        assert seen["solidity"][k] == pytest.approx(region.area / ConvexHull(corners).volume)
        top, left, bottom, right = region.bbox
        cut = top == 0 or left == 0 or (bottom, right) == label.shape
        assert seen["cut"][k] == (cut or bottom == label.shape[0] or right == label.shape[1])


@pytest.mark.parametrize("degrees", [0, 20, 45, 90, 130, 170])
def test_the_angle_is_that_of_the_long_axis(degrees):
    y, x = np.mgrid[-20:21, -20:21]
    angle = np.radians(degrees)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    label = (np.hypot(along / 15, across / 5) <= 1).astype(np.int32)
    row = dict(zip(shapes.SHAPES, shapes.measure(label, 1, label)[0], strict=True))
    difference = (np.degrees(row["angle"]) - degrees + 90) % 180 - 90
    assert abs(difference) < 1.5
    assert row["major"] == pytest.approx(30, rel=0.03)
    assert row["eccentricity"] == pytest.approx(np.sqrt(1 - 1 / 9), abs=0.01)


# --- Graphs ------------------------------------------------------------------------------------


def brute_triangles(points):
    """Give ``(corners, centre)`` of the triangles whose circumcircle holds no other point."""
    found = []
    for corners in itertools.combinations(range(len(points)), 3):
        a, b, c = points[list(corners)]
        centre = np.linalg.solve(2 * np.array([b - a, c - a]), [b @ b - a @ a, c @ c - a @ a])
        others = np.delete(points, corners, axis=0)
        if (np.hypot(*(others - centre).T) > np.hypot(*(a - centre))).all():
            found.append((corners, centre))
    return found


def clipped_cell(site, others, size):
    """Give the part of the patch that is nearer to a site than to all others, cut by each bisector."""
    polygon = np.array([[0, 0], [size, 0], [size, size], [0, size]]) - 0.5
    for other in others:
        normal, middle = other - site, (other + site) / 2
        beyond = (polygon - middle) @ normal
        kept = []
        for k in range(len(polygon)):
            p, q, dp, dq = polygon[k - 1], polygon[k], beyond[k - 1], beyond[k]
            if (dp > 0) != (dq > 0):
                kept.append(p + (q - p) * dp / (dp - dq))
            if dq <= 0:
                kept.append(q)
        polygon = np.array(kept)
    return polygon


def measures(polygon):
    x, y = polygon.T
    area = abs(np.roll(x, 1) @ y - x @ np.roll(y, 1)) / 2
    around = np.hypot(*(polygon - np.roll(polygon, 1, axis=0)).T).sum()
    return area, around, cdist(polygon, polygon).max(), 4 * np.pi * area / around**2


@given(seeds, st.integers(3, 14))
@settings(max_examples=15)
def test_triangles_and_cells_agree_with_brute_force(seed, n):
    points = points_of(seed, n)
    mosaic = graphs.tessellate(points, SIZE)
    shown = [c for c, middle in brute_triangles(points) if (abs(middle - SIZE / 2 + 0.5) <= SIZE / 2).all()]  # fmt: skip
    areas = [abs(np.linalg.det(points[[b, c]] - points[a])) / 2 for a, b, c in shown]
    np.testing.assert_allclose(np.sort(mosaic.triangles), np.sort(areas), rtol=1e-6)
    sides = {pair for corners in shown for pair in itertools.combinations(corners, 2)}
    assert {tuple(sorted(pair)) for pair in mosaic.pairs.tolist()} == sides
    assert len(mosaic.pairs) == len(sides)
    lengths = [np.hypot(*(points[a] - points[b])) for a, b in sides]
    np.testing.assert_allclose(np.sort(mosaic.sides), np.sort(lengths))
    cells = [clipped_cell(points[k], np.delete(points, k, axis=0), SIZE) for k in range(n)]
    whole = [c for c in cells if c.min() > -0.499999 and c.max() < SIZE - 0.500001]
    expected = np.array([measures(cell) for cell in whole]).reshape(-1, 4)
    np.testing.assert_allclose(np.sort(mosaic.cells, axis=0), np.sort(expected, axis=0), rtol=1e-6)


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(np.empty((0, 2)), id="none"),
        pytest.param(points_of(0, 1), id="one"),
        pytest.param(points_of(0, 2), id="two"),
        pytest.param(np.arange(10.0)[:, None] * [[3, 5]], id="on one line"),
        pytest.param(np.full((5, 2), 7.0), id="all in one place"),
        pytest.param(np.repeat([[1.0, 2.0], [8.0, 3.0]], 3, axis=0), id="in two places"),
    ],
)
def test_points_that_span_no_triangle_give_none(points):
    mosaic = graphs.tessellate(points, SIZE)
    assert [len(mosaic.cells), len(mosaic.sides), len(mosaic.triangles)] == [0, 0, 0]
    assert len(graphs.tree(points)) == max(len(points) - 1, 0)


@given(seeds, st.integers(2, 60))
def test_the_tree_agrees_with_scipy(seed, n):
    points = points_of(seed, n)
    expected = minimum_spanning_tree(cdist(points, points)).data
    np.testing.assert_allclose(np.sort(graphs.tree(points)), np.sort(expected))


def test_points_in_one_place_are_joined_by_nothing():
    lengths = graphs.tree(np.array([[1.0, 1], [1, 1], [4, 5], [1, 1]]))
    assert sorted(lengths.tolist()) == [0, 0, 5]


@given(seeds, st.integers(1, 40))
def test_neighbourhoods_agree_with_all_distances(seed, n):
    points = points_of(seed, n)
    apart = cdist(points, points)
    np.fill_diagonal(apart, np.inf)
    distances, counts = graphs.neighbourhoods(points)
    expected = np.pad(np.sort(apart, axis=1), ((0, 0), (0, 7)), constant_values=np.inf)[:, :7]
    np.testing.assert_allclose(distances, expected.T)
    for row, radius in zip(counts, graphs.RADII, strict=True):
        np.testing.assert_array_equal(row, (apart <= radius).sum(axis=1))
