"""What a source of torch modules gives: a module without weights, and what surrounds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from histostore.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from histostore.encoders.cards import EncoderCard
    from histostore.encoders.weights import State

__all__ = ["CLASSIFIERS", "Blueprint", "first_line", "no_download", "nothing_to_download", "whole"]

CLASSIFIERS = ("head.", "head_dist.", "heads.", "fc.", "classifier.")
"""Prefixes of the names that classifiers have in timm and torchvision."""


def whole(module: nn.Module, x: Tensor) -> Tensor:
    """Apply a module that pools by itself."""
    vectors: Tensor = module(x)
    return vectors


@dataclass(frozen=True, kw_only=True, slots=True)
class Blueprint:
    """A module without weights, and what surrounds it."""

    module: nn.Module
    """Holds the weights; ``forward`` says how it is used."""

    forward: Callable[[nn.Module, Tensor], Tensor] = whole
    """Module and ``(patch, 3, y, x)`` float32 → ``(patch, feature)``."""

    input_px: int | None
    """Side of its input; ``None`` where any size will do, and patches keep theirs."""

    mean: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1."""

    std: tuple[float, ...]
    """Per channel, of pixels scaled to 0..1."""

    interpolation: str = "bilinear"
    """``bilinear`` or ``bicubic``, antialiased."""

    channels: str = "RGB"
    """Order in which the module wants the colours."""

    pooling: str = "average"
    """How feature maps or tokens become one vector."""

    smallest_px: int = 1
    """Below this a patch has no feature map left."""

    droppable: tuple[str, ...] = CLASSIFIERS
    """Prefixes of parameters that a weights file may hold in vain."""

    download: Callable[[], State]
    """Fetches the published weights."""

    translate: Callable[[State], State]
    """Renames what a weights file of other authors or an older version holds."""


def nothing_to_download(card: EncoderCard) -> State:
    """Refuse to download what nobody publishes in a form that can be fetched."""
    raise EncoderError(f"{card.name} has no weights to download; give the file with --weights")


def no_download(card: EncoderCard, source: str, reason: str) -> EncoderError:
    """Say that a download failed, why, and what to do instead."""
    gate = f"; access is granted on {card.url}" if card.gated and card.url else ""
    return EncoderError(
        f"cannot download the weights of {card.name} from {source}: {first_line(reason)} "
        f"Give the file with --weights{gate}"
    )


def first_line(reason: str) -> str:
    """Cut what a library says down to one line that ends in a full stop."""
    line = (reason.strip() or "no reason given").splitlines()[0][:200]
    return line if line.endswith(".") else f"{line}."
