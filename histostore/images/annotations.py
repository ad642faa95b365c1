"""Where patches lie when a file says so: a table of corners, or polygons drawn by hand.

``coordinates``
    CSV or Parquet with the columns ``x`` and ``y``: the top-left corner of every patch in
    level-0 pixels. These patches exist and no others; the tissue filter leaves them alone.
    Edge and scale are those of the grid.
``annotations``
    GeoJSON (RFC 7946) as QuPath exports it: polygons in level-0 pixels, holes and all, of
    whatever class. Patches of the grid whose centre lies in one exist, or those that lie in them
    by the grid's least share; the tissue filter chooses among them. Where annotations are so
    small that no patch is left, the one that shares most of them exists.
"""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from histostore.errors import ImageError, MissingExtra
from histostore.files import public_url, read_bytes
from histostore.grid import MAX_POSITIONS, Placement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.cohort import Given
    from histostore.grid import PatchGrid

__all__ = [
    "ANNOTATED",
    "GIVEN_COORDINATES",
    "Annotation",
    "Coordinates",
    "Places",
    "parse_coordinates",
    "parse_geojson",
    "read_places",
]

GIVEN_COORDINATES = "given-coordinates"
"""Flag: a table said where patches lie."""

ANNOTATED = "annotated"
"""Flag: polygons said which patches of the grid exist."""

_ROUNDING = 1e-9  # of a share: areas are sums of many corners


class Places(Protocol):
    """What says where the patches of one image lie, instead of the grid or within it."""

    @property
    def flag(self) -> str:
        """How an image is marked of which this decided."""

    @property
    def keeps_all(self) -> bool:
        """Whether the tissue filter leaves all patches where they are."""

    def place(self, grid: PatchGrid, width_px: int, height_px: int, mpp: float | None) -> Placement:
        """Place the patches on an image; raises ImageError if they do not fit it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Coordinates:
    """Corners of patches, as a table gives them."""

    url: str
    """Where the table lies, for messages."""

    x: NDArray[np.int64]
    """``(patch,)``, left edges in level-0 pixels."""

    y: NDArray[np.int64]
    """``(patch,)``, top edges in level-0 pixels."""

    flag = GIVEN_COORDINATES
    keeps_all = True

    def place(self, grid: PatchGrid, width_px: int, height_px: int, mpp: float | None) -> Placement:
        """Place the patches, in the order of the table.

        Raises
        ------
        ImageError
            If a corner lies outside the image, or the grid's scale cannot be had.
        """
        edge_px = grid.edge_px(mpp)
        outside = (self.x < 0) | (self.x >= width_px) | (self.y < 0) | (self.y >= height_px)
        if outside.any():
            first = int(np.argmax(outside))
            raise ImageError(
                f"{public_url(self.url)}: {int(outside.sum()):,} of {len(self.x):,} patches begin"
                f" outside the image of {width_px}×{height_px} px, the first at x {self.x[first]},"
                f" y {self.y[first]}; give level-0 pixels"
            )
        return Placement(x=self.x.astype(np.int32), y=self.y.astype(np.int32), edge_px=edge_px)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Annotation:
    """Polygons, as GeoJSON gives them."""

    url: str
    """Where the file lies, for messages."""

    area: Any
    """Their union: a polygon or several of shapely, in level-0 pixels."""

    flag = ANNOTATED
    keeps_all = False

    def place(self, grid: PatchGrid, width_px: int, height_px: int, mpp: float | None) -> Placement:
        """Choose the patches of the grid that lie in the polygons.

        Raises
        ------
        ImageError
            If the polygons lie outside the image, or the grid cannot be laid.
        """
        shapely = _shapely()
        whole = grid.place(width_px, height_px, mpp)
        if not self.area.intersects(shapely.box(0, 0, width_px, height_px)):
            left, top, right, bottom = self.area.bounds
            raise ImageError(
                f"{public_url(self.url)}: the polygons (x {left:.0f} to {right:.0f}, y {top:.0f} to"
                f" {bottom:.0f}) lie outside the image of {width_px}×{height_px} px; give level-0"
                " pixels"
            )
        half = whole.edge_px / 2
        shapely.prepare(self.area)
        if grid.min_annotated is None:
            chosen = shapely.intersects_xy(self.area, whole.x + half, whole.y + half).nonzero()[0]
        else:
            shared, least = self._shared(whole, width_px, height_px), grid.min_annotated
            chosen = (shared[0] >= least * (1 - _ROUNDING) * shared[1]).nonzero()[0]
        if len(chosen) == 0:
            chosen = np.array([np.argmax(self._shared(whole, width_px, height_px)[0])])
        return Placement(x=whole.x[chosen], y=whole.y[chosen], edge_px=whole.edge_px)

    def _shared(
        self, placement: Placement, width_px: int, height_px: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Give, px², what of every patch lies in the polygons, and what in the image."""
        shapely = _shapely()
        right = np.minimum(placement.x + placement.edge_px, width_px)
        bottom = np.minimum(placement.y + placement.edge_px, height_px)
        squares = shapely.box(placement.x, placement.y, right, bottom)
        areas = shapely.area(squares)
        shared = np.where(shapely.contains(self.area, squares), areas, 0.0)
        # Cutting is slow: only what the outline runs through.
        cut = shapely.intersects(self.area, squares) & (shared == 0)
        shared[cut] = shapely.area(shapely.intersection(self.area, squares[cut]))
        return shared, areas


