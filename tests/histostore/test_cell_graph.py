"""The cell-graph encoder: what an encoder promises, and features of nuclei whose places are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from histostore.encoders._cells_features import describe
from histostore.encoders._cells_shapes import SHAPES
from histostore.encoders.base import Encoder
from histostore.encoders.catalog import card, load_encoder
from histostore.encoders.cell_graph import FEATURE_NAMES, Nuclei, find_nuclei, load
from histostore.errors import EncoderError, OptionError
from histostore.synthetic import Recipe

ENCODER = load(threads=1)
STROMA, NUCLEUS = (235, 190, 215), (95, 70, 150)
CLASSES = Recipe(n_classes=4).classes


def encode(patch):
    return dict(zip(FEATURE_NAMES, ENCODER.encode(patch[None])[0].tolist(), strict=True))


def tissue(index, size=128):
    recipe = Recipe(n_classes=4, image_px=(size, size), planted_share=0.3, seed=11)
    return recipe.draw(index)


def discs(places, size=96, radius=4.0):
    """Give a patch of stroma with round nuclei at ``(x, y)``."""
    y, x = np.mgrid[:size, :size]
    patch = np.full((size, size, 3), STROMA, np.uint8)
    for u, v in places:
        patch[np.hypot(x - u, y - v) <= radius] = NUCLEUS
    return patch


def noise(seed, size, smooth):
    rng = np.random.default_rng(seed)
    patch = ndimage.gaussian_filter(rng.uniform(0, 1, (size, size, 3)), (smooth, smooth, 0.5))
    return ((patch - patch.min()) / (np.ptp(patch) + 1e-9) * 255).astype(np.uint8)


def flat(colour, size=32):
    return np.full((size, size, 3), colour, np.uint8)


SPECIAL = {
    "black": flat(0),
    "white": flat(255),
    "grey": flat(77),
    "pink": flat(STROMA),
    "haematoxylin": flat(NUCLEUS),
    "half": np.concatenate([flat(STROMA)[:16], flat(NUCLEUS)[:16]]),
    "chequers": np.repeat((np.indices((32, 32, 1)).sum(axis=0) % 2 * 255).astype("u1"), 3, axis=2),
    "one pixel": flat((90, 40, 140), 1),
    "two pixels": noise(3, 2, 0),
    "noise": noise(4, 33, 0),
    "one nucleus": discs([(40, 40)]),
    "two nuclei": discs([(30, 30), (60, 40)]),
    "three nuclei": discs([(30, 30), (60, 40), (50, 70)]),
    "on one line": discs([(20, 48), (40, 48), (60, 48), (80, 48)]),
    "in a square": discs([(30, 30), (60, 30), (30, 60), (60, 60)]),
    "cut off": discs([(0, 0), (95, 50), (50, 95)]),
}


# --- What an encoder promises ------------------------------------------------------------------


def test_it_is_an_encoder_with_an_identity_and_a_row_of_the_table():
    assert isinstance(ENCODER, Encoder)
    assert ENCODER.n_features == len(FEATURE_NAMES) == len(set(FEATURE_NAMES)) == 119
    assert card("cell-graph").n_features == ENCODER.n_features
    loaded = load_encoder("cell-graph", threads=2, batch_size=7)
    assert loaded.identity == ENCODER.identity
    assert (loaded.threads, loaded.batch_size) == (2, 7)
    document = ENCODER.identity.to_json()
    assert (document["name"], document["weights"]) == ("cell-graph", "none")
    assert document["preprocessing"]["version"] == 2


@pytest.mark.parametrize("name", SPECIAL)
def test_every_patch_gives_finite_float32(name):
    embedding = ENCODER.encode(SPECIAL[name][None])
    assert (embedding.dtype, embedding.shape) == (np.float32, (1, 119))
    assert np.isfinite(embedding).all()


@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
    st.sampled_from([1, 2, 5, 33]),
    st.integers(1, 255),
)
def test_any_picture_gives_finite_numbers(seed, n_colours, size, spread):
    rng = np.random.default_rng(seed)
    colours = (rng.integers(0, 256) + rng.integers(0, spread + 1, (n_colours, 3))).clip(0, 255)
    patch = colours[rng.integers(0, n_colours, (size, size))].astype(np.uint8)
    assert np.isfinite(ENCODER.encode(patch[None])).all()


def test_a_batch_equals_one_by_one_whatever_the_threads_and_the_layout():
    batch = np.stack([tissue(index, 96).rgb for index in range(5)])
    together = ENCODER.encode(batch)
    alone = np.concatenate([ENCODER.encode(patch[None]) for patch in batch])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(load(threads=3).encode(batch), together)
    np.testing.assert_array_equal(ENCODER.encode(np.asfortranarray(batch)), together)
    batch.setflags(write=False)
    np.testing.assert_array_equal(ENCODER.encode(batch), together)
    assert ENCODER.encode(batch[:0]).shape == (0, 119)


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize(("turns", "mirrored"), [(1, False), (2, False), (3, True), (0, True)])
def test_turning_or_flipping_tissue_changes_nothing(index, turns, mirrored):
    patch = tissue(index).rgb
    turned = np.rot90(patch[:, ::-1] if mirrored else patch, turns)
    expected, seen = ENCODER.encode(np.stack([patch, turned]))
    np.testing.assert_allclose(seen, expected, rtol=2e-3, atol=2e-3)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.7, 1.5, 3.0]), st.integers(0, 3))
@settings(max_examples=25)
def test_turning_any_picture_leaves_its_nuclei_in_place(seed, smooth, turns):
    patch = noise(seed, 64, smooth)
    nuclei, turned = find_nuclei(patch), find_nuclei(np.rot90(patch, turns))
    # Ties between touching nuclei may be settled otherwise.
    same = (np.rot90(nuclei.label, turns) > 0) == (turned.label > 0)
    assert same.mean() > 0.97
    assert abs(len(nuclei) - len(turned)) <= 1 + 0.05 * len(nuclei)


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        pytest.param(np.zeros((2, 8, 8, 3)), "float64", id="dtype"),
        pytest.param(np.zeros((8, 8, 3), np.uint8), "shape (8, 8, 3)", id="no batch axis"),
        pytest.param(np.zeros((2, 8, 9, 3), np.uint8), "shape (2, 8, 9, 3)", id="not square"),
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
        ({"weights": "w.safetensors"}, EncoderError, "cell-graph needs no weights"),
        ({"device": "cuda"}, EncoderError, "cuda"),
        ({"precision": "bfloat16"}, EncoderError, "bfloat16"),
        ({"batch_size": 0}, OptionError, "batch_size is 0"),
        ({"threads": 0}, OptionError, "threads is 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, error, said):
    with pytest.raises(error, match=said):
        load(**options)


# --- What there is too little of ---------------------------------------------------------------


@pytest.mark.parametrize("name", ["black", "white", "grey", "pink", "haematoxylin", "one pixel"])
def test_a_patch_without_nuclei_has_none_and_says_so(name):
    seen = encode(SPECIAL[name])
    empty = [what for what in FEATURE_NAMES if not what.startswith("stain.outside")]
    assert {what: seen[what] for what in empty if seen[what] != 0} == {}


@pytest.mark.parametrize(
    ("name", "n", "present"),
    [
        ("one nucleus", 1, {"nuclei", "shape"}),
        ("two nuclei", 2, {"nuclei", "shape", "tree"}),
        ("three nuclei", 3, {"nuclei", "shape", "tree", "delaunay"}),
        ("on one line", 4, {"nuclei", "shape", "tree", "near3"}),
        ("in a square", 4, {"nuclei", "shape", "tree", "near3", "delaunay"}),
        ("cut off", 3, {"nuclei", "tree", "delaunay"}),
    ],
)
def test_what_is_too_little_is_nought_and_not_present(name, n, present):
    seen = encode(SPECIAL[name])
    flags = {what.removeprefix("present.") for what, value in seen.items() if value == 1 and what.startswith("present.")}  # fmt: skip
    assert seen["count.nuclei"] == n
    assert flags == present
    for family, flag in (("voronoi", "voronoi"), ("delaunay", "delaunay"), ("shape", "shape"), ("near.d3", "near3"), ("near.d7", "near7")):  # fmt: skip
        values = [value for what, value in seen.items() if what.startswith(f"{family}.")]
        assert any(values) == (flag in present), family


def test_nuclei_at_known_places_are_measured():
    seen = encode(discs([(30, 30), (60, 30), (30, 70)]))
    assert seen["tree.length.mean"] == pytest.approx(35, abs=0.1)
    assert seen["delaunay.side.mean"] == pytest.approx((30 + 40 + 50) / 3, abs=0.1)
    assert seen["delaunay.area.mean"] == pytest.approx(600, rel=0.01)
    assert seen["near.d1.mean"] == pytest.approx((30 + 30 + 40) / 3, abs=0.1)
    assert seen["near.r30.mean"] == pytest.approx(2 / 3)
    assert seen["shape.eccentricity.p90"] < 0.1
    assert seen["shape.solidity.mean"] > 0.85
    assert seen["shape.major.mean"] == pytest.approx(8, abs=1.5)


@given(st.integers(-10, 10), st.integers(-10, 10))
@settings(max_examples=10)
def test_a_pattern_may_lie_anywhere_in_its_patch(dx, dy):
    places = [(60, 60), (75, 62), (71, 80), (90, 90), (58, 84), (84, 70)]
    moved = [(x + dx, y + dy) for x, y in places]
    expected, seen = ENCODER.encode(np.stack([discs(places, 150), discs(moved, 150)]))
    np.testing.assert_allclose(seen, expected, rtol=1e-5, atol=1e-5)


# --- Patterns of points ------------------------------------------------------------------------


def nuclei_at(points, size, angle=0.0, eccentricity=0.8):
    """Give nuclei of one shape at given places."""
    table = np.zeros((len(points), len(SHAPES)))
    columns = {"x": points[:, 0], "y": points[:, 1], "area": 40, "major": 9, "minor": 6}
    columns |= {"eccentricity": eccentricity, "angle": angle, "solidity": 0.9, "amount": 1.0}
    for name, values in columns.items():
        table[:, SHAPES.index(name)] = values
    empty = np.zeros((size, size), np.int32)
    return Nuclei(label=empty, table=table, haematoxylin=empty, eosin=empty)


def features(nuclei):
    return dict(zip(FEATURE_NAMES, describe(nuclei).tolist(), strict=True))


def lattice(size, pitch, jitter, seed=0):
    """Fill a patch with points in triangles."""
    rows = np.arange(pitch / 2, size, pitch * np.sqrt(3) / 2)
    points = [(x, y) for k, y in enumerate(rows) for x in np.arange(pitch / 4 * (1 + 2 * (k % 2)), size, pitch)]  # fmt: skip
    points += np.random.default_rng(seed).uniform(-jitter, jitter, (len(points), 2))
    return points.clip(0, size - 1)


DISORDERS = [f"{what}.disorder" for what in ("voronoi.area", "voronoi.perimeter", "voronoi.chord", "delaunay.side", "delaunay.area", "tree.length", "near.d1")]  # fmt: skip


def test_a_lattice_has_no_disorder_and_chance_has_more_the_less_it_is_held():
    regular = features(nuclei_at(lattice(200, 16, 0), 200))
    loose = features(nuclei_at(lattice(200, 16, 2.5), 200))
    chance = features(nuclei_at(np.random.default_rng(0).uniform(0, 200, (140, 2)), 200))
    for name in DISORDERS:
        assert regular[name] == pytest.approx(0, abs=1e-6), name
        assert 0.01 < loose[name] < chance[name] < 1, name
    assert regular["voronoi.area.mean"] == pytest.approx(16**2 * np.sqrt(3) / 2)
    assert regular["voronoi.chord.mean"] == pytest.approx(16 * 2 / np.sqrt(3))
    assert regular["voronoi.area.ratio"] == pytest.approx(1)


def test_the_order_of_nuclei_does_not_matter():
    rng = np.random.default_rng(1)
    nuclei = nuclei_at(rng.uniform(0, 100, (40, 2)), 100, rng.uniform(0, np.pi, 40))
    order = rng.permutation(40)
    shuffled = Nuclei(
        label=nuclei.label,
        table=nuclei.table[order],
        haematoxylin=nuclei.haematoxylin,
        eosin=nuclei.eosin,
    )
    np.testing.assert_allclose(describe(shuffled), describe(nuclei), rtol=1e-9, atol=1e-9)


def test_parallel_nuclei_are_aligned_and_others_are_not():
    rng = np.random.default_rng(2)
    points = lattice(150, 12, 3)
    parallel = features(nuclei_at(points, 150, (rng.normal(0.1, 0.05, len(points))) % np.pi))
    swirls = features(nuclei_at(points, 150, points[:, 0] / 150 * np.pi * 0.999))
    chance = features(nuclei_at(points, 150, rng.uniform(0, np.pi, len(points))))
    assert parallel["orientation.alignment"] > 0.98
    assert parallel["orientation.entropy"] < 0.1
    assert 0.95 < chance["orientation.entropy"] <= 1
    assert parallel["pairs.alignment"] > 0.98
    # Neighbours agree in a swirl although the patch as a whole has no direction.
    assert swirls["orientation.alignment"] < 0.2
    assert swirls["pairs.alignment"] > 0.9
    assert abs(chance["pairs.alignment"]) < 0.2
    assert swirls["pairs.information"] > 2 * chance["pairs.information"]
    round_ones = features(nuclei_at(points, 150, 0.0, eccentricity=0.3))
    assert round_ones["present.orientation"] == round_ones["present.pairs"] == 0


# --- Nuclei against the truth ------------------------------------------------------------------


def found_right(image, within=5):
    """Count the nuclei that are found within some px of one of the truth's, one to one."""
    centres = find_nuclei(image.rgb).centres
    distances = cdist(centres, image.nuclei)
    pairs = linear_sum_assignment(np.minimum(distances, 3 * within))
    return np.array([(distances[pairs] <= within).sum(), len(centres), len(image.nuclei)])


