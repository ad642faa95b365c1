"""One table of a TOML file: values taken out by key, and what is wrong with them kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TableReader"]


@dataclass(slots=True)
class TableReader:
    """A table of the file. A value of the wrong kind is complained of, and its default taken."""

    table: dict[str, Any]
    """The table."""
    where: str
    """What complaints begin with."""
    problems: list[str]
    """Complaints, of all tables of the file."""
    asked: list[str] = field(default_factory=list)
    """Keys that are known."""

    def complain(self, problem: str) -> None:
        """Keep a problem."""
        self.problems.append(f"{self.where}{problem}")

    def get(self, key: str, default: Any = None) -> Any:
        """Take a value of any kind."""
        self.asked.append(key)
        return self.table.get(key, default)

    def refuse_others(self) -> None:
        """Complain of every key that nobody has asked for."""
        for key in self.table.keys() - set(self.asked):
            near = get_close_matches(key, self.asked, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(self.asked)}"
            self.complain(f"unknown key {key!r}; {hint}")

    def _checked(self, key: str, default: Any, wanted: str, ok: Callable[[Any], bool]) -> Any:
        value = self.get(key, default)
        if key not in self.table and default is not None:
            return default
        if value is None:
            self.complain(f"{key} is missing: {wanted}")
        elif not ok(value):
            self.complain(f"{key} must be {wanted}, seen {value!r}")
        else:
            return value
        return default

    def text(self, key: str, default: str | None = None) -> str:
        """Take a text that is not empty."""
        value = self._checked(
            key, default, "a text", lambda it: isinstance(it, str) and bool(it.strip())
        )
        return value or ""

    def whole(self, key: str, default: int, *, low: int) -> int:
        """Take a whole number."""
        wanted = f"a whole number of at least {low}"
        value: int = self._checked(key, default, wanted, lambda it: type(it) is int and it >= low)
        return value

    def share(self, key: str, default: float) -> float:
        """Take a number from 0 to below 1."""
        value = self._checked(
            key,
            default,
            "a number from 0 to below 1",
            lambda it: type(it) in {int, float} and 0 <= it < 1,
        )
        return float(value)

    def names(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Take a list of different texts."""
        value = self._checked(key, default, "a list of different names", _are_names)
        return tuple(value or ())

    def mapping(self, key: str) -> dict[str, Any]:
        """Take a table of any keys."""
        value = self._checked(key, {}, "a table", lambda it: isinstance(it, dict))
        return dict(value)

    def folds(self) -> int | str:
        """Take a number of folds, or the word for one fold per patient."""
        wanted = "a whole number of at least 2, or 'leave-one-patient-out'"
        value: int | str = self._checked(
            "folds",
            5,
            wanted,
            lambda it: it == "leave-one-patient-out" or (type(it) is int and it >= 2),
        )
        return value

    def seeds(self) -> tuple[int, ...]:
        """Take the number of seeds, or which."""
        value = self._checked("seeds", 1, "a number from 1, or different numbers from 0", _seeds)
        return tuple(range(value) if isinstance(value, int) else value)

    def tables(self, key: str, *, needed: bool = False) -> list[TableReader]:
        """Take ``[key]`` or several ``[[key]]``."""
        given = self.get(key)
        if given is None:
            if needed:
                self.complain(f"{key} is missing: add [[{key}]] with heads = [...]")
            return []
        parts = given if isinstance(given, list) else [given]
        if not parts or not all(isinstance(part, dict) for part in parts):
            self.complain(f"{key} must be a table: write [[{key}]]")
            return []
        one = len(parts) == 1
        return [
            TableReader(part, f"{key}: " if one else f"{key} {n}: ", self.problems)
            for n, part in enumerate(parts, start=1)
        ]


def _are_names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 0
        and all(isinstance(name, str) and name for name in value)
        and len(set(value)) == len(value)
    )


def _seeds(value: Any) -> bool:
    if isinstance(value, list):
        numbers = all(type(seed) is int and seed >= 0 for seed in value)
        return numbers and 0 < len(value) == len(set(value))
    return type(value) is int and value >= 1
