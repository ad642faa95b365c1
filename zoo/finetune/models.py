"""Networks of the reference systems that are one backbone with a classifier.

NOTE[DIFF] The lymphoma report names version 1 of ImageNet's weights for DenseNet-121, and none for
ResNet-50; where torchvision has several, its default is taken, which is version 2 for ResNet-50.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import TYPE_CHECKING, Any

from histostore.encoders.catalog import card
from zoo.finetune.networks import image_network

if TYPE_CHECKING:
    from zoo.finetune.networks import Network

__all__ = [
    "densenet121",
    "efficientnet_b7",
    "kimianet",
    "r5_small",
    "r11_small",
    "resnet18",
    "resnet50",
    "vgg16",
]


def _imagenet(architecture: str, outputs: int, *, dropout: float = 0.0, **given: Any) -> Network:
    return image_network(card(f"torchvision:{architecture}"), outputs, dropout=dropout, **given)


resnet18 = partial(_imagenet, "resnet18")
resnet50 = partial(_imagenet, "resnet50")
vgg16 = partial(_imagenet, "vgg16")
densenet121 = partial(_imagenet, "densenet121")
efficientnet_b7 = partial(_imagenet, "efficientnet_b7", dropout=0.5)


def r5_small(outputs: int, **given: Any) -> Network:
    """Make EfficientNet-B0, the smallest sibling of B7, with an input of 128 px."""
    return _imagenet("efficientnet_b0", outputs, dropout=0.2, **_at(128, given))


def r11_small(outputs: int, **given: Any) -> Network:
    """Make ResNet-10t, a tenth of ResNet-50's size, with an input of 128 px."""
    return image_network(card("timm:resnet10t"), outputs, **_at(128, given))


def _at(px: int, given: dict[str, Any]) -> dict[str, Any]:
    """Take another input than the architecture's own, where none is asked for."""
    return {**given, "px": given.get("px") or px}


def kimianet(outputs: int, **given: Any) -> Network:
    """Make DenseNet-121 with KimiaNet's weights, at the size and norm of ImageNet's.

    NOTE[DIFF] The weights are given as ``--weights KimiaNetPyTorchWeights.pth``; they cannot be
    downloaded without consent to KIMIA Lab's terms. The rectifier after the last norm, which
    KimiaNet's own features leave out, is that of torchvision's DenseNet, as the report
    fine-tunes that network.
    """
    row = dataclasses.replace(
        card("torchvision:densenet121"), name="kimianet", keys="kimianet", needs_weights=True
    )
    return image_network(row, outputs, **given)
