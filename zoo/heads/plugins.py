"""Heads of other packages, found by the entry points that these declare.

A package that has in its ``pyproject.toml`` ::

    [project.entry-points."zoo.heads"]
    my-head = "my_package.heads:MyHead"

adds a head. Its name is listed from the metadata of the installed packages; nothing of it is
imported before somebody asks for it. What a name in a file leads to is decided by this table
and the built-in one: a file names a head, never a module.
"""

from __future__ import annotations

import functools
import logging
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from zoo.errors import NotSupported

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["GROUP", "Declared", "declared", "load"]

GROUP = "zoo.heads"
"""Name of the group of entry points."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Declared:
    """A head as packages declare it; more than one entry is a quarrel."""

    entries: tuple[metadata.EntryPoint, ...]
    """Entry points of this name."""

    @property
    def target(self) -> str:
        """Where it lives, ``module:Class``."""
        return self.entries[0].value

    @property
    def package(self) -> str:
        """Name and version of the package, or of all that declare it."""
        return " and ".join(_package(entry) for entry in self.entries)

    @property
    def summary(self) -> str:
        """The package's own line about itself."""
        dist = self.entries[0].dist
        return dist.metadata["Summary"] if dist and "Summary" in dist.metadata else ""


def _package(entry: metadata.EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else "of no name"


def declared(taken: Collection[str]) -> dict[str, Declared]:
    """List what installed packages declare, by name, without importing any of it.

    A head of a name that is ``taken`` is left out, which is logged once.
    """
    return _declared(tuple(sys.path), frozenset(taken))


@functools.lru_cache(maxsize=1)
def _declared(path: tuple[str, ...], taken: frozenset[str]) -> dict[str, Declared]:
    del path  # where packages are looked for: as long as it stays, so does the answer
    found: dict[str, tuple[metadata.EntryPoint, ...]] = {}
    for entry in metadata.entry_points(group=GROUP):
        if entry.name in taken:
            logger.warning(
                "package %s declares a head %s, which is a name of the zoo's own: not used",
                _package(entry),
                entry.name,
            )
            continue
        found[entry.name] = (*found.get(entry.name, ()), entry)
    return {name: Declared(entries=found[name]) for name in sorted(found)}


def load(name: str, known: Declared, target: str = "") -> Any:
    """Import what a package declares as head ``name``.

    Parameters
    ----------
    name
        As declared.
    known
        Who declares it.
    target
        Something else of the package, ``module:name``, that belongs to the head.

    Raises
    ------
    NotSupported
        If that fails for whatever reason, or several packages declare the name; says which.
    """
    if len(known.entries) > 1:
        raise NotSupported(f"head {name} is declared by {known.package}: uninstall all but one")
    entry = metadata.EntryPoint(name=name, value=target or known.target, group=GROUP)
    try:
        return entry.load()
    except Exception as error:
        said = " ".join(str(error).split())
        raise NotSupported(
            f"head {name} of package {known.package} cannot be loaded ({type(error).__name__}: "
            f"{said}): mend or uninstall the package"
        ) from error
