"""Slides far away, for libraries that open nothing but a path: copied here, removed after use.

What is read by ranges (the TIFF family) is never copied. What OpenSlide reads is: as many
slides lie here at once as a build has open, a dozen at most, in the folder for temporary
files (``TMPDIR``). A copy that does not fit is refused before it begins, and leaves nothing.
"""

from __future__ import annotations

import posixpath
import shutil
import tempfile
import weakref
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from histostore.errors import StorageError
from histostore.files import driver_errors, filesystem, public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["RESERVE_BYTES", "copy_here", "open_ranges"]

RESERVE_BYTES = 64 * 2**20
"""Free space that a copy must leave on the disk."""

BLOCK_BYTES = 2**20
KEPT_BLOCKS = 32
_COPY_BYTES = 8 * 2**20


def open_ranges(url: str, storage_options: Mapping[str, Any] | None = None) -> IO[bytes]:
    """Open a file that is read here and there, in blocks of which the last few are kept.

    Raises
    ------
    StorageError
        If it is missing, or the storage refuses.
    """
    fs, path = filesystem(url, storage_options)
    with driver_errors(url, storage_options):
        file = fs.open(
            path,
            "rb",
            block_size=BLOCK_BYTES,
            cache_type="blockcache",
            cache_options={"maxblocks": KEPT_BLOCKS},
        )
    return cast("IO[bytes]", file)


def copy_here(
    url: str, storage_options: Mapping[str, Any] | None = None, *, folder: bool = False
) -> tuple[str, Callable[[], None]]:
    """Copy a file to this machine.

    Parameters
    ----------
    url
        Any URL that fsspec knows.
    storage_options
        Handed to the fsspec driver.
    folder
        Copy the folder of the same name beside it too, as MIRAX has it (``a.mrxs``, ``a/``).

    Returns
    -------
    (path, remove)
        Where it lies now, and what removes it; it goes with the process at the latest.

    Raises
    ------
    StorageError
        If it is missing, the storage refuses, or there is no space for it; the message names
        the folder and the space that is needed and free.
    """
    fs, source = filesystem(url, storage_options)
    with ExitStack() as stack:
        here = Path(tempfile.mkdtemp(prefix="histostore-"))
        # A function of a module lives as long as the process: then the copy goes, if not before.
        remove = weakref.finalize(copy_here, shutil.rmtree, here, ignore_errors=True)
        stack.callback(remove)
        with driver_errors(url, storage_options):
            wanted = {source: int(fs.info(source)["size"] or 0)}
            if folder:
                found = fs.find(posixpath.splitext(source)[0], detail=True)
                wanted |= {name: int(info["size"] or 0) for name, info in found.items()}
        _check_space(url, here, sum(wanted.values()))
        start = len(posixpath.dirname(source))
        for name in wanted:
            target = here / name[start:].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with driver_errors(url, storage_options), fs.open(name, "rb") as file:
                _copy(url, file, target)
        stack.pop_all()
    return str(here / posixpath.basename(source)), remove


def _check_space(url: str, here: Path, needed: int) -> None:
    free = shutil.disk_usage(here).free
    if needed + RESERVE_BYTES > free:
        raise StorageError(
            f"{public_url(url)}: its copy needs {_size(needed)} in {here.parent}, where"
            f" {_size(free)} are free; set TMPDIR to a larger disk"
        )


def _copy(url: str, file: IO[bytes], target: Path) -> None:
    with target.open("wb") as out:
        while part := file.read(_COPY_BYTES):
            try:
                out.write(part)
                out.flush()
            except OSError as error:
                raise StorageError(
                    f"{public_url(url)}: cannot be copied to {target.parent}"
                    f" ({error.strerror or error}); set TMPDIR to a larger disk"
                ) from error


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:,.0f} MiB"
