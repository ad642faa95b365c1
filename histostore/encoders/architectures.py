"""Where torch modules come from: timm, torchvision, and the few that are special.

Each source turns the name of an architecture into a :class:`Blueprint`: a module that gives
one vector per patch, with the preprocessing it was made for.
"""

from __future__ import annotations

import difflib
import re
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from histostore.encoders.blueprints import CLASSIFIERS, Blueprint, first_line, no_download, whole
from histostore.encoders.hub import from_hub
from histostore.encoders.pooling import POOLINGS, pooled_forward
from histostore.encoders.special import SPECIAL
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.translations import DROPPABLE, TRANSLATIONS
from histostore.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.encoders.cards import EncoderCard
    from histostore.encoders.weights import State

__all__ = ["Blueprint", "blueprint"]


def blueprint(card: EncoderCard) -> Blueprint:
    """Build the architecture of a card, with weights drawn from torch's generator.

    What the card says of the preprocessing comes before what the architecture says.

    Raises
    ------
    EncoderError
        If its source does not know it; the message names the nearest.
    """
    source, _, name = (card.architecture or "").partition(":")
    builders = {"timm": _timm, "torchvision": _torchvision, "histostore": _special}
    plan = builders[source](name, card)
    given = {
        key: getattr(card, key)
        for key in ("input_px", "mean", "std", "interpolation", "pooling")
        if getattr(card, key) is not None
    }
    return replace(plan, **given)


def _special(name: str, card: EncoderCard) -> Blueprint:
    plan: Blueprint = SPECIAL[name](card)
    return plan


# -- timm ---------------------------------------------------------------------------------------


