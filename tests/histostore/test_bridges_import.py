"""Files as TRIDENT, CLAM and STAMP write them, made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.bridges import import_layout
from histostore.errors import FormatError, OptionError, StorageError
from histostore.grid import PatchGrid
from histostore.store import open_store
from tests.histostore.bridging import imported, only, places, vectors, write_h5, write_pt

pytest.importorskip("h5py")

PLACING = {
    "patch_size": 256,
    "patch_size_level0": 512,
    "level0_magnification": 40,
    "target_magnification": 20,
    "overlap": 64,
    "name": "slide",
    "savetodir": "/somewhere/else",
    "level0_width": 9000,
    "level0_height": 7000,
}


def write_trident(job, name, *, encoder="uni_v1", features=None, placing=PLACING, folder=None):
    path = job / (folder or "20x_256px_64px_overlap") / f"features_{encoder}" / f"{name}.h5"
    features = vectors() if features is None else features
    coords = places(features.shape[-2])
    return write_h5(path, {"features": features, "coords": coords}, {"coords": placing})


# TRIDENT -----------------------------------------------------------------------------------


def test_trident_files_become_one_feature_set_that_says_where_it_is_from(tmp_path):
    job = tmp_path / "job"
    write_trident(job, "slide-1")
    write_trident(job, "slide-2", features=vectors(3)[None])
    (job / "20x_256px_64px_overlap" / "patches").mkdir()
    write_h5(
        job / "20x_256px_64px_overlap" / "patches" / "slide-1_patches.h5", {"coords": places()}
    )
    report, store = imported(tmp_path, job, "trident")
    features = only(store)
    assert (report.n_images, report.n_imported, report.failed) == (2, 2, ())
    assert report.feature_sets == (features.name,)
    assert features.spec.encoder.to_json() == {
        "name": "import:trident:uni_v1",
        "weights": "unknown",
        "precision": "unknown",
        "preprocessing": {
            "target_magnification": 20.0,
            "overlap": 64,
            "tissue": "unknown",
            "source": str(job),
        },
    }
    assert features.spec.grid == PatchGrid(256, 192, 0.5)
    bag = features.bag("slide-1")
    assert np.array_equal(bag.embedding, vectors())
    assert np.array_equal(bag.coords, places())
    assert (bag.tissue == 1).all()
    assert np.array_equal(features.bag("slide-2").embedding, vectors(3))
    assert features.sources["slide-1"].url.endswith("/features_uni_v1/slide-1.h5")
    assert features.builds()[0]["import"] == "trident"


def test_every_encoder_patch_size_width_and_type_has_a_feature_set_of_its_own(tmp_path):
    job = tmp_path / "job"
    write_trident(job, "s")
    write_trident(job, "s", encoder="conch_v1")
    write_trident(job, "s", folder="10x_256px_64px_overlap", placing={"patch_size": 256})
    write_trident(job, "t", features=vectors(width=7))
    write_trident(job, "u", features=vectors(dtype="f2"))
    write_trident(job, "v", placing={**PLACING, "patch_size": 512})
    report, store = imported(tmp_path, job, "trident")
    assert (report.n_imported, len(report.feature_sets), report.failed) == (6, 6, ())
    assert {features.spec.grid.mpp for features in store.values()} == {0.5, 1.0}
    assert {features.spec.dtype for features in store.values()} == {"float32", "float16"}


def test_two_sources_do_not_mix_unless_the_caller_names_the_encoder(tmp_path):
    for job in ("first", "second"):
        write_trident(tmp_path / job, job)
    for job in ("first", "second"):
        _, store = imported(tmp_path, tmp_path / job, "trident")
    assert len(store) == 2
    for job in ("first", "second"):
        report = import_layout(
            str(tmp_path / job), str(tmp_path / "named"), "trident", name="uni_v1"
        )
    features = only(open_store(str(tmp_path / "named")))
    assert set(features.image_ids) == {"first", "second"}
    assert features.spec.encoder.name == "import:trident:uni_v1"
    assert "source" not in features.spec.encoder.preprocessing
    assert report.n_images == 1


def test_a_folder_of_trident_files_will_do_and_a_locked_one_is_not_finished(tmp_path):
    path = write_trident(tmp_path / "job", "s")
    write_trident(tmp_path / "job", "half")
    path.with_name("half.h5.lock").write_text("{}")
    report, store = imported(tmp_path, path.parent, "trident")
    assert only(store).image_ids == ("s",)
    assert only(store).spec.encoder.name == "import:trident:uni_v1"
    assert [
        (each.image_id, "TRIDENT has not finished" in each.reason) for each in report.failed
    ] == [("half", True)]
    path.with_name("half.h5.lock").unlink()
    again, _ = imported(tmp_path, path.parent, "trident")
    assert (again.n_done, again.n_imported, again.failed) == (1, 1, ())


# CLAM --------------------------------------------------------------------------------------


def test_clam_files_are_read_with_places_where_there_are_places(tmp_path):
    torch = pytest.importorskip("torch")
    feats = tmp_path / "feats"
    write_h5(feats / "h5_files" / "a.h5", {"features": vectors(), "coords": places()})
    write_pt(feats / "pt_files" / "a.pt", torch.from_numpy(vectors()))
    write_pt(feats / "pt_files" / "b.pt", torch.from_numpy(vectors(seed=1)).bfloat16())
    write_h5(feats / "h5_files" / "half.h5", {"features": vectors(), "coords": places()})
    report, store = imported(tmp_path, feats, "clam")
    placed, unplaced = sorted(store.values(), key=lambda features: features.image_ids)
    assert (placed.image_ids, unplaced.image_ids) == (("a",), ("b",))
    assert np.array_equal(placed.bag("a").coords, places())
    assert unplaced.bag("b").coords.tolist() == [[row, 0] for row in range(5)]
    assert unplaced.spec.encoder.preprocessing["coords"] == "row number"
    assert unplaced.spec.dtype == "float32"
    assert [each.image_id for each in report.failed] == ["half"]
    assert "CLAM has not finished" in report.failed[0].reason


def test_a_folder_of_tensors_alone_will_do(tmp_path):
    torch = pytest.importorskip("torch")
    for name in ("x", "y"):
        write_pt(tmp_path / "bags" / f"{name}.pt", torch.ones(2, 3, dtype=torch.float16))
    _, store = imported(tmp_path, tmp_path / "bags", "clam")
    assert set(only(store).image_ids) == {"x", "y"}
    assert (only(store).spec.dtype, only(store).spec.n_features) == ("float16", 3)


# STAMP -------------------------------------------------------------------------------------

STAMP = {
    "stamp_version": "2.4.0",
    "extractor": "virchow2",
    "unit": "um",
    "tile_size_um": 256.0,
    "tile_size_px": 224,
    "code_hash": "0a1b2c3d",
    "feat_type": "tile",
}


@pytest.mark.parametrize(
    ("mpp", "expected", "unit"),
    [
        (None, [[0, 0], [224, 448]], "pixels of 1.14286 µm"),
        (0.25, [[0, 0], [1024, 2048]], "level-0"),
    ],
)
def test_stamp_places_are_micrometres_and_become_pixels(tmp_path, mpp, expected, unit):
    coords = np.array([[0, 0], [256, 512]], "f4")
    write_h5(
        tmp_path / "f" / "site" / "s.h5",
        {"feats": vectors(2, dtype="f2"), "coords": coords},
        None,
        STAMP,
    )
    _, store = imported(tmp_path, tmp_path / "f", "stamp", mpp=mpp)
    features = only(store)
    assert features.image_ids == ("site/s",)
    assert features.bag("site/s").coords.tolist() == expected
    assert features.spec.encoder.name == "import:stamp:virchow2"
    assert features.spec.encoder.preprocessing["coords"].startswith(unit)
    assert features.spec.grid == PatchGrid(224, None, 256 / 224)


def test_stamp_files_of_whole_slides_are_not_bags(tmp_path):
    attrs = {**STAMP, "feat_type": "slide"}
    write_h5(
        tmp_path / "f" / "s.h5", {"feats": vectors(1), "coords": np.zeros((1, 2))}, None, attrs
    )
    report, _ = imported(tmp_path, tmp_path / "f", "stamp")
    assert report.failed[0].reason == "it holds one vector per slide, not per tile"


# npz ---------------------------------------------------------------------------------------


def test_bags_of_an_npz_file_may_be_scattered_named_and_labelled(tmp_path):
    x = vectors(6)
    bag = np.array(["b", "a", "b", "c", "a", "c"])
    np.savez(tmp_path / "t.npz", X=x, bag=bag, y=[1.0, 0.0, 1.0])
    table = tmp_path / "cohort.csv"
    _, store = imported(tmp_path, tmp_path / "t.npz", "npz", cohort_out=str(table))
    for name in "abc":
        assert np.array_equal(only(store).bag(name).embedding, x[bag == name])
    assert table.read_text().splitlines()[0] == "image_id,path,label"
    assert [line.split(",")[::2] for line in table.read_text().splitlines()[1:]] == [
        ["a", "1"],
        ["b", "0"],
        ["c", "1"],
    ]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_found_whether_compressed_or_not_by_row_or_by_column(tmp_path, save, order):
    x = np.asarray(vectors(40).astype("f8"), order=order)
    save(tmp_path / "t.npz", X=x, bag=np.repeat([3, 7, 9, 4], 10))
    _, store = imported(tmp_path, tmp_path / "t.npz", "npz")
    assert only(store).image_ids == ("t-3", "t-4", "t-7", "t-9")
    assert np.array_equal(only(store).bag("t-9").embedding, x[20:30].astype("f4"))


# All of them -------------------------------------------------------------------------------


def test_an_import_goes_on_where_it_ended_and_tells_what_has_changed(tmp_path, monkeypatch):
    from histostore.bridges import importing

    monkeypatch.setattr(importing, "FRAGMENT_BYTES", 2 * vectors().nbytes)
    job = tmp_path / "job"
    paths = [write_trident(job, f"s{number}") for number in range(5)]
    report, store = imported(tmp_path, job, "trident")
    assert [len(each.image_ids) for each in only(store).fragments] == [2, 2, 1]
    paths.append(write_trident(job, "s5"))
    write_trident(job, "s0", features=vectors(7))
    told = []
    again, store = imported(tmp_path, job, "trident", progress=told.append)
    assert (again.n_images, again.n_done, again.n_imported) == (6, 5, 1)
    assert again.changed == ("s0",)
    assert again.feature_sets == report.feature_sets
    assert (told[-1].n_images, told[-1].n_total) == (1, 1)
    assert len(only(store).bag("s0")) == 5


def test_a_moved_source_under_the_same_name_is_not_imported_twice(tmp_path):
    write_trident(tmp_path / "here", "s")
    imported(tmp_path, tmp_path / "here", "trident", name="uni")
    (tmp_path / "here").rename(tmp_path / "there")
    report, store = imported(tmp_path, tmp_path / "there", "trident", name="uni")
    assert (report.n_done, report.n_imported, report.failed) == (1, 0, ())
    assert len(only(store).fragments) == 1


def test_a_cohort_table_lists_what_is_in_the_store(tmp_path):
    from histostore.cohort import Cohort

    job = tmp_path / "job"
    write_trident(job, "good")
    write_trident(job, "bad", features=np.full((2, 6), np.nan, "f4"))
    table = str(tmp_path / "cohort.csv")
    imported(tmp_path, job, "trident", cohort_out=table)
    assert Cohort.read(table).image_ids == ("good",)


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("trident", "features_<encoder>"),
        ("clam", "h5_files"),
        ("stamp", "<slide>.h5"),
        ("slide2vec", "tile_embeddings"),
        ("raw2features", "embeddings.zarr"),
        ("npz", ".npz"),
    ],
)
def test_a_source_of_another_layout_is_refused_with_what_is_there(tmp_path, layout, expected):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "slide.svs").write_bytes(b"no")
    with pytest.raises(FormatError, match=expected) as caught:
        imported(tmp_path, tmp_path / "source", layout)
    assert layout == "raw2features" or "slide.svs" in str(caught.value)
    with pytest.raises(StorageError, match="no such"):
        imported(tmp_path, tmp_path / "nowhere", layout)
    assert not (tmp_path / "store").exists()


def test_an_option_of_another_layout_is_refused(tmp_path):
    with pytest.raises(OptionError, match="layout trident takes no mpp"):
        imported(tmp_path, tmp_path, "trident", mpp=0.5)
    with pytest.raises(OptionError, match="µm per level-0 pixel above 0"):
        imported(tmp_path, tmp_path, "stamp", mpp=-1.0)
