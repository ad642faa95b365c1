"""Foreign files that are damaged, half-written or mean harm: recorded, never executed."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.bridges import export_layout, import_layout
from histostore.bridges.hdf5 import packed
from histostore.cohort import Cohort
from histostore.errors import CorruptError, FormatError
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of

h5py = pytest.importorskip("h5py")

SOUND = packed({"features": np.ones((3, 4), "f4"), "coords": np.zeros((3, 2), "i8")})


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def h5(path, **arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array)


def failures(tmp_path, layout="trident"):
    report = import_layout(str(tmp_path / "src"), str(tmp_path / "store"), layout)
    return report, {each.image_id: each.reason for each in report.failed}


COORDS = np.zeros((3, 2), "i8")
ONES = np.ones((3, 4), "f4")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({"features": ONES}, "it holds features, not features and coords"),
        ({"features": ONES[:, 0], "coords": COORDS}, r"shape \(3,\), not \(patch, feature\)"),
        ({"features": ONES[:0], "coords": COORDS[:0]}, r"shape \(0, 4\)"),
        ({"features": ONES * np.nan, "coords": COORDS}, "not finite in 3 rows"),
        ({"features": np.full((3, 4), 1e300), "coords": COORDS}, "not finite in 3 rows"),
        ({"features": ONES > 0, "coords": COORDS}, "features are bool"),
        ({"features": ONES, "coords": COORDS[:2]}, r"\(2, 2\) for 3 features"),
        ({"features": ONES, "coords": COORDS - 1}, "coords lie outside"),
        ({"features": ONES, "coords": COORDS + 0.5}, "not whole numbers"),
        ({"features": ONES, "coords": COORDS * np.nan}, "coords lie outside"),
        ({"features": np.array([b"x", b"y", b"z"]), "coords": COORDS}, "features have shape"),
    ],
)
def test_a_file_that_does_not_fit_is_recorded_and_the_rest_goes_on(tmp_path, arrays, reason):
    h5(tmp_path / "src" / "bad.h5", **arrays)
    put(tmp_path / "src" / "good.h5", SOUND)
    report, reasons = failures(tmp_path)
    assert open_store(str(tmp_path / "store")).feature_set().image_ids == ("good",)
    assert list(reasons) == ["bad"]
    assert re.search(reason, reasons["bad"])
    assert "\n" not in reasons["bad"]
    features = open_store(str(tmp_path / "store")).feature_set()
    assert features.builds()[0]["failed"][0]["image_id"] == "bad"
    assert report.n_imported == 1


@pytest.mark.parametrize(
    "content",
    [b"", b"not HDF5 at all", SOUND[:100], SOUND[: len(SOUND) // 2], SOUND[:-1]],
    ids=["empty", "text", "header", "half", "almost"],
)
def test_a_broken_hdf5_file_is_one_clear_line(tmp_path, content):
    put(tmp_path / "src" / "bad.h5", content)
    for layout in ("trident", "clam", "stamp"):
        _, reasons = failures(tmp_path, layout)
        assert "is no sound HDF5 file" in reasons["bad"]
        assert "\n" not in reasons["bad"]


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(data):
    content = bytearray(SOUND)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        put(Path(folder) / "src" / "s.h5", bytes(content))
        report, _ = failures(Path(folder))
    assert report.n_imported + len(report.failed) == 1


class _Harm:
    """What a pickle can do to whoever loads it."""

    def __init__(self, mark):
        self._mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self._mark),)


def _harmful_zip(path, mark):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Harm(mark), protocol=2))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def test_a_tensor_file_that_means_harm_is_refused_and_not_executed(tmp_path):
    torch = pytest.importorskip("torch")
    mark = tmp_path / "harmed"
    source = tmp_path / "src"
    put(source / "old.pt", pickle.dumps(_Harm(mark)))
    _harmful_zip(source / "new.pt", mark)
    torch.save({"features": torch.ones(2, 3), "more": _Harm(mark)}, source / "hidden.pt")
    torch.save(torch.ones(2, 3), source / "good.pt")
    put(source / "short.pt", (source / "good.pt").read_bytes()[:300])
    put(source / "empty.pt", b"")
    torch.save({"epoch": 3}, source / "none.pt")
    _, reasons = failures(tmp_path, "clam")
    assert not mark.exists()
    assert open_store(str(tmp_path / "store")).feature_set().image_ids == ("good",)
    assert set(reasons) == {"old", "new", "hidden", "short", "empty", "none"}
    for name in ("old", "new", "hidden"):
        assert "nothing in it was executed" in reasons[name]
    assert "not a tensor" in reasons["none"]


def test_an_npz_file_of_python_objects_is_refused_and_not_executed(tmp_path):
    mark = tmp_path / "harmed"
    harm = np.array([_Harm(mark)], dtype=object)
    for name, arrays in {
        "bag": {"X": ONES, "bag": harm},
        "x": {"X": harm, "bag": np.zeros(1, int)},
        "none": {"X": ONES},
    }.items():
        path = tmp_path / name / "t.npz"
        path.parent.mkdir()
        np.savez(path, **arrays)
        try:
            report = import_layout(str(path), str(tmp_path / "store"), "npz")
            assert report.n_imported == 0
            assert "not numbers" in report.failed[0].reason
        except FormatError as error:
            assert "\n" not in str(error)  # noqa: PT017 - either way of refusing will do
    assert not mark.exists()


@pytest.mark.parametrize("name", ["y", "image_id"])
def test_one_name_for_all_bags_of_an_npz_file_is_refused(tmp_path, name):
    (tmp_path / "src").mkdir()
    np.savez(tmp_path / "src" / "t.npz", X=ONES, bag=[0, 0, 1], **{name: np.array("a")})
    with pytest.raises(FormatError, match=rf"{name} has shape \(\) for 2 bags"):
        failures(tmp_path, "npz")


def test_what_an_npz_file_calls_its_bags_makes_a_table_that_can_be_read(tmp_path):
    """Names may be bytes; labels too, or NaN where there is none."""
    ids = np.array(["a", "", " b", "c\n", "d"])
    labels = {"bytes": ids.astype("S"), "float": np.array([0, 1, 1, 1, np.nan])}
    for kind, y in labels.items():
        source, table = tmp_path / f"{kind}.npz", tmp_path / f"{kind}.csv"
        np.savez(source, X=np.ones((5, 2), "f4"), bag=range(5), image_id=ids, y=y)
        report = import_layout(source, tmp_path / kind, "npz", cohort_out=str(table))
        assert len(report.failed) == 3
        assert all("rename it" in failure.reason for failure in report.failed)
        cohort = Cohort.read(table)
        assert cohort.image_ids == open_store(str(tmp_path / kind)).feature_set().image_ids
        assert cohort.column("label").tolist() == (["a", "d"] if kind == "bytes" else ["0", None])


def test_a_tensor_without_numbers_is_recorded(tmp_path):
    torch = pytest.importorskip("torch")
    (tmp_path / "src").mkdir()
    torch.save(torch.ones(2, 3), tmp_path / "src" / "good.pt")
    torch.save(torch.ones(2, 3, device="meta"), tmp_path / "src" / "meta.pt")
    report, reasons = failures(tmp_path, "clam")
    assert report.n_imported == 1
    assert "is no sound .pt file" in reasons["meta"]


def test_one_bad_npz_file_of_several_is_recorded(tmp_path):
    (tmp_path / "src").mkdir()
    np.savez(tmp_path / "src" / "good.npz", X=ONES, bag=[0, 0, 1])
    np.savez(tmp_path / "src" / "other.npz", X=ONES, bag=[0, 0, 1], y=[1, 0, 1, 1, 0])
    np.savez(tmp_path / "src" / "uneven.npz", X=ONES, bag=[0, 1])
    np.savez(tmp_path / "src" / "bad.npz", X=ONES)
    put(tmp_path / "src" / "worse.npz", b"no zip")
    report, reasons = failures(tmp_path, "npz")
    assert (report.n_images, report.n_imported) == (8, 4)
    assert "has no array bag; it has X" in reasons["bad.npz"]
    assert "is no sound npz file" in reasons["worse.npz"]
    assert reasons["uneven-1"] == "X has 3 rows, bag 2"


def test_a_file_does_not_decide_what_else_is_read(tmp_path):
    secret = tmp_path / "secret"
    h5(secret, features=ONES, coords=COORDS)
    source = tmp_path / "src"
    source.mkdir()
    with h5py.File(source / "link.h5", "w") as file:
        file["features"] = h5py.ExternalLink(str(secret), "/features")
        file["coords"] = COORDS
    with h5py.File(source / "raw.h5", "w") as file:
        file.create_dataset("features", (3, 4), "f4", external=[(str(secret), 0, 48)])
        file["coords"] = COORDS
    layout = h5py.VirtualLayout((3, 4), "f4")
    layout[...] = h5py.VirtualSource(str(secret), "features", (3, 4))
    with h5py.File(source / "virtual.h5", "w") as file:
        file.create_virtual_dataset("features", layout)
        file["coords"] = COORDS
    report, reasons = failures(tmp_path)
    assert report.n_imported == 0
    for reason in reasons.values():
        assert reason == "features is not a data set that lies in the file itself"


def test_a_header_that_claims_a_giant_is_refused_without_reading_it(tmp_path):
    (tmp_path / "src").mkdir()
    with h5py.File(tmp_path / "src" / "s.h5", "w") as file:
        file.create_dataset("features", (2**40, 1024), "f4", chunks=(1, 1024))
        file["coords"] = COORDS
    _, reasons = failures(tmp_path)
    assert "too large" in reasons["s"]


def test_facts_that_make_no_sense_are_recorded(tmp_path):
    path = tmp_path / "src" / "s.h5"
    h5(path, features=ONES, coords=COORDS)
    with h5py.File(path, "a") as file:
        file["coords"].attrs["patch_size"] = -256
    _, reasons = failures(tmp_path)
    assert "patch_size=-256" in reasons["s"]


def test_two_files_for_one_image_are_not_both_taken(tmp_path):
    put(tmp_path / "src" / "features_x" / "s.h5", SOUND)
    put(tmp_path / "src" / "other" / "features_x" / "s.h5", SOUND)
    report, reasons = failures(tmp_path)
    assert (report.n_images, report.n_imported) == (2, 1)
    assert "gave this image already" in reasons["s"]


def test_a_name_that_is_not_utf8_is_recorded(tmp_path):
    put(tmp_path / "src" / "good.h5", SOUND)
    shutil.copy(
        os.fsencode(tmp_path / "src" / "good.h5"), os.fsencode(tmp_path / "src") + b"/b\xffd.h5"
    )
    report, reasons = failures(tmp_path)
    assert report.n_imported == 1
    assert list(reasons.values()) == ["its name is not UTF-8; rename it"]


def test_a_failed_file_is_tried_again(tmp_path):
    put(tmp_path / "src" / "good.h5", SOUND)
    put(tmp_path / "src" / "bad.h5", SOUND[:200])
    failures(tmp_path)
    put(tmp_path / "src" / "bad.h5", SOUND)
    report, reasons = failures(tmp_path)
    assert (report.n_done, report.n_imported, reasons) == (1, 1, {})


def test_an_import_cut_short_keeps_what_was_committed(tmp_path, monkeypatch):
    from histostore.bridges import importing

    monkeypatch.setattr(importing, "FRAGMENT_BYTES", 2 * ONES.nbytes)
    for number in range(6):
        put(tmp_path / "src" / f"s{number}.h5", SOUND)

    def interrupt(now):
        if now.n_images == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_layout(str(tmp_path / "src"), str(tmp_path / "store"), "trident", progress=interrupt)
    assert len(open_store(str(tmp_path / "store")).feature_set().image_ids) == 4
    report, _ = failures(tmp_path)
    assert (report.n_done, report.n_imported) == (4, 2)


@pytest.mark.parametrize("layout", ["trident", "clam", "npz", "parquet", "anndata"])
def test_corrupt_bytes_are_never_exported(tmp_path, layout):
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a"]), {})
    chunk = next((tmp_path / "store").glob("*/fragments/*/embedding/c*"))
    content = bytearray(chunk.read_bytes())
    content[-6] ^= 1
    chunk.write_bytes(bytes(content))
    with pytest.raises(CorruptError, match="embedding"):
        export_layout(str(tmp_path / "store"), str(tmp_path / "out"), layout)
    if layout in ("npz", "parquet"):
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("direction", ["import", "export"])
def test_without_h5py_the_message_says_what_to_install(tmp_path, direction):
    put(tmp_path / "src" / "good.h5", SOUND)
    open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of()).commit(
        fragment_of(["a"]), {}
    )
    call = {
        "import": f"import_layout({str(tmp_path / 'src')!r}, {str(tmp_path / 's2')!r}, 'trident')",
        "export": f"export_layout({str(tmp_path / 'store')!r}, {str(tmp_path / 'o')!r}, 'clam')",
    }[direction]
    code = (
        "import sys; sys.modules['h5py'] = None\n"
        "from histostore.bridges import export_layout, import_layout\n"
        "from histostore.errors import MissingExtra\n"
        f"try:\n    {call}\nexcept MissingExtra as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "h5py is not installed; run: pip install 'histostore[bridges]'"


def test_the_package_loads_neither_torch_nor_h5py():
    code = (
        "import histostore.bridges, sys\n"
        "print([m for m in ('torch', 'h5py', 'zarr', 'pandas', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "h5py" not in done.stdout
