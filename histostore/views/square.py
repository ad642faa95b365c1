"""The eight ways to turn and mirror a square patch, by name.

As transforms they form the dihedral group D4: the inverse of a view and any two views one
after the other are views again::

    identity        rot90           rot180          rot270
    A B             B D             D C             C A
    C D             A C             B A             D B

    flip-h          flip-v          transpose       anti-transpose
    B A             C D             A C             D B
    D C             A B             B D             C A
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["VIEWS", "compose_views", "invert_view", "turn"]

# View: (exchange y and x first?, then reverse y?, then reverse x?)
_STEPS = {
    "identity": (False, False, False),
    "rot90": (True, True, False),
    "rot180": (False, True, True),
    "rot270": (True, False, True),
    "flip-h": (False, False, True),
    "flip-v": (False, True, False),
    "transpose": (True, False, False),
    "anti-transpose": (True, True, True),
}
_NAMES = {steps: name for name, steps in _STEPS.items()}

VIEWS = tuple(_STEPS)
"""Names of the eight, ``identity`` first."""


def turn(patches: NDArray[np.uint8], name: str) -> NDArray[np.uint8]:
    """Turn or mirror every patch.

    Parameters
    ----------
    patches
        ``(patch, y, x, channel)``, uint8; never altered.
    name
        One of :data:`VIEWS`. ``rot90`` turns counter-clockwise, as :func:`numpy.rot90` does;
        ``flip-h`` exchanges left and right.

    Returns
    -------
    patches
        The same pixels elsewhere; y and x change places where the view says so. Contiguous,
        so that it may go to any encoder as it is: torch refuses negative strides. The
        ``identity`` is the argument itself, uncopied.

    Raises
    ------
    OptionError
        If it is none of the eight.

    Examples
    --------
    >>> patch = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    >>> turn(patch, "rot90")[0, :, :, 0].tolist()
    [[2, 4], [1, 3]]
    """
    exchange, reverse_y, reverse_x = _steps(name)
    if name == "identity":
        return patches
    turned = patches.transpose(0, 2, 1, 3) if exchange else patches
    turned = turned[:, :: -1 if reverse_y else 1, :: -1 if reverse_x else 1]
    if not (exchange or reverse_x):
        return np.ascontiguousarray(turned)
    # Channel by channel: numpy then loops over whole rows, not over single pixels' channels.
    out = np.empty(turned.shape, turned.dtype)
    for channel in range(turned.shape[3]):
        out[..., channel] = turned[..., channel]
    return out


def compose_views(first: str, second: str) -> str:
    """Name the view that equals ``first`` and then ``second``.

    Raises
    ------
    OptionError
        If either is unknown.

    Examples
    --------
    >>> compose_views("rot90", "rot90")
    'rot180'
    """
    exchange_a, y_a, x_a = _steps(first)
    exchange_b, y_b, x_b = _steps(second)
    # The second exchange carries the reversals of the first over to the other axis.
    y, x = (x_a, y_a) if exchange_b else (y_a, x_a)
    return _NAMES[exchange_a != exchange_b, y != y_b, x != x_b]


def invert_view(name: str) -> str:
    """Name the view that undoes ``name``.

    Raises
    ------
    OptionError
        If it is unknown.

    Examples
    --------
    >>> invert_view("rot90"), invert_view("transpose")
    ('rot270', 'transpose')
    """
    return next(view for view in VIEWS if compose_views(name, view) == "identity")


def _steps(name: str) -> tuple[bool, bool, bool]:
    if name not in _STEPS:
        raise OptionError(f"{name!r} is no right-angle view; these are {', '.join(VIEWS)}")
    return _STEPS[name]
