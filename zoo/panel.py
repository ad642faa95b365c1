"""The fitted heads of a run, or of an ensemble's members, with what a store holds for each.

A head understands vectors that were made as those of its training were. What decides that is
compared key by key; which patches of an image were kept (``tissue``, ``quality``) may differ.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import Ambiguous, NotFound
from histostore.spec import FeatureSpec
from zoo.errors import NotSupported, RunError
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.store import FeatureSet
    from histostore.store.reader import Store
    from zoo.heads.base import Head

__all__ = ["Member", "Panel", "Seat", "open_panel", "weighted_mean", "weighted_sd"]

_DECISIVE = ("encoder", "n_features", "grid", "stain", "dtype")
"""Parts of a specification that decide what a vector means."""

_SHOWN = 3
"""Keys that a message names of those that differ."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Seat:
    """One fitted head with its say."""

    head: Head
    fold: int
    seed: int
    weight: float
    """Share in the average over all heads of the panel; they sum to 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Member:
    """A run with heads, and the feature set of the store that they can read."""

    run: Run
    features: FeatureSet
    weight: float
    """Share among the members; they sum to 1."""

    def seats(self) -> list[Seat]:
        """Read the heads, each with the same part of the member's weight."""
        heads = self.run.load_heads()
        share = self.weight / len(heads)
        return [
            Seat(head=head, fold=fold, seed=seed, weight=share)
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
    """By which an ensemble's probabilities are cooled: the mean over its folds."""
    notes: tuple[str, ...] = ()
    """What is worth knowing, one line each."""


def open_panel(
    run: str | os.PathLike[str] | Run, store: Store, feature_set: str | None = None
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
    members = [
        Member(run=one, features=_fitting(one, store, feature_set), weight=weight)
        for one, weight in _runs(asked, 1.0)
        if weight > 0
    ]
    notes = dict.fromkeys(note for member in members for note in _remarks(member))
    return Panel(
        run=asked,
        members=tuple(members),
        temperature=_temperature(asked),
        notes=tuple(notes),
    )


def _runs(run: Run, weight: float) -> Iterator[tuple[Run, float]]:
    """Give the runs that have heads, with their shares."""
    if not run.is_ensemble:
        yield run, weight
        return
    members = run.document["members"]
    for member, share in zip(members, _shares(run), strict=True):
        yield from _runs(_member(run, member), weight * share)


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


def _shares(run: Run) -> list[float]:
    """Tell how much each member of an ensemble counts, on average over folds."""
    rule, n = run.document.get("rule", "mean"), len(run.document["members"])
    if rule == "mean":
        return [1 / n] * n
    if rule not in {"weighted", "greedy"}:
        raise NotSupported(
            f"{run.path} combines by rule {rule}, which cannot be applied to new images: use "
            "zoo ensemble --rule mean, weighted or greedy"
        )
    mean = _learned(run, "weights")
    if not isinstance(mean, list) or len(mean) != n or not sum(mean) > 0:
        raise RunError(f"{run.path} does not tell the weights that it learned: make it again")
    return [float(share) / sum(mean) for share in mean]


def _temperature(run: Run) -> float:
    learned = _learned(run, "temperature")
    return 1.0 if learned is None else float(learned)


def _learned(run: Run, what: str) -> Any:
    """Give the mean over folds of what an ensemble learned; None where it learned nothing."""
    return ((run.document.get("learned") or {}).get(what) or {}).get("mean")


def _fitting(run: Run, store: Store, name: str | None) -> FeatureSet:
    """Find the feature set whose vectors mean what they meant in training."""
    told = (run.document.get("store") or {}).get("spec")
    if not told:
        raise RunError(f"{run.path} was fitted to arrays, not to a store: predict arrays with it")
    spec = FeatureSpec.from_json(told)
    if name is None and spec.name in store:
        return store[spec.name]
    names = [name] if name is not None else [each for each in store if not store.is_empty(each)]
    if not names:
        store.feature_set()  # says that there is none
    differing = {each: _differences(told, store[each].spec.to_json()) for each in names}
    fitting = [each for each, keys in differing.items() if not keys]
    if len(fitting) > 1:
        raise Ambiguous(
            f"{store.url} holds several feature sets that fit {run.path}, name one: "
            f"{', '.join(fitting)}"
        )
    if fitting:
        return store[fitting[0]]
    problems = [f"{each} differs in {_list(keys)}" for each, keys in differing.items()]
    raise NotFound(
        f"{store.url} holds no feature set like that of {run.path} ({spec.name}): "
        f"{problems[0] if len(problems) == 1 else f'{len(problems)} others differ'}; build one "
        "with the options of the training",
        problems=problems,
    )


def _differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...] = _DECISIVE
) -> list[str]:
    """Name the keys in which two specifications differ, with both values where they are short.

    Examples
    --------
    >>> grid = {"patch_size": 256, "stride": 256}
    >>> _differences({"grid": grid}, {"grid": {**grid, "stride": 128}})
    ['grid.stride (256 in training, 128 here)']
    """
    return [text for key in keys for text in _compared(key, wanted.get(key), found.get(key))]


def _compared(path: str, wanted: Any, found: Any) -> Iterator[str]:
    if wanted == found:
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*wanted, *found]):
            yield from _compared(f"{path}.{key}", wanted.get(key), found.get(key))
        return
    short = all(not isinstance(value, dict | list) for value in (wanted, found))
    yield f"{path} ({wanted} in training, {found} here)" if short else path


def _list(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def _remarks(member: Member) -> Iterator[str]:
    """Say which patches were chosen in another way than in training."""
    told = member.run.document["store"]["spec"]
    here = member.features.spec.to_json()
    differing = _differences(told, here, ("tissue", "quality"))
    if differing:
        yield (
            f"patches of {member.features.name} were chosen in another way than those of the "
            f"training: {_list(differing)}"
        )


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
