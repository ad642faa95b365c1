"""Stain normalisation: make the colours of an image those of a cohort.

``reinhard``
    In CIELAB, tissue gets the mean and standard deviation of the cohort's tissue, channel by
    channel (Reinhard et al., IEEE Computer Graphics and Applications 21, 2001). Tissue is
    what is darker than 220 of 255; from there to white the change fades out, so that glass
    stays white. NOTE[DIFF]: Reinhard's colour space is lαβ; CIELAB is what pathology uses.
``macenko``
    In optical density, the amounts of two stains are told apart, made as large as in the
    cohort, and put together with the cohort's stain colours (Macenko et al., ISBI 2009). The
    stain colours of an image are the 1st and 99th percentile of direction (α = 1) in the
    plane of the first two singular vectors, of pixels whose density is at least β = 0.15 in
    the mean of red, green and blue; the amounts are compared by their 99th percentile. What
    lies outside the plane is lost, as in the paper. NOTE[DIFF]: natural logarithms, as
    implementations have, so that β stands for a grey of 219.

An image is measured once, on its thumbnail, and all its patches are changed alike. An image
with too little stain to be measured is left as it is, and flagged.

The numbers decide vectors, and so belong to what a feature set's digest stands for: other
numbers need another method name.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import FormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

__all__ = ["LEAST_STAINED", "METHODS", "NO_STAIN", "Measurement", "StainMap", "StainTarget", "map_onto", "measure", "pool"]  # fmt: skip

METHODS = ("none", "reinhard", "macenko")
"""Names of the methods."""

NO_STAIN = "no-stain"
"""Flag: too little stain to be measured; the colours were left as they are."""

LEAST_STAINED = 0.01
"""Least share of an image that must be stained for it to be measured."""

_LEAST_PIXELS = 64
_LEAST_DEVIATION = 0.5  # 8-bit units of LAB; a grey picture has none
_LEAST_DENSITY = 0.15  # β
_PERCENTILE = 1.0  # α
_LEAST_ANGLE = math.radians(2.0)  # between two stains; less, and it is one
_MOST_PIXELS = 2**16  # of which directions are taken: more does not move a percentile
_KEYS = {"reinhard": ("mean", "sd"), "macenko": ("stains", "amounts")}
_SHAPES = {"mean": (3,), "sd": (3,), "stains": (2, 3), "amounts": (2,)}
_DECIMALS = {"mean": 2, "sd": 2, "stains": 4, "amounts": 4}


@dataclass(frozen=True, kw_only=True, slots=True)
class StainTarget:
    """What images are made to look like; also what one image looks like.

    Numbers are rounded, so that the same cohort gives the same target on every machine.

    Raises
    ------
    OptionError
        If the method is unknown or the numbers make no sense.

    Examples
    --------
    >>> target = StainTarget(method="reinhard", values=((180.8, 148.6, 116.5), (35.4, 17.5, 11.1)))
    >>> target.to_json()
    {'method': 'reinhard', 'target': {'mean': [180.8, 148.6, 116.5], 'sd': [35.4, 17.5, 11.1]}}
    >>> StainTarget.from_json(target.to_json()) == target
    True
    """

    method: str
    """``reinhard`` or ``macenko``."""

    values: tuple[Any, ...]
    """Reinhard: mean and standard deviation of L, a, b in 8-bit units. Macenko: the densities
    of haematoxylin and of eosin, as unit vectors; the 99th percentiles of their amounts."""

    def __post_init__(self) -> None:
        if self.method not in _KEYS:
            known = ", ".join(_KEYS)
            raise OptionError(f"unknown stain normalisation {self.method!r}; known: {known}")
        keys = _KEYS[self.method]
        if len(self.values) != len(keys):
            raise OptionError(f"a {self.method} target has {' and '.join(keys)}")
        checked = [_checked(key, value) for key, value in zip(keys, self.values, strict=True)]
        object.__setattr__(self, "values", tuple(checked))

    def to_json(self) -> dict[str, Any]:
        """Give the target as JSON values; equal targets give equal values."""
        values = (np.asarray(value).tolist() for value in self.values)
        keys = _KEYS[self.method]
        return {"method": self.method, "target": dict(zip(keys, values, strict=True))}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> StainTarget:
        """Invert :meth:`to_json`.

        Raises
        ------
        FormatError
            If it is not what :meth:`to_json` gives.
        """
        try:
            method, target = document["method"], document["target"]
            if set(document) == {"method", "target"} and set(target) == set(_KEYS[method]):
                return cls(method=method, values=tuple(target[key] for key in _KEYS[method]))
        except (AttributeError, KeyError, OptionError, TypeError) as error:
            raise FormatError(f"stain target: {error}") from error
        raise FormatError(f"stain target: a {method} target has {' and '.join(_KEYS[method])}")


def _checked(key: str, value: Any) -> tuple[Any, ...]:
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"{key} of a stain target is not numbers: {error}") from error
    least = {"mean": 0.0, "sd": _LEAST_DEVIATION, "amounts": 0.01}.get(key, -1.0)
    if array.shape != _SHAPES[key] or not (np.isfinite(array) & (array >= least)).all():
        shape = " by ".join(map(str, _SHAPES[key]))
        raise OptionError(f"{key} of a stain target is {value!r}; give {shape} numbers >= {least}")
    if key == "stains" and _angle(array) < _LEAST_ANGLE:
        raise OptionError("the two stains of a stain target have the same colour")
    array = array.round(_DECIMALS[key]) + 0.0  # no −0
    return tuple(tuple(row) if isinstance(row, list) else row for row in array.tolist())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StainMap:
    """How the pixels of one image are changed: a linear map, in LAB or in density."""

    method: str
    matrix: NDArray[np.float64]
    """``(3,)`` factors for reinhard, ``(3, 3)`` for macenko."""
    shift: NDArray[np.float64]
    """``(3,)``."""

    def apply(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Change pixels, ``(…, 3)`` uint8 RGB; the argument stays as it is."""
        from histostore import colour

        change = colour.map_lab if self.method == "reinhard" else colour.map_density
        return change(pixels, self.matrix, self.shift)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Measurement:
    """What was found of one image, ready to be pooled with others."""

    n_pixels: int
    values: tuple[NDArray[np.float64], NDArray[np.float64]]
    """As in :class:`StainTarget`, but not rounded."""


