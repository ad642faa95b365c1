"""The cohort: a table of images, checked as a whole before any work begins.

A table (CSV in UTF-8 with commas, or Parquet) has one row per image: ``image_id``, ``path``
(any fsspec URL, or relative to the table), optionally ``label``, ``patient_id``, ``mpp``,
``split``, ``coordinates`` or ``annotations`` (files that say where patches lie), and further
targets. Every cell is text. An empty cell is a missing value; the text
``NA`` is a value like any other (an honest label, or a patient's initials). Spaces around a
cell do not count, and a column without a name (a saved row index) is left out.
"""

from __future__ import annotations

import hashlib
import json
import ntpath
import os
import posixpath
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from histostore.errors import CohortError, NotFound, OptionError, summarise
from histostore.files import local_path, public_url, read_bytes, stat_many
from histostore.tables import parse_csv, parse_frame, parse_parquet

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.files import Source
    from histostore.tables import Cells, Table

__all__ = ["Cohort", "Given"]

GivenKind = Literal["coordinates", "annotations"]
_GIVEN: tuple[GivenKind, ...] = ("coordinates", "annotations")


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A file that says where the patches of one image lie."""

    kind: GivenKind
    """A table of corners, or polygons; also the name of the column."""

    url: str
    """Where it lies: absolute, ready to be opened."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """Images to work on, in the order of their table. Made by :meth:`read` or :meth:`from_frame`.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"image_id": ["a", "b"], "path": ["a.png", "b.png"], "label": ["x", None]})
    >>> cohort = Cohort.from_frame(frame, url="memory://study/cohort.csv", check_files=False)
    >>> cohort.urls
    ('memory://study/a.png', 'memory://study/b.png')
    >>> cohort.column("label").tolist()
    ['x', None]
    """

    url: str
    """Where the table lies; relative paths are relative to its folder."""

    columns: Mapping[str, NDArray[np.object_]]
    """Every column, ``(image,)`` of ``str``, or None where the cell is empty."""

    urls: tuple[str, ...]
    """Where each image lies: absolute, ready to be opened."""

    sources: Mapping[str, Source] = field(default_factory=dict)
    """URL to size and version, of all images and of the files that say where patches lie; empty
    where files were not checked."""

    @classmethod
    def read(
        cls,
        url: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
        *,
        check_files: bool = True,
    ) -> Cohort:
        """Read and check a table of images.

        Parameters
        ----------
        url
            CSV or Parquet file, on disk or wherever fsspec reaches.
        storage_options
            Handed to the fsspec driver, for the table and for the images.
        check_files
            Look whether every image is there, and note its size and version; one listing
            per folder.

        Raises
        ------
        CohortError
            If anything at all is wrong with the table; ``problems`` lists every finding,
            with rows counted as a spreadsheet shows them: the header is row 1.
        StorageError
            If the table cannot be read, or a storage refuses to list the images.
        """
        url = os.fspath(url)
        content = read_bytes(url, storage_options)
        is_parquet = content[:4] == b"PAR1"
        if url.lower().endswith((".parquet", ".pq")) != is_parquet:
            kinds = ("Parquet", "CSV") if is_parquet else ("CSV or damaged", "Parquet")
            raise _refusal(url, [f"holds {kinds[0]} data under a {kinds[1]} name; rename it"])
        table = (parse_parquet if is_parquet else parse_csv)(content)
        return cls._checked(url, table, storage_options, check_files=check_files)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        url: str | os.PathLike[str] = "cohort.csv",
        storage_options: Mapping[str, Any] | None = None,
        *,
        check_files: bool = True,
    ) -> Cohort:
        """Take a data frame as the table, with the same checks as :meth:`read`.

        Parameters
        ----------
        frame
            Columns as in a cohort table; its index is ignored. Numbers become text, whole
            ones without a decimal point; NaN, NaT and NA are missing values.
        url
            Where the table would lie: relative paths are relative to that file's folder.
        storage_options, check_files
            As for :meth:`read`.

        Raises
        ------
        CohortError, StorageError
            As for :meth:`read`; the first row of the frame counts as row 2.
        """
        table = parse_frame(frame)
        return cls._checked(os.fspath(url), table, storage_options, check_files=check_files)

    @classmethod
    def _checked(
        cls,
        url: str,
        table: Table,
        storage_options: Mapping[str, Any] | None,
        *,
        check_files: bool,
    ) -> Cohort:
        """Make the cohort, or raise one error with everything that is wrong."""
        if table.problems:
            raise _refusal(url, list(table.problems))
        urls, misplaced = _resolve(url, table.rows, table.columns["path"])
        given, wrong = _given(url, table.rows, table.columns)
        found = table.row_problems() + misplaced + wrong
        sources: dict[str, Source] = {}
        if check_files:
            seen = stat_many(filter(None, _files(urls, given)), storage_options)
            sources = {image: source for image, source in seen.items() if source is not None}
            found += [
                (row, f"row {row}: no such file: {_shown(image)}")
                for row, image in zip(table.rows, urls, strict=True)
                if image and image not in sources
            ]
            found += [
                (row, f"row {row}: no such file of {each.kind}: {_shown(each.url)}")
                for row, each in zip(table.rows, given, strict=True)
                if each and each.url not in sources
            ]
        if found:
            # A stable sort: what is wrong with one row stays together, in the order checked.
            raise _refusal(url, [text for _, text in sorted(found, key=lambda item: item[0])])
        return cls(
            url=url,
            columns={name: _object_array(cells) for name, cells in table.columns.items()},
            urls=tuple(urls),
            sources=sources,
        )

    def __len__(self) -> int:
        return len(self.urls)

    def __repr__(self) -> str:
        return f"Cohort({public_url(self.url)!r}: {len(self)} images; {', '.join(self.columns)})"

    @cached_property
    def table(self) -> pd.DataFrame:
        """The table, index 0 … n − 1; object columns of ``str``, None where a cell is empty."""
        import pandas as pd

        return pd.DataFrame(dict(self.columns), dtype=object)

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Unique name of each image."""
        return tuple(self.columns["image_id"].tolist())

    @cached_property
    def patient_ids(self) -> tuple[str, ...]:
        """Patient of each image; an image without one stands for itself."""
        if not self.has("patient_id"):
            return self.image_ids
        pairs = zip(self.columns["patient_id"].tolist(), self.image_ids, strict=True)
        return tuple(image if patient is None else patient for patient, image in pairs)

    @cached_property
    def mpp(self) -> tuple[float | None, ...]:
        """Micrometres per pixel as the table gives them, None where it does not."""
        if not self.has("mpp"):
            return (None,) * len(self)
        return tuple(None if v is None else float(v) for v in self.columns["mpp"].tolist())

    @cached_property
    def given(self) -> tuple[Given | None, ...]:
        """Files that say where the patches of each image lie; None where a grid decides."""
        columns = {str(name): self.columns[name].tolist() for name in _GIVEN if self.has(name)}
        return tuple(_given(self.url, range(len(self)), columns)[0])

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all cells as given, rows in order, columns by name: 64 hex digits.

        Paths enter as written, so that a cohort moved with its images keeps its digest.
        """
        digest = hashlib.sha256()
        for name in sorted(self.columns):
            line = [name, *self.columns[name].tolist()]
            digest.update(json.dumps(line, separators=(",", ":")).encode() + b"\n")
        return digest.hexdigest()

    def has(self, name: str) -> bool:
        """Say whether the table has this column."""
        return name in self.columns

    def column(self, name: str) -> NDArray[np.object_]:
        """Give one column, ``(image,)`` of ``str``, None where the cell is empty.

        Raises
        ------
        NotFound
            If there is no such column; the message lists those there are.
        """
        if not self.has(name):
            raise NotFound(f"{self.url}: no column {name!r}; it has {', '.join(self.columns)}")
        return self.columns[name].copy()

    def select(self, indices: Iterable[int] | NDArray[np.integer]) -> Cohort:
        """Give the cohort of some images, in the order of ``indices``."""
        chosen = np.asarray(
            indices if isinstance(indices, np.ndarray) else list(indices), dtype=np.int64
        )
        urls = tuple(self.urls[i] for i in chosen.tolist())
        given = tuple(self.given[i] for i in chosen.tolist())
        return Cohort(
            url=self.url,
            columns={name: cells[chosen] for name, cells in self.columns.items()},
            urls=urls,
            sources={url: self.sources[url] for url in _files(urls, given) if url in self.sources},
        )

    def seen(self, storage_options: Mapping[str, Any] | None = None) -> dict[str, Source | None]:
        """Say by image id what its files were like when they were checked, or else are now.

        None stands for an image that is not there. Raises StorageError if files were not
        checked, and a storage refuses to list them.
        """
        there = self.sources or stat_many(_files(self.urls, self.given), storage_options)
        found: dict[str, Source | None] = {}
        for image_id, url, given in zip(self.image_ids, self.urls, self.given, strict=True):
            source, places = there.get(url), there.get(given.url) if given else None
            found[image_id] = source.placed_by(places) if source and places else source
        return found

    def limit(self, n: int) -> Cohort:
        """Give the first ``n`` images.

        Raises
        ------
        OptionError
            If ``n`` is below 1.
        """
        if n < 1:
            raise OptionError(f"a limit of {n} leaves no image; give 1 or more")
        return self.select(range(min(n, len(self))))

    def shard(self, i: int, n: int) -> Cohort:
        """Give every n-th image, beginning with the i-th: part I/N of a job array.

        The parts 1/N … N/N hold every image exactly once; with more parts than images some
        are empty.

        Raises
        ------
        OptionError
            Unless ``1 <= i <= n``.
        """
        if not 1 <= i <= n:
            raise OptionError(f"shard {i}/{n}: give I/N with 1 <= I <= N")
        return self.select(range(i - 1, len(self), n))


def _refusal(url: str, problems: list[str]) -> CohortError:
    return CohortError(summarise(public_url(url), problems), problems=problems)


def _shown(url: str) -> str:
    url = public_url(url)
    return url if url.isprintable() else repr(url)


def _object_array(cells: Cells) -> NDArray[np.object_]:
    array = np.empty(len(cells), dtype=object)
    array[:] = cells
    return array


def _resolve(
    table: str, rows: Sequence[int], paths: Cells
) -> tuple[list[str], list[tuple[int, str]]]:
    """Make every path absolute; an empty text stands where that cannot be done.

    A relative path must stay inside the table's folder; an absolute one, or a URL, is the
    user's own decision. A backslash separates folders, as in tables made on Windows.
    """
    folder = _folder(table)
    urls: list[str] = []
    problems = []
    for row, path in zip(rows, paths, strict=True):
        url = ""
        if path is None:
            pass
        elif "://" in path:
            url = path
        elif "\\" in path and os.name != "nt" and ntpath.splitdrive(path)[0]:
            problems.append((row, f"row {row}: {path!r} is a path of a Windows machine"))
        elif os.path.isabs(expanded := local_path(path) or path):  # noqa: PTH117 - hot path
            url = expanded
        else:
            inside = _normal(path)
            if inside == ".." or inside.startswith("../"):
                problems.append((row, f"row {row}: {path!r} leads out of the cohort's folder"))
            else:
                url = folder + inside
        urls.append(url)
    return urls, problems


def _given(
    table: str, rows: Sequence[int], columns: Mapping[str, Sequence[str | None]]
) -> tuple[list[Given | None], list[tuple[int, str]]]:
    """Find the files that say where patches lie, and what is wrong with their names."""
    found: list[Given | None] = [None] * len(rows)
    problems = []
    for kind in _GIVEN:
        cells = [(at, cell) for at, cell in enumerate(columns.get(kind, ())) if cell]
        urls, wrong = _resolve(table, [rows[at] for at, _ in cells], [cell for _, cell in cells])
        problems += wrong
        for (at, _), url in zip(cells, urls, strict=True):
            if found[at] is not None:
                problems.append(
                    (rows[at], f"row {rows[at]}: coordinates and annotations; give one")
                )
            elif url:
                found[at] = Given(kind=kind, url=url)
    return found, problems


def _files(urls: Iterable[str], given: Iterable[Given | None]) -> Iterator[str]:
    """Yield where images lie, and the files that say where their patches do."""
    yield from urls
    yield from (each.url for each in given if each)


def _folder(table: str) -> str:
    """Give the folder of the table, ready to have a relative path appended."""
    path = local_path(table)
    if path is not None:
        return posixpath.join(os.path.dirname(os.path.abspath(path)), "")  # noqa: PTH100, PTH120
    scheme, _, rest = public_url(table).partition("://")
    head = rest.rpartition("/")[0]
    return f"{scheme}://{head}/" if head else f"{scheme}://"


def _normal(path: str) -> str:
    """Give a relative path with plain slashes and without detours."""
    path = path.replace("\\", "/")
    if "./" in path or "//" in path or path.endswith(("/", ".")):
        return posixpath.normpath(path)
    return path
