"""The table of heads, and the way from a name or a file to one.

Beside the built-in heads it holds those that installed packages declare (:mod:`zoo.heads.plugins`).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from histostore.errors import OptionError
from zoo import settings as _settings
from zoo.errors import NotSupported, RecipeError, RunError, UnknownHead
from zoo.heads import plugins
from zoo.recipes import Recipe
from zoo.tasks import Task

if TYPE_CHECKING:
    from zoo.heads.base import Head, HeadSpec

__all__ = ["HEADS", "HeadCard", "known_heads", "load_head", "spec"]

_NEURAL = "zoo.heads.neural:load"


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadCard:
    """What can be said of a head without loading it."""

    name: str
    """As given to ``--head``."""
    target: str
    """Where its settings live, ``module:Class``."""
    summary: str
    """One line."""
    source: str
    """Paper, or whose idea it is."""
    attention: bool = False
    """Whether it weighs patches."""
    gradient: bool = True
    """Whether it learns by gradient steps, so that any recipe fits it."""
    loader: str = _NEURAL
    """What builds it from its file, ``module:function``."""
    stored: str = "arrays"
    """What its file holds: ``arrays`` (safetensors) or ``json``."""
    package: str = ""
    """Name and version of the package that declares it; empty for built-in heads."""

    def settings(self) -> list[dict[str, Any]]:
        """List its settings: name, default, what is allowed, meaning. Loads its library."""
        return _settings.describe(_spec_class(self))


_BUILT_IN: dict[str, HeadCard] = {
    card.name: card
    for card in (
        HeadCard(
            name="gated-mil",
            target="zoo.heads.gated_mil:GatedMIL",
            summary="gated attention over patches, with channel gates",
            source="Backprop. Brothers 2025 §4; Ilse et al. 2018",
            attention=True,
        ),
        HeadCard(
            name="mlp-simple",
            target="zoo.heads.mlp:MLPSimple",
            summary="one hidden layer on the mean of the patches",
            source="Backprop. Brothers 2025 A.1",
        ),
        HeadCard(
            name="mlp-improved",
            target="zoo.heads.mlp:MLPImproved",
            summary="normalised blocks on the mean of the patches, or on each (pool=probability)",
            source="Backprop. Brothers 2025 A.1, A.3",
        ),
        HeadCard(
            name="patch-mean",
            target="zoo.heads.mlp:PatchMean",
            summary="normalised blocks on each patch; a bag is the mean of its patches",
            source="Backprop. Brothers 2025 A.3",
        ),
        HeadCard(
            name="mean-pool",
            target="zoo.heads.pooling:MeanPool",
            summary="linear classifier on the mean of projected patches",
            source="Ilse et al. 2018 §2.3",
        ),
        HeadCard(
            name="max-pool",
            target="zoo.heads.pooling:MaxPool",
            summary="linear classifier on the maximum over projected patches",
            source="Ilse et al. 2018 §2.3",
        ),
        HeadCard(
            name="abmil",
            target="zoo.heads.abmil:ABMIL",
            summary="attention over projected patches, gated or plain",
            source="Ilse et al. 2018",
            attention=True,
        ),
        HeadCard(
            name="clam-sb",
            target="zoo.heads.clam:CLAMSB",
            summary="gated attention that also learns from its most and least attended patches",
            source="Lu et al. 2021",
            attention=True,
        ),
        HeadCard(
            name="clam-mb",
            target="zoo.heads.clam:CLAMMB",
            summary="the same with an attention branch per class",
            source="Lu et al. 2021",
            attention=True,
        ),
        HeadCard(
            name="dsmil",
            target="zoo.heads.dsmil:DSMIL",
            summary="the patch of highest score, and all patches by their likeness to it",
            source="Li et al. 2021",
            attention=True,
        ),
        HeadCard(
            name="transmil",
            target="zoo.heads.transmil:TransMIL",
            summary="Nyström self-attention over the patches in their order",
            source="Shao et al. 2021",
        ),
        HeadCard(
            name="dtfd",
            target="zoo.heads.dtfd:DTFD",
            summary="attention in pseudo-bags, then over them",
            source="Zhang et al. 2022",
            attention=True,
        ),
        HeadCard(
            name="acmil",
            target="zoo.heads.acmil:ACMIL",
            summary="several attention branches kept apart, top patches masked in training",
            source="Zhang et al. 2024",
            attention=True,
        ),
        HeadCard(
            name="attention-pool",
            target="zoo.heads.attention_pool:AttentionPool",
            summary="transformer layers over the patches, pooled by a learned query",
            source="Zhai et al. 2022; STAMP",
            attention=True,
        ),
        HeadCard(
            name="graph",
            target="zoo.heads.graph:Graph",
            summary="messages along learned sparse edges between neighbouring patches",
            source="ABiG-Net 2025 (arXiv 2510.13188)",
            attention=True,
        ),
        HeadCard(
            name="fusion",
            target="zoo.heads.fusion:Fusion",
            summary="fusion block for the features of two encoders, on the mean of the patches",
            source="HistoVision 2025 §3.3",
        ),
        HeadCard(
            name="logistic",
            target="zoo.heads.logistic:Logistic",
            summary="logistic regression on mean and spread of the patches",
            source="baseline",
            gradient=False,
            loader="zoo.heads.logistic:load",
        ),
        HeadCard(
            name="svm",
            target="zoo.heads.svm:SVM",
            summary="RBF support vector machine on mean, spread and extremes, calibrated",
            source="Cortes & Vapnik 1995; Platt 1999",
            gradient=False,
            loader="zoo.heads.svm:load",
        ),
        HeadCard(
            name="set-kernel",
            target="zoo.heads.set_kernel:SetKernel",
            summary="support vector machine on the mean RBF kernel of two bags' patches, calibrated",
            source="Gärtner et al. 2002",
            attention=True,
            gradient=False,
            loader="zoo.heads.set_kernel:load",
        ),
        HeadCard(
            name="fisher",
            target="zoo.heads.fisher:Fisher",
            summary="linear support vector machine on Fisher vectors of the patches, calibrated",
            source="Wei et al. 2017; Perronnin et al. 2010",
            attention=True,
            gradient=False,
            loader="zoo.heads.fisher:load",
        ),
        HeadCard(
            name="knn",
            target="zoo.heads.neighbours:Neighbours",
            summary="nearest training bags by mean and spread of the patches",
            source="baseline",
            gradient=False,
            loader="zoo.heads.neighbours:load",
        ),
        HeadCard(
            name="extra-trees",
            target="zoo.heads.forest:ExtraTrees",
            summary="extremely randomised trees on mean, spread and extremes",
            source="Geurts et al. 2006",
            gradient=False,
            loader="zoo.heads.forest:load",
        ),
        HeadCard(
            name="lightgbm",
            target="zoo.heads.boosted:Boosted",
            summary="gradient-boosted trees on mean, spread and extremes of the patches",
            source="Ke et al. 2017",
            gradient=False,
            loader="zoo.heads.boosted:load",
            stored="json",
        ),
        HeadCard(
            name="torchmil",
            target="zoo.heads.torchmil:TorchMIL",
            summary="a model of the library torchmil, by its name (extra: torchmil)",
            source="torchmil",
        ),
    )
}


class _Heads(Mapping[str, HeadCard]):
    """The built-in heads, then those that packages declare; no package can take a built-in name."""

    def __getitem__(self, name: str) -> HeadCard:
        if name in _BUILT_IN:
            return _BUILT_IN[name]
        known = plugins.declared(_BUILT_IN)[name]
        return HeadCard(
            name=name,
            target=known.target,
            summary=known.summary,
            source=f"package {known.package}",
            package=known.package,
        )

    def __iter__(self) -> Iterator[str]:
        yield from _BUILT_IN
        yield from plugins.declared(_BUILT_IN)

    def __len__(self) -> int:
        return len(_BUILT_IN) + len(plugins.declared(_BUILT_IN))


HEADS: Mapping[str, HeadCard] = _Heads()
"""Every head by its name."""

_MOST_FEATURES = 10_000_000


def known_heads() -> tuple[HeadCard, ...]:
    """List every head."""
    return tuple(HEADS.values())


def spec(name: str, **settings: Any) -> HeadSpec:
    """Look a head up and give it settings.

    Parameters
    ----------
    name
        One of :data:`HEADS`.
    settings
        Settings by name; text is read as on the command line (``hidden="160"``).

    Raises
    ------
    UnknownHead
        If no head has this name; lists the known ones.
    RecipeError
        If a setting is unknown, which lists the known ones, or its value is not allowed.

    Examples
    --------
    >>> spec("logistic", inverse_penalty="3").inverse_penalty
    3.0
    >>> spec("logistic", hidden=160)
    Traceback (most recent call last):
    zoo.errors.RecipeError: head logistic: unknown setting 'hidden' (known: statistics, inverse_penalty, max_iter)
    """
    if name not in HEADS:
        raise UnknownHead(f"no head is called {name!r}; known: {', '.join(HEADS)}")
    cls = _spec_class(HEADS[name])
    made: HeadSpec = cls(**_settings.parse(cls, settings, subject=f"head {name}"))
    return made


def _spec_class(card: HeadCard) -> Any:
    if card.package:
        return _of_package(card)[1]
    return _named(card.target)


def _named(target: str) -> Any:
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _of_package(card: HeadCard) -> tuple[HeadCard, Any]:
    """Load a package's head: its whole card, and the class of its settings."""
    from zoo.heads.base import HeadSpec

    known = plugins.declared(_BUILT_IN)[card.name]
    found = plugins.load(card.name, known)
    whole = found if isinstance(found, HeadCard) else None
    cls = found if whole is None else plugins.load(card.name, known, whole.target)
    said = f"head {card.name} of package {card.package}"
    if not isinstance(cls, type) or not issubclass(cls, HeadSpec):
        raise NotSupported(f"{said}: {card.target} is no HeadSpec class and no HeadCard")
    if getattr(cls, "name", None) != card.name:
        raise NotSupported(
            f"{said} calls itself {getattr(cls, 'name', None)!r}: the entry point and the class's "
            "name must agree"
        )
    if whole is not None:
        return replace(whole, name=card.name, package=card.package), cls
    from zoo.heads.neural import TorchSpec

    if not issubclass(cls, TorchSpec):
        raise NotSupported(f"{said} is no TorchSpec: declare a HeadCard that names its loader")
    return card, cls


