"""Search spaces: which settings of a head and a recipe may vary, and between what.

A setting is named ``head.KEY`` or ``recipe.KEY``; where only one of the two knows it, its plain
name will do wherever a space is given.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zoo import settings as _settings
from zoo.errors import RecipeError
from zoo.recipes import Recipe
from zoo.tuning.defaults import AROUND, COMMON, HEADS, SWITCHED_ON

if TYPE_CHECKING:
    from zoo.heads.base import HeadSpec

__all__ = ["Choice", "Range", "apply", "default_space", "named", "plain", "read_space"]

_FORMS = "give low:high, low:high:log, or two values or more as a,b,c"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """All numbers between two; whole ones where the setting is whole.

    Examples
    --------
    >>> 5e-4 in Range(low=1e-4, high=1e-2, log=True), 1 in Range(low=1e-4, high=1e-2)
    (True, False)
    """

    low: float
    """Least value."""
    high: float
    """Largest value."""
    log: bool = False
    """Whether to search by orders of magnitude."""
    whole: bool = False
    """Whether only whole numbers will do."""

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int if self.whole else (int, float)) or isinstance(value, bool):
            return False
        return self.low <= value <= self.high

    def __str__(self) -> str:
        return f"{self.low:g}:{self.high:g}{':log' if self.log else ''}"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Some values, in no order that the search would know of.

    Examples
    --------
    >>> str(Choice(values=(("mean",), ("mean", "sd"))))
    'mean,mean+sd'
    """

    values: tuple[Any, ...]
    """What may be chosen; a value of several names is a tuple."""

    def __contains__(self, value: object) -> bool:
        return any(plain(value) == plain(known) for known in self.values)

    def __str__(self) -> str:
        return ",".join(str(plain(value)).lower() for value in self.values)


def plain(value: object) -> Any:
    """Write a setting's value as one word or number: names are joined by ``+``."""
    return "+".join(value) if isinstance(value, (tuple, list)) else value


def _kinds(head: HeadSpec, recipe: Recipe) -> dict[str, _settings.Kind]:
    """List all settings by their whole names."""
    return {
        f"{owner}.{item.name}": item.metadata["kind"]
        for owner, settings in (("head", head), ("recipe", recipe))
        for item in dataclasses.fields(settings)
        if "kind" in item.metadata
    }


def named(key: str, head: HeadSpec, recipe: Recipe) -> str:
    """Give the whole name of a setting.

    Raises
    ------
    RecipeError
        If neither the head nor the recipe knows it, or both do.
    """
    kinds = _kinds(head, recipe)
    found = [name for name in kinds if key in {name, name.partition(".")[2]}]
    if len(found) == 1:
        return found[0]
    if found:
        raise RecipeError(f"{key!r} is a setting of head and recipe: write {' or '.join(found)}")
    raise RecipeError(f"unknown setting {key!r}; there are {', '.join(kinds)}")


def read_space(
    given: Mapping[str, Any], head: HeadSpec, recipe: Recipe, *, fixed: Sequence[str] = ()
) -> dict[str, Range | Choice]:
    """Read and check a search space.

    Parameters
    ----------
    given
        Setting to :class:`Range` or :class:`Choice`, or to a text as on the command line:
        ``1e-4:1e-2:log``, ``64,128``, ``mean,mean+sd``; or to a list of values.
    head, recipe
        Whose settings vary.
    fixed
        Settings that must not.

    Raises
    ------
    RecipeError
        If a setting is unknown or fixed, a value is not allowed, or means nothing to the head; all
        problems at once.

    Examples
    --------
    >>> from zoo.heads import spec
    >>> space = read_space({"dropout": "0:0.5", "lr": "1e-4,1e-3"}, spec("mlp-simple"), Recipe())
    >>> {key: str(part) for key, part in space.items()}
    {'head.dropout': '0:0.5', 'recipe.lr': '0.0001,0.001'}
    """
    kinds = _kinds(head, recipe)
    kept = {named(key, head, recipe) for key in fixed}
    space: dict[str, Range | Choice] = {}
    problems = []
    for key, part in given.items():
        name = named(key, head, recipe)
        if name in space or name in kept:
            problems.append(f"{name} is {'fixed and searched' if name in kept else 'given twice'}")
            continue
        try:
            space[name] = _part(name, part, kinds[name])
            _check_meaning(name, space[name], head, recipe)
        except RecipeError as error:
            problems.append(str(error))
    _settings.check("search space", problems)
    return space


def _part(name: str, given: object, kind: _settings.Kind) -> Range | Choice:
    if isinstance(given, str):
        given = _parsed(name, given, kind)
    if isinstance(given, Range):
        return _checked_range(name, given, kind)
    values = given.values if isinstance(given, Choice) else given
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) < 2:
        raise RecipeError(f"{name} is searched in {given!r}: {_FORMS}")
    read = tuple(_one(value, kind) for value in values)
    wrong = [str(plain(value)) for value in read if not kind.accepts(value)]
    if wrong:
        raise RecipeError(f"{name} cannot be {', '.join(wrong)}: it must be {kind.says()}")
    if len({plain(value) for value in read}) < len(read):
        raise RecipeError(f"{name} has a value twice in {Choice(values=read)}: give each once")
    return Choice(values=read)