def read_places(given: Given, storage_options: Mapping[str, Any] | None = None) -> Places:
    """Read the file that says where the patches of an image lie.

    Raises
    ------
    ImageError
        If it is not what the column says; one line with its name.
    StorageError
        If it cannot be read.
    MissingExtra
        If it holds polygons and shapely is not installed.
    """
    content = read_bytes(given.url, storage_options)
    parse = parse_coordinates if given.kind == "coordinates" else parse_geojson
    return parse(content, given.url)


def parse_coordinates(content: bytes, url: str) -> Coordinates:
    r"""Read a table of corners: CSV or, as its first bytes tell, Parquet.

    Raises
    ------
    ImageError
        If it is no table with whole numbers in the columns ``x`` and ``y``, is empty, or
        names a patch twice.

    Examples
    --------
    >>> parse_coordinates(b"x,y,note\n0,256,a\n512,256,b\n", "a.csv").x.tolist()
    [0, 512]
    """
    name = public_url(url)
    columns = _parquet(content, name) if content[:4] == b"PAR1" else _csv(content, name)
    by_name = {key.strip().lower(): cells for key, cells in columns.items()}
    missing = [key for key in ("x", "y") if key not in by_name]
    if missing:
        raise ImageError(
            f"{name}: no column {' and '.join(missing)}; it has {', '.join(columns) or 'none'}"
        )
    x, y = (_whole_numbers(by_name[key], key, name) for key in ("x", "y"))
    if not 0 < len(x) <= MAX_POSITIONS:
        raise ImageError(f"{name}: gives {len(x):,} patches; give 1 to {MAX_POSITIONS:,}")
    places, counts = np.unique(np.stack([x, y]), axis=1, return_counts=True)
    if counts.max() > 1:
        twice = places[:, np.argmax(counts)]
        raise ImageError(f"{name}: the patch at x {twice[0]}, y {twice[1]} is there twice")
    return Coordinates(url=url, x=x, y=y)


def _csv(content: bytes, name: str) -> dict[str, Sequence[Any]]:
    try:
        text = content.decode("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(row)]
        columns = list(zip(*rows, strict=True))
        return {header: cells for header, *cells in columns}
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise ImageError(
            f"{name}: is no CSV table with a header and even rows ({reason})"
        ) from error


def _parquet(content: bytes, name: str) -> dict[str, Sequence[Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(content))
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise ImageError(f"{name}: is no readable Parquet file ({reason})") from error
    return {key: table.column(key).to_pylist() for key in table.column_names}


def _whole_numbers(cells: Sequence[Any], column: str, name: str) -> NDArray[np.int64]:
    numbers = np.empty(len(cells), np.int64)
    for row, cell in enumerate(cells):
        try:
            value = float(cell)
            numbers[row] = int(value)
        except (TypeError, ValueError, OverflowError):
            value = 0.5
        if not value.is_integer() or abs(value) >= 2**31:
            raise ImageError(
                f"{name}: row {row + 2}: {column} is {cell!r}; give whole level-0 pixels"
            )
    return numbers


def parse_geojson(content: bytes, url: str) -> Annotation:
    """Read polygons.

    Parameters
    ----------
    content
        GeoJSON: a FeatureCollection, a Feature, a geometry, or a list of these.
    url
        Its name, for messages.

    Raises
    ------
    ImageError
        If it is no GeoJSON, or holds anything but polygons, or none.
    MissingExtra
        If shapely is not installed.

    Examples
    --------
    >>> ring = [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]]
    >>> document = {"type": "Polygon", "coordinates": [ring]}
    >>> parse_geojson(json.dumps(document).encode(), "a.geojson").area.area
    16.0
    """
    shapely, name = _shapely(), public_url(url)
    try:
        document = json.loads(content.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise ImageError(f"{name}: is no JSON ({error})") from error
    areas = []
    for number, geometry in enumerate(_geometries(document), start=1):
        kind = geometry.get("type") if isinstance(geometry, dict) else type(geometry).__name__
        if kind not in ("Polygon", "MultiPolygon"):
            raise ImageError(f"{name}: geometry {number} is of type {kind}; draw polygons")
        try:
            areas.append(_polygon(shapely, geometry))
        # Shapely raises whatever numpy or its own C library do on rings of a wrong shape.
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ImageError(f"{name}: geometry {number} is no polygon ({reason})") from error
    if not areas:
        raise ImageError(f"{name}: holds no polygon; export the annotations as GeoJSON")
    return Annotation(url=url, area=shapely.union_all(areas))


def _geometries(document: Any) -> Iterator[Any]:
    """Yield the geometries in a document, however they are wrapped."""
    kind = document.get("type") if isinstance(document, dict) else None
    parts: Iterable[Any] | None = None
    if isinstance(document, list):
        parts = document
    elif kind == "FeatureCollection":
        parts = document.get("features")
    elif kind == "GeometryCollection":
        parts = document.get("geometries")
    elif kind == "Feature":
        parts = [document.get("geometry")]
    if not isinstance(parts, list):
        yield document
        return
    for part in parts:
        yield from _geometries(part)


def _polygon(shapely: Any, geometry: dict[str, Any]) -> Any:
    from shapely.geometry import shape

    polygon = shape(geometry)
    if polygon.is_empty or not np.isfinite(shapely.get_coordinates(polygon)).all():
        raise ValueError("it has no corners, or some that are no numbers")
    if not polygon.is_valid:
        # A line drawn by hand may cross itself; what it encloses is meant.
        polygon = shapely.make_valid(polygon)
    if polygon.area == 0:
        raise ValueError("it encloses nothing")
    return polygon


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise MissingExtra.named("shapely", extra="slides") from error
    return shapely
