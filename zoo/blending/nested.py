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
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.blending.mixing import LEARNED, Mix, Pool, as_cells, check_rule, learn
from zoo.blending.ranks import rank_pool
from zoo.blending.temperature import find_temperature
from zoo.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

__all__ = ["Blend", "Members", "blend", "learning_rows"]

INNER_FOLDS = 5
"""Parts that patients are dealt into to learn the temperature of learned weights."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Members:
    """Predictions of several members for the same rows."""

    prob: NDArray[np.float64]
    """``(member, row, class)``, rows sum to 1; of other tasks what is predicted."""
    y_true: NDArray[Any]
    """True class, ``(row,)``; of other tasks ``(row, column)`` as of :attr:`zoo.bags.Bags.truth`."""
    patient_ids: NDArray[np.object_]
    """``(row,)``."""
    fold: NDArray[np.int64]
    """``(row,)``; fold k of repeat r is r * ``n_folds`` + k."""
    role: NDArray[np.object_]
    """``validation`` or ``test``, ``(row,)``."""
    n_folds: int
    """Folds of one repeat."""
    kind: str = "classification"
    """Of task."""
    n_cells: int = 1
    """Rows that count as one image: its labels, where each is a row of its own."""

    def cells(self) -> Members:
        """Give each label of an image a row of its own, of two classes; others stay as they are."""
        if self.kind != "multi-label":
            return self
        n = self.prob.shape[2]
        spread = {key: getattr(self, key).repeat(n) for key in ("patient_ids", "fold", "role")}
        truth = self.y_true.astype(np.int64).ravel()
        return dataclasses.replace(
            self,
            prob=as_cells(self.prob),
            y_true=truth,
            kind="classification",
            n_cells=n,
            **spread,
        )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Blend:
    """Combined predictions, and what was learned for them."""

    prob: NDArray[np.float64]
    """``(row, class)``, or what else the task predicts."""
    folds: tuple[int, ...]
    """Folds, ascending."""
    mixes: tuple[Mix, ...] | None = None
    """Of the test rows of each fold; None where the rule learns none."""
    temperature: NDArray[np.float64] | None = None
    """``(fold,)``, of the test rows; None where nothing is calibrated."""
    final: Mix | None = None
    """Learned once more from all out-of-fold rows: for images beyond the folds."""
    final_temperature: float | None = None
    """The same."""

    @property
    def weights(self) -> NDArray[np.float64] | None:
        """``(fold, member)``, of the test rows."""
        return None if self.mixes is None else np.array([mix.weights for mix in self.mixes])


def blend(members: Members, rule: str = "mean", calibrate: str = "none") -> Blend:
    """Combine members row by row; learn what is to be learned in nested folds.

    Parameters
    ----------
    members
        One or more.
    rule
        One of :data:`~zoo.blending.mixing.RULES`.
    calibrate
        One of :data:`~zoo.blending.mixing.CALIBRATIONS`.

    Raises
    ------
    NotSupported
        If rule or calibration is unknown or has no meaning for the task, or a fold has no others
        to learn from.
    """
    check_rule(rule, calibrate, members.kind)
    if rule not in LEARNED:
        # A rule that learns nothing is one member that stands for all.
        alone = dataclasses.replace(members, prob=_pooled(members, rule)[None])
        if calibrate == "none":
            folds = tuple(int(fold) for fold in np.unique(members.fold))
            return Blend(prob=alone.prob[0], folds=folds)
        members = alone
    found = _nested(members.cells(), rule, calibrate)
    if members.kind == "multi-label":
        labels = found.prob[:, 1].reshape(members.prob.shape[1:])
        return dataclasses.replace(found, prob=labels)
    return found


def _nested(members: Members, rule: str, calibrate: str) -> Blend:
    """Learn for each part of each fold, and from all out-of-fold rows."""
    prob = np.empty(members.prob.shape[1:])
    kept: dict[int, Pool] = {}
    for fold, role, rows in _parts(members):
        pool = _learned(members, rule, calibrate, learning_rows(members, fold, role))
        prob[rows] = pool(members.prob[:, rows])
        kept[fold] = pool  # the test part comes last
    repeat_of = members.fold // members.n_folds
    finals = [
        _learned(members, rule, calibrate, rows)
        for repeat in np.unique(repeat_of)
        if len(rows := np.flatnonzero((members.role == "test") & (repeat_of == repeat)))
    ]
    mixes = tuple(pool.mix for pool in kept.values() if pool.mix is not None)
    final_mixes = [pool.mix for pool in finals if pool.mix is not None]
    is_cooled = calibrate == "temperature"
    final_logs = np.log([pool.temperature for pool in finals])
    return Blend(
        prob=prob,
        folds=tuple(kept),
        mixes=mixes or None,
        temperature=np.array([p.temperature for p in kept.values()]) if is_cooled else None,
        final=_mean(final_mixes) if final_mixes else None,
        final_temperature=float(np.exp(final_logs.mean())) if is_cooled else None,
    )


def _learned(members: Members, rule: str, calibrate: str, rows: NDArray[np.int64]) -> Pool:
    """Learn from some rows all that is applied to others."""
    learns = rule in LEARNED
    mix = _mix(members, rule, rows) if learns else None
    temperature = 1.0
    if calibrate == "temperature":
        told = _unseen(members, rule, rows) if learns else members.prob[0, rows]
        temperature = find_temperature(told, members.y_true[rows], n_cells=members.n_cells)
    # What learned nothing is one member by now, whatever its rule was.
    return Pool(
        kind=members.kind, rule=rule if learns else "mean", mix=mix, temperature=temperature
    )


def _mean(mixes: Sequence[Mix]) -> Mix:
    """Average over repeats."""
    told = [mix.to_json() for mix in mixes]
    return Mix(**{name: np.mean([one[name] for one in told], axis=0) for name in told[0]})


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
        prob[rows] = rank_pool(members.prob[:, rows], members.kind)
    return prob


def _unseen(members: Members, rule: str, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Combine some rows with weights learned from others of them, other patients'.

    What weights give for the rows they were learned from looks better than it is, and a
    temperature learned from that would be too low.
    """
    names, place = np.unique(members.patient_ids[rows].astype(str), return_inverse=True)
    dealt = np.random.default_rng(0).permutation(len(names)) % INNER_FOLDS
    prob = np.empty((len(rows), members.prob.shape[2]))
    for part in np.unique(dealt):
        own = dealt[place] == part
        others = rows if len(names) == 1 else rows[~own]
        pool = Pool(kind=members.kind, rule=rule, mix=_mix(members, rule, others))
        prob[own] = pool(members.prob[:, rows[own]])
    return prob


def _mix(members: Members, rule: str, rows: NDArray[np.int64]) -> Mix:
    return learn(
        rule,
        members.prob[:, rows],
        members.y_true[rows],
        members.patient_ids[rows],
        kind=members.kind,
        n_cells=members.n_cells,
    )