def _parsed(name: str, text: str, kind: _settings.Kind) -> Range | list[str]:
    """Read ``low:high``, ``low:high:log`` or ``a,b,c``."""
    bounds = text.split(":")
    if len(bounds) == 1:
        return text.split(",")
    try:
        low, high = (float(bound) for bound in bounds[:2])
    except ValueError:
        low = high = math.nan
    if not low < high or bounds[2:] not in ([], ["log"]):
        raise RecipeError(f"{name} is searched in {text!r}: {_FORMS}, low below high")
    return Range(low=low, high=high, log=len(bounds) == 3, whole=kind.sort == "whole")


def _one(value: object, kind: _settings.Kind) -> object:
    """Read one value; several names are joined by ``+``, for commas stand between values."""
    if kind.sort == "names" and isinstance(value, str):
        value = value.split("+")
    return kind.read(value)


def _checked_range(name: str, part: Range, kind: _settings.Kind) -> Range:
    if kind.sort not in ("whole", "number"):
        raise RecipeError(f"{name} is no number but {kind.says()}: give its values as a,b,c")
    whole = kind.sort == "whole"
    ends = [int(end) if whole and float(end).is_integer() else end for end in (part.low, part.high)]
    if not all(kind.accepts(end) for end in ends) or not part.low < part.high:
        raise RecipeError(f"{name} cannot go over {part}: it must be {kind.says()}")
    if part.log and part.low <= 0:
        raise RecipeError(f"{name} goes from {part.low:g} by orders of magnitude: start above 0")
    return Range(low=ends[0], high=ends[1], log=part.log, whole=whole)


def _check_meaning(name: str, part: Range | Choice, head: HeadSpec, recipe: Recipe) -> None:
    """Refuse a recipe's setting that the head would not use."""
    owner, _, key = name.partition(".")
    ends = (part.low, part.high) if isinstance(part, Range) else part.values
    for value in ends if owner == "recipe" else ():
        try:
            changed = dataclasses.replace(recipe, **{key: value})
        except RecipeError:  # does not go with the others as they stand, which may vary too
            continue
        head.check_recipe(changed, has_validation=True)


def apply(head: HeadSpec, recipe: Recipe, settings: Mapping[str, Any]) -> tuple[HeadSpec, Recipe]:
    """Change settings, given by their whole names.

    Raises
    ------
    RecipeError
        If they contradict each other.
    """
    told: dict[str, dict[str, Any]] = {"head": {}, "recipe": {}}
    for name, value in settings.items():
        owner, _, key = name.partition(".")
        told[owner][key] = tuple(value) if isinstance(value, list) else value
    return dataclasses.replace(head, **told["head"]), dataclasses.replace(recipe, **told["recipe"])


def default_space(
    head: HeadSpec, recipe: Recipe | None = None, *, fixed: Sequence[str] = ()
) -> dict[str, Range | Choice]:
    """Give the space that is searched where none is given.

    It always holds the settings of ``head`` and ``recipe`` as they stand.

    Parameters
    ----------
    head, recipe
        Whose settings vary; the recipe ``default`` where left out.
    fixed
        Settings that stay as they are.

    Raises
    ------
    RecipeError
        If nothing is left to search.

    Examples
    --------
    >>> from zoo.heads import spec
    >>> {key: str(part) for key, part in default_space(spec("mlp-simple")).items()}
    {'head.hidden': '64,128,160,256,512', 'head.dropout': '0:0.6', 'recipe.lr': '5e-05:0.005:log', 'recipe.weight_decay': '0.001:0.1:log'}
    """
    recipe = Recipe() if recipe is None else recipe
    kinds = _kinds(head, recipe)
    kept = {named(key, head, recipe) for key in fixed}
    told = HEADS.get(head.name, COMMON)
    space = {f"head.{key}": text for key, text in told.items() if f"head.{key}" in kinds}
    if not _takes_no_steps(head):
        space |= _of_recipe(recipe)
    found = {
        name: _with(_part(name, text, kinds[name]), _value(name, head, recipe))
        for name, text in space.items()
        if name not in kept
    }
    if not found:
        raise RecipeError(f"nothing of head {head.name} is left to search: give a space yourself")
    return found


def _takes_no_steps(head: HeadSpec) -> bool:
    try:
        head.check_recipe(Recipe(lr=1e-3), has_validation=True)
    except RecipeError:
        return True
    return False


def _of_recipe(recipe: Recipe) -> dict[str, str]:
    """Give what varies of a recipe: its rates around their values, and what it switches on."""
    idle = Recipe()
    space = {}
    for key, factor in AROUND.items():
        value = getattr(recipe, key)
        if value > 0:
            space[f"recipe.{key}"] = f"{value / factor:g}:{value * factor:g}:log"
    for key, text in SWITCHED_ON.items():
        if getattr(recipe, key) != getattr(idle, key):
            space[f"recipe.{key}"] = text
    return space


def _value(name: str, head: HeadSpec, recipe: Recipe) -> object:
    owner, _, key = name.partition(".")
    return getattr(head if owner == "head" else recipe, key)


def _with(part: Range | Choice, value: Any) -> Range | Choice:
    """Widen a part so that it holds ``value``."""
    if value in part:
        return part
    if isinstance(part, Choice):
        values = (*part.values, value)
        numeric = all(isinstance(known, (int, float)) for known in values)
        return Choice(values=tuple(sorted(values)) if numeric else values)
    if value is None:
        return part
    low, high = min(part.low, value), max(part.high, value)
    return dataclasses.replace(part, low=low, high=high, log=part.log and low > 0)
