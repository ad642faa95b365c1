"""Files that are damaged, or something else, are an ImageError of one line."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histostore.errors import ImageError
from histostore.images.readers import MAX_PIXELS, open_image
from tests.histostore.pictures import (
    GREY,
    RGB,
    noise,
    png_file,
    refused,
    whole,
)

if TYPE_CHECKING:
    from pathlib import Path


def encoded(name: str) -> bytes:
    content = io.BytesIO()
    match name:
        case "tiled.tif":
            tifffile.imwrite(content, RGB, photometric="rgb", tile=(16, 16), compression="zlib")
        case "raw.tif":
            tifffile.imwrite(content, RGB, photometric="rgb")
        case "jpeg.svs":
            tifffile.imwrite(content, RGB, photometric="rgb", tile=(16, 16), compression="jpeg")
        case "lzw.tif":
            Image.fromarray(RGB).save(content, "TIFF", compression="tiff_lzw")
        case "palette.gif":
            Image.fromarray(RGB).save(content, "GIF")
        case _:
            kind = name.rpartition(".")[2].upper()
            Image.fromarray(RGB).save(content, {"JPG": "JPEG"}.get(kind, kind))
    return content.getvalue()


FILES = {
    name: encoded(name)
    for name in (
        *("a.png", "a.jpg", "a.bmp", "a.webp", "palette.gif"),
        *("tiled.tif", "raw.tif", "jpeg.svs", "lzw.tif"),
    )
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_truncated_file_is_an_error(tmp_path: Path, name: str, part: float) -> None:
    path = tmp_path / name
    path.write_bytes(FILES[name][: int(len(FILES[name]) * part)])
    refused(path)


@pytest.mark.parametrize("name", FILES)
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"")
    assert "empty (0 bytes)" in refused(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif", "noext"):
        assert "no such file" in refused(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", FILES["a.png"], "is a PNG file with the name of a JPEG file; rename it"),
        ("a.png", FILES["raw.tif"], "is a TIFF file with the name of a PNG file; rename it"),
        ("a.tif", FILES["a.jpg"], "is a JPEG file with the name of a TIFF file; rename it"),
        ("a.png", b"image_id,path\n", "is no PNG file, whatever its name says"),
        ("a", b"image_id,path\n", "is no image"),
        ("a.png", bytes(128) + b"DICM" + bytes(9), "is a DICOM file with the name of a PNG file"),
        ("a", b"%PDF-1.7", "is a PDF file, which is not read"),
        ("a.png", bytes(600), "is no PNG file"),
    ],
)
def test_content_and_name_must_agree(
    tmp_path: Path, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert reason in refused(path)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.gif", "a.tif"])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, name: str) -> None:
    content = bytearray(FILES.get(name, b""))
    side = 50_000
    if name == "a.png":
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        content = png_file((b"IHDR", header), (b"IDAT", zlib.compress(bytes(99))), (b"IEND", b""))
    elif name == "a.jpg":
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", side, side)
    elif name == "a.bmp":
        content[18:26] = struct.pack("<ii", side, side)
    elif name == "a.gif":
        content = bytearray(FILES["palette.gif"])
        content[6:10] = struct.pack("<HH", side, side)
    else:
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            shape=(16, 16, 3),
            dtype=np.uint8,
            photometric="rgb",
            compression="zlib",
            data=iter([zlib.compress(bytes(768))]),
            extratags=[],
        )
        content = bytearray(file.getvalue())
        with tifffile.TiffFile(io.BytesIO(content)) as tif:
            for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
                entry = tif.pages.first.tags[tag]
                content[entry.offset + 8 : entry.offset + 12] = struct.pack("<I", side)
                content[entry.offset + 2 : entry.offset + 4] = struct.pack("<H", 4)
    path = tmp_path / name
    path.write_bytes(content)
    assert f"more than the {MAX_PIXELS:,}" in refused(path)


def test_a_flipped_bit_in_a_png_is_never_a_wrong_pixel(tmp_path: Path) -> None:
    content = bytearray(FILES["a.png"])
    at = content.index(b"IDAT") + 40
    content[at] ^= 1
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert "checksum of chunk b'IDAT' fails" in refused(path)


@pytest.mark.parametrize("name", ["a.gif", "a.webp", "a.png"])
def test_an_animation_is_refused(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(noise(9, 9, 3, seed=i)) for i in range(3)]
    path = tmp_path / name
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert "several frames" in refused(path)


@pytest.mark.parametrize(
    "pixels",
    [
        GREY.astype(np.float32),
        RGB.astype(np.float64),
        GREY.astype(np.complex64),
        GREY.astype(np.int16),
        GREY.astype(np.uint32),
    ],
    ids=lambda pixels: str(pixels.dtype),
)
def test_measurements_are_no_pictures(tmp_path: Path, pixels: np.ndarray) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    assert "no colours" in refused(path)


def test_a_stack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(3, 9, 9), photometric="minisblack")
    assert "several pages of one size" in refused(path)


@pytest.mark.parametrize("before", [1, 2])
def test_a_thumbnail_before_the_picture_is_refused_and_not_embedded(
    tmp_path: Path, before: int
) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as file:
        for step in range(2, 2 * before + 1, 2):
            file.write(RGB[::step, ::step].copy(), photometric="rgb", subfiletype=1)
        file.write(RGB, photometric="rgb")
    assert f"page {before + 1} has 53×37" in refused(path)


@pytest.mark.parametrize(
    ("shape", "photometric"), [((9, 9, 5), "minisblack"), ((9, 9, 3), "cielab")]
)
def test_other_colours_are_refused(
    tmp_path: Path, shape: tuple[int, ...], photometric: str
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(*shape), photometric=photometric, planarconfig="contig")
    assert "convert it to RGB" in refused(path)


def test_what_tifffile_logs_stays_out_of_sight(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tif"
    content = bytearray(FILES["raw.tif"])
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        tag = file.pages.first.tags["Software"]
        content[tag.offset + 4 : tag.offset + 8] = b"\xff" * 4
    path.write_bytes(content)
    with caplog.at_level(logging.DEBUG, logger="tifffile"):
        with tifffile.TiffFile(path) as file:
            assert file.pages.first.shape == RGB.shape
        assert caplog.records
        caplog.clear()
        np.testing.assert_array_equal(whole(path), RGB)
        assert not caplog.records
        logging.getLogger("tifffile").warning("of somebody else")
        assert caplog.records


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_an_image_error(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = bytearray(FILES[name])
    # Headers are the richest soil: half of the flips fall into the ends of the file.
    places = st.integers(0, len(content) - 1)
    ends = st.integers(0, 200) | st.integers(len(content) - 300, len(content) - 1)
    for at in data.draw(st.lists(places | ends, max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del content[data.draw(places) :]
    path = tmp_path_factory.getbasetemp() / f"fuzz-{name}"
    path.write_bytes(content)
    message = None
    try:
        with closing(open_image(str(path))) as reader:
            width, height = min(reader.width_px, 64), min(reader.height_px, 64)
            assert reader.region(0, 0, width, height).shape == (height, width, 3)
    except ImageError as error:
        message = str(error)
    assert message is None or (path.name in message and "\n" not in message)
