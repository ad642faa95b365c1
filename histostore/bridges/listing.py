"""What lies below a source's address."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.bridges.naming import unescape
from histostore.build.pipeline import Failure
from histostore.errors import FormatError, StorageError
from histostore.files import driver_errors, filesystem, local_path, public_url, stat_many

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from histostore.files import Source

__all__ = ["address", "find_files", "find_stores", "id_of", "nothing_found", "stat_found"]

_DEEPEST = 6


def address(source: str, storage_options: Mapping[str, Any]) -> str:
    """Give the source's full address, without what may be secret in it."""
    fs, path = filesystem(source, storage_options)
    return path if local_path(source) is not None else public_url(fs.unstrip_protocol(path))


def find_files(source: str, storage_options: Mapping[str, Any]) -> dict[str, str]:
    """List the files below a folder, or the one file that the source is.

    Hidden files are left out.

    Returns
    -------
    files
        Path relative to the source to the full URL, sorted.

    Raises
    ------
    StorageError
        If there is nothing, or the storage refuses.
    """
    fs, path = filesystem(source, storage_options)
    with driver_errors(source, storage_options):
        fs.invalidate_cache(path)
        if not fs.exists(path):
            raise StorageError(f"{public_url(source)}: no such file or folder")
        base = path.rpartition("/")[0] if fs.isfile(path) else path.rstrip("/")
        found = {str(each).removeprefix(base).lstrip("/"): str(each) for each in fs.find(path)}
    local = local_path(source) is not None
    return {
        relative: each if local else str(fs.unstrip_protocol(each))
        for relative, each in sorted(found.items())
        if not any(part.startswith(".") for part in relative.split("/"))
    }


def find_stores(source: str, suffix: str, storage_options: Mapping[str, Any]) -> list[str]:
    """List the folders below (or at) a source whose names end in ``suffix``; not inside them.

    Raises
    ------
    StorageError
        If there is no such folder, or the storage refuses.
    """
    fs, path = filesystem(source, storage_options)
    path = path.rstrip("/")
    found: list[str] = []
    with driver_errors(source, storage_options):
        fs.invalidate_cache(path)
        if not fs.isdir(path):
            raise StorageError(f"{public_url(source)}: no such folder")
        level = [path]
        for _ in range(_DEEPEST):
            found += [folder for folder in level if folder.endswith(suffix)]
            level = [
                str(entry["name"]).rstrip("/")
                for folder in level
                if not folder.endswith(suffix)
                for entry in fs.ls(folder, detail=True)
                if entry["type"] == "directory"
            ]
    local = local_path(source) is not None
    return [each if local else str(fs.unstrip_protocol(each)) for each in sorted(found)]


def id_of(relative: str) -> str:
    """Give the image id that a path without suffix stands for; folders are part of it.

    Examples
    --------
    >>> id_of("slide%2F1"), id_of("site/slide-1")
    ('slide/1', 'site/slide-1')
    """
    return "/".join(unescape(part) for part in relative.split("/"))


def stat_found(
    files: Mapping[str, str], storage_options: Mapping[str, Any]
) -> tuple[dict[str, Source], tuple[Failure, ...]]:
    """Ask for size and version of files.

    Parameters
    ----------
    files
        Image id to URL.
    storage_options
        For the driver.

    Returns
    -------
    sources, failed
        Image id to source; and those that vanished since they were listed.
    """
    found = stat_many(files.values(), storage_options)
    sources = {image_id: found[url] for image_id, url in files.items()}
    there = {image_id: source for image_id, source in sources.items() if source is not None}
    return there, tuple(
        Failure(image_id=image_id, url=files[image_id], reason="the file is gone")
        for image_id in files.keys() - there.keys()
    )


def nothing_found(source: str, expected: str, seen: Iterable[str]) -> FormatError:
    """Say that a source is not of its layout: what was expected, and what is there instead."""
    names = [*seen]
    there = f"there are {', '.join(names[:3])}{', …' if len(names) > 3 else ''}" if names else ""
    return FormatError(
        f"{public_url(source)} holds no {expected}; {there or 'it holds no file at all'}"
    )
