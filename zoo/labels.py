"""Labels as numbers, and names of images for messages."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError
from histostore.tables import cell_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["digest_of", "encode", "named", "objects"]

_NAMED = 3
"""How many images a message names before it only counts."""


def encode(
    labels: Sequence[str | None] | ArrayLike | None, classes: Sequence[str] | None, n: int
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Turn labels into indices of the sorted class names.

    Parameters
    ----------
    labels
        Names (None: no label; numbers as :class:`histostore.cohort.Cohort` writes them) or integers
        (−1: no label); None where nothing is labelled.
    classes
        Names of the classes; those that occur, sorted, where left out.
    n
        Number of images.

    Raises
    ------
    OptionError
        If a label is not among the classes.

    Examples
    --------
    >>> encode(["b", None, "a"], None, 3)
    (array([ 1, -1,  0]), ('a', 'b'))
    """
    if labels is None:
        return np.full(n, -1, np.int64), tuple(classes or ())
    given = np.asarray(labels)
    if np.issubdtype(given.dtype, np.integer):
        codes = given.astype(np.int64)
        known = tuple(classes or [str(code) for code in range(int(codes.max(initial=-1)) + 1)])
        wrong: Sequence[object] = sorted(
            {int(k) for k in codes[(codes < -1) | (codes >= len(known))]}
        )
    else:
        names = [cell_text(name) for name in given.tolist()]
        known = tuple(classes or sorted({name for name in names if name is not None}))
        place: dict[object, int] = {None: -1, **{name: i for i, name in enumerate(known)}}
        wrong = sorted({name for name in names if name is not None and name not in place})
        codes = np.array([place.get(name, -1) for name in names], dtype=np.int64)
    if wrong:
        msg = f"labels {wrong[:_NAMED]} are not among the classes {list(known)}"
        raise OptionError(msg)
    return codes, known


def digest_of(rows: Iterable[tuple[object, ...]]) -> str:
    """Give the SHA-256 of rows of JSON values, whatever their order.

    Examples
    --------
    >>> digest_of([("a", 1), ("b", 2)]) == digest_of([("b", 2), ("a", 1)])
    True
    """
    text = json.dumps(sorted(map(list, rows)), ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def objects(values: Sequence[object]) -> NDArray[np.object_]:
    """Make an object array ``(n,)`` that numpy does not take for anything else.

    Examples
    --------
    >>> objects([(1, 2), None])
    array([(1, 2), None], dtype=object)
    """
    array = np.empty(len(values), dtype=object)
    array[:] = list(values)
    return array


def named(image_ids: Sequence[object] | NDArray[np.object_]) -> str:
    """Count images and name the first three, for messages.

    Examples
    --------
    >>> named(["a", "b", "c", "d"]), named(["a"])
    ('4 images (a, b, c, …)', '1 image (a)')
    """
    named = ", ".join(str(image) for image in image_ids[:_NAMED])
    more = ", …" if len(image_ids) > _NAMED else ""
    return f"{len(image_ids)} image{'s' if len(image_ids) != 1 else ''} ({named}{more})"
