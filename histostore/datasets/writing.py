"""A table of images, written as a cohort."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from histostore.datasets.listing import refusal
from histostore.files import driver_errors, filesystem, local_path
from histostore.tables import name_problem

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["write_cohort"]


def write_cohort(frame: pd.DataFrame, out: str | os.PathLike[str]) -> str:
    """Write a table of images as CSV: whole or not at all.

    Parameters
    ----------
    frame
        Columns as the functions here give them; missing values become empty cells.
    out
        Where to; paths inside its folder are written relative to it, others as they are.

    Returns
    -------
    out
        The same, as text.

    Raises
    ------
    CohortError
        If the frame has no column ``path``, or files have names that no table can hold.
    StorageError
        If it cannot be written.
    """
    out = os.fspath(out)
    here = local_path(out)
    base = (str(Path(here).resolve().parent) if here is not None else _parent(out)) + "/"
    if "path" not in frame:
        raise refusal(
            out, [f"column 'path' is missing; there are: {', '.join(map(str, frame.columns))}"]
        )
    frame = frame.assign(path=frame["path"].str.removeprefix(base))
    paths = frame["path"].dropna()
    if problems := [f"{path!r} {why}; rename it" for path in paths if (why := _why(path))]:
        raise refusal(out, problems)
    columns = [
        ["" if absent else str(cell) for cell, absent in zip(column, column.isna(), strict=True)]
        for _, column in frame.items()
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([frame.columns, *zip(*columns, strict=True)])
    _replace(out, text.getvalue().encode())
    return out


def _why(path: str) -> str | None:
    """Say why a table cannot lead to a file of this name; None where it can."""
    if "\\" in path and not path.startswith("/") and "://" not in path:
        return "holds a backslash, which separates folders in a table"
    return name_problem(path)


def _replace(url: str, content: bytes) -> None:
    """Put a file in place in one step: a rename on disk, one object elsewhere."""
    here = local_path(url)
    with driver_errors(url):
        if here is None:
            fs, path = filesystem(url)
            fs.pipe_file(path, content)
            return
        draft = Path(here).with_name(f".{Path(here).name}.{os.getpid()}.part")
        try:
            draft.write_bytes(content)
            draft.replace(here)
        finally:
            draft.unlink(missing_ok=True)


def _parent(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('/')[0]}".removesuffix("/")
