"""From nuclei to numbers: the order and the names of the features, and what is absent."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._cells_graphs import (
    NEIGHBOURS,
    RADII,
    Tessellation,
    neighbourhoods,
    tessellate,
    tree,
)
from histostore.encoders._cells_stain import UNIT
from histostore.jit import compiled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.encoders._cells_nuclei import Nuclei

__all__ = ["FEATURE_NAMES", "describe"]

_PRESENT = (
    *("nuclei", "shape", "orientation", "pairs", "voronoi", "delaunay", "tree"),
    *(f"near{k}" for k in NEIGHBOURS[1:]),
)
_SHAPES = ("area", "major", "minor", "eccentricity", "solidity")
_STAINS = ("amount", "grain", "total")
_CELLS = ("area", "perimeter", "chord")
_PROFILE = ("mean", "sd", "p10", "p50", "p90")
_SPREAD = ("mean", "sd", "ratio", "disorder")
_N_DIRECTIONS = 8
_ELONGATED = 0.5  # least eccentricity of a nucleus that has a direction


def _names() -> tuple[str, ...]:
    """Name every feature, in order."""
    around = [f"d{k}" for k in NEIGHBOURS] + [f"r{radius}" for radius in RADII]
    return (
        *(f"present.{what}" for what in _PRESENT),
        *(f"count.{what}" for what in ("nuclei", "density", "coverage", "cut")),
        *(f"shape.{what}.{how}" for what in _SHAPES for how in _PROFILE),
        *(f"stain.{what}.{how}" for what in _STAINS for how in _PROFILE),
        *(f"stain.outside.H.{how}" for how in ("mean", "sd")),
        *(f"stain.{where}.E.mean" for where in ("inside", "outside")),
        *(f"orientation.{what}" for what in ("share", "alignment", "entropy")),
        *(f"pairs.{what}" for what in ("alignment", "angle", "entropy", "energy", "information")),
        *(f"voronoi.{what}.{how}" for what in _CELLS for how in _SPREAD),
        *(f"voronoi.roundness.{how}" for how in ("mean", "sd")),
        *(f"delaunay.{what}.{how}" for what in ("side", "area") for how in _SPREAD),
        *(f"tree.length.{how}" for how in _SPREAD),
        *(f"near.{what}.{how}" for what in around for how in ("mean", "sd", "disorder")),
    )


FEATURE_NAMES: tuple[str, ...] = _names()
"""``family.measure.statistic`` of each feature, as in ``voronoi.area.disorder``."""


@compiled()
def _spread(values: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Give mean, standard deviation, least by greatest, disorder 1 − 1 / (1 + sd / mean)."""
    mean, sd, low, high = 0.0, 0.0, math.inf, -math.inf
    if len(values) == 0:
        return 0.0, 0.0, 0.0, 0.0
    for value in values:
        mean += value / len(values)
        low, high = min(low, value), max(high, value)
    for value in values:
        sd += (value - mean) * (value - mean)
    sd = math.sqrt(sd / len(values))
    # Values are not negative: a mean of zero is zeros alone.
    return mean, sd, low / high if high > 0 else 0.0, sd / (mean + sd) if mean > 0 else 0.0


@compiled()
def _profile(ranked: NDArray[np.float64]) -> tuple[float, float, float, float, float]:
    """Give mean, standard deviation, percentiles 10, 50, 90 (linear) of ascending values."""
    if len(ranked) == 0:
        return 0.0, 0.0, 0.0, 0.0, 0.0
    mean, sd = 0.0, 0.0
    for value in ranked:
        mean += value / len(ranked)
    for value in ranked:
        sd += (value - mean) * (value - mean)
    found = np.empty(3)
    for k in range(3):
        place = (len(ranked) - 1) * (0.1, 0.5, 0.9)[k]
        low = int(place)
        high = min(low + 1, len(ranked) - 1)
        found[k] = ranked[low] + (ranked[high] - ranked[low]) * (place - low)
    return mean, math.sqrt(sd / len(ranked)), found[0], found[1], found[2]


@compiled()
def _stains(
    label: NDArray[np.int32], haematoxylin: NDArray[np.int32], eosin: NDArray[np.int32]
) -> NDArray[np.float64]:
    """Give mean and deviation of H outside nuclei, mean E inside and outside, share inside."""
    inside, h, e_in, e_out = 0, 0, 0, 0
    squares = np.int64(0)
    for y in range(label.shape[0]):
        for x in range(label.shape[1]):
            if label[y, x]:
                inside += 1
                e_in += eosin[y, x]
            else:
                h += haematoxylin[y, x]
                squares += np.int64(haematoxylin[y, x]) * np.int64(haematoxylin[y, x])
                e_out += eosin[y, x]
    out = np.zeros(5)
    outside = label.size - inside
    if outside > 0:
        out[0] = h / outside
        out[1] = math.sqrt(max(squares / outside - out[0] * out[0], 0.0))
        out[3] = e_out / outside
    if inside > 0:
        out[2] = e_in / inside
    out[4] = inside / label.size
    return out


