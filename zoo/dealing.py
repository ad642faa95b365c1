"""Dealing patients into parts that hold like shares of every class.

Patients are dealt whole. Largest patients first, each goes to the part where it disturbs the
class shares least: for parts f with shares w[f] and classes k, the deal greedily minimises

    sum over f, k of (count[f, k] / total[k])² / w[f]

which is least where every part holds its share of every class. Where each patient has one
image this is plain stratification: a class's counts differ by one at most between folds.
Patients are shuffled after sorting by name, so the order of a cohort's rows plays no part.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import SplitError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Patients"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patients:
    """Class and patient codes of the images; patients are numbered in the order of names."""

    labels: NDArray[np.int64]
    patients: NDArray[np.int64]
    class_names: tuple[str, ...]
    patient_names: tuple[str, ...]

    @classmethod
    def of(cls, labels: ArrayLike, patient_ids: Sequence[str]) -> Patients:
        """Give classes and patients numbers; refuse fewer than two classes."""
        classes, codes = np.unique(np.asarray(labels), return_inverse=True)
        patients, places = np.unique(np.array(patient_ids, dtype=str), return_inverse=True)
        if len(codes) != len(places):
            msg = f"{len(codes)} labels for {len(places)} patient_ids: give one of each per image"
            raise SplitError(msg)
        if len(classes) < 2:
            seen = f"{len(codes)} images of class {classes[0]}" if len(classes) else "no image"
            msg = f"{seen}: a split needs at least two classes"
            raise SplitError(msg)
        return cls(
            labels=codes.astype(np.int64),
            patients=places.astype(np.int64),
            class_names=tuple(map(str, classes)),
            patient_names=tuple(map(str, patients)),
        )

    def counts(self, chosen: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
        """Count images, ``(patient, class)``."""
        table = np.zeros((len(self.patient_names), len(self.class_names)), dtype=np.int64)
        rows = slice(None) if chosen is None else chosen
        np.add.at(table, (self.patients[rows], self.labels[rows]), 1)
        return table

    def check_folds(self, n_folds: int, repeats: int) -> None:
        """Refuse a cohort too small for ``n_folds``."""
        if n_folds < 2 or repeats < 1:
            msg = f"{n_folds=}, {repeats=}: ask for at least two folds and one repeat"
            raise SplitError(msg)
        if len(self.patient_names) < n_folds:
            msg = f"{len(self.patient_names)} patients for {n_folds} folds: ask for fewer folds"
            raise SplitError(msg)
        images = self.counts().sum(axis=0)
        if images.min() < n_folds:
            told = dict(zip(self.class_names, images.tolist(), strict=True))
            msg = f"a class has fewer images than {n_folds} folds: {_told(told)}"
            raise SplitError(msg)

    def check_train(self, number: int, train: NDArray[np.int64]) -> None:
        """Refuse a fold whose training rows lack a class."""
        absent = np.setdiff1d(np.arange(len(self.class_names)), self.labels[train])
        if len(absent):
            patients = np.count_nonzero(self.counts()[:, absent], axis=0)
            told = zip(absent, patients, strict=True)
            names = {self.class_names[k]: f"{n} patients" for k, n in told}
            msg = f"fold {number} leaves no training image of a class: {_told(names)}"
            raise SplitError(msg)

    def set_aside(
        self, chosen: NDArray[np.bool_], share: float, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Pick about ``share`` of the chosen images, by patients; never a class's last."""
        if not 0 <= share < 1:
            msg = f"validation share {share}: give a number from 0 to below 1"
            raise SplitError(msg)
        if share == 0:
            return np.zeros_like(chosen)
        dealt = self.deal(np.array([1 - share, share]), rng, chosen=chosen, cover_first=True)
        return np.asarray(chosen & (dealt[self.patients] == 1))

    def deal(
        self,
        shares: NDArray[np.float64],
        rng: np.random.Generator,
        *,
        chosen: NDArray[np.bool_] | None = None,
        cover_first: bool = False,
    ) -> NDArray[np.int64]:
        """Deal patients into parts; −1 for patients that have no chosen image.

        With ``cover_first`` a patient goes to part 0 as long as that lacks one of its classes.
        """
        counts = self.counts(chosen)
        total = np.maximum(counts.sum(axis=0), 1)
        part = np.full(len(counts), -1, dtype=np.int64)
        held = np.zeros((len(shares), counts.shape[1]))
        shuffled = rng.permutation(len(counts))
        order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
        for patient in order[counts[order].sum(axis=1) > 0]:
            own = counts[patient]
            if cover_first and np.any(held[0][own > 0] == 0):
                best = 0
            else:
                added = (own * (2 * held + own) / total**2).sum(axis=1) / shares
                fill = held.sum(axis=1) / shares
                best = int(np.lexsort((fill, np.round(added / added.max(), 12)))[0])
            part[patient] = best
            held[best] += own
        return part


def _told(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())
