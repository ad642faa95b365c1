"""Slides of scanners, and DICOM: read through OpenSlide.

OpenSlide decodes the tiles under a region and keeps some; all readers of a process share
:data:`CACHE_BYTES` for that, so memory does not grow with slides. Its handles may be read by
several threads at once (https://openslide.org/api/openslide_8h.html); only closing must wait.
"""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import ImageError, MissingExtra
from histostore.images.convert import composite
from histostore.images.formats import decoding
from histostore.images.memory import check_region, shrink, shrink_factor
from histostore.images.scale import plausible_mpp

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

__all__ = ["CACHE_BYTES", "OpenSlideReader"]

CACHE_BYTES = 128 * 2**20
"""Decoded tiles that all readers of this process keep, in bytes of RGBA."""

_BLOCK_PX = 2048


class OpenSlideReader:
    """Reader of one slide; several threads decode at once.

    Parameters
    ----------
    path
        On this machine: OpenSlide opens no other.
    url
        Its name, for messages.
    mpp
        Micrometres per pixel; None reads the file's own.
    on_close
        Called once, when the file is closed.

    Raises
    ------
    ImageError
        If OpenSlide does not know the file, or finds it damaged.
    MissingExtra
        If OpenSlide is not installed.
    """

    def __init__(
        self,
        path: str,
        url: str,
        *,
        mpp: float | None = None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        library = _library()
        self._url = url
        self._on_close = on_close
        self._closing = threading.Lock()
        self._slide: Any = None
        with decoding(url):
            try:
                self._slide = library.OpenSlide(path)
            except library.OpenSlideUnsupportedFormatError:
                raise ImageError(
                    "is of a kind that OpenSlide does not read; convert it to a tiled TIFF"
                ) from None
            self._slide.set_cache(_cache())
            self.level_sizes: tuple[tuple[int, int], ...] = self._slide.level_dimensions
            said = self._slide.properties.get("openslide.mpp-x")
            self._mpp = plausible_mpp(said or "") if mpp is None else mpp

    @property
    def width_px(self) -> int:
        """Columns of level 0."""
        return self.level_sizes[0][0]

    @property
    def height_px(self) -> int:
        """Rows of level 0."""
        return self.level_sizes[0][1]

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of level 0, None where unknown."""
        return self._mpp

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Decode a box of level 0, ``(height, width, 3)``, uint8; what was not scanned is white.

        Raises
        ------
        ImageError
            If it is not inside the image, or the tiles under it are damaged.
        """
        return self.level_region(0, x, y, width, height)

    def level_region(
        self, level: int, x: int, y: int, width: int, height: int
    ) -> NDArray[np.uint8]:
        """Decode a box of a level, in that level's own pixels, ``(height, width, 3)``, uint8.

        Raises
        ------
        ImageError
            If it is not inside the level, or the tiles under it are damaged.
        """
        with decoding(self._url):
            check_region(x, y, width, height, within=self.level_sizes[level])
            # OpenSlide counts places in pixels of level 0 whatever the level.
            by = self._slide.level_downsamples[level]
            image = self._slide.read_region((round(x * by), round(y * by)), level, (width, height))
            rgba = np.asarray(image)
            return composite(rgba[..., :3], rgba[..., 3])

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Give the whole image, box-averaged until no side is longer than ``max_px``.

        Made from the smallest level that is not smaller than that, a block at a time.

        Raises
        ------
        ImageError
            If a tile of that level is damaged.
        """
        sizes = self.level_sizes
        level = max(n for n, size in enumerate(sizes) if n == 0 or max(size) >= max_px)
        width, height = sizes[level]
        factor = shrink_factor(width, height, max_px)
        block = max(1, _BLOCK_PX // factor) * factor
        out = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
        for y in range(0, height, block):
            for x in range(0, width, block):
                size = (min(block, width - x), min(block, height - y))
                small = shrink(self.level_region(level, x, y, *size), factor)
                top, left = y // factor, x // factor
                out[top : top + small.shape[0], left : left + small.shape[1]] = small
        return out

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        with self._closing:
            slide, self._slide = self._slide, None
        if slide is not None:
            slide.close()
            self._on_close()


@lru_cache(maxsize=1)
def _cache() -> Any:
    return _library().OpenSlideCache(CACHE_BYTES)


def _library() -> ModuleType:
    try:
        import openslide
    # Where its C library is missing, importing it raises whatever the loader did.
    except (ImportError, OSError) as error:
        raise MissingExtra.named("openslide", extra="slides") from error
    module: ModuleType = openslide
    return module
