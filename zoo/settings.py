"""Settings of recipes and heads: fields that know their kind, range and meaning.

A recipe or a head spec is a frozen dataclass whose fields are made by :func:`whole`,
:func:`number`, :func:`flag`, :func:`choice` and :func:`names`. :func:`problems_of` checks an
instance, :func:`parse` reads settings as they come from a command line (``hidden=160`` is the
text ``"160"``), and :func:`describe` lists what can be set.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.errors import RecipeError

__all__ = [
    "Kind",
    "check",
    "choice",
    "describe",
    "flag",
    "names",
    "number",
    "parse",
    "problems_of",
    "to_json",
    "whole",
]

_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a field may hold."""

    sort: Literal["whole", "number", "flag", "choice", "names"]
    meaning: str
    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()

    def says(self) -> str:
        """Say in words what is allowed.

        Examples
        --------
        >>> Kind(sort="number", meaning="", low=0, high=1).says()
        'a number from 0 to 1'
        """
        text = {
            "whole": "a whole number",
            "number": "a number",
            "flag": "true or false",
            "choice": f"one of {', '.join(self.choices)}",
            "names": f"names out of {', '.join(self.choices)}, joined by commas",
        }[self.sort]
        if math.isfinite(self.low) and math.isfinite(self.high):
            text += f" {'above' if self.open_low else 'from'} {self.low:g}"
            text += f"{', at most' if self.open_low else ' to'} {self.high:g}"
        elif math.isfinite(self.low):
            text += f" above {self.low:g}" if self.open_low else f" of at least {self.low:g}"
        return text + (", or none" if self.optional else "")

    def accepts(self, value: object) -> bool:
        """Tell whether ``value`` has this kind and lies in its range."""
        if value is None:
            return self.optional
        if self.sort == "flag":
            return isinstance(value, bool)
        if self.sort == "choice":
            return isinstance(value, str) and value in self.choices
        if self.sort == "names":
            return _are_names(value, self.choices)
        numeric = int if self.sort == "whole" else (int, float)
        if not isinstance(value, numeric) or isinstance(value, bool):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return math.isfinite(value) and above and value <= self.high

    def read(self, value: object) -> object:
        """Turn text or JSON into this kind where that is possible, or give it back as it is."""
        if self.optional and isinstance(value, str) and value.strip().lower() == "none":
            return None
        if self.sort == "names":
            return _read_names(value)
        if self.sort == "number" and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        return self._read_text(value.strip()) if isinstance(value, str) else value

    def _read_text(self, text: str) -> object:
        if self.sort == "flag":
            lowered = text.lower()
            return True if lowered in _TRUE else False if lowered in _FALSE else text
        if self.sort == "choice":
            return text
        try:
            return int(text) if self.sort == "whole" else float(text)
        except ValueError:
            return text


def _are_names(value: object, choices: tuple[str, ...]) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(name in choices for name in value)
        and len(set(value)) == len(value)
    )


def _read_names(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(","))
    if isinstance(value, Sequence) and all(isinstance(name, str) for name in value):
        return tuple(value)
    return value


def _field(default: object, kind: Kind) -> Any:
    return field(default=default, metadata={"kind": kind})


def whole(
    default: int | None,
    meaning: str,
    *,
    low: int = 0,
    high: float = math.inf,
    optional: bool = False,
) -> Any:
    """Make a field for a whole number, ``low <= value <= high``."""
    return _field(
        default, Kind(sort="whole", meaning=meaning, low=low, high=high, optional=optional)
    )


def number(
    default: float | None,
    meaning: str,
    *,
    low: float = 0.0,
    high: float = math.inf,
    positive: bool = False,
    optional: bool = False,
) -> Any:
    """Make a field for a number, ``low <= value <= high``; ``positive`` leaves out ``low``."""
    kind = Kind(
        sort="number", meaning=meaning, low=low, high=high, open_low=positive, optional=optional
    )
    return _field(default, kind)


def flag(default: bool, meaning: str) -> Any:  # noqa: FBT001 (the default of a flag is a bool)
    """Make a field for true or false."""
    return _field(default, Kind(sort="flag", meaning=meaning))


def choice(default: str, meaning: str, *, among: tuple[str, ...]) -> Any:
    """Make a field for one name out of ``among``."""
    return _field(default, Kind(sort="choice", meaning=meaning, choices=among))


def names(default: tuple[str, ...], meaning: str, *, among: tuple[str, ...]) -> Any:
    """Make a field for several names out of ``among``, none of them twice."""
    return _field(default, Kind(sort="names", meaning=meaning, choices=among))


def _kinds(cls: Any) -> dict[str, Kind]:
    return {
        item.name: item.metadata["kind"]
        for item in dataclasses.fields(cls)
        if "kind" in item.metadata
    }


def describe(cls: Any) -> list[dict[str, Any]]:
    """List what can be set in a settings dataclass: name, default, allowed values, meaning."""
    defaults = {item.name: item.default for item in dataclasses.fields(cls)}
    return [
        {
            "name": name,
            "default": list(value) if isinstance(value := defaults[name], tuple) else value,
            "allowed": kind.says(),
            "meaning": kind.meaning,
        }
        for name, kind in _kinds(cls).items()
    ]


def problems_of(settings: Any) -> list[str]:
    """List the fields of a settings dataclass whose value is not allowed."""
    return [
        f"{name} is {getattr(settings, name)!r}, but must be {kind.says()}"
        for name, kind in _kinds(type(settings)).items()
        if not kind.accepts(getattr(settings, name))
    ]


def check(subject: str, problems: list[str]) -> None:
    """Raise one :class:`~zoo.errors.RecipeError` that holds all ``problems``, if there are any."""
    if problems:
        raise RecipeError(f"{subject}: {'; '.join(problems)}", problems=problems)


def parse(cls: Any, settings: Mapping[str, Any], *, subject: str) -> dict[str, Any]:
    """Read settings for ``cls``, as text or as JSON values, into what its fields hold.

    Raises
    ------
    RecipeError
        If a key is unknown (the known ones are listed) or a value cannot be what its field
        needs; all problems at once.
    """
    kinds = _kinds(cls)
    known = ", ".join(kinds) or "none"
    problems = [f"unknown setting {key!r} (known: {known})" for key in settings if key not in kinds]
    values: dict[str, Any] = {}
    for key, given in settings.items():
        if key not in kinds:
            continue
        values[key] = kinds[key].read(given)
        if not kinds[key].accepts(values[key]):
            problems.append(f"{key} is {given!r}, but must be {kinds[key].says()}")
    check(subject, problems)
    return values


def to_json(settings: Any) -> dict[str, Any]:
    """Give the fields of a settings dataclass as JSON values."""
    values = {name: getattr(settings, name) for name in _kinds(type(settings))}
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in values.items()
    }
