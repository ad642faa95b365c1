"""Networks that are trained on pixels, by name.

A name is one of :data:`NETWORKS`, or an encoder of histostore that is a torch module
(``timm:NAME``, ``torchvision:NAME``, ``squeezenet1_1``, …) with a linear classifier on it.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from histostore.encoders.assembly import rgb
from histostore.errors import EncoderError
from zoo.errors import RecipeError
from zoo.finetune.backbones import DEFAULT_PX, Part, known_card, load_backbone, stages_of
from zoo.finetune.phases import HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from histostore.encoders.cards import EncoderCard

__all__ = [
    "NETWORKS",
    "Classifier",
    "Network",
    "grouped",
    "image_network",
    "known_networks",
    "network",
    "seeded",
]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Network:
    """A network with fresh or published weights, and what surrounds it."""

    name: str
    """As given to ``--model``."""
    module: nn.Module
    """Pixels ``(image, 3, px, px)`` float32, shifted and scaled → logits ``(image, output)``.
    Of a bag network: ``(patch, 3, px, px)`` of **one** bag → ``(1, output)``. Its method
    ``features`` gives one vector per image or patch: what the classifier or the pooling gets."""
    groups: Mapping[str, tuple[str, ...]]
    """Names of parameters by group, from input to output: ``stem``, ``stage-1``, …, ``norm``,
    ``head``; a branch of a hybrid stands in front, as ``vit.stage-1``."""
    px: int
    """Side of its input."""
    mean: tuple[float, float, float]
    """Per channel, RGB, of pixels scaled to 0..1."""
    std: tuple[float, float, float]
    """Per channel, RGB, of pixels scaled to 0..1."""
    interpolation: str = "bilinear"
    """``bilinear`` or ``bicubic``, antialiased: how images become ``px``."""
    bag: bool = False
    """Whether it takes the patches of one image instead of whole images."""
    parts: tuple[Part, ...] = ()
    """The backbones in it, whose vectors side by side are its features; empty where it cannot
    become an encoder."""


class Classifier(nn.Module):
    """A backbone and a head on its vectors.

    **Shape**: ``(image, 3, px, px)`` → ``(image, output)``.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = head

    def features(self, pixels: Tensor) -> Tensor:
        """Give one vector per image, ``(image, feature)``."""
        vectors: Tensor = self.body(pixels)
        return vectors

    def forward(self, pixels: Tensor) -> Tensor:
        """Classify images."""
        logits: Tensor = self.head(self.features(pixels))
        return logits


