"""What people get wrong with images and cohorts: refused or recorded with a reason, never half done."""

from __future__ import annotations

import re
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

import histostore
from tests.commands import build, call, encoded, fit, make_cohort, picture, write_table


def cohort_of(folder, **columns):
    """Write the table of the images that lie in a folder."""
    images = sorted(path.name for path in folder.iterdir())
    rows = [{"image_id": name, "path": name, **columns} for name in images]
    return write_table(folder / "cohort.csv", rows)


# Images ------------------------------------------------------------------------------------


def png(width, height):
    """Make the file of a black PNG image that claims any size."""

    def part(kind, content):
        check = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", pixels) + part(b"IEND", b"")


BROKEN = {
    "unreadable.png": (lambda: b"this is no picture", "is no PNG file"),
    "zero-byte.png": (lambda: b"", "is empty"),
    "truncated.png": (lambda: encoded("png")[:5000], "truncated"),
    "truncated.jpg": (lambda: encoded("jpeg")[:900], "truncated"),
    "truncated.tif": (lambda: encoded("tiff")[:5000], "truncated"),
    "wrong-extension.jpg": (lambda: encoded("png"), "is a PNG file with the name of a JPEG file"),
    "bomb.png": (lambda: png(100_000, 100_000), "more than the 200,000,000"),
    "no-width.png": (lambda: png(0, 10), "cannot be decoded"),
}


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A cohort of two good images among all kinds of broken ones, built."""
    folder = tmp_path_factory.mktemp("broken")
    for name, (content, _) in BROKEN.items():
        (folder / name).write_bytes(content())
    (folder / "good-1.png").write_bytes(encoded("png"))
    (folder / "good-2.jpg").write_bytes(encoded("jpeg"))
    table = cohort_of(folder, label="a")
    return table, folder / "store", build(table, folder / "store", "--json")


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_recorded_with_its_reason(broken, name):
    _, store, done = broken
    reasons = {failure["image_id"]: failure["reason"] for failure in done.json["failed"]}
    assert BROKEN[name][1] in reasons[name]
    assert "\n" not in reasons[name]
    (features,) = call("histostore", "info", store, "--json").json["feature_sets"]
    assert reasons == {failure["image_id"]: failure["reason"] for failure in features["failed"]}


def test_the_rest_of_a_build_goes_on_and_its_exit_status_is_3(broken):
    table, store, done = broken
    assert done.code == 3
    assert {row["image_id"] for row in call("histostore", "ls", store, "--json").json} == {
        "good-1.png",
        "good-2.jpg",
    }
    again = build(table, store)
    assert again.code == 3
    assert f"failed         {len(BROKEN)}; the next build tries them again" in again.out


def test_an_image_that_was_mended_is_embedded_by_the_next_build(tmp_path):
    table = make_cohort(tmp_path, n=2)
    image = tmp_path / "images" / "1.png"
    good = image.read_bytes()
    image.write_bytes(b"")
    assert build(table, tmp_path / "store").code == 3
    image.write_bytes(good)
    assert build(table, tmp_path / "store").code == 0
    assert "failed in" not in call("histostore", "info", tmp_path / "store").out


def test_a_long_list_of_failures_is_cut_but_for_json(tmp_path):
    table = make_cohort(tmp_path, n=25)
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(b"")
    done = build(table, tmp_path / "store")
    assert done.out.count("is empty") == 20
    assert "… and 5 more: --json lists them all" in done.out
    assert "… and 5 more" in call("histostore", "info", tmp_path / "store").out
    assert len(build(table, tmp_path / "store", "--json").json["failed"]) == 25


def test_near_empty_and_small_images_give_one_patch_with_a_flag(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.fromarray(np.full((64, 96, 3), 255, np.uint8)).save(folder / "glass.png")
    Image.fromarray(picture(0, height=10, width=20)).save(folder / "small.png")
    Image.fromarray(picture(0)).save(folder / "usual.png")
    table = cohort_of(folder)
    done = build(table, tmp_path / "store", "--tissue", "hsv")
    assert done.code == 0
    assert "flagged       2 with something to know of" in done.out
    rows = call("histostore", "ls", tmp_path / "store", "--json").json
    told = {row["image_id"]: (row["n_patches"], row["flags"]) for row in rows}
    assert told == {
        "glass.png": (1, "no-tissue"),
        "small.png": (1, "small-image"),
        "usual.png": (6, ""),
    }


def few_colours(seed=0):
    """Draw a picture of few enough colours for a palette."""
    return (picture(seed) // 64) * 64


def grey(rgb):
    return np.repeat(rgb[..., :1], 3, axis=2)


def turned(rgb):
    """Turn pixels so that orientation 6 turns them back."""
    image, exif = Image.fromarray(np.rot90(rgb, 1)), Image.Exif()
    exif[274] = 6
    return image, {"exif": exif}


MODES = {
    "grey.png": (lambda rgb: (Image.fromarray(rgb[..., 0]), {}), grey),
    "grey-16-bit.png": (
        lambda rgb: (Image.fromarray(rgb[..., 0].astype(np.uint16) * 257), {}),
        grey,
    ),
    "alpha.png": (lambda rgb: (Image.fromarray(rgb).convert("RGBA"), {}), None),
    "palette.png": (lambda rgb: (Image.fromarray(rgb).quantize(256, dither=0), {}), None),
    "cmyk.tif": (lambda rgb: (Image.fromarray(rgb).convert("CMYK"), {}), None),
    "turned.png": (turned, None),
    "turned.tif": (turned, None),
}


def test_colour_modes_and_rotation_give_the_embedding_of_the_picture_in_rgb(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    rgb = few_colours()
    for name, (convert, expected) in MODES.items():
        image, options = convert(rgb)
        image.save(folder / name, **options)
        plain = rgb if expected is None else expected(rgb)
        Image.fromarray(plain).save(folder / f"{name}.rgb.png")
    assert build(cohort_of(folder), tmp_path / "store").code == 0
    features = histostore.open(str(tmp_path / "store")).feature_set()
    for name in MODES:
        assert np.array_equal(
            features.bag(name).embedding, features.bag(f"{name}.rgb.png").embedding
        ), name


def test_micrometres_per_pixel_that_are_needed_must_be_given(tmp_path):
    table = make_cohort(tmp_path, n=2)
    done = build(table, tmp_path / "store", "--mpp", 0.5)
    assert done.code == 3
    assert "give it in the cohort's mpp column" in done.out
    rows = [{"image_id": f"i{n}", "path": f"images/{n}.png", "mpp": 0.5} for n in range(2)]
    write_table(table, rows)
    assert build(table, tmp_path / "store", "--mpp", 0.5).code == 0


# The cohort --------------------------------------------------------------------------------


def test_every_problem_of_a_cohort_is_listed_before_any_work(tmp_path):
    make_cohort(tmp_path, n=2)
    rows = [("i0", "images/0.png"), ("i0", "images/1.png"), ("i2", "images/gone.png")]
    rows += [("i3", "../elsewhere.png"), ("", "images/1.png")]
    table = write_table(tmp_path / "bad.csv", [{"image_id": i, "path": p} for i, p in rows])
    done = build(table, tmp_path / "store")
    assert (done.code, done.out) == (1, "")
    first, *problems = done.err.splitlines()
    assert first.startswith("Error: ")
    assert first.endswith(f"has {len(problems)} problems")
    for words in ("image_id 'i0'", "no such file", "leads out of the cohort's folder", "row 6"):
        assert any(words in problem for problem in problems), words
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"image_id,path\n", "not a single row"),
        (b"image_id,label\na,b\n", "column 'path' is missing"),
        ("image_id,path\nä,b.png\n".encode("latin-1"), "UTF-8"),
        (b"image_id;path\na;b.png\n", "semicolons"),
        (b"PAR1 and no more", "Parquet"),
    ],
)
def test_a_table_that_is_none_is_refused_before_any_work(tmp_path, content, message):
    table = tmp_path / "cohort.csv"
    table.write_bytes(content)
    done = build(table, tmp_path / "store")
    assert done.code == 1
    assert message in done.err
    assert not (tmp_path / "store").exists()


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Eight images of four patients, without label, failed or well, and their store."""
    folder = tmp_path_factory.mktemp("study")
    patients = [f"p{number // 3}" for number in range(12)]
    table = make_cohort(folder, patient_id=patients)
    assert build(table, folder / "store").code == 0
    return folder


