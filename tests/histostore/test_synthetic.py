"""Synthetic cohorts: the class stands in the planted cells and nowhere else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histostore.cohort import Cohort
from histostore.errors import OptionError, StorageError
from histostore.synthetic import Recipe, load_truth, make_cohort
from histostore.synthetic.painting import grow_lesion

EDGE = 64


def files_below(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_a_cohort_has_pictures_a_table_and_the_truth(tmp_path):
    table = make_cohort(tmp_path / "new", n_images=5, image_px=(200, 128), n_classes=3)
    cohort = Cohort.read(table)
    assert len(cohort) == 5
    assert cohort.has("label")
    assert len(set(cohort.patient_ids)) == 2
    truth = load_truth(table)
    assert truth.equals(load_truth(tmp_path / "new"))
    assert list(truth.columns) == ["image_id", "x", "y", "edge_px", "planted"]
    assert [str(truth[c].dtype) for c in ("x", "y", "edge_px", "planted")] == [
        *["int32"] * 3,
        "bool",
    ]
    assert truth["image_id"].tolist() == [name for name in cohort.image_ids for _ in range(6)]
    assert truth["x"].tolist()[:6] == [0, 64, 128] * 2  # 200 px hold three whole cells
    assert truth["y"].tolist()[:6] == [0, 0, 0, 64, 64, 64]
    assert truth.groupby("image_id")["planted"].sum().min() >= 1
    for url in cohort.urls:
        with Image.open(url) as picture:
            assert (picture.mode, picture.size) == ("RGB", (200, 128))


def test_the_seed_decides_every_byte(tmp_path):
    settings_ = {"n_images": 3, "image_px": 128}
    np.random.seed(1)  # noqa: NPY002, TID251 - the global state must not matter
    make_cohort(tmp_path / "a", **settings_)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    make_cohort(tmp_path / "b", **settings_, threads=3)
    assert (np.random.get_state()[1] == state).all()  # noqa: NPY002
    make_cohort(tmp_path / "c", **settings_, seed=1)
    one, two, other = (files_below(tmp_path / name) for name in "abc")
    assert one == two
    assert len(one) == 5
    assert all(one[name] != other[name] for name in one if name.endswith(".png"))


def test_a_larger_cohort_begins_with_the_smaller_one(tmp_path):
    make_cohort(tmp_path / "a", n_images=2, image_px=128)
    make_cohort(tmp_path / "b", n_images=5, image_px=128)
    small, large = files_below(tmp_path / "a"), files_below(tmp_path / "b")
    for name, content in small.items():
        assert large[name].startswith(content)


@given(
    n_classes=st.integers(2, 4),
    images_per_patient=st.integers(1, 8),
    seed=st.integers(0, 2**40),
    n_patients=st.integers(1, 12),
)
def test_classes_are_balanced_within_and_over_patients(
    n_classes, images_per_patient, seed, n_patients
):
    recipe = Recipe(n_classes=n_classes, images_per_patient=images_per_patient, seed=seed)
    labels = [recipe.class_of(i) for i in range(n_patients * images_per_patient)]
    for group in np.reshape(labels, (n_patients, images_per_patient)):
        counts = np.bincount(group, minlength=n_classes)
        assert counts.max() - counts.min() <= 1
    if n_patients % n_classes == 0:
        assert len(set(np.bincount(labels, minlength=n_classes))) == 1


@settings(max_examples=15)
@given(
    image_px=st.tuples(st.integers(32, 300), st.integers(32, 300)),
    patch_px=st.integers(16, 32),
    share=st.floats(0.01, 0.9),
    seed=st.integers(0, 2**32),
    index=st.integers(0, 99),
)
def test_any_sensible_setting_gives_a_picture(image_px, patch_px, share, seed, index):
    recipe = Recipe(
        n_classes=4, image_px=image_px, patch_px=patch_px, planted_share=share, seed=seed
    )
    image = recipe.draw(index)
    assert image.rgb.shape == (image_px[1], image_px[0], 3)
    assert image.rgb.dtype == np.uint8
    assert image.planted.shape == (image_px[1] // patch_px, image_px[0] // patch_px)
    assert image.planted.any()
    assert np.array_equal(recipe.draw(index).rgb, image.rgb)


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    n_cells=st.integers(1, 90),
    seed=st.integers(0, 2**32),
)
def test_a_lesion_is_connected_and_as_large_as_asked(shape, n_cells, seed):
    from scipy.ndimage import label

    rng = np.random.default_rng(seed)
    planted = grow_lesion(rng.uniform(size=shape), n_cells, rng)
    assert planted.sum() == min(n_cells, planted.size)
    assert label(planted)[1] == 1


def test_a_lesion_keeps_off_bare_glass():
    glass = np.zeros((8, 8))
    glass[:, 4:] = 1
    for seed in range(20):
        assert not grow_lesion(glass, 20, np.random.default_rng(seed))[:, 4:].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_classes": 1},
        {"n_classes": 5},
        {"patch_px": 8},
        {"image_px": 32},
        {"images_per_patient": 0},
        {"planted_share": 0.0},
        {"planted_share": 1.0},
        {"seed": -1},
        {"n_images": 0},
        {"threads": 0},
    ],
)
def test_settings_without_sense_are_refused_before_anything_is_written(wrong, tmp_path):
    with pytest.raises(OptionError, match="give"):
        make_cohort(tmp_path / "new", **wrong)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"):
        make_cohort(tmp_path / "file", n_images=1, image_px=64)
    with pytest.raises(StorageError, match=r"truth\.csv: no such file"):
        load_truth(tmp_path)


def test_drawing_loads_neither_torch_nor_sklearn():
    code = (
        "import sys; from histostore.synthetic import Recipe; Recipe(image_px=(64, 64)).draw(0); "
        "print([m for m in ('torch', 'sklearn', 'skimage', 'pandas') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# --- where the class shows ------------------------------------------------------------------


def cell_features(rgb):
    """Mean, deviation and gradient energy of each channel in each cell: (cell, 9)."""
    x = rgb.astype(np.float32)
    steps = np.abs(np.diff(x, axis=0, prepend=x[:1])) + np.abs(np.diff(x, axis=1, prepend=x[:, :1]))
    rows, columns = x.shape[0] // EDGE, x.shape[1] // EDGE
    cells = x.reshape(rows, EDGE, columns, EDGE, 3)
    moved = steps.reshape(rows, EDGE, columns, EDGE, 3)
    parts = (cells.mean((1, 3)), cells.std((1, 3)), moved.mean((1, 3)))
    return np.concatenate(parts, axis=-1).reshape(rows * columns, 9)


@pytest.fixture(scope="module")
def drawn():
    """96 images of two classes: features (image, cell, 9), planted (image, cell), labels, patients."""
    recipe = Recipe(image_px=(256, 256), planted_share=0.2, seed=3)
    images = [recipe.draw(i) for i in range(96)]
    return (
        np.stack([cell_features(image.rgb) for image in images]),
        np.stack([image.planted.ravel() for image in images]),
        np.array([image.label for image in images]) == recipe.classes[1],
        np.array([image.patient_id for image in images]),
    )


def scores(features, target, patients):
    """Area under the curve of a linear classifier, on patients it has not seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    chance = cross_val_predict(
        model, features, target, groups=patients, cv=GroupKFold(6), method="predict_proba"
    )
    return roc_auc_score(target, chance[:, 1])


