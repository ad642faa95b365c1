"""Places and files that are not as they should be: refused with the reason, nothing half done."""

from __future__ import annotations

import json
import os
import pickle
import resource
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

import histostore
import zoo
from histostore.errors import CorruptError
from tests.commands import build, call, encoded, fit, make_cohort
from zoo.errors import RunError


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Eight images of four patients, without label, failed or well, and their store."""
    folder = tmp_path_factory.mktemp("study")
    patients = [f"p{number // 3}" for number in range(12)]
    table = make_cohort(folder, patient_id=patients)
    assert build(table, folder / "store").code == 0
    return folder


# Destinations ------------------------------------------------------------------------------


def test_a_destination_that_cannot_be_written_is_refused_with_the_reason(study, tmp_path):
    table, file = study / "cohort.csv", tmp_path / "file"
    file.write_text("not a folder")
    below = file / "below"
    (tmp_path / "classes" / "a").mkdir(parents=True)
    (tmp_path / "classes" / "a" / "0.png").write_bytes(encoded("png"))
    runs = [tmp_path / name for name in ("one", "two")]
    assert [fit(study / "store", table, run).code for run in runs] == [0, 0]
    for done in (
        build(table, below),
        build(table, file),
        fit(study / "store", table, below),
        call("histostore", "cohort", "folder", tmp_path / "classes", "-o", below),
        call("zoo", "ensemble", *runs, "-o", below),
        call("zoo", "report", *runs, "-o", below),
        call("zoo", "demo", "-o", below),
    ):
        assert (done.code, done.out) == (1, "")
        assert "file" in done.err
        assert "Not a directory" in done.err
        assert done.err.count("\n") == 1
    assert file.read_text() == "not a folder"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(study, tmp_path):
    tmp_path.chmod(0o500)
    done = build(study / "cohort.csv", tmp_path / "store")
    assert done.code == 1
    assert "Permission denied" in done.err


@contextmanager
def largest_file(n_bytes):
    """Let every write beyond a size fail, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_fills_up_during_a_build_leaves_nothing_half_visible(tmp_path):
    table = make_cohort(tmp_path, n=12)
    with largest_file(20_000):
        done = build(table, tmp_path / "store")
    assert (done.code, done.out) == (1, "")
    assert "File too large" in done.err
    assert done.err.count("\n") == 1
    assert call("histostore", "ls", tmp_path / "store", "--json").json == []
    assert build(table, tmp_path / "store").code == 0
    assert len(call("histostore", "ls", tmp_path / "store", "--json").json) == 12


@pytest.mark.parametrize(
    ("head", "n_bytes"), [("logistic", 1_000), ("logistic", 6_000), ("lightgbm", 6_000)]
)
def test_a_disk_that_fills_up_during_a_fit_leaves_no_run(study, tmp_path, head, n_bytes):
    words = (study / "store", study / "cohort.csv", tmp_path / "run", "--head", head)
    with largest_file(n_bytes):
        done = fit(*words)
    assert (done.code, done.out) == (1, "")
    assert "File too large" in done.err
    assert done.err.count("\n") == 1
    assert "not a run" in call("zoo", "compare", tmp_path / "run").err
    assert fit(*words).code == 0


@pytest.mark.parametrize(
    ("url", "extra"), [("s3://b/s", "s3"), ("gs://b/s", "gcs"), ("az://b/s", "azure")]
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(study, url, extra, monkeypatch):
    for library in ("s3fs", "gcsfs", "adlfs"):
        monkeypatch.setitem(sys.modules, library, None)
    import fsspec.registry  # noqa: F401 - remembers what other tests have loaded

    loaded = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, url.partition(":")[0], raising=False)
    done = build(study / "cohort.csv", url)
    assert done.code == 1
    assert done.err.endswith(f"is not installed; run: pip install 'histostore[{extra}]'\n")


def test_a_url_that_no_driver_knows_is_refused(study):
    done = build(study / "cohort.csv", "cloud://bucket/store")
    assert done.code == 1
    assert "Protocol not known: cloud" in done.err


# Stores ------------------------------------------------------------------------------------


def test_a_store_of_a_newer_format_is_refused_naming_both_versions(study, tmp_path):
    store = tmp_path / "store"
    assert build(study / "cohort.csv", store).code == 0
    document = json.loads((store / "zarr.json").read_text())
    document["attributes"]["histostore"]["format"] = 7
    (store / "zarr.json").write_text(json.dumps(document))
    for done in (
        call("histostore", "info", store),
        build(study / "cohort.csv", store),
        fit(store, study / "cohort.csv", tmp_path / "run"),
    ):
        assert done.code == 1
        assert "7" in done.err
        assert "1" in done.err
        assert "upgrade" in done.err


