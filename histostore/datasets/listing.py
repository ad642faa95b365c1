"""What lies in a folder, and how it becomes a table. Names alone are looked at."""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import CohortError, summarise
from histostore.files import driver_errors, filesystem, local_path, public_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd

__all__ = ["endings_in", "frame_of", "is_image", "list_files", "nothing_in", "refusal", "stem"]

_IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".webp"),
    *(".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm", ".qptiff"),
)


def list_files(directory: str | os.PathLike[str]) -> tuple[str, list[str]]:
    """List a folder with all below it: its URL ending in a slash, and the files' paths in it."""
    directory = os.fspath(directory)
    here = local_path(directory)
    root = str(Path(here).resolve()) if here is not None else directory
    root = root.rstrip("/") + "/"
    fs, path = filesystem(root)
    with driver_errors(directory):
        if not fs.isdir(path):
            raise refusal(directory, ["there is no such folder"])
        found = fs.find(path) if here is None else _walk(path)
        names = (str(name)[len(path.rstrip("/")) :].lstrip("/") for name in found)
        seen = [name for name in names if not any(part[0] == "." for part in name.split("/"))]
    return root, sorted(seen, key=natural)


def _walk(folder: str) -> Iterator[str]:
    """Yield the files below a local folder, through links; one that leads back up, is left out."""
    real = os.path.realpath(folder)
    above = {folder: {real}}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        seen = above.pop(parent)
        for name in list(folders):
            path = os.path.join(parent, name)  # noqa: PTH118 - as os.walk names it
            real = os.path.realpath(path)
            if real in seen:
                folders.remove(name)
            else:
                above[path] = {*seen, real}
        for name in files:
            yield posixpath.join(parent.replace(os.sep, "/"), name)


def _refuse(error: OSError) -> None:
    raise error


def natural(name: str) -> list[tuple[int, int, str]]:
    """Give a sorting key by which 2 comes before 10.

    Examples
    --------
    >>> sorted(["b10.png", "b2.png", "a/1.png"], key=natural)
    ['a/1.png', 'b2.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts] + [
        (1, 0, name)
    ]


def endings_in(files: Iterable[str], folder_name: str = "") -> str:
    """Say in few words what kinds of files there are."""
    inside = [name for name in files if name.startswith(f"{folder_name}/" if folder_name else "")]
    endings = sorted({posixpath.splitext(name)[1] or "files without an ending" for name in inside})
    return ", ".join(endings) or "nothing"


def nothing_in(files: Iterable[str]) -> str:
    """Say that there is no image, and what there is."""
    return f"no image in it (found: {endings_in(files)})"


def is_image(name: str) -> bool:
    """Say by its ending whether a file is an image."""
    return name.lower().endswith(_IMAGE_SUFFIXES)


def stem(name: str) -> str:
    """Give a path without its ending.

    Examples
    --------
    >>> stem("a/b.ome.tif"), stem("a/b.1.png")
    ('a/b', 'a/b.1')
    """
    bare, ending = posixpath.splitext(name)
    return bare.removesuffix(".ome") if ending.lower() in {".tif", ".tiff"} else bare


def frame_of(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    """Make a table of text."""
    import pandas as pd

    return pd.DataFrame(list(rows), dtype=object)


def refusal(directory: str | os.PathLike[str], problems: list[Any]) -> CohortError:
    """Make the error that lists what was found."""
    return CohortError(summarise(public_url(os.fspath(directory)), problems), problems=problems)
