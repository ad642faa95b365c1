"""What a head is: inert settings that fit, and the fitted result that predicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from histostore.errors import OptionError
from zoo import settings as _settings
from zoo.errors import EmptyBag, NotSupported
from zoo.heads.checks import check_alike, check_labels, check_learns
from zoo.manyviews import as_extra_bags
from zoo.recipes import Recipe
from zoo.tasks import Task
from zoo.training.kernels import ready_kernels
from zoo.training.threads import limited

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from zoo.bags import Bags

__all__ = ["Head", "HeadSpec", "Standardiser", "check_together"]

_ROWS_SUMMED = 512


def check_together(together: str) -> None:
    """Refuse what :meth:`HeadSpec.fit_many` does not know."""
    if together not in ("auto", "never", "always"):
        raise OptionError(f"together is {together!r}, but must be auto, never or always")


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadSpec(ABC):
    """Settings of a head. Constructing one does nothing but check them."""

    name: ClassVar[str]
    ordered: ClassVar[bool] = False
    """Whether the order of a bag's patches matters to it."""
    tasks: ClassVar[tuple[str, ...]] = ("classification",)
    """Kinds of task that it can learn, of :data:`zoo.tasks.KINDS`."""

    def __post_init__(self) -> None:
        _settings.check(f"head {self.name}", _settings.problems_of(self))

    def to_json(self) -> dict[str, Any]:
        """Give name and settings as JSON values."""
        return {"name": self.name, "settings": _settings.to_json(self)}

    def fit(
        self,
        bags: Bags,
        validation: Bags | None = None,
        recipe: Recipe | None = None,
        seed: int = 0,
        *,
        device: str = "auto",
        threads: int | None = None,
    ) -> Head:
        """Fit a head to labelled bags.

        Neither the bags nor any global random state is changed; the same seed on the same
        machine gives the same head.

        Parameters
        ----------
        bags
            What to learn; labelled, of at least two classes.
        validation
            What to watch: scores in the history, and the choice of the best epoch where the
            recipe asks for that. Never learned.
        recipe
            How to train; the recipe ``default`` where left out.
        seed
            Decides initial weights, order of bags and all noise.
        device
            ``auto``, ``cpu`` or ``cuda``; estimators always use the CPU.
        threads
            At most this many, never more than the cores there are; where left out, what
            ``OMP_NUM_THREADS`` says, or one.

        Raises
        ------
        SplitError
            If a bag has no label or all have the same.
        NotSupported
            If this head cannot learn the bags' task, or validation bags have other features,
            classes or task.
        RecipeError
            If the recipe does not fit this head or the task, or needs validation bags.
        """
        recipe = self._checked(bags, validation, recipe)
        with limited(threads) as count, ready_kernels(recipe.precision):
            taught = self._taught(bags)
            return self._fit(taught, validation, recipe, seed=seed, device=device, threads=count)

    def _taught(self, bags: Bags) -> Bags:
        """Give what is fitted: each bag once per view that was named for training."""
        return as_extra_bags(bags)

    def fit_many(
        self,
        bags: Bags,
        validation: Bags | None = None,
        recipe: Recipe | None = None,
        seeds: Sequence[int] = (0,),
        *,
        device: str = "auto",
        threads: int | None = None,
        together: str = "auto",
    ) -> list[Head]:
        """Fit a head with each of several seeds, to the same bags.

        Parameters
        ----------
        bags, validation, recipe, device, threads
            As of :meth:`fit`.
        seeds
            One for each head.
        together
            Whether heads that learn by gradient steps are computed as one: ``always``, ``never``,
            or ``auto``, which is on a GPU, where bags are of like size and the head allows it.
            The heads are the same, but for the order of floating-point sums.

        Returns
        -------
        heads
            In the order of the seeds.

        Raises
        ------
        NotSupported
            If ``together`` is ``always`` and cannot be; else as :meth:`fit`.
        """
        recipe = self._checked(bags, validation, recipe)
        check_together(together)
        if not seeds:
            raise OptionError("seeds is empty: give at least one")
        with limited(threads) as count, ready_kernels(recipe.precision):
            taught = self._taught(bags)
            return [
                *self._fit_many(
                    taught,
                    validation,
                    recipe,
                    seeds=tuple(seeds),
                    device=device,
                    threads=count,
                    together=together,
                )
            ]

    def trains_together(self, *, device: str, together: str) -> bool:
        """Whether :meth:`fit_many` would compute several seeds as one, bags permitting.

        Raises
        ------
        NotSupported
            If ``together`` is ``always`` and this head cannot.
        """
        del device
        if together == "always":
            raise NotSupported(
                f"several seeds of head {self.name} cannot be computed as one: use together=auto"
            )
        return False

    def _checked(self, bags: Bags, validation: Bags | None, recipe: Recipe | None) -> Recipe:
        """Refuse what cannot be fitted; give the recipe."""
        recipe = Recipe() if recipe is None else recipe
        self.check_task(bags.task, recipe)
        check_labels(bags)
        if validation is not None:
            check_alike(bags, validation)
        self.check_recipe(recipe, has_validation=validation is not None)
        return recipe

    def _fit_many(
        self,
        bags: Bags,
        validation: Bags | None,
        recipe: Recipe,
        *,
        seeds: tuple[int, ...],
        device: str,
        threads: int,
        together: str,
    ) -> Sequence[Head]:
        """Fit with checked arguments, one seed after the other."""
        self.trains_together(device=device, together=together)
        return [
            self._fit(bags, validation, recipe, seed=seed, device=device, threads=threads)
            for seed in seeds
        ]

    def check_task(self, task: Task, recipe: Recipe) -> None:
        """Refuse a task that this head cannot learn, or whose loss would ignore a setting."""
        check_learns(self, task, recipe)

    @abstractmethod
    def check_recipe(self, recipe: Recipe, *, has_validation: bool) -> None:
        """Raise :class:`~zoo.errors.RecipeError` where ``recipe`` does not fit this head."""

    @abstractmethod
    def _fit(
        self,
        bags: Bags,
        validation: Bags | None,
        recipe: Recipe,
        *,
        seed: int,
        device: str,
        threads: int,
    ) -> Head:
        """Fit with checked arguments, inside a limit on threads."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Head(ABC):
    """A fitted head. It does not change any more."""

    spec: HeadSpec
    """What was fitted."""
    recipe: Recipe
    """How it was trained."""
    seed: int
    """The seed it was trained with."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the columns of :meth:`predict_proba`."""
    n_features: int
    """Length of the embeddings it needs."""
    history: tuple[dict[str, Any], ...] = field(default=(), repr=False)
    """One row per epoch; estimators have one, epoch 0. A head read from a file has none."""
    task: Task = field(default_factory=Task)
    """What it learned, with what that took from the training bags."""

    suffix: ClassVar[str] = ".safetensors"
    """How the name of its file ends."""

    def predict_proba(self, bags: Bags) -> NDArray[np.float64]:
        """Predict the class of each bag.

        Returns
        -------
        probabilities
            ``(bag, class)`` float64, rows sum to 1.

        Raises
        ------
        NotSupported
            If the embeddings have another length than those it was trained on, or its task has
            no classes.
        EmptyBag
            If a bag has no patch.
        """
        if not self.task.has_classes:
            raise NotSupported(f"task {self.task.kind} has no classes: use predict")
        return self.predict(bags)

    def predict(self, bags: Bags) -> NDArray[np.float64]:
        """Predict each bag, whatever the task.

        Returns
        -------
        values
            ``(bag, column)`` float64: what :meth:`predict_proba` gives (of several labels, rows
            do not sum to 1); a number; or a risk, larger where the event comes sooner.

        Raises
        ------
        NotSupported, EmptyBag
            As of :meth:`predict_proba`.
        """
        self._check(bags)
        if len(bags) == 0:
            return np.empty((0, len(self.task.value_columns(self.classes))))
        with limited(), ready_kernels():
            return self._predict(bags)

    def attention(self, bags: Bags) -> list[NDArray[np.float64]]:
        """Weigh the patches of each bag.

        Returns
        -------
        weights
            Per bag ``(patch,)`` float64, not negative, sum 1.

        Raises
        ------
        NotSupported
            If this head does not weigh patches.
        """
        self._check(bags)
        if len(bags) == 0:
            return []
        with limited(), ready_kernels():
            return self._attention(bags)

    @abstractmethod
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything learned to one file; its name should end in :attr:`suffix`."""

    @abstractmethod
    def _predict(self, bags: Bags) -> NDArray[np.float64]: ...

    def _attention(self, bags: Bags) -> list[NDArray[np.float64]]:
        del bags
        raise NotSupported(f"head {self.spec.name} does not weigh patches; gated-mil does")

    def _check(self, bags: Bags) -> None:
        if bags.n_features != self.n_features:
            raise NotSupported(
                f"the head was trained on {self.n_features} features, but these bags have "
                f"{bags.n_features}: use the feature set of its training"
            )
        if (bags.lengths < 1).any():
            raise EmptyBag("a bag without any patch has no prediction: leave it out")

    def document(self) -> dict[str, Any]:
        """Give all that is not an array as JSON values."""
        told = {
            "head": self.spec.to_json(),
            "recipe": self.recipe.to_json(),
            "seed": self.seed,
            "classes": list(self.classes),
            "n_features": self.n_features,
        }
        # Files of classifiers are as they were before there were other tasks.
        plain = self.task.kind == "classification"
        return told if plain else {**told, "task": self.task.to_json()}


def _summed(
    parts: Iterator[NDArray[Any]],
    change: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> tuple[int, NDArray[np.float64]]:
    """Count rows and add them up in float64, row after row, a few at once in memory."""
    count, total = 0, np.zeros((1, 1))
    for part in parts:
        count += len(part)
        for start in range(0, len(part), _ROWS_SUMMED):
            rows = change(part[start : start + _ROWS_SUMMED].astype(np.float64))
            # The sum so far stands in front, so that the order of additions is always the same.
            ahead = np.broadcast_to(total, (1, part.shape[1]))
            total = np.concatenate([ahead, rows]).sum(axis=0, keepdims=True)
    return count, total[0]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Standardiser:
    """Shift and scale of each feature, learned from training rows alone."""

    mean: NDArray[np.float32]
    """``(feature,)``."""
    scale: NDArray[np.float32]
    """``(feature,)``, standard deviation, 1 where a feature never varies."""

    @classmethod
    def learn(cls, rows: NDArray[Any]) -> Standardiser:
        """Learn from ``rows (row, feature)``; sums are taken in float64."""
        return cls.learn_parts(lambda: iter([rows]))

    @classmethod
    def learn_parts(cls, parts: Callable[[], Iterator[NDArray[Any]]]) -> Standardiser:
        """Learn from rows that come in parts, which are asked for twice.

        How the rows are cut into parts does not matter to the result.

        Parameters
        ----------
        parts
            Gives the parts, ``(row, feature)`` each, one row in all at least.
        """
        count, total = _summed(parts(), lambda rows: rows)
        mean = total / count
        spread = np.sqrt(_summed(parts(), lambda rows: np.square(rows - mean))[1] / count)
        # A constant feature has a spread of rounding errors, which must not be blown up.
        constant = spread <= 1e-6 * np.abs(mean)
        scale = np.where(constant | (spread == 0), 1.0, spread)
        return cls(mean=mean.astype(np.float32), scale=scale.astype(np.float32))

    @classmethod
    def idle(cls, n_features: int) -> Standardiser:
        """Leave rows as they are."""
        return cls(mean=np.zeros(n_features, np.float32), scale=np.ones(n_features, np.float32))

    def __call__(self, rows: NDArray[Any]) -> NDArray[np.float32]:
        """Give shifted and scaled rows, ``(row, feature)`` float32, in new memory."""
        shifted: NDArray[np.float32] = np.subtract(rows, self.mean, dtype=np.float32)
        shifted /= self.scale
        return shifted
