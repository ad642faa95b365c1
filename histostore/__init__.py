"""A store of patch embeddings: computed once, kept for good.

>>> import histostore
>>> store = histostore.open("memory://tour", mode="a")
>>> list(store)
[]

The words to know: a :class:`Cohort` is a table of images; ``histostore.build.build`` embeds what
a store lacks of it; :func:`open` gives the store, a mapping from names to feature sets.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.build import BuildOptions, BuildReport, EncoderOptions
    from histostore.cohort import Cohort
    from histostore.grid import PatchGrid
    from histostore.images.tissue import TissueFilter
    from histostore.store import open_store as open  # noqa: A004 - histostore.open reads well

_HOMES = {
    "BuildOptions": "histostore.build",
    "BuildReport": "histostore.build",
    "Cohort": "histostore.cohort",
    "EncoderOptions": "histostore.build",
    "PatchGrid": "histostore.grid",
    "TissueFilter": "histostore.images.tissue",
    "open": "histostore.store",
}
__all__ = [
    "BuildOptions",
    "BuildReport",
    "Cohort",
    "EncoderOptions",
    "PatchGrid",
    "TissueFilter",
    "open",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: ``import histostore`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'histostore' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), {"open": "open_store"}.get(name, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