def test_what_is_no_store_is_refused_and_left_alone(study, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    for done in (call("histostore", "ls", folder), build(study / "cohort.csv", folder)):
        assert done.code == 1
        assert "no histostore" in done.err
    assert [path.name for path in folder.iterdir()] == ["zarr.json"]
    assert "no store at" in call("histostore", "info", tmp_path / "nowhere").err


def damage(store):
    """Flip one bit of the embeddings; give the fragment's id."""
    (shard,) = store.glob("*/fragments/*/embedding/c*")
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    return shard.parents[1].name


def test_a_damaged_chunk_is_named_exactly(study, tmp_path):
    store = tmp_path / "store"
    assert build(study / "cohort.csv", store).code == 0
    fragment = damage(store)
    done = fit(store, study / "cohort.csv", tmp_path / "run")
    assert (done.code, done.out) == (1, "")
    with pytest.raises(CorruptError) as caught:
        histostore.open(str(store)).feature_set().load()
    for error in (done.err, str(caught.value)):
        assert fragment in error
        assert "embedding" in error
        assert "chunk" in error
    assert not (tmp_path / "run").exists()


def test_damage_is_found_and_mended_from_the_images_where_they_are(tmp_path):
    table = make_cohort(tmp_path, n=4)
    store = tmp_path / "store"
    assert build(table, store).code == 0
    assert call("histostore", "verify", store).code == 0
    fragment = damage(store)
    found = call("histostore", "verify", store)
    assert (found.code, found.err) == (1, "")
    assert fragment in found.out
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    kept = call("histostore", "verify", store, "--repair", "--json")
    assert (kept.code, kept.json["n_kept"]) == (3, 1)
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    assert call("histostore", "verify", store, "--repair").code == 0
    assert call("histostore", "verify", store).code == 0
    assert fit(store, table, tmp_path / "run").code == 0


# Files that are not ours -------------------------------------------------------------------


class Trap:
    """An object that, unpickled, leaves a trace."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def trap(path, trace):
    """Write a pickle that acts when it is read; make sure that it does."""
    path.write_bytes(pickle.dumps(Trap(trace)))
    pickle.loads(path.read_bytes())  # noqa: TID251 (that it would act, is the point)
    Path(trace).rmdir()


@pytest.mark.parametrize("name", ["weights.pt", "weights.bin", "weights.safetensors", "weights"])
def test_weights_that_are_a_pickle_are_refused_and_not_executed(study, tmp_path, name):
    trap(tmp_path / name, tmp_path / "trace")
    done = build(
        study / "cohort.csv",
        tmp_path / "store",
        "--encoder",
        "squeezenet1_1",
        "--weights",
        tmp_path / name,
    )
    assert (done.code, done.out) == (1, "")
    assert name in done.err
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    "name",
    ["run.json", "predictions.parquet", "history.parquet"],
)
def test_a_run_whose_files_are_pickles_is_refused_and_not_executed(study, tmp_path, name):
    run = tmp_path / "run"
    assert fit(study / "store", study / "cohort.csv", run).code == 0
    trap(run / name, tmp_path / "trace")
    for done in (
        call("zoo", "compare", run),
        call("zoo", "report", run, "-o", tmp_path / "report"),
        call("zoo", "ensemble", run, tmp_path, "-o", tmp_path / "both"),
    ):
        assert (done.code, done.out) == (1, "")
        assert str(run) in done.err
        assert done.err.count("\n") == 1
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "both").exists()


@pytest.mark.parametrize("name", ["0-0.safetensors", "0-0.lightgbm.json"])
def test_a_head_that_is_a_pickle_is_refused_and_not_executed(study, tmp_path, name):
    run = tmp_path / "run"
    assert fit(study / "store", study / "cohort.csv", run).code == 0
    for path in (run / "heads").iterdir():
        path.unlink()
    trap(run / "heads" / name, tmp_path / "trace")
    with pytest.raises(RunError, match=name):
        zoo.load_head(run / "heads" / name)
    with pytest.raises(RunError, match=name):
        zoo.Run.load(run).load_heads()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "no run.json"),
        ({"run.json": "[]"}, "no JSON object"),
        ({"run.json": "{}"}, "was not written by zoo"),
        ({"run.json": '{"format": 99, "kind": "run"}'}, "format 99"),
        ({"run.json": "\0\0"}, "cannot be read"),
    ],
)
def test_a_folder_that_is_no_run_is_refused(tmp_path, files, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    for words in (("compare", tmp_path), ("report", tmp_path, "-o", tmp_path / "report")):
        done = call("zoo", *words)
        assert (done.code, done.out) == (1, "")
        assert message in done.err


def test_a_finished_run_is_not_overwritten(study, tmp_path):
    assert fit(study / "store", study / "cohort.csv", tmp_path / "run").code == 0
    done = fit(study / "store", study / "cohort.csv", tmp_path / "run")
    assert done.code == 1
    assert "holds a finished run" in done.err
