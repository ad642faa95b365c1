"""What is refused before a head is fitted: bags, tasks and settings that do not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import NotSupported, RecipeError, SplitError
from zoo.recipes import Recipe

if TYPE_CHECKING:
    from zoo.bags import Bags
    from zoo.heads.base import HeadSpec
    from zoo.tasks import Task

__all__ = ["check_alike", "check_labels", "check_learns"]

_PLAIN = Recipe().to_json()


def check_learns(head: HeadSpec, task: Task, recipe: Recipe) -> None:
    """Refuse a task that a head cannot learn, or whose loss would ignore a setting of the recipe.

    Raises
    ------
    NotSupported
        If the head cannot learn such a task; the message lists those that can.
    RecipeError
        If the recipe sets what means nothing to the task; ``problems`` names all of it.
    """
    if task.kind not in head.tasks:
        raise NotSupported(
            f"head {head.name} cannot learn task {task.kind}: use one of "
            f"{', '.join(_heads_for(task.kind))}"
        )
    unheeded = task.unheeded(recipe.to_json(), _PLAIN)
    if task.kind != "classification" and recipe.monitor not in ("macro_f1", "loss"):
        unheeded.append("monitor")
    if unheeded:
        told = " ".join(f"--set {key}={_PLAIN[key]}" for key in unheeded)
        raise RecipeError(
            f"recipe {recipe.name} sets {', '.join(unheeded)}, which means nothing to task "
            f"{task.kind}: give {told}",
            problems=unheeded,
        )


def _heads_for(kind: str) -> list[str]:
    from zoo.heads.catalog import HEADS, spec

    return [name for name, card in HEADS.items() if not card.package and kind in spec(name).tasks]


def check_labels(bags: Bags) -> None:
    """Refuse training bags of which some have no label, or that teach nothing.

    Raises
    ------
    SplitError
        Saying which.
    """
    unlabelled = int(np.count_nonzero(bags.labels < 0))
    if unlabelled:
        raise SplitError(f"{unlabelled} of {len(bags)} training bags have no label: leave them out")
    if not bags.task.one_class:
        problem = bags.task.problem_of(bags.truth) if len(bags) else "there is no bag"
        if problem:
            raise SplitError(f"training bags teach nothing: {problem}")
        return
    seen = np.unique(bags.labels)
    if len(seen) < 2:
        named = f"class {bags.classes[seen[0]]!r} only" if len(seen) else "no bag"
        raise SplitError(f"a head needs bags of two classes, but training has {named}")


def check_alike(bags: Bags, validation: Bags) -> None:
    """Refuse validation bags that are not like the training bags, or not labelled.

    Raises
    ------
    NotSupported
        If they have other features, classes or task.
    SplitError
        If one has no label, or there is none.
    """
    if bags.n_features != validation.n_features or bags.classes != validation.classes:
        raise NotSupported(
            f"validation bags have {validation.n_features} features and classes "
            f"{list(validation.classes)}, training bags {bags.n_features} and {list(bags.classes)}"
        )
    if validation.task != bags.task:
        raise NotSupported(f"validation bags are of {validation.task}, training bags {bags.task}")
    if not len(validation) or int(validation.labels.min()) < 0:
        raise SplitError("validation bags must be labelled, one at least; or leave them out")
