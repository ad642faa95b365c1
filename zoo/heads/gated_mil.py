"""Gated-attention multiple instance learning, as in the AN2DL challenge report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from zoo.heads.layers import Dropout, GatedAttention, NormLinear, SqueezeExcite
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import choice, number, whole

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["GatedMIL", "GatedMILModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GatedMIL(TorchSpec):
    """Gated-attention MIL with channel gates.

    **Reference**: "AN2DL – Second Challenge Report", Backprop. Brothers, 2025, §4 and figure 3
    (numbers); Ilse et al. 2018 (gated attention); Hu et al. 2018 (channel gates).

    **Differences**

    - NOTE[DIFF] The report feeds raw embeddings of one foundation model; here features are
      standardised first (``standardise``), because hand-made features differ in scale by
      orders of magnitude, which the leading LayerNorm over features cannot mend.
    - NOTE[DIFF] Figure 3 prints the channel gates' squeeze as AdaptiveAvgPool1d(1), between
      projection and attention, but the text speaks of the pooled representation. Taken over
      one pooled vector that average would be idle, so here it runs over the real patches of
      the bag, and its gates scale every patch before attention (``squeeze="patches"``).
      ``squeeze="pooled"`` is the other reading: gates of the attention-pooled vector.
    """

    name: ClassVar[str] = "gated-mil"
    stackable: ClassVar[bool] = True

    hidden: int = whole(160, "width of a projected patch", low=1, high=65_536)
    attention: int = whole(96, "width of the attention branches V and U", low=1, high=65_536)
    bottleneck: int = whole(20, "width inside the channel gates", low=1, high=65_536)
    squeeze: str = choice(
        "patches", "what the channel gates see and scale", among=("patches", "pooled", "none")
    )
    dropout: float = number(0.4, "dropout of projected patches", high=0.99)
    bag_dropout: float = number(0.5, "dropout of the pooled vector", high=0.99)

    def build(self, n_features: int, n_classes: int) -> GatedMILModule:
        """Make the network with fresh weights."""
        return GatedMILModule(self, n_features, n_classes)


class GatedMILModule(AttentionModule):
    """h = P(x); h ← s(mean h) ⊙ h; z = Σ a(h) h; logits = C(z).

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: GatedMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.patch_proj = nn.Sequential(
            NormLinear(n_features, spec.hidden),
            nn.GELU(),
            Dropout(spec.dropout),
            nn.LayerNorm(spec.hidden),
        )
        self.squeeze = spec.squeeze
        if spec.squeeze != "none":
            self.se_block = SqueezeExcite(spec.hidden, spec.bottleneck)
        self.attn = GatedAttention(spec.hidden, spec.attention)
        self.bag_drop = Dropout(spec.bag_dropout)
        self.cls = nn.Linear(spec.hidden, n_classes)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        h, a = self._weigh(rows, layout)
        z = layout.sum(a, h)  # (bag, hidden)
        if self.squeeze == "pooled":
            z = z * self.se_block(z)
        logits: Tensor = self.cls(self.bag_drop(z))
        return logits

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the attention of each patch."""
        return self._weigh(rows, layout)[1]

    def _weigh(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        h: Tensor = self.patch_proj(rows)  # (…, hidden)
        if self.squeeze == "patches":
            h = h * layout.spread(self.se_block(layout.mean(h)))
        return h, self.attn(h, layout)
