"""One synthetic H&E picture: tissue that is alike in all classes, then planted lesions.

A picture is two maps of stain, haematoxylin and eosin, turned into light by the Beer-Lambert
law: ``I = I0 · exp(−(H·h + E·e))`` for each colour, with ``h`` and ``e`` the optical densities
of the two stains (Ruifrok and Johnston 2001), a little different for every patient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from histostore.synthetic.stamps import N_ANGLES, press, stamps

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "LESIONS",
    "Lesion",
    "Stain",
    "Tissue",
    "grow_lesion",
    "paint_lesion",
    "paint_tissue",
    "to_rgb",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stain:
    """How one patient's section was stained and lit."""

    haematoxylin: NDArray[np.float32]
    """Optical density of one unit, ``(3,)``."""

    eosin: NDArray[np.float32]
    """Optical density of one unit, ``(3,)``."""

    white: NDArray[np.float32]
    """Light through bare glass, ``(3,)``, 0 … 255."""

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Stain:
        """Draw a stain: strength and hue vary as between laboratories."""
        haematoxylin = np.array([0.66, 0.69, 0.30]) + rng.normal(0, 0.035, 3)
        eosin = np.array([0.12, 0.93, 0.34]) + rng.normal(0, 0.04, 3)
        return cls(
            haematoxylin=(haematoxylin * rng.uniform(0.8, 1.25)).astype(np.float32),
            eosin=(np.clip(eosin, 0.04, None) * rng.uniform(0.75, 1.3)).astype(np.float32),
            white=(rng.uniform(236, 250) + rng.normal(0, 2, 3)).astype(np.float32),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesion:
    """How the planted cells of one class look."""

    nuclei: str
    """A kind of :data:`~histostore.synthetic.stamps.KINDS`."""

    pitch_px: float
    """From one nucleus to the next."""

    eosin: float
    """Between the nuclei."""

    haematoxylin: float
    """Between the nuclei."""


LESIONS = {
    "large-cell": Lesion(nuclei="large", pitch_px=21, eosin=0.42, haematoxylin=0.20),
    "small-cell": Lesion(nuclei="small", pitch_px=10.5, eosin=0.16, haematoxylin=0.18),
    "spindle-cell": Lesion(nuclei="spindle", pitch_px=12.5, eosin=0.50, haematoxylin=0.12),
    "mucinous": Lesion(nuclei="crescent", pitch_px=24, eosin=0.13, haematoxylin=0.08),
}
"""What each class shows in its planted cells, in the order of the classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tissue:
    """The two stains of one picture, changed in place while it is painted."""

    haematoxylin: NDArray[np.float32]
    """``(y, x)``, about 1 in a nucleus."""

    eosin: NDArray[np.float32]
    """``(y, x)``, about 0.5 in stroma, 0 on glass."""

    phase: NDArray[np.float32]
    """``(y, x)``, radians: fibres run along its level lines."""

    glass: NDArray[np.float32]
    """``(y, x)``, 0 … 1: share of bare glass, outside the tissue or in a lumen."""

    nuclei: list[NDArray[np.float64]] = field(default_factory=list)
    """Centres of the nuclei so far, ``(nucleus, 2)`` (x, y), group by group."""


@lru_cache(maxsize=64)
def _interpolation(length: int, knots: int) -> NDArray[np.float32]:
    """Weights of cubic B-splines: ``(length, knots)``, rows sum to 1."""
    at = np.linspace(1, knots - 2, length)[:, None] - np.arange(knots)[None, :]
    near = np.abs(at)
    weights = np.where(near < 1, 2 / 3 - near**2 + near**3 / 2, np.clip(2 - near, 0, None) ** 3 / 6)
    result: NDArray[np.float32] = weights.astype(np.float32)
    result.setflags(write=False)
    return result


def _clouds(
    shape: tuple[int, int], grain_px: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Give smooth noise of about unit variance, with features of about ``grain_px``."""
    knots = [max(4, round(length / grain_px) + 3) for length in shape]
    coarse = rng.standard_normal(knots, dtype=np.float32)
    smooth = _interpolation(shape[0], knots[0]) @ coarse @ _interpolation(shape[1], knots[1]).T
    # The spline leaves about 0.48 of the knots' standard deviation.
    return np.asarray(smooth * np.float32(2.1), dtype=np.float32)


def paint_tissue(shape: tuple[int, int], rng: np.random.Generator) -> Tissue:
    """Paint stroma with fibres and spindle nuclei, glands, stray lymphocytes and bare glass.

    Nothing here knows of classes.

    Parameters
    ----------
    shape
        Height and width, px.
    rng
        Decides everything.
    """
    tissue = _stroma(shape, rng)
    for _ in range(rng.poisson(2.2 * shape[0] * shape[1] / 512**2)):
        _gland(tissue, rng)
    _scatter_stroma_nuclei(tissue, rng)
    return tissue


def _stroma(shape: tuple[int, int], rng: np.random.Generator) -> Tissue:
    y, x = (axis.astype(np.float32) for axis in np.ogrid[0 : shape[0], 0 : shape[1]])
    angle = rng.uniform(0, np.pi)
    wave = rng.uniform(13, 20)  # px between fibre bundles
    pace = 2 * np.pi / wave
    phase = _clouds(shape, 150, rng) * np.float32(6)
    phase += x * np.float32(pace * np.cos(angle)) + y * np.float32(pace * np.sin(angle))
    phase += _clouds(shape, 34, rng) * np.float32(1.3)
    bundles = np.sin(phase)
    threads = np.sin(phase * np.float32(2.7) + _clouds(shape, 22, rng) * np.float32(1.6))
    density = _clouds(shape, 70, rng)
    eosin = 0.5 + 0.09 * bundles + 0.06 * threads + 0.07 * density
    cracks = np.clip(-bundles * (0.5 + 0.3 * _clouds(shape, 45, rng)) - 0.62, 0, 0.25) * 4
    eosin *= 1 - 0.8 * cracks
    edge = _clouds(shape, 230, rng) + np.float32(0.25) * _clouds(shape, 26, rng)
    glass = np.clip((edge - np.float32(rng.uniform(1.15, 2.6))) * 9, 0, 1)
    eosin *= 1 - glass
    return Tissue(
        haematoxylin=np.clip(0.03 + 0.03 * density, 0, None) * (1 - glass),
        eosin=eosin,
        phase=phase,
        glass=glass,
    )


def _gland(tissue: Tissue, rng: np.random.Generator) -> None:
    """Paint one gland: a lumen, a band of cytoplasm, nuclei at its base."""
    height, width = tissue.eosin.shape
    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    radius, band = rng.uniform(26, 48), rng.uniform(13, 18)
    squash = rng.uniform(0.65, 1.0)
    tilt = rng.uniform(0, np.pi)
    waves = [(order, rng.normal(0, 0.05), rng.uniform(0, 2 * np.pi)) for order in (2, 3, 4, 5)]

    def outline(turn: NDArray[np.floating]) -> NDArray[np.floating]:
        ripple = np.zeros_like(turn)
        for order, amplitude, start in waves:
            ripple += amplitude * np.cos(order * turn + start)
        return radius * (1 + ripple)

    reach = int(radius * 1.5 + band) + 4
    x0, x1 = max(0, int(cx) - reach), min(width, int(cx) + reach)
    y0, y1 = max(0, int(cy) - reach), min(height, int(cy) + reach)
    y, x = np.ogrid[y0:y1, x0:x1]
    u = (x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)
    v = ((y - cy) * np.cos(tilt) - (x - cx) * np.sin(tilt)) / squash
    depth = outline(np.arctan2(v, u)) - np.hypot(u, v)  # px inside the basement membrane
    here = np.s_[y0:y1, x0:x1]
    inside = np.clip(depth + 0.5, 0, 1).astype(np.float32)
    _paint_over(tissue, inside > 0.5, x0, y0)
    lumen = np.clip((depth - band) / 2, 0, 1).astype(np.float32)
    cytoplasm = np.float32(0.42) - np.float32(0.08) * np.clip(depth / band, 0, 1)
    tissue.eosin[here] += (cytoplasm - tissue.eosin[here]) * inside
    tissue.haematoxylin[here] += (np.float32(0.14) - tissue.haematoxylin[here]) * inside
    tissue.eosin[here] *= 1 - np.float32(0.96) * lumen
    tissue.haematoxylin[here] *= 1 - lumen
    np.maximum(tissue.glass[here], lumen, out=tissue.glass[here])
    turns = np.arange(0, 2 * np.pi, 11.5 / radius)
    turns = turns + rng.normal(0, 0.05, len(turns))
    out = outline(turns) - rng.normal(6.5, 1.2, len(turns))
    u, v = out * np.cos(turns), out * np.sin(turns) * squash
    x, y = cx + u * np.cos(tilt) - v * np.sin(tilt), cy + u * np.sin(tilt) + v * np.cos(tilt)
    _put(tissue, "epithelial", np.stack([x, y], axis=1), np.arctan2(y - cy, x - cx), rng)


def _scatter_stroma_nuclei(tissue: Tissue, rng: np.random.Generator) -> None:
    shape = tissue.eosin.shape
    density = _clouds(shape, 90, rng)
    for kind, pitch, level in (("fibroblast", 25, -0.7), ("lymphocyte", 17, 1.75)):
        points = _lattice(shape, pitch, 0.45, rng)
        ix, iy = points.astype(int).T
        ok = (density[iy, ix] > level) & (tissue.glass[iy, ix] < 0.1)
        ok &= tissue.haematoxylin[iy, ix] < 0.12  # not in a gland
        ix, iy = ix[ok], iy[ok]
        right, below = np.minimum(ix + 1, shape[1] - 1), np.minimum(iy + 1, shape[0] - 1)
        slope_x = tissue.phase[iy, right] - tissue.phase[iy, ix]
        slope_y = tissue.phase[below, ix] - tissue.phase[iy, ix]
        along = np.arctan2(slope_x, -slope_y) + rng.normal(0, 0.2, len(ix))
        _put(tissue, kind, points[ok], along, rng)


def _lattice(
    shape: tuple[int, ...], pitch: float, jitter: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Give points ``(point, 2)`` (x, y) inside a picture, evenly but not regularly spread."""
    height, width = shape
    y, x = np.mgrid[pitch / 2 : height : pitch, pitch / 2 : width : pitch]
    x[1::2] += pitch / 2
    points = np.stack([x.ravel(), y.ravel()], axis=1)
    points += rng.uniform(-jitter * pitch, jitter * pitch, points.shape)
    inside = (points >= 0).all(axis=1) & (points[:, 0] < width) & (points[:, 1] < height)
    return points[inside]


def _put(
    tissue: Tissue,
    kind: str,
    points: NDArray[np.float64],
    angles: NDArray[np.float64],
    rng: np.random.Generator,
) -> None:
    """Press nuclei of one kind into the tissue, long axes at ``angles``."""
    library = stamps(kind)
    turns = np.round(angles / np.pi * N_ANGLES).astype(int) % N_ANGLES
    shapes = rng.integers(len(library[0]), size=len(points))
    strengths = rng.uniform(0.8, 1.15, len(points))
    corners = np.round(points).astype(int)
    inside = ((corners >= 0) & (corners < tissue.eosin.shape[::-1])).all(axis=1)
    tissue.nuclei.append(corners[inside].astype(np.float64))
    for (x, y), turn, shape, strength in zip(
        corners.tolist(), turns.tolist(), shapes.tolist(), strengths.tolist(), strict=True
    ):
        press(tissue.haematoxylin, library[turn][shape], x, y, strength)


def _paint_over(tissue: Tissue, covered: NDArray[np.bool_], x0: int = 0, y0: int = 0) -> None:
    """Forget the nuclei whose centres are under what is painted next.

    ``covered`` is a window, ``(y, x)``, with its top-left corner at (``x0``, ``y0``).
    """
    for group, points in enumerate(tissue.nuclei):
        x, y = (points - (x0, y0)).astype(int).T
        gone = (x >= 0) & (x < covered.shape[1]) & (y >= 0) & (y < covered.shape[0])
        gone[gone] = covered[y[gone], x[gone]]
        tissue.nuclei[group] = points[~gone]


def grow_lesion(
    glass_share: NDArray[np.floating], n_cells: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Choose connected grid cells for a lesion, away from bare glass where possible.

    Parameters
    ----------
    glass_share
        ``(row, column)`` of cells, 0 … 1.
    n_cells
        How many to choose; no more than there are.

    Returns
    -------
    planted
        ``(row, column)`` bool.
    """
    from scipy.ndimage import binary_dilation

    # Cells in a random order, those on glass last.
    order = rng.permutation(glass_share.size).reshape(glass_share.shape)
    cost = order + glass_share.size * np.ceil(np.clip(glass_share - 0.05, 0, 1) * 10)
    planted = np.zeros(glass_share.shape, dtype=bool)
    planted.flat[np.argmin(cost)] = True
    for _ in range(min(n_cells, planted.size) - 1):
        border = binary_dilation(planted) & ~planted
        planted.flat[np.argmin(np.where(border, cost, np.inf))] = True
    return planted


def paint_lesion(
    tissue: Tissue,
    lesion: str,
    planted: NDArray[np.bool_],
    cell_px: int,
    rng: np.random.Generator,
) -> None:
    """Put a lesion into the planted cells in place of what was there.

    ``large-cell``: crowded, big, irregular, vesicular nuclei with nucleoli. ``small-cell``:
    sheets of small dark round nuclei. ``spindle-cell``: bundles of long parallel nuclei.
    ``mucinous``: pale pools with round vacuoles, their nuclei pushed to the side.
    """
    from scipy.ndimage import uniform_filter

    shape = tissue.eosin.shape
    inside = np.zeros(shape, dtype=np.float32)
    cells = np.kron(planted, np.ones((cell_px, cell_px), dtype=np.float32))
    inside[: cells.shape[0], : cells.shape[1]] = cells
    # A border that wanders by a few px about the cells' edges, as tumours have no corners;
    # far from the edges nothing wanders, so that no lesion strays into other cells.
    ragged = uniform_filter(inside, 13)
    ragged += _clouds(shape, 14, rng) * ragged * (1 - ragged)
    soft = np.clip((ragged - np.float32(0.5)) * 3 + np.float32(0.5), 0, 1)
    _paint_over(tissue, soft > 0.5)
    look = LESIONS[lesion]
    flow = np.float32(0.05) * np.sin(tissue.phase)
    tissue.eosin[:] += (np.float32(look.eosin) + flow - tissue.eosin) * soft
    tissue.haematoxylin[:] += (np.float32(look.haematoxylin) - tissue.haematoxylin) * soft
    points = _lattice(shape, look.pitch_px, 0.22, rng)
    ix, iy = points.astype(int).T
    points = points[soft[iy, ix] > 0.5]
    if lesion == "mucinous":
        angles = rng.uniform(0, 2 * np.pi, len(points))
        for x, y in np.round(points).astype(int).tolist():
            _vacuole(tissue, x, y, rng.uniform(6.5, 10))
        points = points + 9 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        angles = angles + np.pi / 2
    elif lesion == "spindle-cell":
        angles = rng.uniform(0, np.pi) + rng.normal(0, 0.15, len(points))
    else:
        angles = rng.uniform(0, np.pi, len(points))
    _put(tissue, look.nuclei, points, angles, rng)


def _vacuole(tissue: Tissue, x: int, y: int, radius: float) -> None:
    """Clear a round hole, with a thin eosin rim."""
    height, width = tissue.eosin.shape
    reach = int(radius) + 3
    y0, y1, x0, x1 = (
        max(y - reach, 0),
        min(y + reach, height),
        max(x - reach, 0),
        min(x + reach, width),
    )
    if y0 >= y1 or x0 >= x1:
        return
    v, u = np.ogrid[y0 - y : y1 - y, x0 - x : x1 - x]
    depth = radius - np.hypot(u, v)
    here = np.s_[y0:y1, x0:x1]
    tissue.eosin[here] += (0.35 * np.exp(-((depth / 1.4) ** 2))).astype(np.float32)
    tissue.eosin[here] *= 1 - np.clip(depth - 1, 0, 0.9).astype(np.float32)


def to_rgb(tissue: Tissue, stain: Stain, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn stains into a slightly blurred and noisy picture, ``(y, x, 3)`` uint8."""
    haematoxylin, eosin = _blurred(tissue.haematoxylin), _blurred(tissue.eosin)
    noise = rng.standard_normal(tissue.eosin.shape, dtype=np.float32)
    grain = rng.standard_normal(tissue.eosin.shape, dtype=np.float32)
    picture = np.empty((*tissue.eosin.shape, 3), dtype=np.uint8)
    for channel in range(3):
        density = haematoxylin * stain.haematoxylin[channel]
        density += eosin * stain.eosin[channel]
        light = np.exp(-density, out=density)
        light *= stain.white[channel]
        light += noise * np.float32(1.6) + grain * np.float32((channel - 1) * 1.2)
        np.clip(light, 0, 255, out=light)
        picture[..., channel] = light
    return picture


def _blurred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convolve with (1, 2, 1) / 4 along both axes: a Gaussian of 0.7 px; the border stays."""
    for _ in range(2):
        sharp, values = values, values.copy()
        values[1:-1] += sharp[:-2]
        values[1:-1] += sharp[1:-1]
        values[1:-1] += sharp[2:]
        values[1:-1] *= np.float32(0.25)
        values = values.T
    return values