def grouped(module: nn.Module, bodies: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Sort the parameters of a whole network into groups.

    Parameters
    ----------
    module
        The network.
    bodies
        Branch (empty where there is one only) → path of its
        :class:`~zoo.finetune.backbones.Backbone`. All else is ``head``.
    """
    groups: dict[str, tuple[str, ...]] = {}
    for branch, path in bodies.items():
        inner = f"{path}.module"
        for stage, names in stages_of(module.get_submodule(inner)).items():
            key = f"{branch}.{stage}" if branch else stage
            groups[key] = tuple(f"{inner}.{name}" for name in names)
    inside = {name for names in groups.values() for name in names}
    rest = tuple(name for name, _ in module.named_parameters() if name not in inside)
    return {**groups, HEAD: rest}


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw from a seed, and leave torch's own random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def image_network(
    card: EncoderCard,
    outputs: int,
    *,
    seed: int,
    weights: str | None,
    name: str,
    px: int | None = None,
    dropout: float = 0.0,
) -> Network:
    """Put a linear classifier on a backbone.

    The classifier is drawn from ``seed`` alone, whatever the backbone is.
    """
    with seeded(seed):
        body, part = load_backbone(card, path="body", weights=weights, px=px)
    with seeded(seed):
        linear = nn.Linear(part.width, outputs)
        head = nn.Sequential(nn.Dropout(dropout), linear) if dropout else linear
    return assembled(name, Classifier(body, head), {"": part})


def assembled(name: str, module: nn.Module, parts: Mapping[str, Part], **more: Any) -> Network:
    """Make the network of a module whose backbones are known: branch → part.

    Its pixels are those of the first.
    """
    first = next(iter(parts.values())).plan
    mean, std = rgb(first)
    return Network(
        name=name,
        module=module,
        groups=grouped(module, {branch: part.path for branch, part in parts.items()}),
        px=first.input_px or DEFAULT_PX,
        mean=mean,
        std=std,
        interpolation=first.interpolation,
        parts=tuple(parts.values()),
        **more,
    )


NETWORKS: Mapping[str, tuple[str, str]] = {
    "small-cnn": ("zoo.finetune.amil:small_cnn", "five convolutions and two dense layers"),
    "amil-cnn": ("zoo.finetune.amil:amil_cnn", "patches, two convolutions, attention pooling"),
    "resnet18": ("zoo.finetune.models:resnet18", "ResNet-18, ImageNet"),
    "resnet50": ("zoo.finetune.models:resnet50", "ResNet-50, ImageNet"),
    "vgg16": ("zoo.finetune.models:vgg16", "VGG-16, ImageNet"),
    "densenet121": ("zoo.finetune.models:densenet121", "DenseNet-121, ImageNet"),
    "kimianet": ("zoo.finetune.models:kimianet", "DenseNet-121, KimiaNet's weights"),
    "efficientnet-b7": ("zoo.finetune.models:efficientnet_b7", "EfficientNet-B7, ImageNet"),
    "r5-small": ("zoo.finetune.models:r5_small", "EfficientNet-B0 at 128 px, ImageNet"),
    "r6-hybrid": ("zoo.finetune.fusionnet:r6_hybrid", "EfficientNetV2-S and ViT-B/16, fused"),
    "r6-hybrid-small": (
        "zoo.finetune.fusionnet:r6_hybrid_small",
        "MobileNetV3-S and ViT-Ti/16, fused",
    ),
    "r11-small": ("zoo.finetune.models:r11_small", "ResNet-10t at 128 px, ImageNet"),
}
"""Name → ``module:function`` that makes it, and one line about it. The function is called with
``outputs`` and the keywords ``name``, ``seed``, ``weights`` and ``px`` and gives a
:class:`Network`."""

PATTERNS: Mapping[str, tuple[str, str]] = {
    "amil": ("zoo.finetune.amil:amil_of", "patches, any encoder's network, attention pooling"),
}
"""The same for names of the form ``pattern:NAME``; ``name`` is the whole of it."""


def known_networks() -> dict[str, str]:
    """List the named networks with one line about each."""
    told = {name: line for name, (_, line) in NETWORKS.items()}
    told |= {f"{name}:NAME": line for name, (_, line) in PATTERNS.items()}
    return {**told, "timm:NAME": "any model of timm", "torchvision:NAME": "any of torchvision"}


def network(
    name: str, outputs: int, *, seed: int, weights: str | None = None, px: int | None = None
) -> Network:
    """Make a network, ready to be trained.

    Parameters
    ----------
    name
        One of :data:`NETWORKS`, ``amil:NAME``, or an encoder that is a torch module.
    outputs
        Number of logits.
    seed
        Draws the head, and the backbone where it gets no weights.
    weights
        A weights file, held to its SHA-256 where that is given as ``PATH#sha256=HEX``; of a
        hybrid ``NAME=PATH`` with commas between; ``None`` takes the published weights;
        ``none`` draws all weights at random, which must be asked for.
    px
        Side of the input; ``None`` is the network's own.

    Raises
    ------
    HistostoreError
        If the name is unknown, or the weights cannot be had or do not fit.
    """
    family, colon, rest = name.partition(":")
    maker = NETWORKS.get(name) or (PATTERNS.get(family) if colon and rest else None)
    if maker is not None:
        module, _, function = maker[0].partition(":")
        make = getattr(importlib.import_module(module), function)
        made: Network = make(outputs, name=name, seed=seed, weights=weights, px=px)
        return made
    try:
        card = known_card(name)
    except EncoderError as error:
        nearest = difflib.get_close_matches(name, NETWORKS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        known = ", ".join(known_networks())
        raise RecipeError(f"no network is called {name!r}{hint}; known: {known}") from error
    return image_network(card, outputs, seed=seed, weights=weights, name=name, px=px)