def relabelled(study, out, label, **columns):
    """Write the study's table with other labels."""
    rows = [
        {
            "image_id": f"i{n}",
            "path": str(study / "images" / f"{n}.png"),
            "label": label(n),
            **{name: value(n) for name, value in columns.items()},
        }
        for n in range(12)
    ]
    return write_table(out / "other.csv", rows)


def test_images_without_a_label_are_embedded_left_out_and_counted(study, tmp_path):
    table = relabelled(study, tmp_path, lambda n: "" if n < 3 else "ab"[n % 2])
    done = fit(study / "store", table, tmp_path / "run", "--json")
    assert done.code == 0
    assert done.err == "Note: left out 3 images without 'label'\n"
    assert done.json["cohort"]["n_unlabelled"] == 3
    assert done.json["cohort"]["n_images"] == 9


def test_images_that_failed_are_left_out_and_counted_but_not_those_never_built(tmp_path):
    table = make_cohort(tmp_path, n=12)
    (tmp_path / "images" / "5.png").write_bytes(b"")
    assert build(table, tmp_path / "store", "--limit", 10).code == 3
    refused = fit(tmp_path / "store", table, tmp_path / "run")
    assert refused.code == 1
    assert "2 images (i10, i11) not in feature set" in refused.err
    assert "run histostore build" in refused.err
    assert build(table, tmp_path / "store").code == 3
    done = fit(tmp_path / "store", table, tmp_path / "run", "--json")
    assert done.code == 0
    assert done.err == "Note: left out 1 image that failed in the build; histostore info says why\n"
    told = done.json["cohort"]
    assert (told["n_images"], told["n_failed"], told["n_unlabelled"]) == (11, 1, 0)


