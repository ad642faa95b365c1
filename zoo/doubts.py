"""What is probably not meant in a cohort, but may be: said before training, never decided for the user."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from zoo.tasks import Task

__all__ = ["alike", "doubts"]

_NO_VALUE = frozenset({"na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "null"})
"""How R, pandas and spreadsheets write that there is nothing."""

_NUMBER = re.compile(r"0*(\d+)(?:\.0*)?")
_NAMED = 3


def alike(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Find names that are one name in several spellings.

    Spellings differ in case, spaces, the form of Unicode, or how a whole number is written.

    Examples
    --------
    >>> alike(["Tumour", "normal", "tumour", "1.0", "01", "2"])
    [('01', '1.0'), ('Tumour', 'tumour')]
    """
    found: dict[str, list[str]] = {}
    for name in sorted(set(names)):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        whole = _NUMBER.fullmatch(plain)
        found.setdefault(whole[1] if whole else plain, []).append(name)
    return [tuple(group) for group in found.values() if len(group) > 1]


def doubts(cohort: Cohort, task: Task, classes: Sequence[str], truth: NDArray[Any]) -> list[str]:
    """Say what is odd in a cohort that can be learned from, a line each.

    Parameters
    ----------
    cohort
        Table of images.
    task, classes, truth
        What is learned of those that have a label, as of :class:`zoo.bags.Bags`.
    """
    lines = []
    if task.one_class:
        counts = Counter({name: int(np.sum(truth == k)) for k, name in enumerate(classes)})
        lines += _spelt(f"classes of {task.targets[0]!r}", "each is learned apart", counts)
    if task.kind == "multi-label":
        same = [name for name, column in zip(classes, truth.T, strict=True) if np.ptp(column) == 0]
        lines += [f"{name!r} is the same for all images: its scores say nothing" for name in same]
    if cohort.has("patient_id"):
        cells = cohort.column("patient_id").tolist()
        patients = Counter(cell for cell in cells if cell is not None)
        lines += _spelt("patients", "each may stand in another fold", patients)
        if None in cells:
            n = cells.count(None)
            have, is_each = ("images have", "each is") if n > 1 else ("image has", "it is")
            lines.append(f"{n:,} {have} no patient_id: {is_each} taken for a patient of its own")
    return lines


def _spelt(what: str, then: str, counts: Counter[str]) -> list[str]:
    """Tell of names in several spellings, and of names that may mean that there is none."""
    told = [" and ".join(map(repr, group)) for group in alike(counts)]
    lines = [f"{what} differ in spelling alone, and {then}: {_some(told)}"] if told else []
    empty = [
        f"{name!r} ({n:,} image{'s'[: n > 1]})"
        for name, n in counts.items()
        if name.lower() in _NO_VALUE
    ]
    if empty:
        lines.append(f"{what} hold {_some(empty)}: where that means nothing, leave the cell empty")
    return lines


def _some(told: Sequence[str]) -> str:
    more = f", and {len(told) - _NAMED:,} more" if len(told) > _NAMED else ""
    return ", ".join(told[:_NAMED]) + more
