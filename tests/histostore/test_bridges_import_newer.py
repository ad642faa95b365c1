"""Files as slide2vec and raw2features write them, made by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import zarr

from histostore.grid import PatchGrid
from tests.histostore.bridging import imported, only, places, vectors, write_pt

# slide2vec ---------------------------------------------------------------------------------


def write_slide2vec(out, name, kind="npz", **meta):
    base = out / "tile_embeddings"
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    if kind == "npz":
        np.savez_compressed(base / f"{name}.npz", features=vectors(dtype="f2"), tile_index=range(5))
    else:
        write_pt(base / f"{name}.pt", pytest.importorskip("torch").from_numpy(vectors(dtype="f2")))
    said = {
        "sample_id": name,
        "artifact_type": "tile_embeddings",
        "format": kind,
        "encoder_name": "prost40m",
        "requested_tile_size_px": 224,
        "requested_spacing_um": 0.5,
        "coordinates_npz_path": "/etc/passwd",
        "image_path": f"/data/{name}.tif",
        "compatibility": {"encoder_name": "prost40m", "precision": "fp16"},
        **meta,
    }
    (base / f"{name}.meta.json").write_text(json.dumps(said))


@pytest.mark.parametrize("kind", ["npz", "pt"])
def test_slide2vec_files_are_read_with_their_sidecars(tmp_path, kind):
    out = tmp_path / "out"
    write_slide2vec(out, "s", kind)
    write_slide2vec(out, "tumor/s", kind)
    for name in ("s", "tumor/s"):
        (out / "tiles" / name).parent.mkdir(parents=True, exist_ok=True)
        x, y = places().T
        np.savez(
            out / "tiles" / f"{name}.coordinates.npz",
            x=x,
            y=y,
            tile_index=range(5),
            tissue_fractions=np.linspace(0, 1, 5, dtype="f4"),
        )
    report, store = imported(tmp_path, out, "slide2vec")
    features = only(store)
    assert (report.failed, set(features.image_ids)) == ((), {"s", "tumor/s"})
    bag = features.bag("tumor/s")
    assert np.array_equal(bag.embedding, vectors(dtype="f2"))
    assert np.array_equal(bag.coords, places())
    assert bag.tissue.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert features.spec.encoder.precision == "fp16"
    assert features.spec.grid == PatchGrid(224, None, 0.5)


def test_a_slide2vec_file_without_its_sidecar_is_not_finished(tmp_path):
    out = tmp_path / "out"
    write_slide2vec(out, "done")
    write_slide2vec(out, "half")
    write_slide2vec(out, "other", format="pt")
    (out / "tile_embeddings" / "half.meta.json").unlink()
    report, store = imported(tmp_path, out, "slide2vec")
    assert only(store).image_ids == ("done",)
    assert {each.image_id: each.reason for each in report.failed} == {
        "half": "it has no .meta.json: slide2vec has not finished it",
        "other": "its .meta.json speaks of a 'pt' file that is not there",
    }


# raw2features ------------------------------------------------------------------------------


def write_raw2features(path, *, zarr_format=2, models=("uni", "resnet50"), finished=True):
    root = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    grid = root.create_group("grids").create_group("mpp0.5_px224")
    card = {"weights_sha256": "ab" * 32, "mean": [0.5], "inference_amp": "fp16"}
    grid.attrs["raw2features"] = {
        "patching": {"target_mpp": 0.5, "patch_px": 224, "step_out_px": 224},
        "models": {"uni": card},
    }
    grid.create_array("coords", data=places().astype("i4"))
    grid.create_array("grid_index", data=np.array([[0, 0], [0, 1], [1, 0], [1, 1], [2, 1]], "i4"))
    grid.create_array("mask", data=np.array([[255, 0], [51, 102], [0, 153]], "u1"))
    features = grid.create_group("features")
    for seed, model in enumerate(models):
        found = vectors(dtype="f2", seed=seed)
        found[-1] *= finished
        features.create_array(model, data=found)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_raw2features_models_and_grids_each_have_a_feature_set(tmp_path, zarr_format):
    write_raw2features(tmp_path / "r2f" / "s.embeddings.zarr", zarr_format=zarr_format)
    report, store = imported(tmp_path, tmp_path / "r2f", "raw2features")
    assert (report.n_imported, report.failed) == (2, ())
    by_encoder = {features.spec.encoder.name: features for features in store.values()}
    uni = by_encoder["import:raw2features:uni"]
    assert uni.spec.encoder.weights == f"sha256:{'ab' * 32}"
    assert uni.spec.encoder.precision == "fp16"
    assert uni.spec.grid == PatchGrid(224, 224, 0.5)
    assert np.array_equal(uni.bag("s").embedding, vectors(dtype="f2"))
    assert np.array_equal(uni.bag("s").coords, places())
    assert np.allclose(uni.bag("s").tissue, [1, 0, 0.2, 0.4, 0.6])
    assert by_encoder["import:raw2features:resnet50"].spec.encoder.weights == "unknown"
    again, _ = imported(tmp_path, tmp_path / "r2f", "raw2features")
    assert (again.n_done, again.n_imported) == (2, 0)


def test_raw2features_stores_that_are_not_finished_or_not_sound_are_recorded(tmp_path):
    folder = tmp_path / "r2f"
    write_raw2features(folder / "half.embeddings.zarr", finished=False, models=("uni",))
    write_raw2features(folder / "good.embeddings.zarr", models=("uni",))
    (folder / "empty.embeddings.zarr").mkdir()
    report, store = imported(tmp_path, folder, "raw2features")
    assert only(store).image_ids == ("good",)
    reasons = {each.image_id: each.reason for each in report.failed}
    assert "raw2features has not finished it" in reasons["half"]
    assert "is no sound Zarr store" in reasons["empty"]
