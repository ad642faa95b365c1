"""Files become upright RGB pixels, or an ImageError of one line."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import fsspec
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from histostore.errors import ImageError, OptionError
from histostore.images import tiff
from histostore.images.readers import MAX_PIXELS, Reader, open_image
from histostore.images.scale import mpp_from_description, mpp_from_resolution
from histostore.images.tiff import TiffReader

HEIGHT, WIDTH = 37, 53


def noise(*shape: int, dtype: type = np.uint8, seed: int = 0) -> np.ndarray:
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype, endpoint=True)


RGB = noise(HEIGHT, WIDTH, 3)
GREY = noise(HEIGHT, WIDTH)
ALPHA = noise(HEIGHT, WIDTH, seed=1)
SPREAD_GREY = np.repeat(GREY[..., None], 3, axis=2)
OVER_WHITE = np.rint((RGB * (ALPHA / 255)[..., None]) + (255.0 - ALPHA)[..., None])


def whole(path: object) -> np.ndarray:
    with closing(open_image(str(path))) as reader:
        return reader.region(0, 0, reader.width_px, reader.height_px)


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def refused(path: object) -> str:
    with pytest.raises(ImageError) as caught:
        whole(path)
    message = str(caught.value)
    assert Path(str(path)).name in message
    assert "\n" not in message
    return message


# --- the same picture in other clothes ---------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("a.png", {}),
        ("a.PNG", {"optimize": True}),
        ("a.bmp", {}),
        ("a.webp", {"lossless": True}),
        ("a.tif", {}),
        ("a.tiff", {"compression": "tiff_lzw"}),
    ],
)
def test_lossless_files_give_back_their_pixels(
    tmp_path: Path, name: str, options: dict[str, object]
) -> None:
    np.testing.assert_array_equal(whole(save(tmp_path / name, RGB, **options)), RGB)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
def test_lossy_files_give_what_pillow_decodes(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, RGB, quality=90)
    np.testing.assert_array_equal(whole(path), np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tif"])
def test_grey_is_spread_over_three_channels(tmp_path: Path, name: str) -> None:
    np.testing.assert_array_equal(whole(save(tmp_path / name, GREY)), SPREAD_GREY)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_one_bit_is_black_and_white(tmp_path: Path, name: str) -> None:
    bits = GREY > 127
    path = save(tmp_path / name, Image.fromarray(bits))
    np.testing.assert_array_equal(whole(path)[..., 1], bits * np.uint8(255))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_grey_with_transparency_lies_over_white(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, Image.fromarray(np.dstack([GREY, ALPHA]), "LA"))
    expected = np.rint(GREY * (ALPHA / 255) + (255.0 - ALPHA))
    np.testing.assert_array_equal(whole(path)[..., 2], expected)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_transparency_lies_over_white(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, np.dstack([RGB, ALPHA]))
    np.testing.assert_array_equal(whole(path), OVER_WHITE)


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_opaque_pictures_do_not_change(tmp_path: Path, name: str) -> None:
    opaque = np.dstack([RGB, np.full_like(GREY, 255)])
    options = {"lossless": True} if name == "a.webp" else {}
    np.testing.assert_array_equal(whole(save(tmp_path / name, opaque, **options)), RGB)


def test_premultiplied_transparency_lies_over_white(tmp_path: Path) -> None:
    premultiplied = np.rint(RGB * (ALPHA / 255)[..., None]).astype(np.uint8)
    path = tmp_path / "a.tif"
    rgba = np.dstack([premultiplied, ALPHA])
    tifffile.imwrite(path, rgba, photometric="rgb", extrasamples=["assocalpha"])
    assert abs(whole(path) - OVER_WHITE).max() <= 1


@pytest.mark.parametrize("name", ["a.png", "a.gif", "a.tif", "a.bmp"])
def test_palettes_are_looked_up(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(RGB).quantize(64)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(whole(save(tmp_path / name, image)), expected)


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 250, 5))])
def test_a_transparent_palette_lies_over_white(tmp_path: Path, transparency: object) -> None:
    image = Image.fromarray(RGB).quantize(64)
    path = save(tmp_path / "a.png", image, transparency=transparency)
    rgba = np.asarray(Image.open(path).convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255
    np.testing.assert_array_equal(whole(path), np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)))


def test_a_transparent_colour_is_white(tmp_path: Path) -> None:
    pixels = RGB.copy()
    pixels[3, 4] = (1, 2, 3)
    got = whole(save(tmp_path / "a.png", pixels, transparency=(1, 2, 3)))
    assert got[3, 4].tolist() == [255, 255, 255]
    assert (
        got[(RGB != (1, 2, 3)).any(axis=-1)] == pixels[(RGB != (1, 2, 3)).any(axis=-1)]
    ).mean() > 0.99


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_what_pillow_makes_of_it(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(RGB).convert("CMYK")
    path = save(tmp_path / name, image)
    np.testing.assert_array_equal(whole(path), np.asarray(Image.open(path).convert("RGB")))
    if name == "a.tif":
        np.testing.assert_array_equal(whole(path), RGB)


def png(pixels: np.ndarray, colour_type: int) -> bytes:
    """Write a 16-bit PNG, which Pillow does not for RGB."""
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, colour_type, 0, 0, 0)
    return png_file((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))


def png_file(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in chunks:
        body += struct.pack(">I", len(data)) + kind + data
        body += struct.pack(">I", zlib.crc32(kind + data))
    return body


@pytest.mark.parametrize("widen", [True, False])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_become_their_high_byte(tmp_path: Path, name: str, *, widen: bool) -> None:
    path = tmp_path / name
    for eight in (GREY, RGB):
        wide = eight * np.uint16(257) if widen else noise(*eight.shape, dtype=np.uint16)
        if name == "a.png":
            path.write_bytes(png(wide, 0 if eight is GREY else 2))
        else:
            tifffile.imwrite(path, wide, photometric="minisblack" if eight is GREY else "rgb")
        expected = eight if widen else wide >> 8
        if eight is GREY:
            expected = np.repeat(expected[..., None], 3, axis=2)
        np.testing.assert_array_equal(whole(path), expected)


@pytest.mark.parametrize("tag", range(9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp", "a.tif"])
def test_rotated_pictures_are_put_upright(tmp_path: Path, name: str, tag: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[274] = tag
    options = {"lossless": True} if name == "a.webp" else {}
    path = save(tmp_path / name, RGB, exif=exif, **options)
    with Image.open(path) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(whole(path), upright)


def test_a_damaged_exif_block_does_not_matter(tmp_path: Path) -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"):
        path = save(tmp_path / "a.jpg", RGB, exif=exif, quality=100)
        expected = np.asarray(Image.open(save(tmp_path / "b.jpg", RGB, quality=100)))
        np.testing.assert_array_equal(whole(path), expected)


# --- TIFF and its many kinds ------------------------------------------------------------

TIFF_KINDS = [
    {"tile": (16, 16)},
    {"tile": (32, 16), "compression": "zlib", "predictor": True},
    {"rowsperstrip": 7, "compression": "lzw"},
    {"rowsperstrip": 1},
    {"compression": "packbits"},
    {"compression": "zstd", "bigtiff": True},
    {"byteorder": ">", "tile": (16, 16)},
    {"planarconfig": "separate", "tile": (16, 16)},
    {"planarconfig": "separate", "rowsperstrip": 5},
    {"compression": "webp", "compressionargs": {"lossless": True}},
    {"compression": "jpeg2000", "tile": (16, 16)},
]


def write_tiff(path: Path, pixels: np.ndarray, **kind: object) -> Path:
    planar = kind.get("planarconfig") == "separate"
    data = np.moveaxis(pixels, -1, 0) if planar else pixels
    tifffile.imwrite(path, data, photometric="rgb", **kind)
    return path


@pytest.mark.parametrize("kind", TIFF_KINDS, ids=str)
def test_every_kind_of_tiff_gives_back_its_pixels(tmp_path: Path, kind: dict[str, object]) -> None:
    np.testing.assert_array_equal(whole(write_tiff(tmp_path / "a.tif", RGB, **kind)), RGB)


@given(st.data())
def test_a_region_is_a_part_of_the_whole(tmp_path_factory, data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(TIFF_KINDS))
    tag = data.draw(st.integers(1, 8))
    path = tmp_path_factory.mktemp("tiff") / "a.tif"
    write_tiff(path, RGB, extratags=[(274, "H", 1, tag, True)], **kind)
    with closing(open_image(str(path))) as reader:
        assert {reader.width_px, reader.height_px} == {WIDTH, HEIGHT}
        complete = reader.region(0, 0, reader.width_px, reader.height_px)
        x = data.draw(st.integers(0, reader.width_px - 1))
        y = data.draw(st.integers(0, reader.height_px - 1))
        width = data.draw(st.integers(1, reader.width_px - x))
        height = data.draw(st.integers(1, reader.height_px - y))
        part = reader.region(x, y, width, height)
        np.testing.assert_array_equal(part, complete[y : y + height, x : x + width])
        with pytest.raises(ImageError, match="not inside the image"):
            reader.region(x, y, reader.width_px - x + 1, height)


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_either_end_of_grey_may_be_zero(tmp_path: Path, photometric: str) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, GREY, photometric=photometric)
    expected = SPREAD_GREY if photometric == "minisblack" else 255 - SPREAD_GREY
    np.testing.assert_array_equal(whole(path), expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 12])
def test_odd_bit_depths_are_scaled(tmp_path: Path, bits: int) -> None:
    dtype = np.uint16 if bits > 8 else np.uint8
    levels = noise(HEIGHT, WIDTH, dtype=dtype) >> (np.iinfo(dtype).bits - bits)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, levels, photometric="minisblack", bitspersample=bits)
    expected = levels >> 4 if bits == 12 else levels * (255 // (2**bits - 1))
    np.testing.assert_array_equal(whole(path)[..., 0], expected)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
def test_ycbcr_in_jpeg_tiles_becomes_rgb(tmp_path: Path, subsampling: tuple[int, int]) -> None:
    smooth = np.asarray(Image.fromarray(noise(4, 5, 3)).resize((96, 64)))
    path = tmp_path / "a.tif"
    tifffile.imwrite(
        path,
        smooth,
        photometric="rgb",
        tile=(32, 32),
        compression="jpeg",
        compressionargs={"level": 95},
        subsampling=subsampling,
    )
    with tifffile.TiffFile(path) as file:
        assert file.pages.first.photometric == 6
    assert abs(whole(path).astype(int) - smooth).mean() < 4


def test_ycbcr_that_is_not_jpeg_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).convert("YCbCr")
    path = tmp_path / "a.tif"
    tags = [(530, "H", 2, (1, 1), True)]
    tifffile.imwrite(path, np.asarray(image), photometric="ycbcr", extratags=tags)
    np.testing.assert_array_equal(whole(path), np.asarray(image.convert("RGB")))


def test_tiles_that_a_file_leaves_out_are_white(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tiles = [RGB[:16, :16].copy(), None, None, None]
    tifffile.imwrite(
        path, iter(tiles), shape=(32, 32, 3), dtype=np.uint8, photometric="rgb", tile=(16, 16)
    )
    got = whole(path)
    np.testing.assert_array_equal(got[:16, :16], RGB[:16, :16])
    assert (got[16:] == 255).all()


def write_pyramid(path: Path, base: np.ndarray, *, sub_ifds: bool) -> Path:
    with tifffile.TiffWriter(path) as writer:
        kind = {"photometric": "rgb", "tile": (16, 16)}
        writer.write(base, subifds=2 if sub_ifds else 0, **kind)
        for factor, level in ((2, 50), (4, 100)):
            small = np.full((base.shape[0] // factor, base.shape[1] // factor, 3), level, np.uint8)
            writer.write(small, subfiletype=1, **kind)
        # A label: smaller, tiled, of other proportions.
        writer.write(np.zeros((16, 40, 3), np.uint8), **kind)
    return path


@pytest.mark.parametrize("sub_ifds", [True, False])
def test_a_thumbnail_comes_from_the_smallest_level_that_is_large_enough(
    tmp_path: Path, *, sub_ifds: bool
) -> None:
    base = np.full((128, 192, 3), 7, np.uint8)
    path = write_pyramid(tmp_path / "a.tif", base, sub_ifds=sub_ifds)
    with closing(open_image(str(path))) as reader:
        for max_px, shape, level in (
            (10, (7, 10, 3), 100),
            (48, (32, 48, 3), 100),
            (49, (32, 48, 3), 50),
            (96, (64, 96, 3), 50),
            (100, (64, 96, 3), 7),
            (500, (128, 192, 3), 7),
        ):
            small = reader.thumbnail(max_px)
            assert small.shape == shape
            assert (small == level).all()


@pytest.mark.parametrize("kind", [{"tile": (16, 16)}, {"rowsperstrip": 7}], ids=str)
def test_a_thumbnail_made_in_blocks_is_the_one_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: dict[str, object]
) -> None:
    pixels = noise(310, 203, 3)
    path = write_tiff(tmp_path / "a.tif", pixels, **kind)
    monkeypatch.setattr(tiff, "_BLOCK_PX", 64)
    with closing(open_image(str(path))) as reader:
        for max_px in (310, 200, 64, 1):
            factor = -(-310 // max_px)
            expected = np.asarray(Image.fromarray(pixels).reduce(factor))
            np.testing.assert_array_equal(reader.thumbnail(max_px), expected)


class CountingFile(io.BytesIO):
    """Counts the bytes that were read from it."""

    n_read = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.n_read += len(data)
        return data


def test_a_region_reads_only_the_tiles_under_it() -> None:
    file = CountingFile()
    tifffile.imwrite(file, noise(1024, 1024, 3), photometric="rgb", tile=(64, 64))
    reader = TiffReader(file, "a.tif")
    before = file.n_read
    assert before < 100_000
    reader.region(100, 100, 64, 64)
    assert file.n_read - before == 4 * 64 * 64 * 3
    reader.region(110, 110, 10, 10)
    assert file.n_read - before == 4 * 64 * 64 * 3


def test_kept_tiles_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "CACHE_BYTES", 10 * 16 * 16 * 3)
    file = io.BytesIO()
    pixels = noise(160, 160, 3)
    tifffile.imwrite(file, pixels, photometric="rgb", tile=(16, 16))
    reader = TiffReader(file, "a.tif")
    for _ in range(2):
        np.testing.assert_array_equal(reader.region(0, 0, 160, 160), pixels)
    kept = reader._kept
    assert sum(tile.nbytes for tile in kept._rgb.values()) == kept._held_bytes
    assert kept._held_bytes <= 10 * 16 * 16 * 3


def test_several_threads_read_one_file(tmp_path: Path) -> None:
    pixels = noise(512, 512, 3)
    path = write_tiff(tmp_path / "a.tif", pixels, tile=(32, 32), compression="zlib")
    boxes = [(x, y) for x in range(0, 480, 29) for y in range(0, 480, 31)]
    with closing(open_image(str(path))) as reader, ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda box: reader.region(*box, 32, 32), boxes))
    for (x, y), part in zip(boxes, parts, strict=True):
        np.testing.assert_array_equal(part, pixels[y : y + 32, x : x + 32])


# --- the scale ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "mpp"),
    [
        ("Aperio Image Library v11.2.1\r\n46000x32914|AppMag = 20|MPP = 0.4990|Left = 3", 0.499),
        ("Aperio Image Library|MPP = unknown", None),
        ("Aperio Image Library|AppMag = 20", None),
        ("made by MPP = 0.5", None),  # not Aperio's
        ('<OME><Pixels PhysicalSizeX="0.25" SizeX="7"/></OME>', 0.25),
        ('<OME><Pixels PhysicalSizeX="0.25" PhysicalSizeXUnit="&#181;m"/></OME>', 0.25),
        ('<OME><Pixels PhysicalSizeX="0.001" PhysicalSizeXUnit="mm"/></OME>', 1.0),
        ('<OME><Pixels PhysicalSizeX="1" PhysicalSizeXUnit="pixel"/></OME>', None),
        ('<OME><Pixels PhysicalSizeY="1"/></OME>', None),
        ('<OME><Pixels PhysicalSizeX="0"/></OME>', None),
        ('<OME><Pixels PhysicalSizeX="1e9"/></OME>', None),  # a kilometre is no pixel
        ("", None),
    ],
)
def test_the_scale_in_a_description(description: str, mpp: float | None) -> None:
    assert mpp_from_description(description) == mpp


@pytest.mark.parametrize(
    ("resolution", "mpp"),
    [
        ((40_000, 1, 3), 0.25),
        ((72, 1, 3), None),  # 139 µm: a default, not a microscope
        ((72, 1, 2), None),
        ((25_400, 1, 2), None),  # inches are never a scale
        ((1, 1, 1), None),
        ((1, 0, 3), None),
        ((0, 1, 3), None),
    ],
)
def test_the_scale_in_the_resolution_tags(
    resolution: tuple[int, int, int], mpp: float | None
) -> None:
    assert mpp_from_resolution(*resolution) == mpp


def test_the_scale_of_a_file_gives_way_to_that_of_the_cohort(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, RGB, photometric="rgb", resolution=(2e4, 2e4), resolutionunit=3)
    with closing(open_image(str(path))) as reader:
        assert reader.mpp == 0.5
    with closing(open_image(str(path), mpp=0.25)) as reader:
        assert reader.mpp == 0.25


def test_dots_per_inch_are_no_scale(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.tif"):
        with closing(open_image(str(save(tmp_path / name, RGB, dpi=(300, 300))))) as reader:
            assert reader.mpp is None


@pytest.mark.parametrize("mpp", [0.0, -1.0, float("nan"), float("inf")])
def test_a_given_scale_must_make_sense(tmp_path: Path, mpp: float) -> None:
    with pytest.raises(OptionError, match="mpp="):
        open_image(str(save(tmp_path / "a.png", RGB)), mpp=mpp)


# --- where files lie ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.png", "a.tif", "noext", "a.jpg.unknown"])
def test_a_url_is_read_like_a_path(name: str) -> None:
    content = io.BytesIO()
    Image.fromarray(RGB).save(content, "TIFF" if name == "a.tif" else "PNG")
    url = f"memory://test-readers/{name}"
    fsspec.filesystem("memory").pipe(url, content.getvalue())
    try:
        np.testing.assert_array_equal(whole(url), RGB)
    finally:
        fsspec.filesystem("memory").rm("/test-readers", recursive=True)


def test_readers_are_readers(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        reader = open_image(str(save(tmp_path / name, RGB)))
        assert isinstance(reader, Reader)
        assert (reader.width_px, reader.height_px) == (WIDTH, HEIGHT)
        reader.close()
        reader.close()


# --- bad input --------------------------------------------------------------------------------


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


# --- real files -----------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "size", "mpp"),
    [
        ("OS-1-detail.ome.tif", (1101, 1101), 0.2271),
        ("cmu-1-small-region.svs", (2220, 2967), 0.499),
        ("tcga-cr-7395-01a-01-ts1.svs", (4443, 3567), None),
        ("kidney-48-5-ihc.tif", (1493, 901), None),
    ],
)
def test_real_slides(real_data: Path, name: str, size: tuple[int, int], mpp: float | None) -> None:
    with closing(open_image(str(real_data / "wsi" / name))) as reader:
        assert (reader.width_px, reader.height_px) == size
        assert reader.mpp == (None if mpp is None else pytest.approx(mpp, rel=1e-3))
        small = reader.thumbnail(256)
        assert max(small.shape[:2]) <= 256
        assert small.mean() > 60
        with tifffile.TiffFile(real_data / "wsi" / name) as file:
            expected = file.pages.first.asarray()[500:700, 600:800]
        np.testing.assert_array_equal(reader.region(600, 500, 200, 200), expected)


@pytest.mark.real
def test_real_files_that_are_no_images_we_read(real_data: Path) -> None:
    assert "no TIFF file" in refused(real_data / "wsi" / "broken.svs")


@pytest.mark.real
@pytest.mark.parametrize(
    ("pattern", "shape"),
    [
        ("lymphoma/*/1.png", (312, 417, 3)),
        ("breakhis-sample/*.png", (460, 700, 3)),
        ("nct-crc-sample/*.tif", (224, 224, 3)),
    ],
)
def test_real_images(real_data: Path, pattern: str, shape: tuple[int, int, int]) -> None:
    paths = sorted(real_data.glob(pattern))
    assert paths
    for path in paths:
        pixels = whole(path)
        assert pixels.shape == shape
        np.testing.assert_array_equal(pixels, np.asarray(Image.open(path).convert("RGB")))
