"""Patches where a file says: every patch given exists, and what does not fit is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import histostore
from histostore.cohort import Cohort, Given
from histostore.errors import CohortError, ImageError, OptionError, StorageError
from histostore.grid import PatchGrid
from histostore.images.annotations import (
    ANNOTATED,
    GIVEN_COORDINATES,
    parse_coordinates,
    parse_geojson,
    read_places,
)
from histostore.images.memory import MemoryReader
from histostore.images.patches import NO_TISSUE, SMALL_IMAGE, read_patches, select_patches
from histostore.images.tissue import TissueFilter
from tests.commands import call, make_cohort, write_table
from tests.slides import scene

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("shapely", reason="shapely is not installed")
READER = MemoryReader(scene(300, 200), mpp=0.5)
ALL = TissueFilter("none")


def ring(left, top, right, bottom):
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]


def geojson(*rings, kind="Polygon", wrap=True):
    geometry = {"type": kind, "coordinates": [list(rings)] if kind == "MultiPolygon" else rings}
    feature = {"type": "Feature", "properties": {"name": "x"}, "geometry": geometry}
    document = {"type": "FeatureCollection", "features": [feature]} if wrap else geometry
    return json.dumps(document).encode()


places = st.lists(
    st.tuples(st.integers(0, 299), st.integers(0, 199)), min_size=1, max_size=20, unique=True
)


@given(corners=places, parquet=st.booleans())
def test_every_given_patch_is_kept_in_the_order_given(tmp_path_factory, corners, parquet):
    frame = pd.DataFrame(corners, columns=["x", "y"]).assign(note="é")
    if parquet:
        path = tmp_path_factory.mktemp("table") / "a.parquet"
        frame.to_parquet(path)
        content = path.read_bytes()
    else:
        content = frame.to_csv(index=False).encode()
    given_places = parse_coordinates(content, "a")
    # Glass or not: a filter that nothing passes leaves given patches where they are.
    nothing = TissueFilter("otsu", 1.0, 1)
    selection = select_patches(READER, PatchGrid(32, mpp=1.0), nothing, given_places)
    assert selection.placement.edge_px == 64
    found = zip(selection.placement.x.tolist(), selection.placement.y.tolist(), strict=True)
    assert list(found) == corners
    assert selection.kept.tolist() == list(range(len(corners)))
    assert selection.flags[0] == GIVEN_COORDINATES
    assert NO_TISSUE not in selection.flags
    assert read_patches(READER, selection, 32).shape == (len(corners), 32, 32, 3)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no column x and y"),
        (b"x,y\n", "gives 0 patches"),
        (b"left,top\n1,2\n", "no column x and y; it has left, top"),
        (b"x,y\n1,2\n3\n", "is no CSV table with a header and even rows"),
        (b"x,y\n1,2\n3,four\n", "row 3: y is 'four'; give whole level-0 pixels"),
        (b"x,y\n1.5,2\n", "row 2: x is '1.5'"),
        (b"x,y\n1,\n", "row 2: y is ''"),
        (b"x,y\n1,nan\n", "row 2: y is 'nan'"),
        (b"x,y\n1,1e30\n", "row 2: y is '1e30'"),
        (b"x,y\n1,2\n5,6\n1.0,2\n", "the patch at x 1, y 2 is there twice"),
        (b"x,y\n\xff\xfe,2\n", "is no CSV table"),
        (b"PAR1 but no more", "is no readable Parquet file"),
    ],
)
def test_a_table_that_is_none_is_refused(content, reason):
    with pytest.raises(ImageError, match=rf"^s3://b/a\.csv: ({reason})") as caught:
        parse_coordinates(content, "s3://b/a.csv")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("corner", ["300,0", "0,200", "-1,0"])
def test_a_patch_outside_the_image_is_refused(corner):
    places = parse_coordinates(f"x,y\n5,5\n{corner}\n".encode(), "a.csv")
    with pytest.raises(ImageError, match=r"a\.csv: 1 of 2 patches begin outside .*300×200"):
        select_patches(READER, PatchGrid(32), ALL, places)


@given(st.data())
def test_patches_whose_centre_lies_in_a_polygon_and_not_in_its_hole_exist(data):
    left, right = sorted(data.draw(st.tuples(st.integers(-50, 300), st.integers(1, 350))))
    top, bottom = sorted(data.draw(st.tuples(st.integers(-50, 200), st.integers(1, 250))))
    outer, hole = (left, top, right + 1, bottom + 1), (120.5, 80.5, 200.5, 140.5)
    has_hole = left < 120 and top < 80 and right > 201 and bottom > 141
    rings = [ring(*outer), *([ring(*hole)] if has_hole else [])]
    kind = data.draw(st.sampled_from(["Polygon", "MultiPolygon"]))
    annotation = parse_geojson(geojson(*rings, kind=kind, wrap=data.draw(st.booleans())), "a")
    grid = PatchGrid(16, data.draw(st.sampled_from([8, 16, 24])))
    if right + 1 < 0 or left > 300 or bottom + 1 < 0 or top > 200:
        with pytest.raises(ImageError, match="outside the image"):
            select_patches(READER, grid, ALL, annotation)
        return
    selection = select_patches(READER, grid, ALL, annotation)
    whole = grid.place(300, 200)

    def inside(box):
        x, y = whole.x + 8, whole.y + 8
        return (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])

    expected = inside(outer) & ~(inside(hole) & has_hole)
    if expected.any():
        np.testing.assert_array_equal(selection.placement.x, whole.x[expected])
        np.testing.assert_array_equal(selection.placement.y, whole.y[expected])
    else:
        assert len(selection.kept) == 1
    assert selection.flags == (ANNOTATED,)


def test_an_annotation_smaller_than_a_patch_takes_the_patch_that_shares_most():
    annotation = parse_geojson(geojson(ring(95, 60, 107, 66)), "a")
    selection = select_patches(READER, PatchGrid(50), ALL, annotation)
    assert (selection.placement.x.tolist(), selection.placement.y.tolist()) == ([100], [50])


def test_tissue_is_looked_for_within_the_polygons():
    pixels = np.full((100, 200, 3), 255, np.uint8)
    pixels[:, :40] = (200, 90, 150)
    annotation = parse_geojson(geojson(ring(0, 0, 120, 100)), "a")
    selection = select_patches(MemoryReader(pixels), PatchGrid(20), TissueFilter(), annotation)
    assert len(selection.placement) == 30
    assert set(selection.placement.x[selection.kept].tolist()) == {0, 20}
    small = select_patches(MemoryReader(pixels), PatchGrid(150), TissueFilter(), annotation)
    assert small.flags == (ANNOTATED, SMALL_IMAGE)


@given(
    box=st.tuples(*(st.integers(0, 150) for _ in range(4))),
    hole=st.booleans(),
    least=st.floats(1e-4, 1),
)
def test_patches_lie_in_the_annotations_by_the_share_asked_for(box, hole, least):
    x, y, width, height = box
    rings = [ring(x, y, x + width + 50, y + height + 40)]
    mask = np.zeros((200, 300), bool)
    mask[y : y + height + 40, x : x + width + 50] = True
    if hole:
        rings.append(ring(x + 10, y + 10, x + 40, y + 30))
        mask[y + 10 : y + 30, x + 10 : x + 40] = False
    annotation = parse_geojson(geojson(*rings), "a")
    grid = PatchGrid(32, min_annotated=least)
    placement = annotation.place(grid, 300, 200, None)
    found = set(zip(placement.x.tolist(), placement.y.tolist(), strict=True))
    whole = grid.place(300, 200)
    shares = {
        (x, y): mask[y : y + 32, x : x + 32].mean()  # of what lies in the image
        for x, y in zip(whole.x.tolist(), whole.y.tolist(), strict=True)
    }
    expected = {place for place, share in shares.items() if share >= least * (1 - 1e-9)}
    assert found == expected or (not expected and len(found) == 1)


def test_the_share_is_part_of_the_grid_only_where_it_is_given():
    assert "min_annotated" not in PatchGrid(32).to_json()
    grid = PatchGrid(32, min_annotated=0.5)
    assert PatchGrid.from_json(grid.to_json()) == grid != PatchGrid(32)
    for share in (0, -0.1, 1.1, float("nan")):
        with pytest.raises(OptionError, match="give a share above 0, at most 1"):
            PatchGrid(32, min_annotated=share)


def test_polygons_that_overlap_or_cross_themselves_count_as_what_they_enclose():
    bow = [[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]]
    feature = json.loads(geojson(bow, wrap=False))
    document = [feature, json.loads(geojson(ring(0, 0, 50, 10), ring(10, 2, 20, 8)))]
    area = parse_geojson(json.dumps(document).encode(), "a").area
    assert area.is_valid
    assert 5000 < area.area < 5500


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"x,y\n1,2\n", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b"{}", "geometry 1 is of type None; draw polygons"),
        (b"[]", "holds no polygon"),
        (b'{"type": "FeatureCollection", "features": []}', "holds no polygon"),
        (b'{"type": "FeatureCollection"}', "geometry 1 is of type FeatureCollection"),
        (b'{"type": "Feature", "geometry": null}', "geometry 1 is of type NoneType"),
        (b'{"type": "Point", "coordinates": [1, 2]}', "geometry 1 is of type Point; draw polygons"),
        (b'{"type": "Polygon"}', "geometry 1 is no polygon"),
        (b'{"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}', "geometry 1 is no polygon"),
        (b'{"type": "Polygon", "coordinates": [[["a", 0]]]}', "geometry 1 is no polygon"),
        (geojson([[0, 0], [1, 1], [2, 2], [0, 0]]), "geometry 1 is no polygon"),
        (geojson([[0, 0], [1, float("nan")], [2, 0], [0, 0]]), "geometry 1 is no polygon"),
    ],
)
def test_polygons_that_are_none_are_refused(content, reason):
    with pytest.raises(ImageError, match=rf"^a\.geojson: {reason}") as caught:
        parse_geojson(content, "a.geojson")
    assert "\n" not in str(caught.value)


def test_a_file_is_read_as_its_column_says(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(geojson(ring(0, 0, 50, 50)))
    assert read_places(Given(kind="annotations", url=str(path))).flag == ANNOTATED
    with pytest.raises(ImageError, match="no column"):
        read_places(Given(kind="coordinates", url=str(path)))
    with pytest.raises(StorageError, match="no such file"):
        read_places(Given(kind="coordinates", url=str(tmp_path / "b")))


# In a cohort --------------------------------------------------------------------------------


def given_cohort(folder: Path, **columns) -> Path:
    make_cohort(folder, n=2)
    rows = [{"image_id": f"i{n}", "path": f"images/{n}.png"} for n in range(2)]
    for name, cells in columns.items():
        for row, cell in zip(rows, cells, strict=True):
            row[name] = cell
    return write_table(folder / "cohort.csv", rows)


def test_files_are_found_beside_the_table(tmp_path):
    (tmp_path / "c.csv").write_text("x,y\n0,0\n")
    table = given_cohort(tmp_path, coordinates=["c.csv", ""], annotations=["", "memory://a.json"])
    with pytest.raises(CohortError, match=r"row 3: no such file of annotations: memory://a\.json"):
        Cohort.read(table)
    cohort = Cohort.read(table, check_files=False)
    assert cohort.given == (
        Given(kind="coordinates", url=f"{tmp_path}/c.csv"),
        Given(kind="annotations", url="memory://a.json"),
    )
    assert cohort.select([1]).given == cohort.given[1:]
    assert Cohort.read(make_cohort(tmp_path / "plain", n=2)).given == (None, None)


def test_everything_wrong_with_the_names_is_said_at_once(tmp_path):
    table = given_cohort(tmp_path, coordinates=["absent.csv", "b.csv"], annotations=["../a", "b"])
    with pytest.raises(CohortError) as caught:
        Cohort.read(table)
    assert list(caught.value.problems) == [
        "row 2: '../a' leads out of the cohort's folder",
        "row 2: coordinates and annotations; give one",
        f"row 2: no such file of coordinates: {tmp_path}/absent.csv",
        "row 3: coordinates and annotations; give one",
        f"row 3: no such file of coordinates: {tmp_path}/b.csv",
    ]


def test_a_build_takes_the_patches_that_are_given(tmp_path):
    (tmp_path / "c.csv").write_text("x,y\n40,30\n1,2\n")
    (tmp_path / "a.geojson").write_bytes(geojson(ring(0, 0, 50, 40)))
    table = given_cohort(tmp_path, coordinates=["c.csv", ""], annotations=["", "a.geojson"])
    words = ("--patch-size", "32", "--tissue", "none", "--threads", "1")
    assert call("histostore", "build", table, tmp_path / "store", *words).code == 0
    (features,) = histostore.open(str(tmp_path / "store")).values()
    assert features.bag("i0").coords.tolist() == [[40, 30], [1, 2]]
    assert features.bag("i1").coords.tolist() == [[0, 0], [32, 0]]
    listed = call("histostore", "ls", tmp_path / "store", "--json").json
    assert [row["flags"] for row in listed] == [GIVEN_COORDINATES, ANNOTATED]
    other = call("histostore", "build", table, tmp_path / "store", *words, "--json").json
    assert other["changed"] == []
    (tmp_path / "c.csv").write_text("x,y\n400,30\n")
    done = call("histostore", "build", table, tmp_path / "other", *words)
    assert done.code == 3
    assert "c.csv: 1 of 1 patches begin outside the image of 96×64 px" in done.out


def test_the_share_names_another_feature_set_and_shows_in_the_preview(tmp_path):
    (tmp_path / "a.geojson").write_bytes(geojson(ring(0, 0, 50, 40)))
    table = given_cohort(tmp_path, annotations=["a.geojson", "a.geojson"])
    words = ("--patch-size", "32", "--tissue", "none")
    for share, n in ((None, 2), (0.9, 1), (0.01, 4)):
        given = words if share is None else (*words, "--min-annotated", share)
        assert call("histostore", "build", table, tmp_path / f"{n}", *given, "--threads", "1").code == 0  # fmt: skip
        (features,) = histostore.open(str(tmp_path / f"{n}")).values()
        assert len(features.bag("i0").coords) == n
        assert features.spec.grid.min_annotated == share
        drawn = call("histostore", "preview", table, "-o", tmp_path / f"p{n}", *given, "--json")
        assert [image["n_kept"] for image in drawn.json["images"]] == [n, n]
    assert call("histostore", "build", table, tmp_path / "0", "--min-annotated", "2").code == 1


def test_places_that_changed_are_reported_and_embedded_again_on_request(tmp_path):
    (tmp_path / "c.csv").write_text("x,y\n40,30\n")
    (tmp_path / "a.geojson").write_bytes(geojson(ring(0, 0, 50, 40)))
    table = given_cohort(tmp_path, coordinates=["c.csv", ""], annotations=["", "a.geojson"])
    words = ("build", table, tmp_path / "store", "--patch-size", "32", "--tissue", "none")
    words += ("--threads", "1", "--json")

    def places():
        (features,) = histostore.open(str(tmp_path / "store")).values()
        return [features.bag(name).coords.tolist() for name in ("i0", "i1")]

    assert call("histostore", *words).json["changed"] == []
    before = places()
    for name, text in (("c.csv", b"x,y\n1,2\n3,4\n"), ("a.geojson", geojson(ring(0, 0, 30, 30)))):
        (tmp_path / name).write_bytes(text)
    # of a part of the cohort too, whose sources are looked up alike
    assert call("histostore", *words, "--limit", "1").json["changed"] == ["i0"]
    told = call("histostore", *words)
    assert told.json["changed"] == ["i0", "i1"]
    assert places() == before
    done = call("histostore", *words, "--reembed-changed").json
    assert (done["changed"], done["n_reembedded"]) == ([], 2)
    assert places() == [[[1, 2], [3, 4]], [[0, 0]]]
    assert call("histostore", *words).json["changed"] == []
    # a cohort without the column lets the grid decide, and that is a change as well
    plain = write_table(table.with_name("plain.csv"), [{"image_id": "i0", "path": "images/0.png"}])
    without = ("build", plain, *words[2:])
    assert call("histostore", *without).json["changed"] == ["i0"]
