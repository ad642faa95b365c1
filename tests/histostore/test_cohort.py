"""Cohorts: what is right comes through unchanged, what is wrong is said all at once."""

from __future__ import annotations

import csv
import io
import os
import pickle
import subprocess
import sys

import fsspec
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.cohort import Cohort
from histostore.errors import CohortError, NotFound, OptionError, StorageError
from histostore.files import stat

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=12).filter(
    lambda text: text == text.strip()
)


def write(folder, text, *, images=(), name="cohort.csv", encoding="utf-8"):
    """Write a table and empty images beside it; give the table's path."""
    for image in images:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).touch()
    (folder / name).write_bytes(text.encode(encoding))
    return folder / name


def problems_of(table, **options) -> tuple[str, ...]:
    with pytest.raises(CohortError) as caught:
        Cohort.read(table, **options)
    assert "\n" not in str(caught.value)
    assert str(table).rsplit("/", 1)[-1] in str(caught.value)
    return caught.value.problems


def test_a_table_is_read_as_text(tmp_path):
    table = write(
        tmp_path,
        "image_id,path,label,patient_id,mpp,grade\n"
        "1,a.png,NA,007,0.25,3\n"
        " two , d/b.png ,,,,\n"
        '"th,ree","c é.png","two\nlines",x,1e-1,1.0\n',
        images=["a.png", "d/b.png", "c é.png"],
    )
    cohort = Cohort.read(table)
    assert len(cohort) == 3
    assert cohort.image_ids == ("1", "two", "th,ree")
    assert cohort.urls == tuple(f"{tmp_path}/{name}" for name in ("a.png", "d/b.png", "c é.png"))
    assert cohort.column("label").tolist() == ["NA", None, "two\nlines"]
    assert cohort.column("grade").tolist() == ["3", None, "1.0"]
    assert cohort.patient_ids == ("007", "two", "x")
    assert cohort.mpp == (0.25, None, 0.1)
    assert cohort.table["patient_id"].tolist() == ["007", None, "x"]
    assert cohort.table.index.tolist() == [0, 1, 2]
    assert set(cohort.table.dtypes) == {np.dtype(object)}
    assert cohort.sources == {url: stat(url) for url in cohort.urls}


def test_without_patients_or_mpp_every_image_stands_for_itself(tmp_path):
    cohort = Cohort.read(write(tmp_path, "image_id,path\na,a.png\n"), check_files=False)
    assert cohort.patient_ids == ("a",)
    assert cohort.mpp == (None,)
    assert cohort.sources == {}
    assert not cohort.has("label")
    with pytest.raises(NotFound, match=r"no column 'label'; it has image_id, path"):
        cohort.column("label")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("image_id,path\na,a.png\n", "utf-8-sig"),  # what Excel calls "CSV UTF-8"
        ("image_id,path\r\na,a.png\r\n", "utf-8"),
        ("image_id,path\na,a.png", "utf-8"),  # no newline at the end
        ("image_id,path\na,a.png\n\n,\n", "utf-8"),  # blank rows below
        (",image_id,path\n0,a,a.png\n", "utf-8"),  # a saved row index
        ("image_id,path,\na,a.png,\n", "utf-8"),  # a comma too many in every row
        ("image_id,path,label\na,a.png\n", "utf-8"),  # a row that ends early
        ('"image_id","path"\n"a","a.png"\n', "utf-8"),
    ],
)
def test_tables_as_programs_write_them_are_accepted(text, encoding, tmp_path):
    cohort = Cohort.read(write(tmp_path, text, images=["a.png"], encoding=encoding))
    assert cohort.image_ids == ("a",)
    assert cohort.urls == (f"{tmp_path}/a.png",)


