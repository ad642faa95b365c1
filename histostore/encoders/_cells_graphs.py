"""Graphs on points: Delaunay triangles, Voronoi cells, minimum spanning tree, neighbours."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NEIGHBOURS", "RADII", "Tessellation", "neighbourhoods", "tessellate", "tree"]

NEIGHBOURS = (1, 3, 5, 7)
"""Whose distance is measured: of the nearest, of the third nearest, …."""

RADII = (10, 20, 30, 40, 50)
"""Within which others are counted, px (Doyle et al. 2008)."""

_RADII = np.array(RADII, np.float64)
_FURTHEST = float(max(RADII))
_N_NEAREST = max(NEIGHBOURS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tessellation:
    """What Delaunay triangles and Voronoi cells measure, where the patch shows all of them."""

    cells: NDArray[np.float64]
    """``(cell, 4)``: area, perimeter, longest distance between two corners, roundness
    4π · area / perimeter²."""

    sides: NDArray[np.float64]
    """``(side,)``: lengths of the triangles' sides, each side once."""

    pairs: NDArray[np.int64]
    """``(side, 2)``: the points that a side joins."""

    triangles: NDArray[np.float64]
    """``(triangle,)``: areas."""


@compiled()
def _circles(
    points: NDArray[np.float64], corners: NDArray[np.int32]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give the centres of the triangles' circumcircles, ``(triangle, 2)``, and their areas."""
    centres, areas = np.empty((len(corners), 2)), np.empty(len(corners))
    for t in range(len(corners)):
        a, b, c = points[corners[t, 0]], points[corners[t, 1]], points[corners[t, 2]]
        ux, uy, vx, vy = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
        cross = ux * vy - uy * vx
        u, v = ux * ux + uy * uy, vx * vx + vy * vy
        areas[t] = abs(cross) / 2
        # A flat triangle has no circle: its centre is nowhere in the patch.
        centres[t, 0] = a[0] + (vy * u - uy * v) / (2 * cross) if cross != 0 else math.inf
        centres[t, 1] = a[1] + (ux * v - vx * u) / (2 * cross) if cross != 0 else math.inf
    return centres, areas


@compiled()
def _cell(
    corners: NDArray[np.float64], site: NDArray[np.float64], out: NDArray[np.float64]
) -> None:
    """Fill ``out`` with the measures of a convex cell around ``site``; corners in any order."""
    n = len(corners)
    angles, order = np.empty(n), np.empty(n, np.int64)
    for k in range(n):  # insertion: there are six corners or so
        angle = math.atan2(corners[k, 1] - site[1], corners[k, 0] - site[0])
        at = k
        while at > 0 and angles[at - 1] > angle:
            angles[at], order[at] = angles[at - 1], order[at - 1]
            at -= 1
        angles[at], order[at] = angle, k
    area, perimeter, longest = 0.0, 0.0, 0.0
    for k in range(n):
        p, q = corners[order[k]], corners[order[(k + 1) % n]]
        area += ((p[0] - site[0]) * (q[1] - site[1]) - (q[0] - site[0]) * (p[1] - site[1])) / 2
        perimeter += math.hypot(q[0] - p[0], q[1] - p[1])
        for j in range(k):
            other = corners[order[j]]
            longest = max(longest, math.hypot(other[0] - p[0], other[1] - p[1]))
    out[0], out[1], out[2] = area, perimeter, longest
    out[3] = 4 * math.pi * area / (perimeter * perimeter) if perimeter > 0 else 0.0


@compiled()
def _cells(
    points: NDArray[np.float64],
    corners: NDArray[np.int32],
    beyond: NDArray[np.int32],
    centres: NDArray[np.float64],
    shown: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """Measure the Voronoi cells all of whose corners are shown."""
    start = np.zeros(len(points) + 1, np.int64)
    whole = np.ones(len(points), np.bool_)
    for t in range(len(corners)):
        for k in range(3):
            start[corners[t, k] + 1] += 1
            whole[corners[t, k]] &= shown[t]
            if beyond[t, k] < 0:  # the side opposite to corner k is on the hull
                whole[corners[t, (k + 1) % 3]] = False
                whole[corners[t, (k + 2) % 3]] = False
    for v in range(len(points)):
        start[v + 1] += start[v]
    around = np.empty((3 * len(corners), 2))
    filled = start.copy()
    for t in range(len(corners)):
        for k in range(3):
            at = filled[corners[t, k]]
            around[at, 0], around[at, 1] = centres[t, 0], centres[t, 1]
            filled[corners[t, k]] += 1
    out = np.empty((len(points), 4))
    n = 0
    for v in range(len(points)):
        if whole[v] and start[v + 1] - start[v] >= 3:
            _cell(around[start[v] : start[v + 1]], points[v], out[n])
            n += 1
    return out[:n]


@compiled()
def _sides(
    points: NDArray[np.float64],
    corners: NDArray[np.int32],
    beyond: NDArray[np.int32],
    shown: NDArray[np.bool_],
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Give the length of each side of the shown triangles, and the points it joins."""
    lengths = np.empty(3 * len(corners))
    pairs = np.empty((3 * len(corners), 2), np.int64)
    n = 0
    for t in range(len(corners)):
        if not shown[t]:
            continue
        for k in range(3):
            other = beyond[t, k]
            if other >= 0 and shown[other] and other < t:
                continue  # it has given this side
            a, b = corners[t, (k + 1) % 3], corners[t, (k + 2) % 3]
            lengths[n] = math.hypot(points[a, 0] - points[b, 0], points[a, 1] - points[b, 1])
            pairs[n, 0], pairs[n, 1] = a, b
            n += 1
    return lengths[:n], pairs[:n]


def tessellate(points: NDArray[np.float64], size: int) -> Tessellation:
    """Measure the Delaunay triangles and Voronoi cells of points in a square patch.

    A triangle counts if the centre of its circumcircle lies in the patch: outside, a point
    that the patch does not show may break it up. A Voronoi cell counts if all its corners,
    which are such centres, lie in the patch.

    Parameters
    ----------
    points
        ``(point, 2)``: x and y, px; the patch reaches from −0.5 to ``size`` − 0.5.
    size
        Edge of the patch, px.

    Returns
    -------
    tessellation
        Empty for fewer than three points, and for points on one line.
    """
    from scipy.spatial import Delaunay, QhullError

    nothing = Tessellation(
        cells=np.empty((0, 4)),
        sides=np.empty(0),
        pairs=np.empty((0, 2), np.int64),
        triangles=np.empty(0),
    )
    if len(points) < 3:
        return nothing
    try:
        found = Delaunay(points)
    except QhullError:  # all on one line
        return nothing
    centres, areas = _circles(points, found.simplices)
    shown: NDArray[np.bool_] = np.all((centres >= -0.5) & (centres <= size - 0.5), axis=1)
    sides, pairs = _sides(points, found.simplices, found.neighbors, shown)
    cells = _cells(points, found.simplices, found.neighbors, centres, shown)
    return Tessellation(cells=cells, sides=sides, pairs=pairs, triangles=areas[shown])


@compiled()
def tree(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the lengths of the edges of the minimum spanning tree (Prim 1957).

    Parameters
    ----------
    points
        ``(point, 2)``, px.

    Returns
    -------
    lengths
        ``(point − 1,)``, px; none for no point.
    """
    n = len(points)
    lengths = np.empty(max(n - 1, 0))
    near = np.full(n, math.inf)  # squared distance to the tree so far; −1 inside it
    last = 0
    for k in range(n - 1):
        near[last] = -1.0
        nearest = -1
        for i in range(n):
            if near[i] < 0:
                continue
            u, v = points[i, 0] - points[last, 0], points[i, 1] - points[last, 1]
            near[i] = min(near[i], u * u + v * v)
            if nearest < 0 or near[i] < near[nearest]:
                nearest = i
        lengths[k] = math.sqrt(near[nearest])
        last = nearest
    return lengths


@compiled()
def neighbourhoods(
    points: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Give each point's distances to the nearest others, and how many lie close.

    Parameters
    ----------
    points
        ``(point, 2)``, px.

    Returns
    -------
    distances
        ``(7, point)``: to the nearest, the second, …, px; infinite where there is none.
    counts
        ``(radius, point)``: others within each of :data:`RADII`.
    """
    n = len(points)
    distances = np.full((_N_NEAREST, n), math.inf)
    counts = np.zeros((len(_RADII), n))
    nearest = np.empty(_N_NEAREST)
    furthest = _FURTHEST * _FURTHEST
    xs, ys = points[:, 0].copy(), points[:, 1].copy()
    for i in range(n):
        for k in range(_N_NEAREST):
            nearest[k] = math.inf
        x, y = xs[i], ys[i]
        for j in range(n):
            square = (xs[j] - x) * (xs[j] - x) + (ys[j] - y) * (ys[j] - y)
            if i == j or (square > furthest and square >= nearest[_N_NEAREST - 1]):
                continue
            for r in range(len(_RADII)):
                counts[r, i] += square <= _RADII[r] * _RADII[r]
            at = _N_NEAREST
            while at > 0 and square < nearest[at - 1]:
                at -= 1
            for k in range(_N_NEAREST - 1, at, -1):
                nearest[k] = nearest[k - 1]
            if at < _N_NEAREST:
                nearest[at] = square
        for k in range(_N_NEAREST):
            distances[k, i] = math.sqrt(nearest[k])
    return distances, counts
