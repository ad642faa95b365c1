"""Tables as text: the bytes of a CSV or Parquet file to columns, and what is wrong with them.

Nothing here raises: findings are collected, and :mod:`histostore.cohort` puts all of them
into one error. Rows are counted as a spreadsheet shows them: the header is row 1.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections import Counter
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

__all__ = [
    "REQUIRED",
    "Cells",
    "Table",
    "cell_text",
    "name_problem",
    "parse_csv",
    "parse_frame",
    "parse_parquet",
]

REQUIRED = ("image_id", "path")
"""Columns that every cohort has."""

Cells = list[str | None]
"""A column: stripped text, None where the cell is empty."""

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """A table as text, and what is wrong with it as a whole."""

    rows: Sequence[int]
    """Number of each row in its file; rows that are blank altogether are not here."""

    columns: Mapping[str, Cells]
    """Named columns, one cell per row."""

    problems: tuple[str, ...] = ()
    """Findings that leave the single rows not worth looking at."""

    @classmethod
    def refused(cls, problem: str) -> Table:
        """Make a table of which nothing is known but what is wrong with it."""
        return cls(rows=(), columns={}, problems=(problem,))

    @classmethod
    def assembled(
        cls, names: Iterable[str], cells: Sequence[Cells], problems: Iterable[str] = ()
    ) -> Table:
        """Put columns together and look at the table as a whole.

        Columns without a name (a saved row index) and rows without a single cell are left
        out.

        Examples
        --------
        >>> Table.assembled(["image_id", ""], [["a", None, "b"], ["0", None, "1"]])
        Table(rows=[2, 4], columns={'image_id': ['a', 'b']}, problems=("column 'path' is missing; there are: image_id",))
        """
        names = [name.strip() for name in names]
        columns = {name: column for name, column in zip(names, cells, strict=True) if name}
        rows: Sequence[int] = range(2, 2 + (len(cells[0]) if cells else 0))
        if any(None in column for column in columns.values()):
            filled = [any(row) for row in zip(*columns.values(), strict=True)]
            if not all(filled):
                rows = [row for row, keep in zip(rows, filled, strict=True) if keep]
                columns = {n: [column[row - 2] for row in rows] for n, column in columns.items()}
        found = [
            *problems,
            *(
                f"column {n!r} is there twice; rename one"
                for n, k in Counter(names).items()
                if n and k > 1
            ),
            *(
                f"column {n!r} is missing; there are: {', '.join(columns)}"
                for n in REQUIRED
                if n not in columns
            ),
            *([] if rows else ["there is not a single row below the header"]),
        ]
        return cls(rows=rows, columns=columns, problems=tuple(found))

    def row_problems(self) -> list[tuple[int, str]]:
        """List what is wrong with single rows: (row, sentence)."""
        return [(row, f"row {row}{text}") for row, text in self._cell_problems()] + (
            _duplicates(self.rows, self.columns["image_id"])
        )

    def _cell_problems(self) -> Iterator[tuple[int, str]]:
        for name in REQUIRED:
            column = self.columns[name]
            if None in column:
                empty = zip(self.rows, column, strict=True)
                yield from ((row, f": {name} is empty") for row, cell in empty if cell is None)
        for name in (*REQUIRED, "patient_id"):
            for row, cell in self._cells(name):
                if _FORBIDDEN.search(cell):
                    yield row, f": {name} {cell!r} holds a control character"
        for row, cell in self._cells("mpp"):
            if not _is_positive(cell):
                yield row, f": mpp {cell!r} is not a positive number"

    def _cells(self, name: str) -> Iterator[tuple[int, str]]:
        """Give the cells of a column that are there, with their rows."""
        column = self.columns.get(name) or repeat(None, len(self.rows))
        return ((row, cell) for row, cell in zip(self.rows, column, strict=True) if cell)


def name_problem(name: str) -> str | None:
    """Say why no table can name an image so; None where one can.

    Examples
    --------
    >>> name_problem("slide 7"), name_problem("slide 7 ")
    (None, 'begins or ends with a space')
    """
    if not name:
        return "is empty"
    if _FORBIDDEN.search(name):
        return "holds a control character"
    return None if name == name.strip() else "begins or ends with a space"


def _is_positive(cell: str) -> bool:
    try:
        return 0 < float(cell) < math.inf
    except ValueError:
        return False


def _duplicates(rows: Sequence[int], image_ids: Cells) -> list[tuple[int, str]]:
    if len(set(image_ids)) == len(image_ids):
        return []
    places: dict[str, list[int]] = {}
    for row, image_id in zip(rows, image_ids, strict=True):
        if image_id is not None:
            places.setdefault(image_id, []).append(row)
    return [
        (at[0], f"rows {', '.join(map(str, at[:-1]))} and {at[-1]}: the same image_id {name!r}")
        for name, at in places.items()
        if len(at) > 1
    ]


def parse_csv(content: bytes) -> Table:
    r"""Read CSV: UTF-8 with or without a byte order mark, commas, double quotes.

    A row that ends early is filled with empty cells, as spreadsheets leave them out.

    Examples
    --------
    >>> parse_csv("image_id,path\n1,é.png\n".encode()).columns
    {'image_id': ['1'], 'path': ['é.png']}
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        seen = f"byte {error.start} (0x{content[error.start]:02x}), in line {row}"
        return Table.refused(f"is not UTF-8 at {seen}; save the table as UTF-8")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    records: list[list[str]] = []
    try:
        records.extend(reader)
    except csv.Error as error:
        return Table.refused(f"is not proper CSV from row {len(records) + 1} on: {error}")
    if not records:
        return Table.refused("is empty; the first row must name the columns")
    header, *body = records
    if not any(map(str.strip, header)):
        return Table.refused("the first row is blank; it must name the columns")
    if any("\0" in name for name in header):
        return Table.refused("is no text: its first row holds zero bytes; save the table as UTF-8")
    width = len(header)
    problems = [
        f"row {row}: {len(cells)} cells where the header has {width}"
        for row, cells in enumerate(body, start=2)
        if len(cells) > width and any(cells[width:])
    ]
    if any(len(cells) != width for cells in body):
        body = [(cells + [""] * width)[:width] for cells in body]
    columns = zip(*body, strict=True) if body else repeat((), width)
    stripped = [[cell.strip() or None for cell in column] for column in columns]
    return Table.assembled(header, stripped, [*_header_problems(header), *problems])