def test_every_problem_is_listed_at_once_in_the_order_of_the_rows(tmp_path):
    table = write(
        tmp_path,
        "image_id,path,mpp,patient_id\n"
        "a,a.png,0.5,p\n"
        "\n"
        "a,missing.png,-1,p\n"
        ",../a.png,zero,p\n"
        "b,,inf,p\n"
        'c,a.png,,"p\x07"\n',
        images=["a.png"],
    )
    assert problems_of(table) == (
        "rows 2 and 4: the same image_id 'a'",
        "row 4: mpp '-1' is not a positive number",
        f"row 4: no such file: {tmp_path}/missing.png",
        "row 5: image_id is empty",
        "row 5: mpp 'zero' is not a positive number",
        "row 5: '../a.png' leads out of the cohort's folder",
        "row 6: path is empty",
        "row 6: mpp 'inf' is not a positive number",
        "row 7: patient_id 'p\\x07' holds a control character",
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"is empty; the first row must name the columns"),
        (b"image_id,path\n", r"not a single row"),
        (b"image_id,path\n\n,\n", r"not a single row"),
        (b"image_id,file\na,a.png\n", r"column 'path' is missing; there are: image_id, file"),
        (b"image_id;path\na;a.png\n", r"semicolons where commas belong"),
        (b"image_id\tpath\na\ta.png\n", r"tabs where commas belong"),
        (b"image_id,path\na,b,c\n", r"row 2: 3 cells where the header has 2"),
        (b"image_id,path,path\na,b,c\n", r"column 'path' is there twice"),
        (b"image_id,path\na,b\n\xe9,c\n", r"not UTF-8 at byte 18 \(0xe9\), in line 3"),
        ("image_id,path\n".encode("utf-16"), r"not UTF-8 at byte 0 \(0xff\), in line 1"),
        ("image_id,path\n".encode("utf-16-le"), r"its first row holds zero bytes"),
        (b"\nimage_id,path\na,b\n", r"the first row is blank"),
        (b'image_id,path\na,"b\n', r"not proper CSV from row 2 on"),
        (b'image_id,path\na,"b"c\n', r"not proper CSV from row 2 on"),
        (b"PAR1 and then something else", r"holds Parquet data under a CSV name"),
    ],
)
def test_a_table_that_is_none_is_refused(content, said, tmp_path):
    table = tmp_path / "cohort.csv"
    table.write_bytes(content)
    with pytest.raises(CohortError, match=said):
        raise_first(table)


def raise_first(table):
    """Raise the error again with its findings as its text, to match against."""
    try:
        Cohort.read(table)
    except CohortError as error:
        raise CohortError(" | ".join(error.problems)) from error


def test_a_damaged_parquet_file_is_refused(tmp_path):
    table = tmp_path / "cohort.parquet"
    table.write_bytes(b"PAR1 and then something else")
    assert "not a readable Parquet file" in problems_of(table)[0]
    table.write_bytes(b"image_id,path\n")
    assert "under a Parquet name" in problems_of(table)[0]


def test_a_missing_table_is_a_storage_error(tmp_path):
    with pytest.raises(StorageError, match=r"cohort\.csv: no such file"):
        Cohort.read(tmp_path / "cohort.csv")


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("a.png", "memory://study/a.png"),
        ("./d//a.png", "memory://study/d/a.png"),
        ("d/../a.png", "memory://study/a.png"),  # a detour that stays inside
        ("d\\a.png", "memory://study/d/a.png"),  # a table made on Windows
        ("/abs/a.png", "/abs/a.png"),  # the user's own decision
        ("s3://bucket/../a.png", "s3://bucket/../a.png"),
        ("zip://a.png::memory://b.zip", "zip://a.png::memory://b.zip"),
        ("..a.png", "memory://study/..a.png"),
        ("d/..", "memory://study/."),
        ("d/a::b.png", "memory://study/d/a::b.png"),  # no chain of drivers
        ("~a.png", "memory://study/~a.png"),  # nobody's home
    ],
)
def test_paths_are_resolved_against_the_table(path, url):
    frame = pd.DataFrame({"image_id": ["a"], "path": [path]})
    cohort = Cohort.from_frame(frame, url="memory://study/cohort.csv", check_files=False)
    assert cohort.urls == (url,)


