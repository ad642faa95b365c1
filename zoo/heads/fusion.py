"""The fusion block of a hybrid of two backbones, on their stored features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from zoo.heads.layers import Dropout, NormLinear
from zoo.heads.neural import TorchSpec
from zoo.settings import number, whole
from zoo.training.loop import BagModule

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["Fusion", "FusionModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fusion(TorchSpec):
    """Fusion block and classifier on the mean over a bag's patches.

    It is meant for a feature set that two encoders made together
    (``torchvision:efficientnet_v2_s+torchvision:vit_b_16``): the frozen first phase of the
    hybrid, with recipe ``r6-phase1``.

    **Reference**: "HistoVision", 2025, §3.3 (numbers).

    **Differences**

    - NOTE[DIFF] The document classifies one crop of an image; here the mean over all patches
      of an image takes its place, which is the same for one patch.
    - NOTE[DIFF] Features are standardised first: two encoders differ in scale, and so do the
      features of some, which the LayerNorm in front cannot mend. ``standardise=false`` is the
      document's phase 1, number for number what training from pixels gives.
    """

    name: ClassVar[str] = "fusion"
    stackable: ClassVar[bool] = True

    hidden: int = whole(1024, "width of the fusion block", low=1, high=65_536)
    bottleneck: int = whole(512, "width inside the classifier", low=1, high=65_536)
    dropout: float = number(0.6, "dropout in the fusion block", high=0.99)
    classifier_dropout: float = number(0.7, "dropout in the classifier", high=0.99)

    def build(self, n_features: int, n_classes: int) -> FusionModule:
        """Make the network with fresh weights."""
        return FusionModule(self, n_features, n_classes)


class FusionModule(BagModule):
    """Norm, linear, GELU, norm, dropout, linear; then norm, linear, GELU, dropout, linear.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: Fusion, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.fuse = nn.Sequential(
            NormLinear(n_features, spec.hidden),
            nn.GELU(),
            nn.LayerNorm(spec.hidden),
            Dropout(spec.dropout),
            nn.Linear(spec.hidden, spec.hidden),
        )
        self.classify = nn.Sequential(
            NormLinear(spec.hidden, spec.bottleneck),
            nn.GELU(),
            Dropout(spec.classifier_dropout),
            nn.Linear(spec.bottleneck, n_classes),
        )

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        logits: Tensor = self.classify(self.fuse(layout.mean(rows)))
        return logits
