"""Plain text for people: tables and lists that fit a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["failures", "table"]

SHOWN_FAILURES = 20
"""Failures that are listed before the rest is only counted."""


def table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Align rows under the names of their columns, numbers to the right.

    Parameters
    ----------
    rows
        One mapping per row. Whole numbers get thousands separators, others three decimals;
        None is left empty.
    columns
        Which columns, in which order; those of the first row where none is named.

    Examples
    --------
    >>> print(table([{"name": "a", "n": 1200, "kinds": ["x", "y"]}, {"name": "bc", "n": 7, "kinds": []}]))
    name      n  kinds
    a     1,200  x,y
    bc        7
    """
    if not rows:
        return "(nothing)"
    keys = list(columns or rows[0])
    cells = [keys, *([_cell(row[key]) for key in keys] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(keys))]
    right = [all(isinstance(row[key], int | float | None) for row in rows) for key in keys]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if is_right else cell.ljust(width)
            for cell, width, is_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in cells
    )


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    if isinstance(value, bool) or not isinstance(value, int):
        return str(value)
    return f"{value:,}"


def failures(failed: Sequence[tuple[str, str]]) -> list[str]:
    """List images and why they failed, one line each, up to :data:`SHOWN_FAILURES`.

    Examples
    --------
    >>> failures([("image-7", "it is empty")])
    ['  image-7: it is empty']
    """
    lines = [f"  {image_id}: {reason}" for image_id, reason in failed[:SHOWN_FAILURES]]
    more = len(failed) - SHOWN_FAILURES
    return [*lines, f"  … and {more:,} more: --json lists them all"] if more > 0 else lines
