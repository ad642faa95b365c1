"""Backbones: what an encoder is made of, before it is frozen.

The architectures, their preprocessing and the way their weights are read are those of
:mod:`histostore.encoders`; here they are put where gradients reach them, and their parameters
are sorted into stages.
"""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from histostore.encoders.architectures import blueprint
from histostore.encoders.assembly import Backbone
from histostore.encoders.catalog import card as encoder_card
from histostore.encoders.hub import given
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.weights import load_strictly
from histostore.errors import EncoderError, HistostoreError
from zoo.errors import NotSupported, RecipeError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from histostore.encoders.blueprints import Blueprint
    from histostore.encoders.cards import EncoderCard

__all__ = ["DEFAULT_PX", "Backbone", "Part", "load_backbone", "stages_of", "width_of"]

DEFAULT_PX = 224
"""Side of the input of an architecture that takes any, px."""

RANDOM = "none"
"""What ``weights`` is where they shall be drawn at random."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """One backbone inside a network, as an encoder would describe it."""

    path: str
    """Of the :class:`Backbone` in the network, as ``body`` or ``body.cnn``."""
    card: EncoderCard
    """Its architecture."""
    plan: Blueprint
    """Its module, and the pixels that this wants."""
    width: int
    """Features that it gives."""


def load_backbone(
    card: EncoderCard, *, path: str, weights: str | None, px: int | None = None
) -> tuple[Backbone, Part]:
    """Build an architecture and give it weights.

    Parameters
    ----------
    card
        Which one; see :func:`histostore.encoders.catalog.card`.
    path
        Where it will stand in its network.
    weights
        A weights file, as ``histostore build --weights`` takes it; ``None`` downloads what was
        published; ``none`` leaves what is drawn from torch's random state.
    px
        Side of the input; ``None`` takes the architecture's own.

    Raises
    ------
    HistostoreError
        If there is no such architecture, or the weights cannot be had or do not fit.
    """
    try:
        plan = blueprint(card if px is None else _sized(card, px))
        if weights != RANDOM:
            _give_weights(plan, card, weights)
    except HistostoreError as error:
        message = f"{str(error).rstrip('.')}; or draw them at random with --weights {RANDOM}"
        raise type(error)(message if weights is None else str(error)) from error
    plan = dataclasses.replace(plan, input_px=plan.input_px or DEFAULT_PX)
    body = Backbone(plan)
    width = width_of(body, plan.input_px or DEFAULT_PX, card.name)
    told = card if px is None else _sized(card, px)
    return body, Part(path=path, card=told, plan=plan, width=width)


def _sized(card: EncoderCard, px: int) -> EncoderCard:
    """Ask for another input; a transformer's table of positions depends on it."""
    source, _, architecture = (card.architecture or "").partition(":")
    keyword = {"timm": "img_size", "torchvision": "image_size"}.get(source)
    options = dict(card.options)
    usual = f"_{px}" in architecture or px == DEFAULT_PX
    if keyword and "vit_" in architecture and not usual and "dynamic_img_size" not in options:
        options[keyword] = px
    return dataclasses.replace(card, input_px=px, options=options)


def _give_weights(plan: Blueprint, card: EncoderCard, weights: str | None) -> None:
    if weights is None and card.needs_weights:
        raise EncoderError(f"{card.name} has no weights to download: give the file with --weights")
    state = plan.download() if weights is None else given(card, weights)
    source = f"{weights or 'the published file'} for {card.name}"
    load_strictly(plan.module, plan.translate(state), source=source, droppable=plan.droppable)


def width_of(body: nn.Module, px: int, name: str) -> int:
    """Count the features that a body gives, on the meta device: nothing is computed.

    Raises
    ------
    NotSupported
        If it does not take this size, or gives no vectors.
    """
    state = {key: value.to("meta") for key, value in body.state_dict().items()}
    training = body.training
    try:
        with torch.no_grad():
            pixels = torch.zeros((1, 3, px, px), device="meta")
            shape = tuple(torch.func.functional_call(body.eval(), state, (pixels,)).shape)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise NotSupported(f"{name} does not take images of {px} × {px} px: {reason}") from error
    finally:
        body.train(training)
    if len(shape) != 2:
        raise NotSupported(f"{name} gives {shape} for one image, not one vector")
    return int(shape[1])


