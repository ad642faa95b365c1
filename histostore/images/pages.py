"""One page of a TIFF: where its tiles lie, and what their samples mean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ImageError
from histostore.images.convert import (
    cmyk_to_rgb,
    composite,
    scale_to_bytes,
    spread,
    ycbcr_to_rgb,
)
from histostore.images.jpeg import decode_jpeg, whole_stream
from histostore.images.raster import check_pixels

if TYPE_CHECKING:
    import threading

    from numpy.typing import NDArray

__all__ = ["Segments", "samples_to_rgb"]

_MAX_SIDE = 2**31 - 1

# Photometric interpretations of TIFF 6.0 that are colours: tag -> samples of colour.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _PALETTE: 1, _CMYK: 4, _YCBCR: 3}

# Compressions whose decoder gives RGB where the page says YCbCr.
_JPEG = (6, 7)
# Aperio's JPEG 2000 that is YCbCr whatever the page says (OpenSlide's formats page).
_APERIO_YCBCR = 33003
_ASSOCIATED, _UNASSOCIATED = 1, 2


class Segments:
    """The tiles or strips of a page.

    Parameters
    ----------
    page
        A ``tifffile.TiffPage``.
    file_lock
        Held while the file, which pages share, is read.

    Raises
    ------
    ImageError
        If its size, samples or tables make no sense or are not read.
    """

    def __init__(self, page: Any, file_lock: threading.Lock) -> None:
        self.page = page
        self.width, self.height = int(page.imagewidth), int(page.imagelength)
        if not (0 < self.width <= _MAX_SIDE and 0 < self.height <= _MAX_SIDE):
            raise ImageError(f"has an impossible size of {self.width}×{self.height} px")
        if page.is_tiled:
            self.edge_x, self.edge_y = int(page.tilewidth), int(page.tilelength)
        else:
            # One strip for all is written as 2**32 − 1 rows.
            self.edge_x, self.edge_y = self.width, min(int(page.rowsperstrip), self.height)
        what = "a tile" if page.is_tiled else "a strip"
        check_pixels(self.edge_x, self.edge_y, what=what)
        self.columns = -(-self.width // self.edge_x)
        self.rows = -(-self.height // self.edge_y)
        self._planes = int(page.samplesperpixel) if int(page.planarconfig) == 2 else 1
        _check_samples(page)
        needed = self.columns * self.rows * self._planes
        # Read here once: tifffile loads some tags late, and not for several threads.
        self._offsets, self._byte_counts = page.dataoffsets, page.databytecounts
        self._tables = {"jpegtables": page.jpegtables, "jpegheader": page.jpegheader}
        self._decoder = page.decode
        # Such tiles are files of their own, of which damage can be heard.
        self._is_plain_jpeg = (
            int(page.compression) == _JPEG[1]
            and (int(page.photometric), int(page.samplesperpixel), int(page.bitspersample))
            in {(_BLACK_IS_ZERO, 1, 8), (_RGB, 3, 8), (_YCBCR, 3, 8)}
            and self._planes == 1
            and page.jpegheader is None
        )
        self._file_lock = file_lock
        if min(len(self._offsets), len(self._byte_counts)) < needed:
            raise ImageError(f"is damaged: its table of {what[2:]}s is shorter than {needed}")

    def samples(self, row: int, column: int) -> NDArray[Any]:
        """Decode one tile or strip.

        Returns
        -------
        samples
            ``(y, x, sample)``, at least as large as the part of it inside the image. One
            that the file leaves out is empty slide: white.

        Raises
        ------
        ImageError
            If the file ends within it.
        """
        index = row * self.columns + column
        stride = self.columns * self.rows
        planes = [self._decode(index + plane * stride) for plane in range(self._planes)]
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=-1)
        inside = (
            min(self.edge_y, self.height - row * self.edge_y),
            min(self.edge_x, self.width - column * self.edge_x),
        )
        if pixels.shape[0] < inside[0] or pixels.shape[1] < inside[1]:
            raise ImageError(f"is damaged: tile ({row}, {column}) is only {pixels.shape}")
        return pixels

    def _decode(self, index: int) -> NDArray[Any]:
        encoded = self._encoded(index)
        if encoded is not None and self._is_plain_jpeg:
            n_colours = int(self.page.samplesperpixel)
            file = whole_stream(
                encoded,
                self._tables["jpegtables"],
                rgb=int(self.page.photometric) == _RGB,
                n_colours=n_colours,
                within=(self.edge_y, self.edge_x),
            )
            if file is not None:
                return decode_jpeg(file, grey=n_colours == 1)[..., :n_colours]
        decoded, _, shape = self._decoder(encoded, index, **self._tables)
        if decoded is None:
            return _white(shape[1:], self.page)
        pixels: NDArray[Any] = decoded[0]
        return pixels

    def _encoded(self, index: int) -> bytes | None:
        """Read one tile or strip as it is stored; None where the file leaves it out."""
        offset, count = int(self._offsets[index]), int(self._byte_counts[index])
        if count == 0:
            return None
        handle = self.page.parent.filehandle
        if offset + count > handle.size:
            raise ImageError("is truncated: ends within its pixels; copy it again")
        with self._file_lock:
            handle.seek(offset)
            data: bytes = handle.read(count)
        return data


def samples_to_rgb(samples: NDArray[Any], page: Any) -> NDArray[np.uint8]:
    """Turn samples of a page into colours.

    Parameters
    ----------
    samples
        ``(y, x, sample)``, unsigned or boolean.
    page
        The ``tifffile.TiffPage`` they come from.

    Returns
    -------
    rgb
        ``(y, x, 3)``, uint8.
    """
    photometric = int(page.photometric)
    n_colours = _COLOURS[photometric]
    if photometric == _PALETTE:
        looked_up: NDArray[np.uint8] = _palette(page)[samples[..., 0]]
        return looked_up
    pixels = scale_to_bytes(samples, int(page.bitspersample))
    colours = pixels[..., :n_colours]
    if n_colours == 1:
        grey = colours[..., 0]
        rgb = spread(np.invert(grey) if photometric == _WHITE_IS_ZERO else grey)
    elif photometric == _CMYK:
        rgb = cmyk_to_rgb(colours)
    elif _is_ycbcr(page):
        rgb = ycbcr_to_rgb(colours)
    else:
        rgb = np.ascontiguousarray(colours)
    extras = tuple(int(extra) for extra in page.extrasamples)
    if extras and extras[0] in (_ASSOCIATED, _UNASSOCIATED) and pixels.shape[-1] > n_colours:
        alpha = pixels[..., n_colours]
        return composite(rgb, alpha, premultiplied=extras[0] == _ASSOCIATED)
    return rgb


def _is_ycbcr(page: Any) -> bool:
    compression = int(page.compression)
    if compression == _APERIO_YCBCR:
        return True
    return int(page.photometric) == _YCBCR and compression not in _JPEG


def _check_samples(page: Any) -> None:
    """Refuse pages whose samples are no colours."""
    photometric = None if page.photometric is None else int(page.photometric)
    if photometric not in _COLOURS:
        name = getattr(page.photometric, "name", photometric)
        raise ImageError(f"has colours of kind {name}, which are not read; convert it to RGB")
    if page.dtype is None or isinstance(page.bitspersample, tuple):
        raise ImageError(f"has samples of {page.bitspersample} bits; convert it to 8-bit RGB")
    if page.imagedepth != 1 or page.tiledepth > 1:
        raise ImageError("has a third dimension; give one plane per file")
    # Raises where the type is none of colours; the samples themselves come later.
    scale_to_bytes(np.zeros(0, page.dtype), int(page.bitspersample))
    n_samples, n_colours = int(page.samplesperpixel), _COLOURS[photometric]
    extras = tuple(int(extra) for extra in page.extrasamples)
    # Beside colours stands at most a transparency (or, after RGB, a filler): two or more
    # samples of unsaid meaning are channels of their own.
    channels = len(extras) > 1 or (n_colours == 1 and extras == (0,))
    if channels or n_samples - len(extras) != n_colours:
        raise ImageError(
            f"has {n_samples} samples per pixel where {n_colours} are expected; convert it to RGB"
        )


def _palette(page: Any) -> NDArray[np.uint8]:
    """Give the colour table ``(index, 3)`` of a palette page."""
    table = np.asarray(page.colormap)
    if table.ndim != 2 or table.shape[0] != 3 or table.shape[1] < 2 ** int(page.bitspersample):
        raise ImageError("is damaged: its colour table is too short")
    # The table has 16 bits; old writers fill the lower 8 only (libtiff looks for it as well).
    bits = 16 if table.max() > 255 else 8
    return scale_to_bytes(table.astype(np.uint16), bits).T


def _white(shape: tuple[int, ...], page: Any) -> NDArray[Any]:
    """Make samples ``(y, x, sample)`` of the kind of ``page`` that are white."""
    photometric, n_colours = int(page.photometric), _COLOURS[int(page.photometric)]
    if photometric == _PALETTE or _is_ycbcr(page):
        raise ImageError("leaves out tiles, and its colours have no obvious white; convert it")
    top = 2 ** int(page.bitspersample) - 1
    samples = np.full(shape, top, page.dtype)
    if photometric in (_WHITE_IS_ZERO, _CMYK):
        samples[..., :n_colours] = 0
    return samples
