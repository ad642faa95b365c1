"""The fitted heads of a run, or of an ensemble's members, with what a store holds for each.

Which feature set a head can read is decided in :mod:`zoo.likeness`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from zoo.blending import Pool
from zoo.errors import NotSupported
from zoo.likeness import fitting, remarks
from zoo.membership import on_pixels, pool_of, runs_of
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Sequence

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
    "pool_of",
    "pooled",
    "runs_of",
    "spread",
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
    """Its number among the runs with heads, in the order of :func:`runs_of`."""

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
    pool: Pool = field(default_factory=Pool)
    """The ensemble's rule, with what it learned."""
    notes: tuple[str, ...] = ()
    """What is worth knowing, one line each."""

    @property
    def temperature(self) -> float:
        """By which an ensemble's probabilities are cooled."""
        return self.pool.temperature

    def pooled(
        self,
        prob: NDArray[np.float64],
        weights: NDArray[np.float64],
        groups: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        """Do what :func:`pooled` does, by the ensemble's rule."""
        return pooled(self.pool, prob, weights, groups)


def pooled(
    pool: Pool,
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Combine what heads say: each run's average, then the rule, from the innermost ensemble on.

    Parameters
    ----------
    pool
        The rule. Of an average only the temperature counts: weights are those of the heads.
    values
        ``(head, image, column)``.
    weights, groups
        Of the heads' seats, ``(head,)``. A run whose weight is 0 needs none.

    Returns
    -------
    values
        ``(image, column)``.
    """
    if not pool.members:
        return weighted_mean(values, weights / weights.sum())
    parts = list(_parts(pool, groups))
    each = np.array(
        [pooled(pool.members[m], values[own], weights[own], inner) for m, own, inner in parts]
    )
    if not pool.is_average:
        return pool.select(np.array([m for m, _, _ in parts]))(each)
    shares = np.array([weights[own].sum() for _, own, _ in parts])
    return pool.finished(weighted_mean(each, shares / shares.sum()))


def spread(
    pool: Pool,
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    groups: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Give the standard deviation over heads, ``(image, column)``, in the units of the result.

    Parameters are those of :func:`pooled`.
    """
    return weighted_sd(_standardised(pool, values, groups), weights)


def _standardised(
    pool: Pool, values: NDArray[np.float64], groups: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Put what heads say on the scale on which the outermost ensemble adds it up."""
    moved = values.copy()
    for m, own, inner in _parts(pool, groups):
        moved[own] = _standardised(pool.members[m], values[own], inner)
        if pool.mix is not None:
            moved[own] = pool.mix.select(np.array([m])).standardised(moved[own])
    return moved


def _parts(
    pool: Pool, groups: NDArray[np.int64]
) -> Iterator[tuple[int, NDArray[np.bool_], NDArray[np.int64]]]:
    """Give each member that has heads here, which those are, and their groups within it."""
    start = 0
    for m, member in enumerate(pool.members):
        own = (groups >= start) & (groups < start + member.n_runs)
        if own.any():
            yield m, own, groups[own] - start
        start += member.n_runs


def open_panel(
    run: str | os.PathLike[str] | Run,
    store: Store,
    feature_set: str | None = None,
    *,
    averages_only: bool = True,
    kinds: Sequence[str] = ("classification",),
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
        Refuse ensembles whose members are not averaged as they are, such as those by ``rank`` and
        ``stack``; without, :meth:`Panel.pooled` is to be asked for what they say together.
    kinds
        Kinds of task that will do.

    Raises
    ------
    NotSupported
        If the run's task is of another kind, or the ensemble's rule cannot be applied to images
        beyond its folds.
    RunError
        If a member of an ensemble has gone or was changed, or the run knows no store.
    NotFound
        If the store holds no vectors as those of the training; ``problems`` lists, for each
        feature set, the keys that differ.
    Ambiguous
        If several feature sets fit, and none is the very one of the training.
    """
    asked = run if isinstance(run, Run) else Run.load(run)
    if asked.task.kind not in kinds:
        raise NotSupported(
            f"{asked.path} learned task {asked.task.kind}: new images are predicted of every task, "
            f"but this is for {' and '.join(kinds)} alone"
        )
    members = [
        Member(run=one, features=fitting(one, store, feature_set), weight=weight, group=group)
        for group, (one, weight) in enumerate(runs_of(asked, is_pooled=not averages_only))
        if weight > 0
    ]
    notes = dict.fromkeys(
        note for member in members for note in remarks(member.run, member.features)
    )
    return Panel(run=asked, members=tuple(members), pool=pool_of(asked), notes=tuple(notes))


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