@pytest.mark.parametrize("path", ["..", "../a.png", "d/../../a.png", "..\\a.png", "./../a.png"])
def test_a_relative_path_cannot_leave_the_folder(path):
    frame = pd.DataFrame({"image_id": ["a"], "path": [path]})
    with pytest.raises(CohortError, match="leads out"):
        Cohort.from_frame(frame, check_files=False)


@pytest.mark.skipif(os.name == "nt", reason="such paths are ordinary on Windows")
@pytest.mark.parametrize("path", ["C:\\data\\a.png", "\\\\server\\share\\a.png"])
def test_a_windows_path_is_named_as_such(path):
    frame = pd.DataFrame({"image_id": ["a"], "path": [path]})
    with pytest.raises(CohortError, match="Windows"):
        Cohort.from_frame(frame, check_files=False)


def test_a_table_named_without_a_folder_lies_in_the_working_folder(tmp_path, monkeypatch):
    write(tmp_path, "image_id,path\na,a.png\n", images=["a.png"])
    monkeypatch.chdir(tmp_path)
    assert Cohort.read("cohort.csv").urls == (f"{tmp_path}/a.png",)


def test_a_cohort_in_a_bucket_finds_its_images():
    fs = fsspec.filesystem("memory")
    fs.pipe("/bucket-1/cohort.csv", b"image_id,path\na,d/a.png\n")
    fs.pipe("/bucket-1/d/a.png", b"123")
    cohort = Cohort.read("memory://bucket-1/cohort.csv")
    assert cohort.urls == ("memory://bucket-1/d/a.png",)
    assert cohort.sources["memory://bucket-1/d/a.png"].size == 3
    fs.rm("/bucket-1/d/a.png")
    assert problems_of("memory://bucket-1/cohort.csv") == (
        "row 2: no such file: memory://bucket-1/d/a.png",
    )
    fs.rm("/bucket-1", recursive=True)


@given(
    cells=st.lists(st.tuples(TEXT, TEXT, st.none() | TEXT), min_size=1, unique_by=lambda r: r[0]),
    bom=st.booleans(),
)
def test_csv_parquet_and_frame_give_the_same_cohort(cells, bom, tmp_path_factory):
    cells = [
        (image, "p" + path.replace(":", "").replace(".", ""), label) for image, path, label in cells
    ]
    frame = pd.DataFrame(cells, columns=["image_id", "path", "label"])
    folder = tmp_path_factory.mktemp("cohort")
    text = io.StringIO()
    csv.writer(text).writerows([frame.columns, *cells])
    write(folder, text.getvalue(), encoding="utf-8-sig" if bom else "utf-8")
    frame.to_parquet(folder / "cohort.parquet")
    cohorts = [
        Cohort.read(folder / "cohort.csv", check_files=False),
        Cohort.read(folder / "cohort.parquet", check_files=False),
        Cohort.from_frame(frame, folder / "cohort.csv", check_files=False),
    ]
    for cohort in cohorts:
        assert cohort.digest == cohorts[0].digest
        assert cohort.urls == cohorts[0].urls
        assert cohort.column("label").tolist() == [label for *_, label in cells]


def test_columns_of_other_types_become_text(tmp_path):
    frame = pd.DataFrame(
        {
            "image_id": [1, 2],
            "path": pd.Categorical(["a.png", "b.png"]),
            "grade": [3.0, None],  # what pandas makes of integers where one is missing
            "mpp": [0.25, float("nan")],
            "good": [True, False],
            "seen": pd.to_datetime(["2020-01-02", None]),
            "age": pd.array([50, None], dtype="Int64"),
        },
        index=[7, 8],
    )
    frame.to_parquet(tmp_path / "cohort.parquet")
    for cohort in (
        Cohort.read(tmp_path / "cohort.parquet", check_files=False),
        Cohort.from_frame(frame, check_files=False),
    ):
        assert cohort.image_ids == ("1", "2")
        assert cohort.column("grade").tolist() == ["3", None]
        assert cohort.mpp == (0.25, None)
        assert cohort.column("good").tolist() == ["True", "False"]
        assert cohort.column("seen").tolist() == ["2020-01-02 00:00:00", None]
        assert cohort.column("age").tolist() == ["50", None]