def mean_of(features, chosen):
    return (features * chosen[..., None]).sum(1) / chosen.sum(1)[:, None]


@pytest.mark.parametrize("index", range(8))
def test_away_from_the_lesion_a_picture_does_not_depend_on_its_class(index):
    from scipy.ndimage import binary_dilation

    images = [Recipe(n_classes=n, image_px=(320, 320)).draw(index) for n in (2, 3, 4)]
    near = np.kron(images[0].planted, np.ones((EDGE, EDGE), dtype=bool))
    near = binary_dilation(near, np.ones((3, 3)), iterations=28)  # a nucleus over the border
    for image in images[1:]:
        assert np.array_equal(image.planted, images[0].planted)
        assert np.array_equal(image.rgb[~near], images[0].rgb[~near])
        same_class = image.label == images[0].label
        assert np.array_equal(image.rgb, images[0].rgb) == same_class


def test_unplanted_cells_tell_nothing_of_the_class(drawn):
    features, planted, target, patients = drawn
    # 48 against 48 images: under chance the area has a standard error of 0.06.
    assert 0.35 < scores(mean_of(features, ~planted), target, patients) < 0.65


def test_planted_cells_tell_the_class(drawn):
    features, planted, target, patients = drawn
    assert scores(mean_of(features, planted), target, patients) > 0.99


def test_planted_cells_stand_out_from_the_others(drawn):
    features, planted, _, patients = drawn
    cells = np.repeat(patients, planted.shape[1])
    assert scores(features.reshape(-1, 9), planted.ravel(), cells) > 0.95


def test_the_stain_is_the_patients_and_not_the_classes(drawn):
    features, planted, target, patients = drawn
    colour = mean_of(features, ~planted)[:, :3]
    within = np.mean([colour[patients == p].var(0) for p in set(patients)])
    assert within < 0.5 * colour.var(0).mean()
    assert 0.35 < scores(colour, target, patients) < 0.65
