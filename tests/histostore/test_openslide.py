"""Slides through OpenSlide: local or copied here, several threads, damage, and its absence."""

from __future__ import annotations

import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import ImageError, MissingExtra, StorageError
from histostore.images import remote
from histostore.images.levels import PyramidReader
from histostore.images.readers import open_image
from histostore.images.tiff import TiffReader, slide_maker
from tests.commands import BUILD, call, picture, write_table
from tests.slides import reduced, scene, write_dicom

openslide = pytest.importorskip("openslide", reason="OpenSlide is not installed")
pytest.importorskip("pydicom", reason="pydicom is not installed")
from histostore.images.openslide import OpenSlideReader  # noqa: E402

PIXELS = scene(150, 90)


@pytest.fixture
def slide(tmp_path):
    return write_dicom(tmp_path / "a.dcm", PIXELS, mpp=0.25)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary files of its own, to see what is left in it."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_dicom_gives_back_its_pixels(slide):
    with closing(open_image(str(slide))) as reader:
        assert isinstance(reader, OpenSlideReader)
        assert isinstance(reader, PyramidReader)
        assert (reader.width_px, reader.height_px) == (150, 90)
        assert reader.mpp == pytest.approx(0.25)
        np.testing.assert_array_equal(reader.region(0, 0, 150, 90), PIXELS)
        np.testing.assert_array_equal(reader.region(31, 33, 70, 41), PIXELS[33:74, 31:101])
        small = reader.thumbnail(50)
        assert small.shape == (30, 50, 3)
        assert np.abs(small.astype(int) - reduced(PIXELS, 3)).max() <= 1
        with pytest.raises(ImageError, match=r"a\.dcm: region .* is not inside"):
            reader.region(100, 0, 51, 10)
    reader.close()


def test_the_scale_of_the_cohort_wins(slide):
    with closing(open_image(str(slide), mpp=1.5)) as reader:
        assert reader.mpp == 1.5


def test_files_of_one_series_are_the_levels_of_one_slide(tmp_path):
    for factor in (1, 2, 4):
        write_dicom(tmp_path / f"{factor}.dcm", reduced(PIXELS, factor), mpp=0.25 * factor)
    write_dicom(tmp_path / "other.dcm", PIXELS, series="9.9")
    with closing(open_image(str(tmp_path / "1.dcm"))) as reader:
        assert reader.level_sizes == ((150, 90), (75, 45), (37, 22))
        np.testing.assert_array_equal(
            reader.level_region(1, 10, 5, 30, 20), reduced(PIXELS, 2)[5:25, 10:40]
        )
        # As large as asked for: from level 1, which is 75 wide.
        assert reader.thumbnail(75).shape == (45, 75, 3)


def test_several_threads_read_one_slide(slide):
    boxes = [(x, y) for x in range(0, 120, 11) for y in range(0, 60, 7)]
    with closing(open_image(str(slide))) as reader, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda box: reader.region(*box, 30, 30), boxes))
    for (x, y), part in zip(boxes, parts, strict=True):
        np.testing.assert_array_equal(part, PIXELS[y : y + 30, x : x + 30])


def test_a_slide_far_away_is_copied_and_the_copy_removed(slide, temporary):
    fsspec.filesystem("memory").pipe_file("/far/a.dcm", slide.read_bytes())
    reader = open_image("memory://far/a.dcm")
    assert len(list(temporary.iterdir())) == 1
    np.testing.assert_array_equal(reader.region(0, 0, 150, 90), PIXELS)
    reader.close()
    reader.close()
    assert list(temporary.iterdir()) == []


def test_a_copy_that_does_not_fit_is_refused_and_leaves_nothing(slide, temporary, monkeypatch):
    fsspec.filesystem("memory").pipe_file("/far/a.dcm", slide.read_bytes())
    monkeypatch.setattr(remote, "RESERVE_BYTES", 2**60)
    with pytest.raises(ImageError, match=r"a\.dcm: its copy needs .* set TMPDIR") as caught:
        open_image("memory://far/a.dcm")
    assert str(temporary) in str(caught.value)
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_disk_that_is_full_is_named(slide):
    with slide.open("rb") as file, pytest.raises(StorageError, match="set TMPDIR") as caught:
        remote._copy("s3://bucket/a.dcm", file, Path("/dev/full"))
    assert "No space left" in str(caught.value)


def test_a_damaged_slide_far_away_leaves_nothing(slide, temporary):
    fsspec.filesystem("memory").pipe_file("/far/b.dcm", slide.read_bytes()[:400])
    with pytest.raises(ImageError, match=r"b\.dcm"):
        open_image("memory://far/b.dcm")
    assert list(temporary.iterdir()) == []


