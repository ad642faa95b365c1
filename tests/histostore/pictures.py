"""Pictures that tests of readers write, and what a reader gives of them."""

from __future__ import annotations

import struct
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from histostore.errors import ImageError
from histostore.images.readers import open_image

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


def write_tiff(path: Path, pixels: np.ndarray, **kind: object) -> Path:
    planar = kind.get("planarconfig") == "separate"
    data = np.moveaxis(pixels, -1, 0) if planar else pixels
    tifffile.imwrite(path, data, photometric="rgb", **kind)
    return path