def test_nested_parquet_columns_are_refused(tmp_path):
    frame = pd.DataFrame({"image_id": ["a"], "path": ["a.png"], "boxes": [[1, 2]]})
    frame.to_parquet(tmp_path / "cohort.parquet")
    assert "column 'boxes' holds list" in problems_of(tmp_path / "cohort.parquet")[0]


def cohort_of(n: int) -> Cohort:
    names = [f"i{k}" for k in range(n)]
    frame = pd.DataFrame({"image_id": names, "path": names, "label": ["x"] * n})
    return Cohort.from_frame(frame, check_files=False)


@given(n=st.integers(1, 30), parts=st.integers(1, 40))
def test_shards_hold_every_image_once(n, parts):
    shards = [cohort_of(n).shard(i, parts) for i in range(1, parts + 1)]
    assert sorted(i for s in shards for i in s.image_ids) == sorted(cohort_of(n).image_ids)
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_select_and_limit_keep_rows_together(tmp_path):
    table = write(
        tmp_path, "image_id,path\na,a.png\nb,b.png\nc,c.png\n", images=["a.png", "b.png", "c.png"]
    )
    cohort = Cohort.read(table)
    chosen = cohort.select(np.array([2, 0]))
    assert chosen.image_ids == ("c", "a")
    assert chosen.urls == (f"{tmp_path}/c.png", f"{tmp_path}/a.png")
    assert set(chosen.sources) == set(chosen.urls)
    assert chosen.table["image_id"].tolist() == ["c", "a"]
    assert cohort.limit(2).image_ids == ("a", "b")
    assert cohort.limit(99).digest == cohort.digest
    assert chosen.digest != cohort.digest
    assert len(cohort.select([])) == 0


@pytest.mark.parametrize("part", [(0, 4), (5, 4), (1, 0)])
def test_a_shard_that_cannot_be_is_refused(part):
    with pytest.raises(OptionError, match="I/N"):
        cohort_of(3).shard(*part)
    with pytest.raises(OptionError, match="limit"):
        cohort_of(3).limit(0)


def test_the_digest_follows_the_cells_not_the_place(tmp_path):
    text = "image_id,path,label\na,a.png,x\nb,b.png,\n"
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = Cohort.read(write(tmp_path / "one", text), check_files=False)
    two = Cohort.read(write(tmp_path / "two", text), check_files=False)
    moved = Cohort.read(
        write(tmp_path / "two", "path,label,image_id\na.png,x,a\nb.png,,b\n"), check_files=False
    )
    assert one.digest == two.digest == moved.digest
    assert len(one.digest) == 64
    for other in (
        text.replace("x", "y"),
        text.replace("b,b.png,", "b,b.png,None"),
        text + "c,c,\n",
    ):
        assert Cohort.read(write(tmp_path, other), check_files=False).digest != one.digest


def test_a_column_handed_out_cannot_change_the_cohort():
    cohort = cohort_of(2)
    cohort.column("label")[0] = "z"
    assert cohort.column("label").tolist() == ["x", "x"]


def test_a_cohort_travels_to_other_processes():
    cohort = cohort_of(3)
    copy = pickle.loads(pickle.dumps(cohort))  # noqa: TID251 - what Dask does, our own bytes
    assert copy.digest == cohort.digest
    assert copy.urls == cohort.urls


def test_reading_a_csv_loads_no_heavy_library(tmp_path):
    table = write(tmp_path, "image_id,path\na,a.png\n", images=["a.png"])
    code = (
        "import sys; from histostore.cohort import Cohort; "
        f"assert len(Cohort.read({str(table)!r})) == 1; "
        "print([m for m in ('pandas', 'pyarrow', 'torch', 'sklearn', 'zarr') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
