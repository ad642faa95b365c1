"""Whether a store's vectors mean to a head what those of its training meant.

What decides that is compared key by key; which patches of an image were kept (``tissue``,
``quality``) may differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from histostore.errors import Ambiguous, NotFound
from histostore.spec import FeatureSpec
from zoo.errors import NotSupported, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from histostore.store import FeatureSet
    from histostore.store.reader import Store
    from zoo.run import Run

__all__ = ["fitting", "remarks"]

_DECISIVE = ("encoder", "n_features", "grid", "stain", "dtype")
"""Parts of a specification that decide what a vector means."""

_SHOWN = 3
"""Keys that a message names of those that differ."""


def fitting(run: Run, store: Store, name: str | None) -> FeatureSet:
    """Find the feature set whose vectors mean what they meant in training."""
    if "trained_on" in run.document:
        raise NotSupported(
            f"{run.path} was trained on pixels, not on a store: give the table of images in place "
            "of the store (zoo predict RUN COHORT)"
        )
    told = (run.document.get("store") or {}).get("spec")
    if not told:
        raise RunError(f"{run.path} was fitted to arrays, not to a store: predict arrays with it")
    spec = FeatureSpec.from_json(told)
    if name is None and spec.name in store:
        return store[spec.name]
    names = [name] if name is not None else [each for each in store if not store.is_empty(each)]
    if not names:
        store.feature_set()  # says that there is none
    differing = {each: _differences(told, store[each].spec.to_json()) for each in names}
    fitting = [each for each, keys in differing.items() if not keys]
    if len(fitting) > 1:
        raise Ambiguous(
            f"{store.url} holds several feature sets that fit {run.path}, name one: "
            f"{', '.join(fitting)}"
        )
    if fitting:
        return store[fitting[0]]
    problems = [f"{each} differs in {_list(keys)}" for each, keys in differing.items()]
    raise NotFound(
        f"{store.url} holds no feature set like that of {run.path} ({spec.name}): "
        f"{problems[0] if len(problems) == 1 else f'{len(problems)} others differ'}; build one "
        "with the options of the training",
        problems=problems,
    )


def _differences(
    wanted: Mapping[str, Any], found: Mapping[str, Any], keys: tuple[str, ...] = _DECISIVE
) -> list[str]:
    """Name the keys in which two specifications differ, with both values where they are short.

    Examples
    --------
    >>> grid = {"patch_size": 256, "stride": 256}
    >>> _differences({"grid": grid}, {"grid": {**grid, "stride": 128}})
    ['grid.stride (256 in training, 128 here)']
    """
    return [text for key in keys for text in _compared(key, wanted.get(key), found.get(key))]


def _compared(path: str, wanted: Any, found: Any) -> Iterator[str]:
    if wanted == found:
        return
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in dict.fromkeys([*wanted, *found]):
            yield from _compared(f"{path}.{key}", wanted.get(key), found.get(key))
        return
    short = all(not isinstance(value, dict | list) for value in (wanted, found))
    yield f"{path} ({wanted} in training, {found} here)" if short else path


def _list(keys: list[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more


def remarks(run: Run, features: FeatureSet) -> Iterator[str]:
    """Say which patches were chosen in another way than in training."""
    told = run.document["store"]["spec"]
    here = features.spec.to_json()
    differing = _differences(told, here, ("tissue", "quality"))
    if differing:
        yield (
            f"patches of {features.name} were chosen in another way than those of the "
            f"training: {_list(differing)}"
        )
