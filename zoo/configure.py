"""From names and ``key=value`` settings to a head and a recipe."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.text import table
from zoo.errors import NotSupported, RecipeError, UnknownHead
from zoo.heads.catalog import HEADS, spec
from zoo.recipes import Recipe, known_recipes, recipe
from zoo.settings import describe

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from zoo.heads.base import HeadSpec

__all__ = ["cards", "configure", "head_documents", "recipe_documents"]


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
    _check_head(head)
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


def head_documents(names: Sequence[str] = (), *, settings: bool = True) -> list[dict[str, Any]]:
    """Describe heads, as JSON values.

    Parameters
    ----------
    names
        Which; all where none is named.
    settings
        Also what each can be told: name, default, what is allowed, meaning. Loads libraries.

    A head of another package that cannot be loaded has no settings, and says why under ``error``.

    Raises
    ------
    UnknownHead
        If no head has such a name.
    NotSupported
        If one that is named cannot be loaded.

    Examples
    --------
    >>> [setting["name"] for setting in head_documents(["logistic"])[0]["settings"]]
    ['statistics', 'inverse_penalty', 'max_iter']
    """
    for name in names:
        _check_head(name)
    found: list[dict[str, Any]] = []
    for card in (HEADS[name] for name in names or HEADS):
        told: dict[str, Any] = {"name": card.name, "summary": card.summary, "source": card.source}
        if settings:
            try:
                told["settings"] = card.settings()
            except NotSupported as error:
                # Another package's own trouble, that must not hide the other heads.
                if names or not card.package:
                    raise
                told |= {"settings": [], "error": str(error)}
        found.append(told)
    return found


def recipe_documents(names: Sequence[str] = (), *, settings: bool = True) -> list[dict[str, Any]]:
    """Describe recipes as :func:`head_documents` does heads; ``default`` is the recipe's value.

    Raises
    ------
    RecipeError
        If no recipe has such a name.

    Examples
    --------
    >>> [document["name"] for document in recipe_documents(settings=False)][:2]
    ['default', 'r-drop']
    """
    known = {made.name: (made.to_json(), summary) for made, summary in known_recipes()}
    for name in names:
        if name not in known:
            raise RecipeError(f"no recipe is called {name!r}; known: {', '.join(known)}")
    found = []
    for name in names or known:
        values, summary = known[name]
        told = [{**row, "default": values[row["name"]]} for row in describe(Recipe)]
        found.append({"name": name, "summary": summary} | ({"settings": told} if settings else {}))
    return found


def cards(documents: Sequence[Mapping[str, Any]]) -> str:
    """Draw heads or recipes: one table of all, or where settings are told, one table of each.

    Defaults are written as ``--set`` wants them: ``true``, ``none``, ``mean,sd``.
    """
    if not documents or "settings" not in documents[0]:
        return table(documents)
    drawn = []
    for document in documents:
        told = [{**row, "default": _as_text(row["default"])} for row in document["settings"]]
        drawn.append(f"{document['name']}: {document['summary']}\n{table(told)}")
    return "\n\n".join(drawn)


def _as_text(value: object) -> str:
    return ",".join(value) if isinstance(value, list) else str(value).lower()


def _check_head(name: str) -> None:
    if name not in HEADS:
        raise UnknownHead(f"no head is called {name!r}; known: {', '.join(HEADS)}")