def measure(rgb: NDArray[np.uint8], method: str) -> Measurement | None:
    """Measure the stain of one image.

    Parameters
    ----------
    rgb
        ``(y, x, 3)``, uint8.
    method
        ``reinhard`` or ``macenko``.

    Returns
    -------
    measurement
        None where less than :data:`LEAST_STAINED` is stained, or there are no two stains (no
        colour at all, for reinhard) to be told apart.
    """
    least = max(_LEAST_PIXELS, math.ceil(LEAST_STAINED * rgb.shape[0] * rgb.shape[1]))
    return (_measure_lab if method == "reinhard" else _measure_stains)(rgb, least)


def _measure_lab(rgb: NDArray[np.uint8], least: int) -> Measurement | None:
    from histostore.colour import lab_sums

    n, total, squares = lab_sums(rgb)
    if n < least:
        return None
    mean = total / n
    deviation = np.sqrt(np.maximum(squares / n - mean * mean, 0))
    if deviation.min() < _LEAST_DEVIATION:
        return None
    return Measurement(n_pixels=n, values=(mean + 128.0, deviation))


def _measure_stains(rgb: NDArray[np.uint8], least: int) -> Measurement | None:
    from histostore.colour import densities

    pixels = rgb.reshape(-1, 3)
    every = -(-len(pixels) // _MOST_PIXELS)
    density = densities(pixels[::every])
    # By their mean: a channel alone may be low in the purest of stains, as red is in eosin.
    density = density[density.mean(axis=1) >= _LEAST_DENSITY]  # (pixel, 3)
    if len(density) * every < least or len(density) < _LEAST_PIXELS:
        return None
    # Singular vectors of the densities as they are, not about their mean: the largest points
    # among the densities, all of them positive, so that no angle from it comes near ±π.
    plane = np.linalg.eigh(density.T @ density)[1][:, 1:]  # by rising variance
    plane = plane * np.where(plane.sum(axis=0) < 0, -1.0, 1.0)
    inside = density @ plane  # (pixel, 2)
    angles = np.arctan2(inside[:, 0], inside[:, 1])
    low, high = np.percentile(angles, [_PERCENTILE, 100 - _PERCENTILE])
    stains = np.array([plane @ [math.sin(angle), math.cos(angle)] for angle in (low, high)])
    if _angle(stains) < _LEAST_ANGLE:
        return None
    # Haematoxylin takes more of red than eosin does.
    if stains[0, 0] < stains[1, 0]:
        stains = stains[::-1]
    amounts = np.percentile(density @ np.linalg.pinv(stains), 99, axis=0)
    if amounts.min() <= _LEAST_DENSITY / 10:
        return None
    return Measurement(n_pixels=len(density), values=(stains, amounts))


def _angle(stains: NDArray[np.float64]) -> float:
    lengths = np.linalg.norm(stains, axis=1)
    if not lengths.all():
        return 0.0
    return math.acos(min(1.0, float(stains[0] @ stains[1]) / float(lengths.prod())))


def pool(method: str, measurements: Iterable[Measurement]) -> StainTarget:
    """Join the measurements of many images, one at a time, in their order.

    Reinhard: mean and standard deviation of all pixels together, by Chan, Golub and LeVeque's
    update. Macenko: the median image, number by number; its stains made unit vectors again.

    Raises
    ------
    OptionError
        If there is none.
    """
    if method == "reinhard":
        return _pool_moments(measurements)
    found = [each.values for each in measurements]
    if not found:
        raise OptionError(f"no image has enough stain to be measured for {method}")
    stains = np.median([each[0] for each in found], axis=0)
    stains /= np.linalg.norm(stains, axis=1, keepdims=True)
    amounts = np.median([each[1] for each in found], axis=0)
    return StainTarget(method=method, values=(stains, amounts))


def _pool_moments(measurements: Iterable[Measurement]) -> StainTarget:
    n, mean, squares = 0, np.zeros(3), np.zeros(3)
    for each in measurements:
        away = each.values[0] - mean
        joined = n + each.n_pixels
        mean = mean + away * (each.n_pixels / joined)
        squares = squares + each.n_pixels * each.values[1] ** 2
        squares = squares + away * away * (n * each.n_pixels / joined)
        n = joined
    if not n:
        raise OptionError("no image has enough stain to be measured for reinhard")
    return StainTarget(method="reinhard", values=(mean, np.sqrt(squares / n)))


def map_onto(target: StainTarget, rgb: NDArray[np.uint8]) -> StainMap | None:
    """Find how an image is to be changed so that it looks like the target.

    Parameters
    ----------
    target
        What it shall look like.
    rgb
        The image, ``(y, x, 3)``, uint8, or a thumbnail of it.

    Returns
    -------
    change
        None where it cannot be measured (:func:`measure`).

    Examples
    --------
    >>> target = StainTarget(method="reinhard", values=((180.8, 148.6, 116.5), (35.4, 17.5, 11.1)))
    >>> map_onto(target, np.full((64, 64, 3), 255, np.uint8)) is None
    True
    """
    found = measure(rgb, target.method)
    if found is None:
        return None
    first, second = (np.asarray(value) for value in target.values)
    if target.method == "reinhard":
        scale = second / found.values[1]
        return StainMap(method="reinhard", matrix=scale, shift=first - scale * found.values[0])
    stains, amounts = found.values
    # Rows are pixels and stains in the paper's algebra transposed: density → amounts → density.
    change = np.linalg.pinv(stains) @ np.diag(second / amounts) @ first  # (3, 3)
    return StainMap(method="macenko", matrix=np.ascontiguousarray(change.T), shift=np.zeros(3))
