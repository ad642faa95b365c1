"""Splits: patient-disjoint, stratified folds with a digest.

Patients are dealt whole (:mod:`zoo.dealing`), whatever the order of a cohort's rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

from zoo.dealing import Patients
from zoo.errors import LeakError, SplitError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["VALIDATION_SHARE", "Fold", "Split"]

VALIDATION_SHARE = 0.125
"""Share of the images outside the test part that validates."""

_ROLES = {
    "train": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fold:
    """Rows of a cohort by what they are used for; no patient has rows in two parts."""

    number: int
    """Counts on over repeats: fold k of repeat r of a K-fold split is ``r * K + k``."""
    train: NDArray[np.int64]
    """Rows to learn from, ascending."""
    validation: NDArray[np.int64]
    """Rows to stop and choose by, ascending; may be empty in a very small cohort."""
    test: NDArray[np.int64]
    """Rows to judge by, ascending."""
    name: str = ""
    """What the fold is, for example the patient that is left out."""

    @property
    def parts(self) -> dict[str, NDArray[np.int64]]:
        """Rows by role, in the order train, validation, test."""
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Split:
    """Folds over the labelled images of a cohort.

    Raises
    ------
    LeakError
        If a patient has images in two parts of a fold.
    SplitError
        If parts overlap, name rows that are not there, or leave nothing to train or test on.
    """

    folds: tuple[Fold, ...]
    """All folds of all repeats."""
    image_ids: tuple[str, ...]
    """Images that the rows stand for."""
    patient_ids: tuple[str, ...]
    """Patients of the images."""
    method: str
    """``k-fold``, ``leave-one-patient-out`` or ``column``."""
    n_folds: int
    """Folds of one repeat."""
    repeats: int = 1
    """How often the cohort is dealt anew."""
    seed: int = 0
    """Decides the shuffling."""
    validation_share: float = VALIDATION_SHARE
    """Share of the images outside the test part that validates."""
    column: str | None = None
    """The cohort's column that holds the parts, of method ``column``."""

    def __post_init__(self) -> None:
        patients = np.unique(np.asarray(self.patient_ids, dtype=object).astype(str))
        codes = np.searchsorted(patients, np.asarray(self.patient_ids).astype(str))
        for fold in self.folds:
            _check_rows(fold, len(self.image_ids))
            sides = np.zeros((3, len(patients)), dtype=bool)
            for side, rows in zip(sides, fold.parts.values(), strict=True):
                side[codes[rows]] = True
            leaked = patients[sides.sum(axis=0) > 1]
            if len(leaked):
                msg = (
                    f"fold {fold.number}: {len(leaked)} patient{'s' * (len(leaked) > 1)} on two "
                    f"sides ({', '.join(leaked[:3])}): give every patient one side"
                )
                raise LeakError(msg)

    def __len__(self) -> int:
        return len(self.folds)

    def __iter__(self) -> Iterator[Fold]:
        return iter(self.folds)

    @property
    def digest(self) -> str:
        """SHA-256 over each image's part in each fold, whatever the order of the rows."""
        parts = []
        for fold in self.folds:
            role = dict.fromkeys(self.image_ids, "")
            for name, rows in fold.parts.items():
                role.update((self.image_ids[row], name) for row in rows)
            parts.append(sorted(role.items()))
        text = json.dumps(parts, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """Describe the split as a run records it."""
        told = ("method", "n_folds", "repeats", "seed", "validation_share")
        column = {"column": self.column} if self.column is not None else {}
        return {"digest": self.digest, **{name: getattr(self, name) for name in told}, **column}

    @classmethod
    def k_fold(
        cls,
        labels: ArrayLike,
        patient_ids: Sequence[str],
        n_folds: int = 5,
        seed: int = 0,
        repeats: int = 1,
        *,
        image_ids: Sequence[str] | None = None,
        validation_share: float = VALIDATION_SHARE,
    ) -> Split:
        """Deal patients into stratified folds; each image is tested once per repeat.

        Parameters
        ----------
        labels
            Class of each image, ``(image,)``, numbers or names.
        patient_ids
            Patient of each image.
        n_folds
            Folds of one repeat, at least 2.
        seed
            Decides the shuffling; the same seed gives the same folds for any order of rows.
        repeats
            How often to deal anew.
        image_ids
            Names for the digest; row numbers where left out.
        validation_share
            Share of the images outside the test part that validates.

        Raises
        ------
        SplitError
            If there is one class only, fewer patients than folds, a class with fewer images
            than folds, a class that a fold would leave nothing of to train on, or a seed below 0.

        Examples
        --------
        >>> split = Split.k_fold(["a", "b"] * 6, [f"p{i}" for i in range(12)], 3)
        >>> [len(fold.test) for fold in split], [len(fold.validation) for fold in split]
        ([4, 4, 4], [1, 1, 1])
        """
        cohort = Patients.of(labels, patient_ids)
        cohort.check_folds(n_folds, repeats)
        folds = []
        for repeat in range(repeats):
            rng = _generator(seed, repeat)
            dealt = cohort.deal(np.full(n_folds, 1 / n_folds), rng)
            for k in range(n_folds):
                test = dealt[cohort.patients] == k
                number = repeat * n_folds + k
                folds.append(_fold(cohort, number, test, validation_share, rng))
        return cls(
            folds=tuple(folds),
            image_ids=_names(image_ids, len(cohort.patients)),
            patient_ids=tuple(patient_ids),
            method="k-fold",
            n_folds=n_folds,
            repeats=repeats,
            seed=seed,
            validation_share=validation_share,
        )

    @classmethod
    def leave_one_patient_out(
        cls,
        labels: ArrayLike,
        patient_ids: Sequence[str],
        seed: int = 0,
        *,
        image_ids: Sequence[str] | None = None,
        validation_share: float = VALIDATION_SHARE,
    ) -> Split:
        """Test each patient alone, in the order of their names.

        Parameters and errors are those of :meth:`k_fold`.
        """
        cohort = Patients.of(labels, patient_ids)
        cohort.check_folds(2, 1)
        rng = _generator(seed)
        folds = [
            _fold(cohort, number, cohort.patients == number, validation_share, rng, name=str(name))
            for number, name in enumerate(cohort.patient_names)
        ]
        return cls(
            folds=tuple(folds),
            image_ids=_names(image_ids, len(cohort.patients)),
            patient_ids=tuple(patient_ids),
            method="leave-one-patient-out",
            n_folds=len(folds),
            seed=seed,
            validation_share=validation_share,
        )

    @classmethod
    def from_column(
        cls,
        values: Sequence[str | None],
        labels: ArrayLike,
        patient_ids: Sequence[str],
        seed: int = 0,
        *,
        image_ids: Sequence[str] | None = None,
        validation_share: float = VALIDATION_SHARE,
        column: str | None = None,
    ) -> Split:
        """Take the parts from a cohort's column, as one fold.

        Parameters
        ----------
        values
            ``train``, ``validation`` (or ``val``, ``valid``) or ``test`` for each image. Where
            no image validates, a part of the training images is set aside as in
            :meth:`k_fold`.
        labels, patient_ids, seed, image_ids, validation_share
            As for :meth:`k_fold`.
        column
            What the column is called, for the record.

        Raises
        ------
        SplitError
            If a value is none of these, or nothing is left to train or test on.
        LeakError
            If a patient has images in two parts.
        """
        told = [_ROLES.get(str(value).strip().lower()) for value in values]
        unknown = {v for v, role in zip(values, told, strict=True) if role is None}
        if unknown:
            seen = sorted("an empty cell" if v is None else repr(str(v)) for v in unknown)[:3]
            msg = f"split column holds {', '.join(seen)}: use train, validation or test"
            raise SplitError(msg)
        cohort = Patients.of(labels, patient_ids)
        role = np.array(told)
        validation = role == "validation"
        if not validation.any():
            # Any leak between train and test is found by the constructor below.
            rng = _generator(seed)
            validation = cohort.set_aside(role == "train", validation_share, rng)
        train = (role == "train") & ~validation
        fold = Fold(
            number=0,
            train=np.flatnonzero(train),
            validation=np.flatnonzero(validation),
            test=np.flatnonzero(role == "test"),
        )
        cohort.check_train(0, fold.train)
        return cls(
            folds=(fold,),
            image_ids=_names(image_ids, len(role)),
            patient_ids=tuple(patient_ids),
            method="column",
            n_folds=1,
            seed=seed,
            validation_share=validation_share,
            column=column,
        )


def _generator(seed: int, repeat: int = 0) -> np.random.Generator:
    """Make the randomness of one dealing."""
    if seed < 0:
        msg = f"split seed is {seed}: give a whole number of at least 0"
        raise SplitError(msg)
    return np.random.default_rng([seed, repeat])


def _fold(
    cohort: Patients,
    number: int,
    test: NDArray[np.bool_],
    share: float,
    rng: np.random.Generator,
    *,
    name: str = "",
) -> Fold:
    """Set a validation part aside from what is not tested."""
    validation = cohort.set_aside(~test, share, rng)
    train = np.flatnonzero(~test & ~validation)
    cohort.check_train(number, train)
    return Fold(
        number=number,
        train=train,
        validation=np.flatnonzero(validation),
        test=np.flatnonzero(test),
        name=name,
    )


def _check_rows(fold: Fold, n: int) -> None:
    rows = np.concatenate(list(fold.parts.values()))
    if len(rows) != len(np.unique(rows)) or np.any((rows < 0) | (rows >= n)):
        msg = f"fold {fold.number} names a row twice, or one that is not among {n} images"
        raise SplitError(msg)
    if not len(fold.train) or not len(fold.test):
        msg = (
            f"fold {fold.number} has {len(fold.train)} images to train and {len(fold.test)} "
            "to test on: both are needed"
        )
        raise SplitError(msg)


def _names(image_ids: Sequence[str] | None, n: int) -> tuple[str, ...]:
    if image_ids is None:
        return tuple(str(i) for i in range(n))
    if len(set(image_ids)) != n:
        msg = f"{len(set(image_ids))} different image_ids for {n} images"
        raise SplitError(msg)
    return tuple(image_ids)
