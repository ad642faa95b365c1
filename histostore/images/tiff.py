"""TIFF and its family (SVS, OME-TIFF, BigTIFF …): read tile by tile, through tifffile.

Only the tiles or strips under a region are decoded; decoded ones are kept up to
:data:`CACHE_BYTES`, since neighbouring patches share them. So memory is bounded by the
region, not by the slide. A strip counts as a tile: an image in one strip is decoded whole.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from tifffile import TiffFile

from histostore.errors import ImageError
from histostore.images.formats import decoding
from histostore.images.memory import check_region, shrink, shrink_factor
from histostore.images.orientation import Orientation
from histostore.images.pages import Segments, samples_to_rgb
from histostore.images.scale import mpp_from_description, mpp_from_resolution

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

__all__ = ["CACHE_BYTES", "TiffReader", "slide_maker"]

CACHE_BYTES = 64 * 2**20
"""Decoded tiles that a reader keeps, of all its levels together, in bytes of RGB."""

_MAKERS = {
    "is_ndpi": "Hamamatsu NDPI",
    "is_scn": "Leica SCN",
    "is_bif": "Ventana BIF",
    "is_philips": "Philips TIFF",
}
_BLOCK_PX = 2048
_MAX_PAGES = 64
_here = threading.local()


class TiffReader:
    """Reader of one TIFF file; several threads decode at once.

    Level 0 is the first page; smaller pages of the same proportions are the other levels.

    Parameters
    ----------
    file
        Open for reading and seeking; closed by :meth:`close`.
    url
        Its name, for messages.
    mpp
        Micrometres per pixel; None reads the file's own.

    Raises
    ------
    ImageError
        If the file is damaged, or of a kind that is not read.
    """

    def __init__(self, file: IO[bytes], url: str, *, mpp: float | None = None) -> None:
        self._file = file
        self._url = url
        self._lock = threading.Lock()
        with _reading(url):
            # tifffile takes the place where a file stands for its beginning.
            file.seek(0)
            self._tiff = TiffFile(file, _multifile=False)
            page: Any = self._tiff.pages.first
            _refuse_several(self._tiff, page)
            self._kept = _KeptTiles(self._lock)
            self._level = _Level(page, self._kept)
            self._pyramid: list[_Level] | None = None
            self._mpp = _mpp(page) if mpp is None else mpp
            self._orientation = Orientation(int(page.tags.valueof(274, 1)))

    @property
    def width_px(self) -> int:
        """Columns of level 0, upright."""
        size = self._level.height if self._orientation.exchanges else self._level.width
        return int(size)

    @property
    def height_px(self) -> int:
        """Rows of level 0, upright."""
        size = self._level.width if self._orientation.exchanges else self._level.height
        return int(size)

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of level 0, None where unknown."""
        return self._mpp

    @property
    def level_sizes(self) -> tuple[tuple[int, int], ...]:
        """Columns and rows of every level, upright, level 0 first.

        Raises
        ------
        ImageError
            If a level is damaged, or of a kind that is not read.
        """
        with _reading(self._url):
            return tuple(self._upright(level) for level in self._levels())

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Decode a box of level 0, ``(height, width, 3)``, uint8.

        Raises
        ------
        ImageError
            If it is not inside the image, or the tiles under it are damaged.
        """
        with _reading(self._url):
            return self._read(self._level, (x, y, width, height))

    def level_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Decode a box of a level, in that level's own pixels, ``(height, width, 3)``, uint8.

        Raises
        ------
        ImageError
            If it is not inside the level, or the tiles under it are damaged.
        """
        with _reading(self._url):
            return self._read(self._levels()[level], (x, y, width, height))

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Give the whole image, box-averaged until no side is longer than ``max_px``.

        Made from the smallest level that is not smaller than that.

        Raises
        ------
        ImageError
            If a tile of that level is damaged.
        """
        with _reading(self._url):
            levels = self._levels()
            fitting = [level for level in levels if max(level.width, level.height) >= max_px]
            level = min(fitting, key=lambda level: level.width, default=self._level)
            pixels = self._orientation.apply(level.shrunk(max_px))
            return np.ascontiguousarray(pixels, dtype=np.uint8)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        self._tiff.close()
        self._file.close()

    def _read(self, level: _Level, box: tuple[int, int, int, int]) -> NDArray[np.uint8]:
        upright = self._upright(level)
        check_region(*box, within=upright)
        stored = self._orientation.stored_box(*box, upright=upright)
        pixels = self._orientation.apply(level.read(*stored))
        return np.ascontiguousarray(pixels, dtype=np.uint8)

    def _upright(self, level: _Level) -> tuple[int, int]:
        size = (level.width, level.height)
        return size[::-1] if self._orientation.exchanges else size

    def _levels(self) -> list[_Level]:
        """Give all levels, the largest first; the smaller ones are looked for once, when asked for."""
        if self._pyramid is None:
            with self._lock:
                smaller = [_Level(page, self._kept) for page in _smaller_pages(self._tiff)]
            smaller.sort(key=lambda level: level.width, reverse=True)
            self._pyramid = [self._level, *smaller]
        return self._pyramid


class _KeptTiles:
    """The tiles that were decoded last, of all levels of one file.

    The lock guards the file as well; decoding goes on outside it.
    """

    def __init__(self, lock: threading.Lock) -> None:
        self.lock = lock
        self._rgb: OrderedDict[tuple[int, int], NDArray[np.uint8]] = OrderedDict()
        self._held_bytes = 0

    def get(self, key: tuple[int, int]) -> NDArray[np.uint8] | None:
        with self.lock:
            tile = self._rgb.get(key)
            if tile is not None:
                self._rgb.move_to_end(key)
            return tile

    def keep(self, key: tuple[int, int], tile: NDArray[np.uint8]) -> None:
        with self.lock:
            # Another thread may have decoded it meanwhile: then its copy goes.
            replaced = self._rgb.pop(key, None)
            self._rgb[key] = tile
            self._held_bytes += tile.nbytes - (0 if replaced is None else replaced.nbytes)
            while self._held_bytes > CACHE_BYTES and len(self._rgb) > 1:
                _, oldest = self._rgb.popitem(last=False)
                self._held_bytes -= oldest.nbytes


class _Level:
    """One page as RGB."""

    def __init__(self, page: Any, kept: _KeptTiles) -> None:
        self._segments = Segments(page, kept.lock)
        self._kept = kept
        self.width = self._segments.width
        self.height = self._segments.height

    def read(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Decode a box of stored pixels, ``(height, width, 3)``; it must lie inside."""
        out = np.empty((height, width, 3), np.uint8)
        step_x, step_y = self._segments.edge_x, self._segments.edge_y
        for row in range(y // step_y, (y + height - 1) // step_y + 1):
            for column in range(x // step_x, (x + width - 1) // step_x + 1):
                left, top = column * step_x, row * step_y
                right, bottom = min(left + step_x, x + width), min(top + step_y, y + height)
                from_x, from_y = max(left, x), max(top, y)
                tile = self._tile(row, column)[
                    from_y - top : bottom - top, from_x - left : right - left
                ]
                out[from_y - y : bottom - y, from_x - x : right - x] = tile
        return out

    def shrunk(self, max_px: int) -> NDArray[np.uint8]:
        """Box-average the whole page, a block at a time."""
        factor = shrink_factor(self.width, self.height, max_px)
        if factor == 1:
            return self.read(0, 0, self.width, self.height)
        # Blocks are whole boxes; strips are as wide as the page, and so are their blocks.
        block_x = max(1, _BLOCK_PX // factor) * factor
        block_y = block_x
        if self._segments.edge_x >= self.width:
            block_x = -(-self.width // factor) * factor
            block_y = max(1, 256 // factor) * factor
        out = np.empty((-(-self.height // factor), -(-self.width // factor), 3), np.uint8)
        for y in range(0, self.height, block_y):
            for x in range(0, self.width, block_x):
                width, height = min(block_x, self.width - x), min(block_y, self.height - y)
                small = shrink(self.read(x, y, width, height), factor)
                top, left = y // factor, x // factor
                out[top : top + small.shape[0], left : left + small.shape[1]] = small
        return out

    def _tile(self, row: int, column: int) -> NDArray[np.uint8]:
        # A page is told from others by where it lies in the file.
        key = (int(self._segments.page.offset), row * self._segments.columns + column)
        tile = self._kept.get(key)
        if tile is None:
            tile = samples_to_rgb(self._segments.samples(row, column), self._segments.page)
            self._kept.keep(key, tile)
        return tile


def slide_maker(file: IO[bytes], url: str) -> str | None:
    """Name the scanner format of a TIFF that tifffile alone does not put together.

    These have tiles that overlap or are left out, several areas, or one giant strip.

    Returns
    -------
    maker
        ``Hamamatsu NDPI``, ``Leica SCN``, ``Ventana BIF``, ``Philips TIFF``, or None of any
        other TIFF, Aperio's SVS and OME-TIFF among them.

    Raises
    ------
    ImageError
        If the file is damaged.
    """
    with _reading(url):
        file.seek(0)
        page: Any = TiffFile(file, _multifile=False).pages.first
        file.seek(0)
        return next((name for flag, name in _MAKERS.items() if getattr(page, flag)), None)


def _refuse_several(tiff: TiffFile, first: Any) -> None:
    """Refuse several pages of one size, and a thumbnail before the picture.

    Which of them is meant is not ours to guess. Aperio's first page is the slide.
    """
    for index in range(1, 2 if first.is_svs else _MAX_PAGES):
        page = _page(tiff.pages, index)
        if page is None:
            return
        across, down = page.imagewidth - first.imagewidth, page.imagelength - first.imagelength
        if index == 1 and not page.subfiletype and across == down == 0:
            raise ImageError(
                "has several pages of one size (a stack, or channels apart); give one RGB picture"
            )
        if across > 0 and down > 0:
            raise ImageError(
                f"begins with {first.imagewidth}×{first.imagelength} px (a thumbnail or label), and"
                f" page {index + 1} has {page.imagewidth}×{page.imagelength}; give one RGB picture"
            )


def _smaller_pages(tiff: TiffFile) -> Iterator[Any]:
    """Yield the pages that show the same scene with fewer pixels.

    Sub-IFDs are levels by definition; other pages are if they have the proportions of the
    first and are tiled or say that they are reduced (an SVS label says so, too, but is not
    tiled).
    """
    base: Any = tiff.pages.first
    sub_pages = base.pages if base.subifds else None
    pages = tiff.pages if sub_pages is None else sub_pages
    for index in range(0 if sub_pages is not None else 1, _MAX_PAGES):
        page = _page(pages, index)
        if page is None:
            return
        smaller = 0 < page.imagewidth < base.imagewidth and 0 < page.imagelength < base.imagelength
        level = page.is_tiled or (page.subfiletype == 1 and not base.is_svs)
        if smaller and (sub_pages is not None or level) and _same_proportions(base, page):
            yield page


def _same_proportions(a: Any, b: Any) -> bool:
    """Tell whether b is a, reduced: to within one pixel of b's sides."""
    difference = abs(a.imagewidth * b.imagelength - b.imagewidth * a.imagelength)
    return bool(difference <= a.imagewidth + a.imagelength)


def _page(pages: Any, index: int) -> Any | None:
    try:
        return pages[index]
    except IndexError:
        return None


def _mpp(page: Any) -> float | None:
    described = mpp_from_description(page.description or "")
    if described is not None:
        return described
    resolution = page.tags.valueof(282)
    if not isinstance(resolution, tuple) or len(resolution) != 2:
        return None
    numerator, denominator = map(int, resolution)
    return mpp_from_resolution(numerator, denominator, int(page.tags.valueof(296, 2)))


@contextmanager
def _reading(url: str) -> Iterator[None]:
    """Turn errors into ours, and keep what tifffile logs meanwhile from the user.

    What it logs about a damaged file either comes as an error as well or does not matter to
    the pixels; records of other threads and of other users of tifffile pass.
    """
    logging.getLogger("tifffile").addFilter(_is_not_ours)
    before, _here.reading = getattr(_here, "reading", False), True
    try:
        with decoding(url):
            yield
    finally:
        _here.reading = before


def _is_not_ours(_record: logging.LogRecord) -> bool:
    return not getattr(_here, "reading", False)