def _timm(name: str, card: EncoderCard) -> Blueprint:
    timm = import_guarded("timm")
    if not timm.is_model(name):
        raise _unknown(card, timm.list_models(), "timm")
    try:
        module: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=0, **_keywords(card.options)
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise EncoderError(f"timm cannot build {name}: {first_line(str(error))}") from error
    config: Mapping[str, Any] = vars(module)["pretrained_cfg"]
    named = config.get("classifier") or ()
    classifiers = (named,) if isinstance(named, str) else tuple(named)
    interpolation = str(config.get("interpolation"))
    own_pooling = card.pooling if card.pooling in POOLINGS else None
    return Blueprint(
        module=module,
        forward=pooled_forward(module, own_pooling) if own_pooling else whole,
        input_px=int(config["input_size"][-1]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation if interpolation in {"bilinear", "bicubic"} else "bicubic",
        pooling=_pooling(module),
        droppable=(
            *CLASSIFIERS,
            *(f"{classifier}." for classifier in classifiers),
            *DROPPABLE.get(card.keys or "", ()),
        ),
        download=lambda: _from_hub(card, config),
        translate=lambda state: _timm_names(module, _translated(card, state)),
    )


def _keywords(options: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the names of layers, as data has them, into layers."""
    layers = import_guarded("timm.layers")
    named = {"SwiGLUPacked": layers.SwiGLUPacked, "SiLU": nn.SiLU}
    return {
        key: named[value] if key.endswith("_layer") and value in named else value
        for key, value in options.items()
    }


def _translated(card: EncoderCard, state: State) -> State:
    return state if card.keys is None else TRANSLATIONS[card.keys](state)


def _pooling(module: nn.Module) -> str:
    """Name the pooling as timm does, as ``avg`` or ``token``."""
    pool = getattr(module, "global_pool", None)
    kind = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    return kind if isinstance(kind, str) and kind else "architecture"


def _from_hub(card: EncoderCard, config: Mapping[str, Any]) -> State:
    if card.hub:
        return from_hub(card, card.hub, card.hub_file)
    return from_hub(card, config.get("hf_hub_id"), config.get("hf_hub_filename"))


def _timm_names(module: nn.Module, state: State) -> State:
    """Apply the renaming that timm keeps beside the architecture, and nothing that resamples."""
    rename = getattr(sys.modules[type(module).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        renamed: State = rename(dict(state), module)
    except (LookupError, RuntimeError, ValueError, AttributeError, TypeError):
        return state  # not this architecture at all: the strict loading will say what is wrong
    return {
        name: state[name] if name in state and _resampled(state, name, value) else value
        for name, value in renamed.items()
    }


def _resampled(state: State, name: str, value: torch.Tensor) -> bool:
    """Tell a tensor whose size was changed; a class token taken out of a table is no change."""
    before = state[name]
    if name == "pos_embed" and "register_tokens" in state and before.ndim == value.ndim == 3:
        return before.shape[1] - 1 != value.shape[1]
    return before.numel() != value.numel()


# -- torchvision --------------------------------------------------------------------------------

# What to replace in each architecture to be left with one vector per patch: the attribute that
# holds the classifier, and how many of its first layers stay (a final norm or projection).
_TORCHVISION: Mapping[str, tuple[str, int]] = {
    "AlexNet": ("classifier", 0),
    "ConvNeXt": ("classifier", 2),
    "DenseNet": ("classifier", 0),
    "EfficientNet": ("classifier", 0),
    "GoogLeNet": ("fc", 0),
    "Inception3": ("fc", 0),
    "MaxVit": ("classifier", 5),
    "MobileNetV2": ("classifier", 0),
    "MobileNetV3": ("classifier", 0),
    "RegNet": ("fc", 0),
    "ResNet": ("fc", 0),
    "ShuffleNetV2": ("fc", 0),
    "SqueezeNet": ("classifier", 0),
    "SwinTransformer": ("head", 0),
    "VGG": ("classifier", 0),
    "VisionTransformer": ("heads", 0),
}
# These end in a grid of 6 × 6 or more, which is averaged like that of the others.
_UNPOOLED = {"AlexNet": "avgpool", "VGG": "avgpool", "SqueezeNet": "classifier"}
# Their published weights were trained on inputs that the network itself shifts; the auxiliary
# classifiers serve training only.
_INCEPTIONS = {"transform_input": True, "aux_logits": False, "init_weights": True}
_OWN_KEYWORDS = {"googlenet": _INCEPTIONS, "inception_v3": _INCEPTIONS}


def _torchvision(name: str, card: EncoderCard) -> Blueprint:
    models = import_guarded("torchvision.models")
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(card, known, "torchvision")
    keywords = {**_OWN_KEYWORDS.get(name, {}), **card.options}
    module: nn.Module = models.get_model(name, weights=None, **keywords)
    family = type(module).__name__
    if family not in _TORCHVISION:
        raise EncoderError(
            f"{card.name}: where {family} keeps its classifier is not known here; use timm:NAME"
        )
    _behead(module, family)
    published = models.get_model_weights(name).DEFAULT
    preset = published.transforms()
    return Blueprint(
        module=module,
        input_px=int(preset.crop_size[0]),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=str(preset.interpolation.value),
        pooling="token" if family == "VisionTransformer" else "average",
        droppable=(
            *CLASSIFIERS,
            "AuxLogits.",
            "aux1.",
            "aux2.",
            *DROPPABLE.get(card.keys or "", ()),
        ),
        download=lambda: _from_torchvision(card, str(published.url)),
        translate=lambda state: _torchvision_names(_translated(card, state)),
    )


def _behead(module: nn.Module, family: str) -> None:
    attribute, n_kept = _TORCHVISION[family]
    kept = list(module.get_submodule(attribute).children())[:n_kept]
    setattr(module, attribute, nn.Sequential(*kept) if kept else nn.Identity())
    if family in _UNPOOLED:
        setattr(module, _UNPOOLED[family], nn.AdaptiveAvgPool2d(1))


def _from_torchvision(card: EncoderCard, url: str) -> State:
    try:
        state: State = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:
        raise no_download(card, url, str(error)) from error
    return state


def _torchvision_names(state: State) -> State:
    """Rename DenseNet's layers, whose published files are older than its code."""
    return {
        re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name): value
        for name, value in state.items()
    }


# -- shared -------------------------------------------------------------------------------------


def _unknown(card: EncoderCard, known: list[str], library: str) -> EncoderError:
    wanted = card.name.partition(":")[2]
    nearest = difflib.get_close_matches(wanted, known, n=3)
    hint = f"did you mean {', '.join(nearest)}?" if nearest else "its documentation lists them"
    return EncoderError(f"{library} has no model {wanted!r}; {hint}")