def test_a_cohort_of_which_nothing_could_be_built_is_refused(tmp_path):
    table = make_cohort(tmp_path, n=2)
    for image in (tmp_path / "images").iterdir():
        image.write_bytes(b"")
    assert build(table, tmp_path / "store").code == 3
    done = fit(tmp_path / "store", table, tmp_path / "run")
    assert done.code == 1
    assert "no image yet: run histostore build" in done.err


@pytest.mark.parametrize(
    ("label", "options", "message"),
    [
        (lambda _: "a", (), "12 images of class a: a split needs at least two"),
        (lambda _: "", (), "label"),
        (lambda n: "ab"[n % 2], ("--folds", 5), "4 patients for 5 folds"),
        (lambda n: "ab"[n == 0], ("--folds", 2), "fewer images than 2 folds: a 11, b 1"),
        (lambda n: "ab"[n % 2], ("--folds", 1), "at least two folds"),
    ],
    ids=["one-class", "no-label", "few-patients", "rare-class", "one-fold"],
)
def test_what_cannot_be_split_is_refused_with_the_counts(study, tmp_path, label, options, message):
    table = relabelled(study, tmp_path, label, patient_id=lambda n: f"p{n // 3}")
    done = fit(study / "store", table, tmp_path / "run", *options)
    assert (done.code, done.out) == (1, "")
    assert re.search(message, done.err), done.err
    assert not (tmp_path / "run").exists()


def test_a_patient_on_two_sides_of_a_split_is_refused(study, tmp_path):
    table = relabelled(
        study,
        tmp_path,
        lambda n: "ab"[n % 2],
        patient_id=lambda n: f"p{n // 3}",
        part=lambda n: ("train", "test")[n % 3 == 2],
    )
    done = fit(study / "store", table, tmp_path / "run", "--split", "part")
    assert done.code == 1
    assert "p0" in done.err
    assert "--folds is not used" in done.err
