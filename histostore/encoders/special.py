"""Architectures that neither timm nor torchvision has whole, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from histostore.encoders.blueprints import CLASSIFIERS, Blueprint, nothing_to_download
from histostore.encoders.hub import from_hub
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.translations import DROPPABLE, TRANSLATIONS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.encoders.cards import EncoderCard
    from histostore.encoders.weights import State

__all__ = ["SPECIAL"]

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet


class DenseFeatures(nn.Module):
    """DenseNet-121 up to its last norm, averaged; **without** the rectifier that follows it.

    KimiaNet's authors average the features as they leave the body, negative values and all.

    **Shape**: ``(patch, 3, y, x)`` → ``(patch, 1024)``.

    **Reference**: Riasatian et al. 2021, Medical Image Analysis 70:102032.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = import_guarded("torchvision.models").densenet121(weights=None).features

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        features: Tensor = self.features(x)
        return features.mean(dim=(2, 3))


def _squeezenet(card: EncoderCard) -> Blueprint:
    from histostore.encoders.squeezenet import SqueezeNetFeatures

    return Blueprint(
        module=SqueezeNetFeatures(),
        input_px=None,
        mean=tuple(level / 255 for level in (103.939, 116.779, 123.68)),
        std=(1 / 255,) * 3,
        channels="BGR",
        smallest_px=17,
        download=lambda: nothing_to_download(card),
        translate=_unchanged,
    )


def _kimianet(card: EncoderCard) -> Blueprint:
    return Blueprint(
        module=DenseFeatures(),
        input_px=1000,
        mean=_MEAN,
        std=_STD,
        droppable=DROPPABLE["kimianet"],
        download=lambda: nothing_to_download(card),
        translate=TRANSLATIONS["kimianet"],
    )


def _ctranspath(card: EncoderCard) -> Blueprint:
    from histostore.encoders.convstem import ConvStem

    timm = import_guarded("timm")
    swin = import_guarded("timm.models.swin_transformer")
    module: nn.Module = timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, num_classes=0, embed_layer=ConvStem
    )

    def translate(state: State) -> State:
        # timm's own: buffers are left out, and a stage's downsampling moves to the next stage.
        renamed: State = swin.checkpoint_filter_fn(dict(state), module)
        return {name.replace("head.fc.fc.", "head.fc."): v for name, v in renamed.items()}

    return Blueprint(
        module=module,
        input_px=224,
        mean=_MEAN,
        std=_STD,
        droppable=CLASSIFIERS,
        download=lambda: nothing_to_download(card),
        translate=translate,
    )


def _conch(card: EncoderCard) -> Blueprint:
    from histostore.encoders.conch import ConchImages

    timm = import_guarded("timm")

    def trunk() -> Any:
        return timm.create_model(
            "vit_large_patch16_224", pretrained=False, num_classes=0, img_size=448, init_values=1e-6
        )

    return Blueprint(
        module=ConchImages(trunk),
        input_px=448,
        mean=_MEAN,
        std=_STD,
        pooling="attentional",
        droppable=DROPPABLE["conch"],
        download=lambda: from_hub(card, card.hub, card.hub_file),
        translate=TRANSLATIONS["conch"],
    )


def _unchanged(state: State) -> State:
    return state


SPECIAL: Mapping[str, Any] = {
    "conch1_5": _conch,
    "ctranspath": _ctranspath,
    "kimianet": _kimianet,
    "squeezenet1_1": _squeezenet,
}
"""Name to a function that makes the blueprint of a card."""
