"""What each fold may learn from, so that an ensemble's own out-of-fold score is honest.

Weights and temperature for the test images of fold k come from the members' out-of-fold
predictions of the other folds of the same repeat: heads made them that had not seen those
images, and no label of fold k takes part, nor any image of its patients. A fold's validation
images are test images of other folds; for them everything is learned once more, without them
and their patients. Validation rows are never learned from: those of other folds are images of
fold k.

What remains, as in all stacking on one set of folds (van der Laan et al. 2007): the heads that
predicted the other folds had fold k among their training images. They saw its labels; the
weights learned here did not.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from zoo.blending.pools import (
    bagged_greedy_weights,
    linear_pool,
    log_pool,
    simplex_weights,
    stack_weights,
)
from zoo.blending.ranks import rank_pool
from zoo.blending.temperature import cooled, find_temperature
from zoo.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

__all__ = [
    "CALIBRATIONS",
    "LEARNED",
    "RULES",
    "Blend",
    "Members",
    "blend",
    "check_rule",
    "learning_rows",
]

RULES = ("mean", "rank", "weighted", "greedy", "stack")
"""How members are combined; the first is the default."""

LEARNED = ("weighted", "greedy", "stack")
"""Rules that learn weights."""

INNER_FOLDS = 5
"""Parts that patients are dealt into to learn the temperature of learned weights."""

CALIBRATIONS = ("none", "temperature")
"""What may follow a rule; the first is the default."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Members:
    """Predictions of several members for the same rows."""

    prob: NDArray[np.float64]
    """``(member, row, class)``, rows sum to 1."""
    y_true: NDArray[np.int64]
    """True class, ``(row,)``."""
    patient_ids: NDArray[np.object_]
    """``(row,)``."""
    fold: NDArray[np.int64]
    """``(row,)``; fold k of repeat r is r * ``n_folds`` + k."""
    role: NDArray[np.object_]
    """``validation`` or ``test``, ``(row,)``."""
    n_folds: int
    """Folds of one repeat."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blend:
    """Combined predictions, and what was learned for them."""

    prob: NDArray[np.float64]
    """``(row, class)``."""
    folds: tuple[int, ...]
    """Folds, ascending."""
    weights: NDArray[np.float64] | None
    """``(fold, member)``, of the test rows; None where the rule learns none."""
    temperature: NDArray[np.float64] | None
    """``(fold,)``, of the test rows; None where nothing is calibrated."""
    final_weights: NDArray[np.float64] | None = None
    """``(member,)``, learned once more from all out-of-fold rows: for images beyond the folds."""
    final_temperature: float | None = None
    """The same."""


def blend(members: Members, rule: str = "mean", calibrate: str = "none") -> Blend:
    """Combine members row by row; learn what is to be learned in nested folds.

    Parameters
    ----------
    members
        One or more.
    rule
        One of :data:`RULES`.
    calibrate
        One of :data:`CALIBRATIONS`.

    Raises
    ------
    NotSupported
        If rule or calibration is unknown, or a fold has no others to learn from.
    """
    check_rule(rule, calibrate)
    learns = rule in LEARNED
    # A rule that learns nothing is one member that stands for all.
    source = members.prob if learns else _pooled(members, rule)[None]
    folds = tuple(int(fold) for fold in np.unique(members.fold))
    if not learns and calibrate == "none":
        return Blend(prob=source[0], folds=folds, weights=None, temperature=None)
    pool = _pool_of(rule)
    prob = np.empty(members.prob.shape[1:])
    kept: dict[int, tuple[NDArray[np.float64], float]] = {}
    for fold, role, rows in _parts(members):
        learn = learning_rows(members, fold, role)
        weights = _weights(members, rule, learn) if learns else np.ones(1)
        temperature = 1.0
        if calibrate == "temperature":
            told = _unseen(members, rule, learn) if learns else source[0, learn]
            temperature = find_temperature(told, members.y_true[learn])
        prob[rows] = cooled(pool(weights, source[:, rows]), temperature)
        kept[fold] = weights, temperature  # the test part comes last
    final_weights, final_temperature = _final(members, rule, calibrate, source)
    return Blend(
        prob=prob,
        folds=folds,
        final_weights=final_weights,
        final_temperature=final_temperature,
        weights=np.array([kept[fold][0] for fold in folds]) if learns else None,
        temperature=np.array([kept[fold][1] for fold in folds])
        if calibrate == "temperature"
        else None,
    )


def _final(
    members: Members, rule: str, calibrate: str, source: NDArray[np.float64]
) -> tuple[NDArray[np.float64] | None, float | None]:
    """Learn from all out-of-fold rows, repeat by repeat, and average over repeats."""
    weights, temperatures = [], []
    repeat_of = members.fold // members.n_folds
    for repeat in np.unique(repeat_of):
        rows = np.flatnonzero((members.role == "test") & (repeat_of == repeat))
        if not len(rows):
            continue
        if rule in LEARNED:
            weights.append(_weights(members, rule, rows))
        if calibrate == "temperature":
            told = _unseen(members, rule, rows) if rule in LEARNED else source[0, rows]
            temperatures.append(find_temperature(told, members.y_true[rows]))
    return (
        np.mean(weights, axis=0) if weights else None,
        float(np.exp(np.mean(np.log(temperatures)))) if temperatures else None,
    )


def check_rule(rule: str, calibrate: str) -> None:
    """Refuse what is not known."""
    for what, given, known in (("rule", rule, RULES), ("calibration", calibrate, CALIBRATIONS)):
        if given not in known:
            raise NotSupported(f"{what} {given!r} is not known: use one of {', '.join(known)}")


def learning_rows(members: Members, fold: int, role: str) -> NDArray[np.int64]:
    """Find the rows that a fold's part may learn from.

    Parameters
    ----------
    members
        Only folds, roles and patients are looked at.
    fold
        Its number.
    role
        ``test``, or ``validation`` for images that must not be learned from either.

    Returns
    -------
    rows
        Test rows of the other folds of the repeat, without patients of the fold's test part
        and, for ``validation``, of its validation part; ascending.

    Raises
    ------
    NotSupported
        If there is none.
    """
    kept_out = members.role == "test"
    if role == "validation":
        kept_out = kept_out | (members.role == "validation")
    patients = set(members.patient_ids[(members.fold == fold) & kept_out])
    others = (
        (members.role == "test")
        & (members.fold // members.n_folds == fold // members.n_folds)
        & (members.fold != fold)
    )
    known = np.array([patient in patients for patient in members.patient_ids], dtype=bool)
    rows = np.flatnonzero(others & ~known)
    if len(rows) == 0:
        raise NotSupported(
            f"fold {fold} has no other fold of its repeat to learn from: "
            "use rule mean or rank, without calibration"
        )
    return rows


def _parts(members: Members) -> Iterator[tuple[int, str, NDArray[np.int64]]]:
    """Give fold, role and rows of every part; of each fold the test part last."""
    for fold in np.unique(members.fold):
        for role in ("validation", "test"):
            rows = np.flatnonzero((members.fold == fold) & (members.role == role))
            if len(rows):
                yield int(fold), role, rows


def _pooled(members: Members, rule: str) -> NDArray[np.float64]:
    """Combine all rows by a rule that learns nothing."""
    if rule == "mean":
        return np.asarray(members.prob.mean(axis=0))
    prob = np.empty(members.prob.shape[1:])
    for _, _, rows in _parts(members):
        prob[rows] = rank_pool(members.prob[:, rows])
    return prob


def _pool_of(
    rule: str,
) -> Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]:
    return log_pool if rule == "stack" else linear_pool


def _unseen(members: Members, rule: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Combine some rows with weights learned from others of them, other patients'.

    What weights give for the rows they were learned from looks better than it is, and a
    temperature learned from that would be too low.
    """
    names, place = np.unique(members.patient_ids[rows].astype(str), return_inverse=True)
    if len(names) == 1:
        return _pool_of(rule)(_weights(members, rule, rows), members.prob[:, rows])
    dealt = np.random.default_rng(0).permutation(len(names)) % INNER_FOLDS
    prob = np.empty((len(rows), members.prob.shape[2]))
    for part in np.unique(dealt):
        own = dealt[place] == part
        weights = _weights(members, rule, rows[~own])
        prob[own] = _pool_of(rule)(weights, members.prob[:, rows[own]])
    return prob


def _weights(members: Members, rule: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Learn weights from some rows."""
    prob, y_true = members.prob[:, rows], members.y_true[rows]
    if rule == "weighted":
        return simplex_weights(prob, y_true)
    if rule == "stack":
        return stack_weights(prob, y_true)
    return bagged_greedy_weights(prob, y_true, members.patient_ids[rows])
