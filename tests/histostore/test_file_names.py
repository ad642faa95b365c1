"""Files of any name: those that a table can hold are embedded, the others are named."""

from __future__ import annotations

import csv
import os

import pytest

from tests.commands import BUILD, call, picture, write_table
from tests.histostore.pictures import save

SOUND = (
    *(
        "a b",
        "a,b",
        "ü",
        "e\u0301",
        'q"u',
        "q'u",
        "per%20cent",
        "has#hash",
        "has?q=1",
        "x;y",
        "a:b",
    ),
    *(
        "~tilde",
        "star*",
        "[br]",
        "{c}",
        "-dash",
        "$(x)",
        "dots..",
        "007",
        "7",
        "\u202eright",
        "x" * 200,
    ),
)


def test_a_folder_of_odd_names_is_embedded_under_them(tmp_path):
    (tmp_path / "set" / "class é").mkdir(parents=True)
    for n, name in enumerate(SOUND):
        save(tmp_path / "set" / "class é" / f"{name}.png", picture(n))
    table = tmp_path / "cohort.csv"
    assert call("histostore", "cohort", "folder", tmp_path / "set", "-o", table).code == 0
    assert call("histostore", "build", table, tmp_path / "store", *BUILD).code == 0
    rows = call("histostore", "ls", tmp_path / "store", "--json").json
    assert {row["image_id"] for row in rows} == {f"class é/{name}" for name in SOUND}
    assert all(row["n_patches"] == 6 for row in rows)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("new\nline", "holds a control character"),
        ("car\rriage", "holds a control character"),
        (os.fsdecode(b"latin\xe9"), "holds a control character"),
        ("back\\slash", "holds a backslash"),
    ],
)
def test_names_that_no_table_can_hold_are_listed_and_nothing_is_written(tmp_path, name, problem):
    (tmp_path / "set" / "a").mkdir(parents=True)
    for each in ("good", name):
        (tmp_path / "set" / "a" / f"{each}.png").touch()
    done = call("histostore", "cohort", "folder", tmp_path / "set", "-o", tmp_path / "cohort.csv")
    assert done.code == 1
    assert problem in done.err
    assert "rename it" in done.err
    assert not (tmp_path / "cohort.csv").exists()


def test_one_file_under_many_ids_gives_equal_rows_under_each(tmp_path):
    save(tmp_path / "a.png", picture(0))
    ids = ["../up", "..", "a/b", "007", "7", "nan", "NA", "1e3", "x" * 5000, "zarr.json", "*", "ﬁ"]
    table = write_table(tmp_path / "c.csv", [{"image_id": name, "path": "a.png"} for name in ids])
    assert call("histostore", "build", table, tmp_path / "store", *BUILD).code == 0
    rows = call("histostore", "ls", tmp_path / "store", "--json").json
    assert [row["image_id"] for row in rows] == ids
    with table.open(newline="", encoding="utf-8") as file:
        assert [row["image_id"] for row in csv.DictReader(file)] == ids
    assert {path.name for path in tmp_path.iterdir()} == {"a.png", "c.csv", "store"}