def test_the_truth_says_where_nuclei_lie():
    image = tissue(1, 192)
    x, y = image.nuclei.astype(int).T
    amount = find_nuclei(image.rgb).haematoxylin
    assert ((x >= 0) & (y >= 0) & (x < 192) & (y < 192)).all()
    # By the middle of a nucleus, some vesicular ones are pale.
    assert np.quantile(amount[y, x], 0.1) > np.quantile(amount, 0.7)


@pytest.fixture(scope="module")
def found():
    """Right, found and true nuclei by class."""
    recipe = Recipe(n_classes=4, image_px=(192, 192), planted_share=0.3, seed=23)
    counts = dict.fromkeys(CLASSES, np.zeros(3))
    for index in range(12):
        image = recipe.draw(index)
        counts[image.label] = counts[image.label] + found_right(image)
    return counts


def test_most_nuclei_are_found_and_most_that_are_found_are_nuclei(found):
    right, seen, true = sum(found.values())
    assert right / seen > 0.86
    assert right / true > 0.84
    assert abs(seen / true - 1) < 0.1


def test_large_vesicular_nuclei_mostly_stay_whole(found):
    right, seen, true = found["large-cell"]
    assert right / seen > 0.65
    assert right / true > 0.82


def test_small_round_nuclei_are_found_nearly_all(found):
    right, seen, true = found["small-cell"]
    assert right / seen > 0.95
    assert right / true > 0.87


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_nuclei_are_found_in_pale_and_in_dark_sections(strength):
    counts = np.zeros(3)
    for index in range(4):
        image = tissue(index, 192)
        paler = 255 * (image.rgb / 255) ** strength  # of all optical densities
        counts += found_right(replace(image, rgb=paler.astype(np.uint8)))
    right, seen, true = counts
    assert right / seen > 0.8
    assert right / true > 0.8


def test_nuclei_of_five_px_are_told_apart():
    counts = np.zeros(3)
    for index in range(4):
        image = tissue(index, 256)
        half = image.rgb.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3)).astype(np.uint8)
        counts += found_right(replace(image, rgb=half, nuclei=image.nuclei / 2 - 0.25), within=3)
    right, seen, true = counts
    assert right / seen > 0.85
    assert right / true > 0.7


def test_specks_beside_large_nuclei_are_none():
    patch = discs([(30, 30), (65, 60)], radius=9)
    patch[70:75, 20:25] = NUCLEUS
    assert len(find_nuclei(patch)) == 2
    assert len(find_nuclei(patch[64:, :40])) == 1


def test_crowds_of_nuclei_and_stroma_are_far_apart():
    few, many = discs([(30, 30), (70, 60)]), discs(lattice(96, 12, 0).tolist())
    assert encode(many)["count.nuclei"] > 20 * encode(few)["count.nuclei"]
    assert encode(many)["near.d3.mean"] == pytest.approx(12, abs=1)
