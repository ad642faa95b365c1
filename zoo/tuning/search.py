"""The search for one training part's best settings, by Optuna's sampler, on folds inside it.

What a trial tries depends on the seed, the fold, its number and the trials before it, and on
nothing else. So a search that was stopped goes on as if it had not been. A finished trial is a
small JSON file, written at once or not at all; Optuna's own journals also keep the trials that
never ended, and those of its storages that take snapshots pickle them.

**Reference**: tree-structured Parzen estimator, Bergstra et al. 2011, as Optuna does it; nested
cross-validation, Varma & Simon 2006.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.errors import MissingExtra, OptionError
from zoo.errors import NotSupported, RecipeError, RunError, SplitError
from zoo.manyviews import predict_views
from zoo.metrics import evaluate, higher_is_better
from zoo.tuning.space import Range, apply, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from zoo.bags import Bags
    from zoo.heads.base import HeadSpec
    from zoo.recipes import Recipe
    from zoo.split import Split
    from zoo.tuning.space import Choice

__all__ = [
    "Course",
    "Proposal",
    "Search",
    "Trial",
    "best",
    "check_optuna",
    "propose",
    "search_fold",
    "trials_of",
]

_TRIALS_BEFORE_PRUNING = 5


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """How to search.

    Raises
    ------
    OptionError
        If a value makes no sense.
    """

    space: Mapping[str, Range | Choice | str] | None = None
    """What varies, as :func:`~zoo.tuning.read_space` takes it; the head's and recipe's
    own :func:`~zoo.tuning.default_space` where left out."""
    trials: int = 30
    """Most trials in each outer fold; the first tries the settings as they stand."""
    timeout: float | None = None
    """Seconds for all searches together, shared equally; each has one trial at least."""
    inner_folds: int = 3
    """Folds inside each training part, patients whole."""
    metric: str = ""
    """What decides, of all inner test predictions together; the task's first where left out."""
    prune: bool = False
    """Whether to end a trial early that does worse than half of those before it."""
    seed: int = 0
    """Decides the inner folds and what is tried."""

    def __post_init__(self) -> None:
        problems = []
        if self.trials < 1 or self.inner_folds < 2 or self.seed < 0:
            problems.append(
                f"trials={self.trials}, inner_folds={self.inner_folds}, seed={self.seed}: give at "
                "least 1, 2 and 0"
            )
        if self.timeout is not None and not 0 < self.timeout < math.inf:
            problems.append(f"timeout is {self.timeout:g}: give seconds above 0")
        if problems:
            raise OptionError("; ".join(problems), problems=problems)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """Settings that were tried in one outer fold, and how well they did inside it."""

    fold: int
    """Number of the outer fold."""
    number: int
    """Counts the trials of the fold from 0."""
    state: str
    """``complete``, ``pruned`` or ``failed``."""
    settings: dict[str, Any]
    """Whole names to values."""
    scores: tuple[float, ...] = ()
    """After each inner fold, of all inner test predictions so far."""
    seconds: float = 0.0
    """What it took."""
    reason: str = ""
    """Why it failed."""

    @property
    def score(self) -> float | None:
        """The inner score; None where the trial did not go through all inner folds."""
        return self.scores[-1] if self.state == "complete" else None

    def save(self, folder: Path) -> None:
        """Write to ``folder``, at once or not at all."""
        with atomic(folder / f"{self.fold}-{self.number}.json") as hidden:
            hidden.write_text(json.dumps(dataclasses.asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Trial:
        """Read what :meth:`save` wrote."""
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{**told, "scores": tuple(told["scores"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise RunError(f"{path} is no trial of ours: {error}: delete it") from error


def trials_of(folder: Path, fold: int) -> list[Trial]:
    """Read the finished trials of an outer fold, in the order of their numbers."""
    found: list[Trial] = []
    while (path := folder / f"{fold}-{len(found)}.json").is_file():
        found.append(Trial.load(path))
    return found


def best(trials: Sequence[Trial], metric: str) -> Trial:
    """Choose the trial of the best inner score, the first of those.

    Raises
    ------
    RecipeError
        If none went through; gives the reason of the last.
    """
    complete = [trial for trial in trials if trial.score is not None]
    if not complete:
        last = trials[-1]
        raise RecipeError(
            f"fold {last.fold}: none of {len(trials)} trials went through; the last: {last.reason}"
        )
    sign = -1 if higher_is_better(metric) else 1
    return min(complete, key=lambda trial: (sign * (trial.score or 0.0), trial.number))


def check_optuna() -> None:
    """Raise :class:`~histostore.errors.MissingExtra` where there is no Optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtra.named("optuna", extra="tune") from error


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Proposal:
    """What to try next."""

    settings: dict[str, Any]
    """Whole names to values."""
    asked: Any
    """Optuna's trial, which knows of those before it."""

    def is_hopeless(self, scores: Sequence[float]) -> bool:
        """Tell whether half of the trials before it did better after as many inner folds."""
        if math.isfinite(scores[-1]):
            self.asked.report(scores[-1], len(scores))
        return bool(self.asked.should_prune())


def propose(
    known: Sequence[Trial],
    space: Mapping[str, Range | Choice],
    *,
    start: Mapping[str, Any],
    maximise: bool,
    seed: int,
) -> Proposal:
    """Say what to try after the trials ``known``; the same arguments give the same answer.

    Parameters
    ----------
    known
        Trials before this one.
    space
        What varies.
    start
        Settings for the first trial; what the space does not hold is drawn.
    maximise
        Whether higher scores are better.
    seed
        Decides what is drawn.
    """
    import optuna

    with _quiet():
        study = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=seed),
            pruner=optuna.pruners.MedianPruner(n_startup_trials=_TRIALS_BEFORE_PRUNING),
            direction="maximize" if maximise else "minimize",
        )
    shapes = {name: _distribution(part) for name, part in space.items()}
    study.add_trials([_as_optuna(trial, shapes) for trial in known])
    held = {name: plain(value) for name, value in start.items() if value in space[name]}
    if not known and held:
        study.enqueue_trial(held)
    asked = study.ask(fixed_distributions=shapes)
    settings = {name: _value(asked.params[name], part) for name, part in space.items()}
    return Proposal(settings=settings, asked=asked)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Optuna from telling of every study that it makes, for the time of a block."""
    from optuna import logging

    level = logging.get_verbosity()
    logging.set_verbosity(logging.WARNING)
    try:
        yield
    finally:
        logging.set_verbosity(level)


def _distribution(part: Range | Choice) -> Any:
    from optuna import distributions

    if not isinstance(part, Range):
        return distributions.CategoricalDistribution([plain(value) for value in part.values])
    if part.whole:
        return distributions.IntDistribution(int(part.low), int(part.high), log=part.log)
    return distributions.FloatDistribution(part.low, part.high, log=part.log)


def _value(drawn: object, part: Range | Choice) -> object:
    """Turn what Optuna knows back into a setting's value."""
    if isinstance(part, Range):
        return drawn
    return next(value for value in part.values if plain(value) == drawn)


def _as_optuna(trial: Trial, shapes: Mapping[str, Any]) -> Any:
    import optuna

    states = optuna.trial.TrialState
    state = {"complete": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    seen = {k: score for k, score in enumerate(trial.scores, start=1) if math.isfinite(score)}
    return optuna.trial.create_trial(
        state=state[trial.state],
        value=trial.score,
        params={name: plain(value) for name, value in trial.settings.items()},
        distributions=dict(shapes),
        intermediate_values=seen,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Course:
    """All that the trials of one outer fold share."""

    plan: Search
    """Budget and metric."""
    space: Mapping[str, Range | Choice]
    """What varies."""
    head: HeadSpec
    """What to fit, apart from that."""
    recipe: Recipe
    """How to train it, apart from that."""
    fold: int
    """Number of the outer fold."""
    part: Bags
    """Its training images, and no others."""
    inner: Split
    """Folds of them."""
    seed: int
    """Seed of the fits."""
    device: str
    """Where to fit."""

    def scores(self, settings: Mapping[str, Any]) -> Iterator[float]:
        """Fit and predict inner fold by inner fold, and score all predictions so far."""
        head, recipe = apply(self.head, self.recipe, settings)
        task = self.part.task
        found = np.zeros((len(self.part), len(task.value_columns(self.part.classes))))
        seen = np.zeros(len(self.part), dtype=bool)
        for fold in self.inner:
            fitted = head.fit(
                self.part[fold.train],
                validation=self.part[fold.validation] if len(fold.validation) else None,
                recipe=recipe,
                seed=self.seed,
                device=self.device,
                threads=1,
            )
            found[fold.test] = predict_views(fitted, self.part[fold.test])
            seen[fold.test] = True
            yield evaluate(self.part.truth[seen], found[seen], task)[self.plan.metric]

    @property
    def start(self) -> dict[str, Any]:
        """What varies, as it stands in head and recipe."""
        found = {}
        for name in self.space:
            owner, _, key = name.partition(".")
            found[name] = getattr(self.head if owner == "head" else self.recipe, key)
        return found

    def run(self, known: Sequence[Trial]) -> Trial:
        """Do the trial that follows those ``known``."""
        begun = time.monotonic()
        drawn = np.random.SeedSequence([self.plan.seed, self.fold, len(known)])
        proposal = propose(
            known,
            self.space,
            start=self.start,
            maximise=higher_is_better(self.plan.metric),
            seed=int(drawn.generate_state(1)[0]),
        )
        state, reason, scores = self._tried(proposal)
        return Trial(
            fold=self.fold,
            number=len(known),
            state=state,
            settings=proposal.settings,
            scores=tuple(scores),
            seconds=round(time.monotonic() - begun, 3),
            reason=reason,
        )

    def _tried(self, proposal: Proposal) -> tuple[str, str, list[float]]:
        """Give state, reason and scores; settings that do not go together fail, and say so."""
        scores: list[float] = []
        try:
            for score in self.scores(proposal.settings):
                scores.append(score)
                more = len(scores) < len(self.inner)
                if more and self.plan.prune and proposal.is_hopeless(scores):
                    return "pruned", "", scores
        except (NotSupported, RecipeError, SplitError) as error:
            return "failed", str(error), scores
        if not math.isfinite(scores[-1]):
            return "failed", f"{self.plan.metric} is not defined on the inner test parts", scores
        return "complete", "", scores


def search_fold(
    course: Course, folder: Path, *, seconds: float | None, tell: Callable[[str], None]
) -> list[Trial]:
    """Try settings until there are enough trials, or time is up.

    Parameters
    ----------
    course
        What is searched, and on what.
    folder
        Where finished trials are kept; those that are there count.
    seconds
        Time for this fold, over all the times it was begun; at least one trial is done.
    tell
        Called with a line after each trial.
    """
    trials = trials_of(folder, course.fold)
    while len(trials) < course.plan.trials:
        spent = sum(trial.seconds for trial in trials)
        if trials and seconds is not None and spent >= seconds:
            break
        trial = course.run(trials)
        trial.save(folder)
        trials.append(trial)
        got = trial.state if trial.score is None else f"{course.plan.metric} {trial.score:.3f}"
        tell(f"fold {course.fold}, trial {trial.number}: {got}")
    return trials
