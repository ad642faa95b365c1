"""The hybrid of the HistoVision report: a convolutional network and a transformer, fused.

Its first phase, in which both are frozen, is head ``fusion`` with recipe ``r6-phase1`` on a store
of encoder ``a+b``, number for number where both see the same pixels without augmentation.

NOTE[DIFF] The encoder ``torchvision:efficientnet_v2_s`` sees 384 px, the size of its published
weights; here both branches see 224 px, as in the report (§3.4.5).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from histostore.encoders.assembly import SideBySide
from histostore.encoders.fusion import weights_of
from zoo.finetune.backbones import DEFAULT_PX, RANDOM, Part, known_card, load_backbone
from zoo.finetune.networks import Classifier, assembled, seeded
from zoo.heads.fusion import Fusion

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.finetune.networks import Network

__all__ = ["hybrid", "r6_hybrid", "r6_hybrid_small"]


def hybrid(
    members: Mapping[str, str],
    outputs: int,
    *,
    name: str,
    seed: int,
    weights: str | None,
    px: int | None = None,
) -> Network:
    """Fuse backbones with the block of head ``fusion``.

    Parameters
    ----------
    members
        Branch → encoder of histostore, as ``{"cnn": "torchvision:efficientnet_v2_s", …}``.
    outputs
        Number of logits.
    name, seed, weights, px
        As :func:`zoo.finetune.networks.network` has them; the block is drawn from ``seed`` just
        as ``zoo fit --head fusion`` draws it.
    """
    cards = {branch: known_card(encoder) for branch, encoder in members.items()}
    given: Mapping[str, str | None] = (
        dict.fromkeys((row.name for row in cards.values()), weights)
        if weights in {None, RANDOM}
        else weights_of(list(cards.values()), weights)
    )
    side = px or DEFAULT_PX  # of the report, §3.4.5, though EfficientNetV2-S is published at 384
    parts: dict[str, Part] = {}
    with seeded(seed):
        for branch, row in cards.items():
            _, parts[branch] = load_backbone(
                row, path=f"body.{branch}", weights=given[row.name], px=side
            )
    body = SideBySide({branch: part.plan for branch, part in parts.items()})
    with seeded(seed):
        block = Fusion().build(sum(part.width for part in parts.values()), outputs)
    head = nn.Sequential(block.fuse, block.classify)
    return assembled(name, Classifier(body, head), parts)


r6_hybrid = partial(hybrid, {"cnn": "torchvision:efficientnet_v2_s", "vit": "torchvision:vit_b_16"})
r6_hybrid_small = partial(
    hybrid, {"cnn": "timm:mobilenetv3_small_100", "vit": "timm:vit_tiny_patch16_224"}
)