def load_head(path: str | os.PathLike[str]) -> Head:
    """Read a head that :meth:`~zoo.heads.base.Head.save` wrote.

    Parameters
    ----------
    path
        File, ending in ``.safetensors`` or ``.lightgbm.json``.

    Raises
    ------
    RunError
        If the file is not a head of ours, is damaged, or was written by a newer format.
        Nothing in a file is ever executed.
    """
    from zoo.heads import storage

    as_json = os.fspath(path).endswith(".json")
    content: Any
    if as_json:
        document = content = storage.read_json(path)
    else:
        document, content = storage.read_arrays(path)
    common = _common(path, document)
    card = HEADS[common["spec"].name]
    card = _of_package(card)[0] if card.package else card
    if (card.stored == "json") != as_json:
        raise RunError(
            f"{path}: head {card.name} is not kept as {'JSON' if as_json else 'safetensors'}"
        )
    head: Head = _named(card.loader)(path, common, content)
    return head


def _common(path: str | os.PathLike[str], document: Mapping[str, Any]) -> dict[str, Any]:
    """Read what every head's document holds."""
    try:
        head, classes = document["head"], document["classes"]
        n_features, seed = document["n_features"], document["seed"]
        made = spec(head["name"], **head["settings"])
        trained = Recipe.from_json(document["recipe"])
        task = Task.from_json(document.get("task"))
    except (KeyError, TypeError, RecipeError, OptionError) as error:
        raise RunError(f"{path}: not a whole head: {error}") from error
    if task.kind not in made.tasks:
        raise RunError(f"{path}: head {made.name} cannot have learned task {task.kind}")
    if (
        not isinstance(classes, list)
        or (len(classes) < 2 if task.has_classes else classes)
        or len(set(map(str, classes))) < len(classes)
    ):
        raise RunError(f"{path}: a head needs two classes or more, this has {classes!r}")
    if type(n_features) is not int or not 1 <= n_features <= _MOST_FEATURES:
        raise RunError(f"{path}: n_features is {n_features!r}, which is no length of an embedding")
    if type(seed) is not int:
        raise RunError(f"{path}: seed is {seed!r}, but must be a whole number")
    return {
        "spec": made,
        "recipe": trained,
        "seed": seed,
        "classes": tuple(map(str, classes)),
        "n_features": n_features,
        "task": task,
    }
