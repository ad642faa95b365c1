"""Exports as their readers see them: HDF5, tensors, Parquet, AnnData's letter, npz."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from histostore.bridges import export_layout, import_layout
from histostore.cohort import Cohort
from histostore.errors import OptionError
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of

IDS = ("case/1", "b", "ü 3")
COUNTS = (4, 1, 6)


@pytest.fixture(params=["float16", "float32"])
def store(request, tmp_path):
    """A store of two fragments: (URL, feature set)."""
    url = str(tmp_path / "store")
    features = open_store(url, mode="a").create_feature_set(spec_of(dtype=request.param))
    features.commit(fragment_of(IDS[:2], counts=COUNTS[:2], dtype=request.param), {})
    features.commit(fragment_of(IDS[2:], counts=COUNTS[2:], dtype=request.param, seed=1), {})
    return url, features


def all_rows(features):
    loaded = features.load()
    return loaded.embedding, loaded.coords, loaded.tissue


def test_trident_files_are_what_its_readers_expect(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    url, features = store
    export_layout(url, str(tmp_path / "job"), "trident")
    folder = tmp_path / "job" / "native_16px_0px_overlap" / f"features_{features.name}"
    assert sorted(path.name for path in folder.iterdir()) == ["b.h5", "case%2F1.h5", "ü 3.h5"]
    with h5py.File(folder / "ü 3.h5") as file:
        bag = features.bag("ü 3")
        assert np.array_equal(file["features"][:], bag.embedding)
        assert file["features"].dtype == bag.embedding.dtype
        assert np.array_equal(file["coords"][:], bag.coords)
        assert file["coords"].attrs["patch_size"] == 16
        assert file["coords"].attrs["patch_size_level0"] == 16


def test_clam_files_are_what_its_readers_expect(store, tmp_path):
    h5py = pytest.importorskip("h5py")
    torch = pytest.importorskip("torch")
    url, features = store
    report = export_layout(url, str(tmp_path / "feats"), "clam")
    assert report.n_files == 6
    bag = features.bag("case/1")
    tensor = torch.load(tmp_path / "feats" / "pt_files" / "case%2F1.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    assert np.array_equal(tensor.numpy(), bag.embedding.astype("f4"))
    with h5py.File(tmp_path / "feats" / "h5_files" / "case%2F1.h5") as file:
        assert np.array_equal(file["features"][:], tensor.numpy())
        assert (file["coords"].dtype, file["coords"].shape) == (np.int32, (4, 2))


def test_the_parquet_table_has_a_row_per_patch(store, tmp_path):
    url, features = store
    export_layout(url, str(tmp_path / "out.parquet"), "parquet")
    table = pq.read_table(tmp_path / "out.parquet")
    embedding, coords, tissue = all_rows(features)
    assert table.column("image_id").to_pylist() == list(np.repeat(IDS, COUNTS))
    assert np.array_equal(np.stack([table["x"].to_numpy(), table["y"].to_numpy()], 1), coords)
    assert np.array_equal(table["tissue"].to_numpy(), tissue)
    column = table["embedding"].combine_chunks()
    assert pa.types.is_fixed_size_list(column.type)
    flat = column.flatten().to_numpy()
    assert flat.dtype == embedding.dtype
    assert np.array_equal(flat.reshape(-1, 4), embedding)
    about = json.loads(table.schema.metadata[b"histostore"])
    assert about["spec"] == features.spec.to_json()


def test_the_anndata_group_is_to_the_letter_of_its_format(store, tmp_path):
    url, features = store
    export_layout(url, str(tmp_path / "out.zarr"), "anndata")
    root = zarr.open_group(str(tmp_path / "out.zarr"), mode="r")
    embedding, coords, tissue = all_rows(features)
    assert dict(root.attrs) == {"encoding-type": "anndata", "encoding-version": "0.1.0"}
    assert set(root.keys()) == {"X", "obs", "var", "layers", "obsm", "obsp", "uns", "varm", "varp"}
    assert np.array_equal(root["X"][:], embedding)
    assert root["X"].dtype == embedding.dtype
    assert np.array_equal(root["obsm/spatial"][:], coords)
    assert np.array_equal(root["obs/tissue"][:], tissue)
    obs = dict(root["obs"].attrs)
    assert (obs["_index"], obs["column-order"]) == ("_index", ["image_id", "tissue"])
    categories = root["obs/image_id/categories"][:]
    assert list(categories[root["obs/image_id/codes"][:]]) == list(np.repeat(IDS, COUNTS))
    names = list(root["obs/_index"][:])
    assert names[:5] == ["case/1_0", "case/1_1", "case/1_2", "case/1_3", "b_0"]
    assert len(set(names)) == len(embedding)
    assert root["var/_index"].shape == (4,)
    assert json.loads(str(root["uns/histostore/spec"][()])) == features.spec.to_json()
    for _, member in root.members(max_depth=None):
        assert {"encoding-type", "encoding-version"} <= set(member.attrs)
    # Zarr 2 and its variable-length text are what every version of AnnData reads.
    array = json.loads((tmp_path / "out.zarr" / "obs" / "_index" / ".zarray").read_text())
    assert array["zarr_format"] == 2
    assert [each["id"] for each in array["filters"]] == ["vlen-utf8"]


def test_an_anndata_export_that_fails_is_no_anndata_group(store, tmp_path, monkeypatch):
    from histostore.bridges import outgoing

    def fail(*_):
        raise KeyboardInterrupt

    url, _ = store
    monkeypatch.setattr(outgoing.ExportJob, "batches", fail)
    with pytest.raises(KeyboardInterrupt):
        export_layout(url, str(tmp_path / "out.zarr"), "anndata")
    assert "encoding-type" not in zarr.open_group(str(tmp_path / "out.zarr"), mode="r").attrs
    monkeypatch.undo()
    export_layout(url, str(tmp_path / "out.zarr"), "anndata", overwrite=True)
    assert "encoding-type" in zarr.open_group(str(tmp_path / "out.zarr"), mode="r").attrs


def test_an_anndata_export_empties_nobody_elses_folder(store, tmp_path):
    url, features = store
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for target in (tmp_path / "mine", url):
        with pytest.raises(OptionError, match="is no AnnData group"):
            export_layout(url, str(target), "anndata", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    assert np.array_equal(open_store(url).feature_set().load().embedding, all_rows(features)[0])


@pytest.mark.parametrize("layout", ["npz", "parquet"])
def test_a_file_that_fails_does_not_appear(store, tmp_path, monkeypatch, layout):
    from histostore.bridges import outgoing

    def fail(self):
        yield self.features.load([IDS[0]])
        raise KeyboardInterrupt

    url, _ = store
    monkeypatch.setattr(outgoing.ExportJob, "batches", fail)
    with pytest.raises(KeyboardInterrupt):
        export_layout(url, str(tmp_path / "out" / "file"), layout)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_npz_file_opens_without_pickle(store, tmp_path):
    url, features = store
    export_layout(url, str(tmp_path / "out.npz"), "npz")
    embedding, coords, tissue = all_rows(features)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        assert np.array_equal(arrays["X"], embedding)
        assert np.array_equal(arrays["coords"], coords)
        assert np.array_equal(arrays["tissue"], tissue)
        assert list(arrays["image_id"][arrays["bag"]]) == list(np.repeat(IDS, COUNTS))


@pytest.mark.real
@pytest.mark.parametrize(("name", "n_bags", "least"), [("musk1", 92, 0.7), ("musk2", 102, 0.65)])
def test_musk_comes_in_with_its_labels_and_a_head_learns_it(
    real_data, tmp_path, name, n_bags, least
):
    pytest.importorskip("sklearn")
    import zoo

    source = real_data / "mil-tables" / f"{name}.npz"
    table = str(tmp_path / "cohort.csv")
    report = import_layout(str(source), str(tmp_path / "store"), "npz", cohort_out=table)
    assert (report.n_imported, report.failed) == (n_bags, ())
    features = open_store(str(tmp_path / "store")).feature_set()
    bags = zoo.Bags(features, Cohort.read(table))
    with np.load(source, allow_pickle=False) as arrays:
        assert np.array_equal(bags.embedding, arrays["X"])
        assert np.array_equal(bags.labels, arrays["y"])
        assert np.array_equal(np.diff(bags.offset), np.bincount(arrays["bag"]))
    test = np.arange(len(bags)) % 4 == 0
    head = zoo.spec("logistic").fit(bags[~test], seed=0)
    correct = head.predict_proba(bags[test]).argmax(axis=1) == bags[test].labels
    assert correct.mean() >= least
