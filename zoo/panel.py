"""The fitted heads of a run, or of an ensemble's members, with what a store holds for each.

Which feature set a head can read is decided in :mod:`zoo.likeness`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.blending.pools import log_pool
from zoo.blending.ranks import rank_among
from zoo.blending.temperature import cooled
from zoo.errors import NotSupported, RunError
from zoo.likeness import fitting, remarks
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.store import FeatureSet
    from histostore.store.reader import Store
    from zoo.heads.base import Head

__all__ = [
    "Member",
    "Panel",
    "Seat",
    "on_pixels",
    "open_panel",
    "runs_of",
    "seated",
    "weighted_mean",
    "weighted_sd",
]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seat:
    """One fitted head with its say."""

    head: Head
    fold: int
    seed: int
    weight: float
    """Share in the average over all heads of the panel; they sum to 1."""
    group: int = 0
    """As of :attr:`Member.group`."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """A run with heads, and the feature set of the store that they can read."""

    run: Run
    features: FeatureSet
    weight: float
    """Share among the members; they sum to 1."""
    group: int = 0
    """Which member of the ensemble that was asked for it is, or is part of."""

    def seats(self) -> list[Seat]:
        """Read the heads, each with the same part of the member's weight."""
        heads = self.run.load_heads()
        share = self.weight / len(heads)
        return [
            Seat(head=head, fold=fold, seed=seed, weight=share, group=self.group)
            for (fold, seed), head in heads.items()
        ]

    @property
    def views(self) -> tuple[str, ...]:
        """Views over which the run averaged what it tested."""
        told = self.run.document.get("test_views")
        return tuple(told) if told else (str(self.run.document.get("augmentation", "identity")),)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Panel:
    """All heads that answer together."""

    run: Run
    """The run or ensemble that was asked for."""
    members: tuple[Member, ...]
    """The run itself, or the members of the ensemble."""
    temperature: float = 1.0
    """By which an ensemble's probabilities are cooled."""
    exponents: NDArray[np.float64] | None = None
    """Of each group, for the rule ``stack``: a logarithmic pool; None for an average."""
    reference: NDArray[np.float64] | None = None
    """Out-of-fold probabilities ``(group, image, class)``, for the rule ``rank``."""
    notes: tuple[str, ...] = ()
    """What is worth knowing, one line each."""

    def pooled(
        self,
        prob: NDArray[np.float64],
        weights: NDArray[np.float64],
        groups: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Combine what heads say as the ensemble's rule does, and cool it.

        Parameters
        ----------
        prob
            ``(head, image, class)``.
        weights, groups
            Of the heads' seats, ``(head,)``.

        Returns
        -------
        prob
            ``(image, class)``.
        """
        if self.exponents is None and self.reference is None:
            return cooled(weighted_mean(prob, weights), self.temperature)
        names = np.unique(groups)
        each = np.array(
            [
                weighted_mean(prob[groups == g], weights[groups == g] / weights[groups == g].sum())
                for g in names
            ]
        )
        if self.exponents is not None:
            mixed = log_pool(self.exponents[names], each)
        elif self.reference is not None:
            mixed = rank_among(each, self.reference[names])
        return cooled(mixed, self.temperature)


def open_panel(
    run: str | os.PathLike[str] | Run,
    store: Store,
    feature_set: str | None = None,
    *,
    averages_only: bool = True,
) -> Panel:
    """Find the heads of a run, and the feature set that fits them.

    Parameters
    ----------
    run
        Directory of a run or an ensemble, or one that was read.
    store
        An open store.
    feature_set
        The one to read; the one that fits where left out.
    averages_only
        Refuse ensembles by the rules ``rank`` and ``stack``, whose members are not averaged; without,
        :meth:`Panel.pooled` is to be asked for what they say together.

    Raises
    ------
    NotSupported
        If the run is not one of classification, or the ensemble's rule cannot be applied to
        images beyond its folds.
    RunError
        If a member of an ensemble has gone or was changed, or the run knows no store.
    NotFound
        If the store holds no vectors as those of the training; ``problems`` lists, for each
        feature set, the keys that differ.
    Ambiguous
        If several feature sets fit, and none is the very one of the training.
    """
    asked = run if isinstance(run, Run) else Run.load(run)
    if asked.task.kind != "classification":
        raise NotSupported(
            f"{asked.path} learned task {asked.task.kind}: new images are predicted, and "
            "explained, for classification alone so far"
        )
    exponents, reference = (None, None) if averages_only else _pool_of(asked)
    is_pooled = exponents is not None or reference is not None
    members = [
        Member(run=one, features=fitting(one, store, feature_set), weight=weight, group=group)
        for one, weight, group in seated(asked, is_pooled=is_pooled)
        if weight > 0
    ]
    notes = dict.fromkeys(
        note for member in members for note in remarks(member.run, member.features)
    )
    return Panel(
        run=asked,
        members=tuple(members),
        temperature=_temperature(asked),
        exponents=exponents,
        reference=reference,
        notes=tuple(notes),
    )


def _pool_of(run: Run) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
    """Give what an ensemble needs that is no average: exponents, or images to rank among."""
    rule = run.document.get("rule") if run.is_ensemble else None
    if rule == "stack":
        return np.array(_weights(run)), None
    if rule == "rank":
        members = [_member(run, member) for member in run.document["members"]]
        return None, np.array([member.test_probabilities().prob for member in members])
    return None, None


def seated(run: Run, *, is_pooled: bool) -> Iterator[tuple[Run, float, int]]:
    """Give the runs that have heads, with their shares, and whose part they are.

    Parameters
    ----------
    run
        A run, or an ensemble.
    is_pooled
        Whether members of the rules ``rank`` and ``stack``, which are no averages, will do too.

    Raises
    ------
    NotSupported, RunError
        As :func:`open_panel` does.
    """
    if not run.is_ensemble:
        yield run, 1.0, 0
        return
    shares = _shares(run, is_pooled=is_pooled)
    for group, (member, share) in enumerate(zip(run.document["members"], shares, strict=True)):
        for one, weight in runs_of(_member(run, member), share):
            yield one, weight, group


def runs_of(run: Run, weight: float = 1.0) -> Iterator[tuple[Run, float]]:
    """Give the runs that have heads, with their shares: a run itself, an ensemble's members.

    Raises
    ------
    NotSupported, RunError
        As :func:`open_panel` does.
    """
    if not run.is_ensemble:
        yield run, weight
        return
    members = run.document["members"]
    for member, share in zip(members, _shares(run), strict=True):
        yield from runs_of(_member(run, member), weight * share)


def on_pixels(run: Run) -> bool:
    """Tell whether a run, or the members of an ensemble, were trained on pixels.

    Raises
    ------
    NotSupported
        If an ensemble has members of both kinds, or its rule cannot be applied to new images.
    RunError
        If a member has gone or was changed.
    """
    if not run.is_ensemble:
        return "trained_on" in run.document
    is_pooled = run.document.get("rule") in {"rank", "stack"}
    members = seated(run, is_pooled=is_pooled)
    kinds = {"trained_on" in member.document for member, _, _ in members}
    if len(kinds) > 1:
        raise NotSupported(
            f"{run.path} combines runs on stored vectors with runs on pixels: predict with its "
            "members, one by one"
        )
    return kinds == {True}


def _member(ensemble: Run, member: Mapping[str, Any]) -> Run:
    path = Path(member["path"])
    if not (path / "run.json").is_file():
        raise RunError(
            f"{ensemble.path} combines {path}, which is not there: go to the directory in which "
            "the ensemble was made, or make it again"
        )
    if hashlib.sha256((path / "run.json").read_bytes()).hexdigest() != member["digest"]:
        raise RunError(f"{path} was changed since {ensemble.path} was made: make it again")
    run = Run.load(path)
    if run.is_ensemble and _temperature(run) != 1.0:
        raise NotSupported(f"{run.path} is calibrated, and part of {ensemble.path}: use it alone")
    return run


def _shares(run: Run, *, is_pooled: bool = False) -> list[float]:
    """Tell how much each member of an ensemble counts.

    Of pools that are no averages, it is how much they count in the spread over heads.
    """
    rule, n = run.document.get("rule", "mean"), len(run.document["members"])
    if rule == "mean" or (rule == "rank" and is_pooled):
        return [1 / n] * n
    if rule not in {"weighted", "greedy"} and not (rule == "stack" and is_pooled):
        raise NotSupported(
            f"{run.path} combines by rule {rule}, which cannot be applied to new images here: use "
            "zoo ensemble --rule mean, weighted or greedy"
        )
    weights = _weights(run)
    return [weight / sum(weights) for weight in weights]


def _weights(run: Run) -> list[float]:
    """Read the weights that an ensemble learned, one per member."""
    found = _learned(run, "weights")
    is_list = isinstance(found, list) and len(found) == len(run.document["members"])
    if not is_list or not sum(found) > 0 or min(found) < 0:
        raise RunError(f"{run.path} does not tell the weights that it learned: make it again")
    return [float(weight) for weight in found]


def _temperature(run: Run) -> float:
    learned = _learned(run, "temperature")
    return 1.0 if learned is None else float(learned)


def _learned(run: Run, what: str) -> Any:
    """Give what an ensemble learned from all out-of-fold predictions; None where it learned nothing.

    Ensembles made before that was written have the mean over folds.
    """
    told = (run.document.get("learned") or {}).get(what) or {}
    return told.get("all", told.get("mean"))


def weighted_mean(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Average over the first axis with weights that sum to 1."""
    mean: NDArray[np.float64] = np.tensordot(weights, values, axes=1)
    return mean


def weighted_sd(values: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give the standard deviation over the first axis; NaN where there is one value.

    With equal weights it is the usual one, of n − 1; of others the unbiased one for weights of
    reliability.

    Parameters
    ----------
    values
        ``(head, …)``.
    weights
        ``(head,)``, sum 1.

    Examples
    --------
    >>> weighted_sd(np.array([1.0, 2.0, 3.0]), np.full(3, 1 / 3)).round(6)
    np.float64(1.0)
    """
    mean = weighted_mean(values, weights)
    variance = weighted_mean((values - mean) ** 2, weights)
    left = 1.0 - float((weights**2).sum())
    if left < 1e-12:
        return np.full_like(mean, np.nan)
    sd: NDArray[np.float64] = np.sqrt(variance / left)
    return sd
