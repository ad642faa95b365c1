"""TIFF and its many kinds become upright RGB pixels, tile by tile."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histostore.errors import ImageError
from histostore.images import tiff
from histostore.images.readers import open_image
from histostore.images.tiff import TiffReader
from tests.histostore.pictures import (
    GREY,
    HEIGHT,
    RGB,
    SPREAD_GREY,
    WIDTH,
    noise,
    whole,
    write_tiff,
)

if TYPE_CHECKING:
    from pathlib import Path

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
