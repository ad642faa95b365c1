"""A directory that one process fills, whole or to be gone on with, and no other meanwhile.

While a run is being made, ``RUN/unfinished/`` says of what, so that the same command takes up where
it was stopped and another one is refused. ``unfinished/lock`` is locked by the process that makes it;
the operating system lets go of that when the process ends, however it ends.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from histostore.errors import StorageError
from zoo.errors import RunError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

__all__ = ["PLAN", "UNFINISHED", "begin", "read_json", "write_json"]

UNFINISHED = "unfinished"
"""Folder, in that of a run, for what is not finished yet."""

PLAN = f"{UNFINISHED}/plan.json"
"""File that says what is being made."""

_LOCK = f"{UNFINISHED}/lock"


@contextmanager
def begin(path: str | os.PathLike[str], plan: Mapping[str, Any]) -> Iterator[Path]:
    """Claim a directory for a run, or take up one that was stopped, for the time of a block.

    Parameters
    ----------
    path
        The run's directory: new, empty, or an unfinished run of the same plan, or of another
        plan of which nothing is finished yet.
    plan
        Everything that decides the result, as JSON values.

    Yields
    ------
    Path
        Folder for what is not finished yet; :func:`zoo.run.write_run` removes it.

    Raises
    ------
    RunError
        If the directory holds anything else, or another process is filling it.
    StorageError
        If it cannot be written.
    """
    from filelock import FileLock, Timeout

    folder = Path(path)
    _check_ours(folder)
    lock = FileLock(folder / _LOCK)
    try:
        (folder / UNFINISHED).mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise RunError(
            f"{folder} is being written by another process: wait for its end, or give another "
            "directory"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error
    try:
        _check_ours(folder)  # again: who had it before may have finished just now
        _write_plan(folder, dict(plan))
        yield folder / UNFINISHED
    finally:
        lock.release()


def _check_ours(folder: Path) -> None:
    """Refuse a directory that holds anything but an unfinished run."""
    try:
        if not folder.exists() or (folder.is_dir() and _is_mere_claim(folder)):
            return
        is_finished = (folder / "run.json").exists()
        if is_finished or not (folder / PLAN).is_file():
            what = "a finished run" if is_finished else "other files"
            raise RunError(f"{folder} holds {what}: give another directory, or delete this one")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def _write_plan(folder: Path, plan: dict[str, Any]) -> None:
    """Write what is being made, where nothing of anything else is finished."""
    if _is_mere_claim(folder):
        write_json(folder / PLAN, plan)
        return
    known = read_json(folder / PLAN)
    differing = [key for key in {**known, **plan} if known.get(key) != plan.get(key)]
    if differing:
        raise RunError(
            f"{folder} holds an unfinished run with another {', '.join(sorted(differing))}: "
            "give another directory, or delete this one"
        )


def _is_mere_claim(folder: Path) -> bool:
    """Tell a directory that is empty, or claimed by a run of which nothing is finished yet."""
    names = "heads", UNFINISHED, PLAN, f"{UNFINISHED}/.plan.json.tmp", _LOCK
    claim = {folder / name for name in names}
    return all(path in claim for path in folder.rglob("*"))


def read_json(path: Path) -> dict[str, Any]:
    """Read a document of a run.

    Raises
    ------
    RunError
        If it cannot be read, or holds no JSON object.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise RunError(f"{path} was not written by zoo: it holds no JSON object")
    return document


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write and force to disk, then rename, so that the file is there whole or not at all."""
    with atomic(path, durable=True) as hidden:
        told = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
        hidden.write_text(told + "\n", encoding="utf-8")
