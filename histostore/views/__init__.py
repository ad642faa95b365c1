"""Views: other looks at a patch, by name. The names are the augmentation keys of a store.

===============================================  ===============================================
``identity``, ``rot90``, ``rot180``, ``rot270``,  the right-angle views, exact
``flip-h``, ``flip-v``, ``transpose``,
``anti-transpose``
``jitter-<n>``                                   brightness, contrast and saturation, ± 20 %
``stain-jitter-<n>``                             amounts of haematoxylin, eosin and a third
                                                 stain, ± 20 %
``affine-<n>``                                   turned and sheared by up to 10°, scaled by 0.9
                                                 to 1.1, shifted by up to 10 %
===============================================  ===============================================

Those with a number are drawn at random, once and for all: by the name of the view, the
image's id and the patch's place, and by nothing else. The same patch looks the same in every
batch, on every machine, in every version.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from histostore.errors import OptionError
from histostore.views.square import VIEWS, compose_views, invert_view, turn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["FAMILIES", "VIEWS", "PatchKey", "apply_view", "compose_views", "invert_view", "is_seeded", "parse_views"]  # fmt: skip

FAMILIES = ("jitter", "stain-jitter", "affine")
"""Views that take a number: each number is another draw."""

_SEEDED = re.compile(rf"({'|'.join(FAMILIES)})-[1-9][0-9]{{0,3}}")
_SEVERAL = re.compile(rf"({'|'.join(FAMILIES)}):([1-9][0-9]{{0,3}})")


class PatchKey(NamedTuple):
    """Which patch it is: what a view with a number is drawn by."""

    image_id: str
    x: int
    """Left edge, level-0 pixels."""
    y: int
    """Top edge, level-0 pixels."""


def is_seeded(name: str) -> bool:
    """Tell whether a view is one of :data:`FAMILIES`, and needs keys.

    Examples
    --------
    >>> is_seeded("jitter-3"), is_seeded("jitter"), is_seeded("rot90")
    (True, False, False)
    """
    return _SEEDED.fullmatch(name) is not None


def parse_views(text: str) -> tuple[str, ...]:
    """Read the value of ``--augment``.

    Parameters
    ----------
    text
        Names separated by commas; ``d4`` stands for the eight right-angle views, and
        ``jitter:4`` for ``jitter-1`` to ``jitter-4``.

    Returns
    -------
    views
        Names in the order given, at least one, none twice.

    Raises
    ------
    OptionError
        If a name is unknown or given twice, or there is none; the message lists the names.

    Examples
    --------
    >>> parse_views("identity, rot90, affine:2")
    ('identity', 'rot90', 'affine-1', 'affine-2')
    >>> len(parse_views("d4,jitter-1"))
    9
    """
    names = tuple(name for word in text.split(",") for name in _spelt_out(word.strip()))
    if len(set(names)) < len(names):
        raise OptionError(f"a view is named twice in {text!r}; name each once")
    return names


def _spelt_out(word: str) -> Iterator[str]:
    several = _SEVERAL.fullmatch(word)
    if word == "d4":
        yield from VIEWS
    elif several is not None:
        family, count = several.groups()
        yield from (f"{family}-{number}" for number in range(1, int(count) + 1))
    else:
        _check(word)
        yield word


def apply_view(
    patches: NDArray[np.uint8], name: str, keys: Sequence[PatchKey] | None = None
) -> NDArray[np.uint8]:
    """Look at every patch in another way.

    Parameters
    ----------
    patches
        ``(patch, y, x, channel)``, uint8; never altered. RGB, where the view has a number.
    name
        Name of the view. ``rot90`` turns counter-clockwise, as :func:`numpy.rot90` does;
        ``flip-h`` exchanges left and right.
    keys
        Which patches these are, one key each; needed where the view has a number.

    Returns
    -------
    patches
        uint8, contiguous; y and x change places where the view says so. The ``identity`` is
        the argument itself, uncopied.

    Raises
    ------
    OptionError
        If the view is unknown, ``patches`` has not four axes, or keys are missing.

    Examples
    --------
    >>> import numpy as np
    >>> patch = np.array([[1, 2], [3, 4]], np.uint8).reshape(1, 2, 2, 1)
    >>> apply_view(patch, "rot90")[0, :, :, 0].tolist()
    [[2, 4], [1, 3]]
    >>> pink = np.full((1, 1, 1, 3), (230, 150, 190), np.uint8)
    >>> apply_view(pink, "stain-jitter-1", [PatchKey("a", 0, 0)])[0, 0, 0].tolist()
    [232, 153, 197]
    """
    if patches.ndim != 4:
        raise OptionError(
            f"patches have {patches.ndim} axes; give an array of (patch, y, x, channel)"
        )
    _check(name)
    if name in VIEWS:
        return turn(patches, name)
    if keys is None or len(keys) != len(patches):
        raise OptionError(f"{name} is drawn by patch: give a key for each of {len(patches)}")
    from histostore.views.seeded import draw_view

    return draw_view(patches, name, keys)


def _check(name: str) -> None:
    if name not in VIEWS and not is_seeded(name):
        families = ", ".join(f"{family}-<n>" for family in FAMILIES)
        raise OptionError(
            f"unknown view {name!r}; known: {', '.join(VIEWS)}, d4 for these eight, {families}, "
            "and jitter:4 for jitter-1 to jitter-4"
        )
