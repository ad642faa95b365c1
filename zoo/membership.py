"""The runs that an ensemble combines, and what it learned of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.blending import LEARNED, RULES, Mix, Pool
from zoo.errors import NotSupported, RunError
from zoo.run import Run, run_digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["on_pixels", "pool_of", "runs_of"]


def pool_of(run: Run) -> Pool:
    """Read by which rule a run combines members, and what it learned for that; theirs as well.

    Raises
    ------
    RunError
        If it does not tell, or a member has gone or was changed.
    """
    if not run.is_ensemble:
        return Pool(kind=run.task.kind)
    rule, known = str(run.document.get("rule", "mean")), None
    if rule == "rank":
        known = np.array([member.test_probabilities().prob for member in _members(run)])
    return Pool(
        kind=run.task.kind,
        rule=rule,
        mix=_mix(run) if rule in LEARNED else None,
        reference=known,
        temperature=_temperature(run),
        members=tuple(pool_of(member) for member in _members(run)),
    )


def runs_of(
    run: Run, weight: float = 1.0, *, is_pooled: bool = False
) -> Iterator[tuple[Run, float]]:
    """Give the runs that have heads, with their shares: a run itself, an ensemble's members.

    An ensemble among the members stands for its own, in the order of :attr:`Pool.members`.

    Parameters
    ----------
    run
        A run, or an ensemble.
    weight
        What the shares sum to.
    is_pooled
        Whether members of rules that are no averages will do too.

    Raises
    ------
    NotSupported, RunError
        As :func:`open_panel` does.
    """
    if not run.is_ensemble:
        yield run, weight
        return
    for member, share in zip(_members(run), _shares(run, is_pooled=is_pooled), strict=True):
        if member.is_ensemble and not is_pooled and _temperature(member) != 1.0:
            raise NotSupported(
                f"{member.path} is calibrated, and part of {run.path}, so heads are not averaged "
                "as they are: use it alone"
            )
        yield from runs_of(member, weight * share, is_pooled=is_pooled)


def on_pixels(run: Run) -> bool:
    """Tell whether a run, or the members of an ensemble, were trained on pixels.

    Raises
    ------
    NotSupported
        If an ensemble has members of both kinds.
    RunError
        If a member has gone or was changed.
    """
    if not run.is_ensemble:
        return "trained_on" in run.document
    kinds = {"trained_on" in member.document for member, _ in runs_of(run, is_pooled=True)}
    if len(kinds) > 1:
        raise NotSupported(
            f"{run.path} combines runs on stored vectors with runs on pixels: predict with its "
            "members, one by one"
        )
    return kinds == {True}


def _members(ensemble: Run) -> Iterator[Run]:
    """Read an ensemble's members, which must be what they were when it was made."""
    for path, told in zip(ensemble.member_paths(), ensemble.document["members"], strict=True):
        yield _member(ensemble, path, str(told["digest"]))


def _member(ensemble: Run, path: Path, digest: str) -> Run:
    if not (path / "run.json").is_file():
        raise RunError(
            f"{ensemble.path} combines {path}, which is not there: move it and its members "
            "together, or make it again"
        )
    if run_digest(path) != digest:
        raise RunError(f"{path} was changed since {ensemble.path} was made: make it again")
    return Run.load(path)


def _shares(run: Run, *, is_pooled: bool = False) -> list[float]:
    """Tell how much each member of an ensemble counts.

    Of pools that are no averages, it is how much they count in the spread over heads.
    """
    rule, n = run.document.get("rule", "mean"), len(run.document["members"])
    is_average = rule in ("mean", "weighted", "greedy") and not _learned(run, "scale")
    if rule not in RULES or not (is_average or is_pooled):
        raise NotSupported(
            f"{run.path} combines by rule {rule}, which cannot be applied to new images here: use "
            "zoo ensemble --rule mean, weighted or greedy"
        )
    weights = _mix(run).weights if rule in LEARNED else np.ones(n)
    shares = weights if weights.any() else np.ones(n)  # slopes may all be 0
    return [float(share) for share in shares / shares.sum()]


def _mix(run: Run) -> Mix:
    """Read what an ensemble learned of its members."""
    n = len(run.document["members"])
    told = {name: _learned(run, name) for name in ("weights", "shift", "scale", "intercept")}
    try:
        weights, shift, scale = (
            None if told[name] is None else np.array(told[name], np.float64).reshape(n)
            for name in ("weights", "shift", "scale")
        )
    except (TypeError, ValueError):
        weights = None
    # Slopes beside an intercept may all be 0.
    if weights is None or not (
        (weights >= 0).all() and (weights.any() or told["intercept"] is not None)
    ):
        raise RunError(f"{run.path} does not tell the weights that it learned: make it again")
    return Mix(weights=weights, shift=shift, scale=scale, intercept=told["intercept"])


def _temperature(run: Run) -> float:
    learned = _learned(run, "temperature")
    return 1.0 if learned is None else float(learned)


def _learned(run: Run, what: str) -> Any:
    """Give what an ensemble learned from all out-of-fold predictions; None where it learned nothing.

    Ensembles made before that was written have the mean over folds.
    """
    told = (run.document.get("learned") or {}).get(what) or {}
    return told.get("all", told.get("mean"))
