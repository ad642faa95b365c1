"""Opening images: any file becomes an upright RGB picture that is read by regions.

===========  =====================================  ====================================
content      reader                                 memory
===========  =====================================  ====================================
PNG, JPEG,   :mod:`histostore.images.raster`        the whole picture, at most
BMP, GIF,    (Pillow)                               :data:`MAX_PIXELS`
WebP
TIFF family  :mod:`histostore.images.tiff`          the region, the tiles under it and a
             (tifffile, imagecodecs)                bounded cache
slides of    :mod:`histostore.images.openslide`     the region, and a cache that all
scanners,    (OpenSlide, the ``slides`` extra)      slides share
DICOM
===========  =====================================  ====================================

The slides of OpenSlide are DICOM, MIRAX, Hamamatsu (NDPI, VMS, VMU), Leica SCN, Ventana BIF,
Philips TIFF and Sakura. It is always OpenSlide that reads these, and never what tifffile reads
(Aperio's SVS, OME-TIFF, other TIFF): decoders differ in the last bit, and so would vectors.

The content of a file decides who reads it (:mod:`histostore.images.formats`); there is no
second try with another reader.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Protocol, runtime_checkable

from histostore.errors import ImageError, OptionError
from histostore.files import driver_errors, local_path, read_bytes
from histostore.images.formats import (
    HEAD_BYTES,
    MAX_PIXELS,
    Format,
    decoding,
    recognise,
    suffix_format,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["MAX_PIXELS", "Reader", "open_image"]


@runtime_checkable
class Reader(Protocol):
    """An open image: upright RGB pixels, read by regions of level 0.

    Several threads may read from it at once. Every method may raise
    :class:`~histostore.errors.ImageError`: pixels may turn out damaged late.
    """

    @property
    def width_px(self) -> int:
        """Columns of level 0."""

    @property
    def height_px(self) -> int:
        """Rows of level 0."""

    @property
    def mpp(self) -> float | None:
        """Micrometres per pixel of level 0, None where unknown."""

    def region(self, x: int, y: int, width: int, height: int) -> NDArray[np.uint8]:
        """Give a box of level 0 that lies inside the image: ``(height, width, 3)``, uint8.

        It may be a view of the reader's own pixels: never write to it.
        """

    def thumbnail(self, max_px: int) -> NDArray[np.uint8]:
        """Give the whole image, ``(y, x, 3)``, uint8, no side longer than ``max_px``.

        Never larger than level 0.
        """

    def close(self) -> None:
        """Let go of the file; a second time does nothing."""


def open_image(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    mpp: float | None = None,
) -> Reader:
    """Open an image.

    Parameters
    ----------
    url
        Local path or any URL that fsspec knows.
    storage_options
        Handed to the fsspec driver.
    mpp
        Micrometres per pixel of level 0, as the cohort says; it wins over the file's own.

    Returns
    -------
    reader
        To be closed after use (:func:`contextlib.closing`).

    Raises
    ------
    ImageError
        If the file is missing, empty, damaged, no image, not of the format its name says, of
        a format that is not read, or too large for its format; one line with its name.
    OptionError
        If ``mpp`` is not a positive number.
    MissingExtra
        If the storage's driver, or the library that reads this format, is not installed.
    """
    if mpp is not None and not (math.isfinite(mpp) and mpp > 0):
        raise OptionError(f"{mpp=}: give a number of µm per pixel above 0")
    promised = suffix_format(url)
    with decoding(url), ExitStack() as stack:
        if promised is not None and promised.reader == "raster":
            # One request where the storage is a bucket.
            data = read_bytes(url, storage_options)
            return _open_raster(data, recognise(data[:HEAD_BYTES], url), mpp)
        with driver_errors(url, storage_options):
            file = stack.enter_context(_open_file(url, storage_options))
            head = file.read(HEAD_BYTES)
            file.seek(0)
        form = recognise(head, url)
        if form.reader == "raster":
            with driver_errors(url, storage_options):
                data = file.read()
            return _open_raster(data, form, mpp)
        from histostore.images.tiff import TiffReader, slide_maker

        if form.reader == "openslide" or slide_maker(file, url) is not None:
            return _open_slide(url, storage_options, form, mpp)
        reader = TiffReader(file, url, mpp=mpp)
        stack.pop_all()
        return reader


def _open_file(url: str, storage_options: Mapping[str, Any] | None) -> IO[bytes]:
    path = local_path(url)
    if path is not None:
        return open(path, "rb")  # noqa: PTH123 - a str path, and the caller closes it
    from histostore.images.remote import open_ranges

    return open_ranges(url, storage_options)


def _open_slide(
    url: str, storage_options: Mapping[str, Any] | None, form: Format, mpp: float | None
) -> Reader:
    from histostore.images.openslide import OpenSlideReader
    from histostore.images.remote import copy_here

    path = local_path(url)
    if path is not None:
        return OpenSlideReader(path, url, mpp=mpp)
    if form.name == "Hamamatsu VMS":
        raise ImageError("is the index of several files; copy all of them to this machine")
    path, remove = copy_here(url, storage_options, folder=form.name == "MIRAX")
    with ExitStack() as stack:
        stack.callback(remove)
        reader = OpenSlideReader(path, url, mpp=mpp, on_close=remove)
        stack.pop_all()
    return reader


def _open_raster(data: bytes, form: Format, mpp: float | None) -> Reader:
    from histostore.images.raster import open_raster

    return open_raster(data, form, mpp=mpp)