def _header_problems(header: list[str]) -> list[str]:
    """Say so where a header was evidently written with another separator."""
    return [
        f"the header has {word} where commas belong: {header[0]!r}; save the table with commas"
        for separator, word in _OTHER_SEPARATORS.items()
        if len(header) == 1 and separator in header[0]
    ][:1]


def parse_parquet(content: bytes) -> Table:
    """Read Parquet; numbers, truth values and dates become text as :func:`parse_frame` says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        return Table.refused(f"is not a readable Parquet file: {' '.join(str(error).split())}")
    problems = [
        f"column {field.name!r} holds {field.type}; text, numbers and dates make a cohort"
        for field in table.schema
        if pa.types.is_nested(field.type) or "binary" in str(field.type)
    ]
    names = [name for name in table.column_names if not name.startswith("__index_level_")]
    cells = [[cell_text(value) for value in table.column(name).to_pylist()] for name in names]
    return Table.assembled(names, cells, problems)


def parse_frame(frame: pd.DataFrame) -> Table:
    """Take a data frame, without its index; its first row counts as row 2.

    Whole numbers are written without a decimal point (pandas turns integers into floats
    where one is missing); NaN, NaT and NA are missing values.
    """
    names = [str(name) for name in frame.columns]
    cells = [[cell_text(v) for v in frame.iloc[:, i].tolist()] for i in range(len(names))]
    return Table.assembled(names, cells)


def cell_text(value: object) -> str | None:
    """Write one cell as text, None where it is missing.

    Examples
    --------
    >>> cell_text(1.0), cell_text(0.5), cell_text(True), cell_text(math.nan)
    ('1', '0.5', 'True', None)
    """
    if isinstance(value, str):
        return value.strip() or None
    if value is None or type(value).__name__ in {"NAType", "NaTType"}:
        return None
    if isinstance(value, float | np.floating):
        if math.isnan(value):
            return None
        return str(int(value)) if value.is_integer() else str(value)
    return str(value)