# -- stages -------------------------------------------------------------------------------------

# Of torchvision's and our own modules: a pattern whose group is the number or name of a stage.
# What is before the first is the stem; the names are those of the papers where they have any.
_STAGES: tuple[tuple[str, str], ...] = (
    (r"encoder\.layers\.encoder_layer_(\d+)\.", "plus one"),
    (r"features\.(?:denseblock|transition)(\d+)\.", "as it is"),
    (r"layer(\d+)\.", "as it is"),
    (r"features\.(\d+)\.", "in order"),
)
_NORMS = re.compile(r"encoder\.ln\.|features\.norm5\.|(?:fc_)?norm\.")


def stages_of(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Sort the parameters of an architecture: ``stem``, ``stage-1``, …, and a closing ``norm``.

    timm's models say themselves what their stages are. Of torchvision's, a stage is a layer of
    a ResNet, a dense block with the transition after it, a transformer's block, or a member of
    ``features``; in an EfficientNetV2 ``stage-7`` is then the 1 × 1 convolution, as in table 4
    of its paper.

    Returns
    -------
    stages
        From input to output; every parameter stands in exactly one.

    Examples
    --------
    >>> from torch import nn
    >>> net = nn.Sequential()
    >>> net.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, bias=False))
    >>> stages_of(net)
    {'stem': ('features.0.weight', 'features.0.bias'), 'stage-1': ('features.2.weight',)}
    """
    names = [name for name, _ in module.named_parameters()]
    keys = _timm_stages(module) if hasattr(module, "group_matcher") else _own_stages(names)
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        found[keys[name]].append(name)
    return {key: tuple(found[key]) for key in sorted(found, key=_position)}


def _position(key: str) -> tuple[int, int]:
    number = int(key.removeprefix("stage-")) if key.startswith("stage-") else 0
    return ("stem", "stage", "norm").index(key.partition("-")[0]), number


def _timm_stages(module: nn.Module) -> dict[str, str]:
    models = import_guarded("timm.models")
    matcher: Any = module.group_matcher
    groups: Mapping[int, list[str]] = models.group_parameters(module, matcher(coarse=True))
    return {
        name: "norm" if _NORMS.match(name) else f"stage-{number}" if number else "stem"
        for number, names in enumerate(groups[key] for key in sorted(groups))
        for name in names
    }


def _own_stages(names: list[str]) -> dict[str, str]:
    everywhere = ((r"([^.]+)\.", "in order"),)
    pattern, numbering = next(
        (pattern, numbering)
        for pattern, numbering in (*_STAGES, *everywhere)
        if pattern == everywhere[0][0] or any(re.match(pattern, name) for name in names)
    )
    matches = {name: re.match(pattern, name) for name in names}
    seen: dict[str, int] = {}
    keys: dict[str, str] = {}
    for name, match in matches.items():
        if _NORMS.match(name):
            keys[name] = "norm"
        elif match is None:
            keys[name] = "stem"
        elif numbering == "in order":
            number = seen.setdefault(match[1], len(seen))
            keys[name] = f"stage-{number}" if number else "stem"
        else:
            keys[name] = f"stage-{int(match[1]) + (numbering == 'plus one')}"
    return keys


# -- names --------------------------------------------------------------------------------------


def known_card(name: str) -> EncoderCard:
    """Find the card of an encoder that is a torch module.

    Raises
    ------
    RecipeError
        If it has no torch module that could be trained.
    """
    row = encoder_card(name)
    if row.architecture is None or row.loader != "histostore.encoders.torch:load":
        raise RecipeError(f"{name} is no torch network, so it cannot be trained: use a head on it")
    return row
