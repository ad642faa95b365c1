"""Attention-based multiple instance learning, plain or gated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from zoo.heads.layers import Attention, Dropout, GatedAttention
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import flag, number, whole

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["ABMIL", "ABMILModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ABMIL(TorchSpec):
    """A projection, attention over the patches, one linear classifier.

    **Reference**: Ilse et al. 2018, eq. 7 to 9; sizes of the authors' code (500 and 128).

    **Differences**

    - NOTE[DIFF] The paper learns its features from pixels and needs no dropout; on frozen
      embeddings the field uses 0.25 (Lu et al. 2021 and those after them).
    - NOTE[DIFF] One logit per class with a softmax, where the paper has one sigmoid.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    - NOTE[DIFF] The recipe decides how to step, one for all heads; the authors' code for pixels has
      Adam, rate 5e-4, decay 1e-4, 20 epochs, single bags. For the classical tables see recipe
      ``ilse``.
    """

    name: ClassVar[str] = "abmil"
    stackable: ClassVar[bool] = True

    hidden: int = whole(500, "width of a projected patch", low=1, high=65_536)
    depth: int = whole(
        1, "layers of the projection, each half as wide as the one before", low=1, high=8
    )
    attention: int = whole(128, "width of the attention network", low=1, high=65_536)
    gated: bool = flag(default=True, meaning="gate the attention (eq. 9) or not (eq. 8)")
    dropout: float = number(0.25, "dropout of projected patches", high=0.99)

    def build(self, n_features: int, n_classes: int) -> ABMILModule:
        """Make the network with fresh weights."""
        return ABMILModule(self, n_features, n_classes)


class ABMILModule(AttentionModule):
    """h = ReLU(P x); z = Σ a(h) h; logits = C z.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: ABMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        widths = [n_features, *(max(spec.hidden >> layer, 1) for layer in range(spec.depth))]
        layers: list[nn.Module] = []
        for wide, narrow in pairwise(widths):
            layers += [nn.Linear(wide, narrow), nn.ReLU(), Dropout(spec.dropout)]
        self.project = nn.Sequential(*layers)
        attention = GatedAttention if spec.gated else Attention
        self.attend = attention(widths[-1], spec.attention)
        self.classify = nn.Linear(widths[-1], n_classes)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        h = self.project(rows)
        logits: Tensor = self.classify(layout.sum(self.attend(h, layout), h))
        return logits

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the attention of each patch."""
        weights: Tensor = self.attend(self.project(rows), layout)
        return weights
