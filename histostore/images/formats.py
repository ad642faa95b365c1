"""Which format a file is of: its first bytes decide, and its name must not say otherwise.

A format without a reader is here to be refused by name. A new reader is a row of
:data:`FORMATS` and a branch of :func:`~histostore.images.readers.open_image`.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Literal

from histostore.errors import HistostoreError, ImageError, StorageError
from histostore.files import public_url

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "FORMATS",
    "HEAD_BYTES",
    "MAX_PIXELS",
    "Format",
    "decoding",
    "recognise",
    "suffix_format",
]

MAX_PIXELS = 200_000_000
"""Most pixels that are decoded in one piece (600 MB of RGB): a whole PNG, JPEG, BMP, GIF or
WebP, or one tile or strip of a TIFF. The header is asked before anything is decoded. A tiled
TIFF as a whole has no such limit."""

HEAD_BYTES = 512
"""So many first bytes tell every format."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """One family of files."""

    name: str
    """As messages call it."""

    signatures: tuple[tuple[int, bytes], ...]
    """``(offset, bytes)``; any of them tells the format."""

    suffixes: tuple[str, ...] = ()
    """Endings of file names that promise this format, in lower case."""

    reader: Literal["raster", "tiff", "openslide"] | None = None
    """Who reads it; None for formats that are known and not read."""

    named: bool = False
    """Whether the name alone tells the format: its first file is of no fixed content."""


FORMATS = (
    Format(
        name="PNG",
        signatures=((0, b"\x89PNG\r\n\x1a\n"),),
        suffixes=(".png", ".apng"),
        reader="raster",
    ),
    Format(
        name="JPEG",
        signatures=((0, b"\xff\xd8\xff"),),
        suffixes=(".jpg", ".jpeg", ".jpe", ".jfif"),
        reader="raster",
    ),
    Format(
        name="TIFF",
        signatures=((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")),
        suffixes=(
            *(".tif", ".tiff", ".svs", ".btf", ".tf2", ".tf8"),
            *(".ndpi", ".scn", ".bif", ".qptiff"),
        ),
        reader="tiff",
    ),
    Format(name="WebP", signatures=((8, b"WEBPVP8"),), suffixes=(".webp",), reader="raster"),
    Format(
        name="GIF",
        signatures=((0, b"GIF87a"), (0, b"GIF89a")),
        suffixes=(".gif",),
        reader="raster",
    ),
    Format(
        name="DICOM",
        signatures=((128, b"DICM"),),
        suffixes=(".dcm", ".dicom"),
        reader="openslide",
    ),
    # The slide is the folder of the same name; the file itself is a preview, or anything.
    Format(name="MIRAX", signatures=(), suffixes=(".mrxs",), reader="openslide", named=True),
    Format(
        name="Hamamatsu VMS",
        signatures=((0, b"[Virtual Microscope"), (0, b"[Uncompressed Virtual Mic")),
        suffixes=(".vms", ".vmu"),
        reader="openslide",
    ),
    Format(
        name="Sakura",
        signatures=((0, b"SQLite format 3\0"),),
        suffixes=(".svslide",),
        reader="openslide",
    ),
    Format(
        name="JPEG 2000",
        signatures=((0, b"\0\0\0\x0cjP  "), (0, b"\xff\x4f\xff\x51")),
        suffixes=(".jp2", ".j2k", ".jpx"),
    ),
    Format(name="CZI", signatures=((0, b"ZISRAWFILE"),), suffixes=(".czi",)),
    Format(name="HDF5", signatures=((0, b"\x89HDF\r\n\x1a\n"),), suffixes=(".h5", ".hdf5")),
    Format(name="PDF", signatures=((0, b"%PDF-"),), suffixes=(".pdf",)),
    Format(name="ZIP", signatures=((0, b"PK\x03\x04"),), suffixes=(".zip",)),
    # Two letters only, so after all others.
    Format(name="BMP", signatures=((0, b"BM"),), suffixes=(".bmp", ".dib"), reader="raster"),
)


def suffix_format(url: str) -> Format | None:
    """Give the format that the name of a file promises, None if it promises none.

    Examples
    --------
    >>> suffix_format("s3://bucket/a.ome.tif").name
    'TIFF'
    """
    suffix = PurePosixPath(public_url(url)).suffix.lower()
    return next((form for form in FORMATS if suffix in form.suffixes), None)


def recognise(head: bytes, url: str) -> Format:
    """Tell the format of a file that a reader exists for.

    Parameters
    ----------
    head
        The first :data:`HEAD_BYTES` of the file, or all of a shorter one.
    url
        Its name; without a known ending it promises nothing.

    Raises
    ------
    ImageError
        If the file is empty, no image, of a format that is not read, or of another format
        than its name says.

    Examples
    --------
    >>> recognise(b"BM" + bytes(100), "a.bmp").name
    'BMP'
    >>> recognise(b"BM" + bytes(100), "a.png")
    Traceback (most recent call last):
    histostore.errors.ImageError: a.png: is a BMP file with the name of a PNG file; rename it
    """
    name = public_url(url)
    if not head:
        raise ImageError(f"{name}: is empty (0 bytes); copy it again from its source")
    promised = suffix_format(url)
    if promised is not None and promised.named:
        return promised
    found = next((form for form in FORMATS if _matches(form, head)), None)
    if found is None:
        claim = f"no {promised.name} file, whatever its name says" if promised else "no image"
        raise ImageError(f"{name}: is {claim} (begins with {head[:8]!r}); replace or remove it")
    if found.reader is None:
        raise ImageError(
            f"{name}: is a {found.name} file, which is not read; convert it to TIFF or PNG"
        )
    if promised is not None and promised is not found:
        raise ImageError(
            f"{name}: is a {found.name} file with the name of a {promised.name} file; rename it"
        )
    return found


def _matches(form: Format, head: bytes) -> bool:
    return any(head.startswith(magic, offset) for offset, magic in form.signatures)


@contextmanager
def decoding(url: str) -> Iterator[None]:
    """Turn whatever a decoder raises inside the block into an :class:`ImageError`.

    Errors of this project gain the file's name where they lack it.

    Raises
    ------
    ImageError
        With the file's name and the reason, in one line.
    """
    name = public_url(url)
    try:
        yield
    except (ImageError, StorageError) as error:
        message = error.message if name in error.message else f"{name}: {error.message}"
        raise ImageError(message) from error
    except HistostoreError:
        raise
    # Decoders have no common base of errors, and damaged bytes bring out every built-in one.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > 200:
            reason = reason[:200] + "…"
        raise ImageError(
            f"{name}: cannot be decoded ({reason}); it is damaged or of an unusual kind:"
            " copy it again or convert it"
        ) from error
