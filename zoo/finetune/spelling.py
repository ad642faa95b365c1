"""The command that trains a network as a run was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zoo.finetune.presets import PRESETS, FinetuneRecipe, preset

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.finetune.phases import Phase

__all__ = ["changed_settings", "network_options"]


def changed_settings(recipe: FinetuneRecipe) -> dict[str, Any]:
    """Give the settings that turn the named recipe into this one, as ``--set`` takes them.

    Nothing where the recipe is no variant of a named one: its phases are others.

    Examples
    --------
    >>> changed_settings(preset("default", epochs=5, batch_size=4))
    {'batch_size': 4, 'epochs': 5}
    """
    named = PRESETS.get(recipe.name)
    if named is None or [p.name for p in named[0].phases] != [p.name for p in recipe.phases]:
        return {}
    plain, own = named[0].to_json(), recipe.to_json()
    found = {k: v for k, v in own.items() if k not in {"name", "phases"} and v != plain[k]}
    alone = len(recipe.phases) == 1
    phases = list(zip(named[0].phases, recipe.phases, strict=True))
    if any(after.augmentation is None and before.augmentation for before, after in phases):
        # It was set for all phases, which then have none of their own.
        found["augmentation"] = recipe.augmentation
        phases = [(replace(before, augmentation=None), after) for before, after in phases]
    for before, after in phases:
        changes = _of_phase(before, after)
        found |= {key if alone else f"{after.name}.{key}": v for key, v in changes.items()}
    return found if preset(recipe.name, **found) == recipe else {}


def _of_phase(before: Phase, after: Phase) -> dict[str, Any]:
    plain, own = before.to_json(), after.to_json()
    changes = {
        k: v for k, v in own.items() if k not in {"name", "learning_rates"} and v != plain[k]
    }
    fastest = max(after.learning_rates.values())
    if fastest != max(before.learning_rates.values()):
        changes["lr"] = fastest
    return changes


def network_options(document: Mapping[str, Any]) -> list[str]:
    """Write network and recipe of a run on pixels as options of ``zoo finetune``.

    Parameters
    ----------
    document
        Its ``run.json``.

    Examples
    --------
    >>> head = {"name": "amil-cnn", "settings": {"patches": 60}}
    >>> document = {"head": head, "recipe": preset("r9", epochs=5).to_json()}
    >>> network_options(document)
    ['--model', 'amil-cnn', '--patches', '60', '--recipe', 'r9', '--set', 'epochs=5']
    """
    head, recipe = document["head"], FinetuneRecipe.from_json(document["recipe"])
    words = ["--model", str(head["name"])]
    for key, value in head["settings"].items():
        words += [f"--{key}", str(value)]
    words += ["--recipe", recipe.name]
    for key, value in changed_settings(recipe).items():
        text = ",".join(value) if isinstance(value, list) else value
        words += ["--set", f"{key}={'none' if text is None else text}"]
    return words
