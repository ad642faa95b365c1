"""JPEG: the pixels that Pillow gives, and damage in the middle of a file is an error."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest
import tifffile
from PIL import Image
from scipy.ndimage import gaussian_filter

from histostore.images import pages
from tests.histostore.pictures import refused, whole

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PICTURE = gaussian_filter(np.random.default_rng(0).normal(size=(151, 203, 3)), (2, 2, 0))
PICTURE = np.clip(128 + 400 * PICTURE, 0, 255).astype(np.uint8)
KINDS = {
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "4:2:0": ("RGB", {"subsampling": 2}),
    "progressive": ("RGB", {"progressive": True}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "stored as RGB": ("RGB", {"keep_rgb": True}),
    "grey": ("L", {}),
    "grey, progressive": ("L", {"progressive": True}),
    "CMYK": ("CMYK", {}),
}


def encoded(kind: str) -> bytes:
    mode, options = KINDS[kind]
    content = io.BytesIO()
    Image.fromarray(PICTURE).convert(mode).save(content, "JPEG", quality=90, **options)
    return content.getvalue()


def pillows(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_those_of_pillow(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(kind))
    np.testing.assert_array_equal(whole(path), pillows(path))


def _header_2_01(data: bytes) -> bytes:
    at = data.index(b"JFIF\0") + 5
    return data[:at] + b"\2" + data[at + 1 :]


def _grey_of_four_blocks(data: bytes) -> bytes:
    at = data.index(b"\xff\xc0") + 11
    return data[:at] + b"\x22" + data[at + 1 :]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("4:2:0", lambda data: data + b"what some cameras append" * 99),
        ("4:2:0", lambda data: data[:-2] + bytes(2) + data[-2:]),
        ("4:2:0", lambda data: data[:-2] + b"\xff" * 9 + data[-2:]),
        ("4:4:4", _header_2_01),
        ("grey", _grey_of_four_blocks),
    ],
)
def test_oddities_that_change_no_pixel_are_read(tmp_path: Path, kind: str, change) -> None:
    path, odd = tmp_path / "a.jpg", tmp_path / "odd.jpg"
    path.write_bytes(encoded(kind))
    odd.write_bytes(change(encoded(kind)))
    np.testing.assert_array_equal(whole(odd), pillows(path))


@pytest.mark.parametrize("kind", ["4:4:4", "4:2:0", "restarts", "grey"])
def test_a_lost_sector_in_the_middle_is_an_error(tmp_path: Path, kind: str) -> None:
    data, path = encoded(kind), tmp_path / "a.jpg"
    for at in range(len(data) // 3, len(data) - 600, 700):
        path.write_bytes(data[:at] + bytes(512) + data[at + 512 :])
        assert "is damaged (" in refused(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lost", [2, 100, 2000])
def test_a_file_that_ends_early_is_an_error(tmp_path: Path, kind: str, lost: int) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(kind)[:-lost])
    assert "truncated" in refused(path)


# Tiles and strips of TIFF -------------------------------------------------------------------


def tiffs(folder: Path) -> Iterator[Path]:
    """Write JPEG in TIFF as different writers do."""
    kinds = [("rgb", None), *(("ycbcr", pair) for pair in ((1, 1), (2, 1), (2, 2), (4, 1)))]
    for photometric, sampling in [*kinds, ("minisblack", None)]:
        pixels = PICTURE[..., 0] if photometric == "minisblack" else PICTURE
        for name, shape in {"tiled": {"tile": (64, 64)}, "strips": {"rowsperstrip": 37}}.items():
            path = folder / f"{photometric}-{sampling}-{name}.tif"
            tifffile.imwrite(
                path,
                pixels,
                photometric=photometric,
                compression="jpeg",
                subsampling=sampling,
                **shape,
            )
            yield path
    for mode in ("RGB", "L", "CMYK"):  # with tables that all strips share
        Image.fromarray(PICTURE).convert(mode).save(folder / f"{mode}.tif", compression="jpeg")
        yield folder / f"{mode}.tif"


def test_tiles_are_those_of_tifffile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = list(tiffs(tmp_path))
    ours = [whole(path) for path in paths]
    monkeypatch.setattr(pages, "whole_stream", lambda *_, **__: None)
    for path, pixels in zip(paths, ours, strict=True):
        np.testing.assert_array_equal(pixels, whole(path), err_msg=path.name)


def test_a_lost_sector_of_a_tile_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    tifffile.imwrite(path, PICTURE, photometric="ycbcr", compression="jpeg", tile=(128, 128))
    with tifffile.TiffFile(path) as file:
        page = file.pages.first
        count, offset = max(zip(page.databytecounts, page.dataoffsets, strict=True))
    data = path.read_bytes()
    for at in range(offset + count // 3, offset + count - 600, 1000):
        path.write_bytes(data[:at] + bytes(512) + data[at + 512 :])
        assert "is damaged (" in refused(path)


def test_a_real_slide_has_the_tiles_of_tifffile(real_data: Path) -> None:
    for name in ("cmu-1-small-region.svs", "OS-1-detail.ome.tif"):
        with tifffile.TiffFile(real_data / "wsi" / name) as file:
            np.testing.assert_array_equal(
                whole(real_data / "wsi" / name), file.pages.first.asarray()
            )
