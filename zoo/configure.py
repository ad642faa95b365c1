"""From names and ``key=value`` settings to a head and a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zoo.errors import RecipeError, UnknownHead
from zoo.heads.catalog import HEADS, spec
from zoo.recipes import Recipe, recipe
from zoo.settings import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.heads.base import HeadSpec

__all__ = ["configure"]


def configure(
    head: str, recipe_name: str, settings: Mapping[str, Any] | None = None
) -> tuple[HeadSpec, Recipe]:
    """Look up a head and a recipe, and give each its settings.

    Parameters
    ----------
    head, recipe_name
        Their names.
    settings
        Values by key. A key that both know is written ``head.KEY`` or ``recipe.KEY``.

    Raises
    ------
    UnknownHead
        If no head has this name.
    RecipeError
        If the recipe or a key is unknown, a key is ambiguous, or a value is not allowed.

    Examples
    --------
    >>> spec, chosen = configure("logistic", "default", {"inverse_penalty": 2})
    >>> spec.inverse_penalty, chosen.name
    (2.0, 'default')
    """
    if head not in HEADS:
        raise UnknownHead(f"no head is called {head!r}; known: {', '.join(HEADS)}")
    known = {
        "head": {setting["name"] for setting in HEADS[head].settings()},
        "recipe": {setting["name"] for setting in describe(Recipe)},
    }
    given: dict[str, dict[str, Any]] = {"head": {}, "recipe": {}}
    for key, value in (settings or {}).items():
        owner, dot, name = key.partition(".")
        if dot and owner in known:
            given[owner][name] = value
            continue
        owners = [owner for owner, keys in known.items() if key in keys]
        if len(owners) != 1:
            raise RecipeError(_complain(key, head, owners, known))
        given[owners[0]][key] = value
    return spec(head, **given["head"]), recipe(recipe_name, **given["recipe"])


def _complain(key: str, head: str, owners: list[str], known: dict[str, set[str]]) -> str:
    if owners:
        return (
            f"{key!r} is a setting of the head and of the recipe: write head.{key} or recipe.{key}"
        )
    return (
        f"unknown setting {key!r}; head {head} knows {', '.join(sorted(known['head']))}; "
        f"recipes know {', '.join(sorted(known['recipe']))}"
    )