def _entropy(shares: NDArray[np.float64]) -> float:
    """Give −Σ p log p by its greatest value: 0 for one certain thing, 1 for all alike."""
    seen = shares[shares > 0]
    # Not −0 for a single certain thing.
    return abs(float(seen @ np.log(seen))) / math.log(shares.size)


def _directions(angles: NDArray[np.float64]) -> NDArray[np.int64]:
    """Sort angles into eighths of half a turn; 0, 45, 90 and 135 degrees are middles."""
    return np.floor(angles / math.pi * _N_DIRECTIONS + 0.5).astype(np.int64) % _N_DIRECTIONS


def _orientation(angles: NDArray[np.float64], n_nuclei: int) -> tuple[float, ...]:
    """Describe how much the elongated nuclei lie in one direction."""
    if len(angles) == 0:
        return (0.0,) * 3
    alignment = math.hypot(np.cos(2 * angles).mean(), np.sin(2 * angles).mean())
    counts = np.bincount(_directions(angles), minlength=_N_DIRECTIONS)
    return len(angles) / n_nuclei, alignment, _entropy(counts / len(angles))


def _co_occurrence(
    angles: NDArray[np.float64], elongated: NDArray[np.bool_], pairs: NDArray[np.int64]
) -> tuple[float, ...]:
    """Describe how directions of neighbours go together: a matrix as of grey levels."""
    both = pairs[elongated[pairs].all(axis=1)]
    if len(both) == 0:
        return (0.0,) * (5 + 1)
    between = np.abs(angles[both[:, 0]] - angles[both[:, 1]])
    between = np.minimum(between, math.pi - between)
    of = _directions(angles)[both]
    counts = np.bincount(of[:, 0] * _N_DIRECTIONS + of[:, 1], minlength=_N_DIRECTIONS**2)
    counts = counts.reshape(_N_DIRECTIONS, _N_DIRECTIONS)
    matrix: NDArray[np.float64] = (counts + counts.T) / (2 * len(both))
    single = _entropy(matrix.sum(axis=1))
    joint = _entropy(matrix)  # of twice as many bits
    return (
        1.0,
        float(np.cos(2 * between).mean()),
        float(between.mean()),
        joint,
        float((matrix**2).sum()),
        max(2 * single - 2 * joint, 0.0),
    )


def _graphs(points: NDArray[np.float64], mosaic: Tessellation) -> list[float]:
    """Describe cells, triangles, the tree and neighbourhoods."""
    # Copies: kernels are compiled for contiguous arrays alone.
    columns = np.ascontiguousarray(mosaic.cells.T)
    values = [part for column in columns[:3] for part in _spread(column)]
    values += _spread(columns[3])[:2]
    values += [*_spread(mosaic.sides), *_spread(mosaic.triangles), *_spread(tree(points))]
    distances, counts = neighbourhoods(points)
    for k in NEIGHBOURS:
        mean, sd, _, disorder = _spread(distances[k - 1] if len(points) > k else np.empty(0))
        values += [mean, sd, disorder]
    for row in counts:
        mean, sd, _, disorder = _spread(row)
        values += [mean, sd, disorder]
    return values


def describe(nuclei: Nuclei) -> NDArray[np.float64]:
    """Describe the nuclei of a square patch.

    What there is too little of to be measured is 0, and its ``present`` is 0 too. Nuclei cut
    by the patch's edge are points of the graphs, and have stain, but no shape or direction.

    Parameters
    ----------
    nuclei
        Of one patch.

    Returns
    -------
    features
        ``(feature,)``, finite, in the order of :data:`FEATURE_NAMES`.
    """
    n = len(nuclei)
    points = np.ascontiguousarray(nuclei.centres)
    cut = nuclei.column("cut") > 0
    angles = np.ascontiguousarray(nuclei.column("angle"))
    elongated = ~cut & (nuclei.column("eccentricity") >= _ELONGATED)
    mosaic = tessellate(points, len(nuclei.label))
    stains = _stains(nuclei.label, nuclei.haematoxylin, nuclei.eosin)
    has_pairs, *pairs = _co_occurrence(angles, elongated, mosaic.pairs)
    n_whole = n - int(cut.sum())
    present = (
        *(n > 0, n_whole > 0, elongated.any(), has_pairs),
        *(len(mosaic.cells) > 0, len(mosaic.triangles) > 0, n > 1),
        *(n > k for k in NEIGHBOURS[1:]),
    )
    shapes = [nuclei.column(what)[~cut] for what in _SHAPES]
    stained = [nuclei.column(what) for what in _STAINS]
    return np.array(
        [
            *present,
            *(n, n / nuclei.label.size * 1e4, stains[4], cut.mean() if n else 0.0),
            *(value for column in (*shapes, *stained) for value in _profile(np.sort(column))),
            *(stains[:4] / UNIT),
            *_orientation(angles[elongated], n_whole),
            *pairs,
            *_graphs(points, mosaic),
        ],
        np.float64,
    )