def test_a_mirax_slide_comes_with_its_folder(temporary):
    fs = fsspec.filesystem("memory")
    for name in ("s.mrxs", "s/Slidedat.ini", "s/Data0000.dat", "sister/Data0000.dat"):
        fs.pipe_file(f"/mirax/{name}", name.encode())
    path, remove = remote.copy_here("memory://mirax/s.mrxs", folder=True)
    there = sorted(
        str(each.relative_to(Path(path).parent)) for each in Path(path).parent.rglob("*.*")
    )
    assert there == ["s.mrxs", "s/Data0000.dat", "s/Slidedat.ini"]
    assert (Path(path).parent / "s/Slidedat.ini").read_text() == "s/Slidedat.ini"
    remove()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mrxs", b"\xff\xd8\xff preview"),
        ("a.vms", b"[Virtual Microscope Specimen]\nNoLayers=1\n"),
        ("a.svslide", b"SQLite format 3\0" + bytes(200)),
        ("a.dcm", bytes(128) + b"DICM" + bytes(9)),
    ],
)
def test_what_openslide_refuses_is_an_error_of_one_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=rf"{name}: (is of a kind|cannot be decoded)") as caught:
        open_image(str(tmp_path / name))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def sound_dicom(tmp_path_factory):
    # Written once: each has other identifiers, and so another length.
    return write_dicom(tmp_path_factory.mktemp("sound") / "a.dcm", PIXELS).read_bytes()


@given(data=st.data())
def test_damaged_dicom_gives_an_image_or_an_image_error(tmp_path_factory, sound_dicom, data):
    path = tmp_path_factory.mktemp("damaged") / "a.dcm"
    content = bytearray(sound_dicom)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(132, 900))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(140, len(content)))])
    try:
        with closing(open_image(str(path))) as reader:
            if reader.width_px * reader.height_px < 10**6:
                reader.region(0, 0, reader.width_px, reader.height_px)
    except ImageError as error:
        assert "a.dcm" in str(error)  # noqa: PT017 - either way is right


@pytest.mark.parametrize(
    ("tags", "description", "maker"),
    [
        ([(271, "s", 0, "Hamamatsu", True), (65420, "I", 1, 1, True)], None, "Hamamatsu NDPI"),
        (
            [],
            '<?xml?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"></scn>',
            "Leica SCN",
        ),
        ([], "Aperio Image Library|MPP = 0.5", None),
    ],
)
def test_scanners_whose_tiff_is_openslides_are_known_by_content(tmp_path, tags, description, maker):
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path, PIXELS, photometric="rgb", description=description, extratags=tags, metadata=None
    )
    with path.open("rb") as file:
        assert slide_maker(file, "a.tif") == maker
    if maker is None:
        with closing(open_image(str(path))) as reader:
            assert isinstance(reader, TiffReader)


def test_without_openslide_its_slides_fail_and_the_others_are_embedded(
    tmp_path, slide, monkeypatch
):
    from PIL import Image

    Image.fromarray(picture(0)).save(tmp_path / "b.png")
    rows = [{"image_id": name, "path": name} for name in ("a.dcm", "b.png")]
    table = write_table(tmp_path / "cohort.csv", rows)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(MissingExtra, match=r"pip install 'histostore\[slides\]'"):
        open_image(str(slide))
    done = call("histostore", "build", table, tmp_path / "store", *BUILD)
    assert done.code == 3
    assert "1 of 2 images are there" in done.out
    assert "pip install 'histostore[slides]'" in done.out


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("dicom-multiframe-camelyon-crop.dcm", (1152, 700), 28.969),
        ("dicom-highdicom-sm_image.dcm", (50, 50), 0.499),
    ],
)
def test_real_dicom(real_data, name, size, mpp):
    with closing(open_image(str(real_data / "wsi" / name))) as reader:
        assert (reader.width_px, reader.height_px) == size
        assert reader.mpp == pytest.approx(mpp, rel=1e-3)
        assert reader.region(0, 0, *size).mean() > 100


@pytest.mark.real
@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_tifffile_and_openslide_agree_on_aperio(real_data, name):
    path = str(real_data / "wsi" / name)
    with closing(open_image(path)) as ours, closing(OpenSlideReader(path, path)) as theirs:
        assert isinstance(ours, TiffReader)
        assert ours.level_sizes == theirs.level_sizes
        assert ours.mpp == theirs.mpp
        np.testing.assert_array_equal(
            ours.region(900, 800, 300, 200), theirs.region(900, 800, 300, 200)
        )
