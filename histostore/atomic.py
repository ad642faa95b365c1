"""Files on this machine that are there whole, or not at all."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from histostore.errors import HistostoreError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["atomic"]


@contextmanager
def atomic(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Write a file under a hidden name beside its own, which it takes at the end by one rename.

    Parameters
    ----------
    path
        Where the file shall be; folders above it are made.
    durable
        Whether it is forced to disk before the rename, so that it outlives a loss of power.

    Yields
    ------
    hidden
        Where to write it. Nothing is left there if the block raises.

    Raises
    ------
    StorageError
        If it cannot be written.

    Examples
    --------
    >>> from pathlib import Path
    >>> with atomic(Path("new/told.txt")) as hidden:
    ...     _ = hidden.write_text("all of it")
    >>> [path.name for path in Path("new").iterdir()]
    ['told.txt']
    """
    hidden = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield hidden
        if durable:
            with hidden.open("rb") as file:
                os.fsync(file.fileno())
        hidden.replace(path)
    except HistostoreError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            hidden.unlink(missing_ok=True)
