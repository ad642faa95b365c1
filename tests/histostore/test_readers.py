"""Files become upright RGB pixels, at the scale that they tell of."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import closing
from typing import TYPE_CHECKING

import fsspec
import numpy as np
import pytest
import tifffile
from PIL import Image

from histostore.errors import OptionError
from histostore.images.readers import Reader, open_image
from histostore.images.scale import mpp_from_description, mpp_from_resolution
from tests.histostore.pictures import (
    ALPHA,
    GREY,
    HEIGHT,
    OVER_WHITE,
    RGB,
    SPREAD_GREY,
    WIDTH,
    noise,
    png,
    png_file,
    refused,
    save,
    whole,
)

if TYPE_CHECKING:
    from pathlib import Path

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


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_that_stands_for_transparent_is_white(tmp_path: Path, bits: int) -> None:
    samples = GREY.astype(np.uint16) * 257 >> (16 - bits)
    key = int(samples[0, 0])
    spelt = np.unpackbits(samples.astype(">u2").view(np.uint8).reshape(*samples.shape, 2), axis=2)
    lines = np.packbits(spelt[..., 16 - bits :].reshape(HEIGHT, -1), axis=1)
    path = tmp_path / "a.png"
    path.write_bytes(
        png_file(
            (b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)),
            (b"tRNS", struct.pack(">H", key)),
            (b"IDAT", zlib.compress(np.pad(lines, ((0, 0), (1, 0))).tobytes())),
            (b"IEND", b""),
        )
    )
    expected = np.where(samples == key, 255, samples.astype(np.uint32) * 255 // (2**bits - 1))
    np.testing.assert_array_equal(whole(path)[..., 1], expected)


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
