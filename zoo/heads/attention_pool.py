"""A transformer over the patches, pooled by the attention of a learned query."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import number, whole

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["AttentionPool", "AttentionPoolModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionPool(TorchSpec):
    """Self-attention layers without positions, then multi-head attention of one query.

    **Reference**: Dosovitskiy et al. 2021 (layers); Zhai et al. 2022, §3.2 (pooling by the
    attention of a learned query); sizes of STAMP's transformer (El Nahhas et al. 2024).

    **Differences**

    - NOTE[DIFF] STAMP reads a class token; a query gives one weight per patch, to be looked at.
    - NOTE[DIFF] STAMP draws 512 patches of a bag; here all are seen. Memory grows with the
      square of the longest bag: leave patches out with ``patch_dropout`` where it is short.
    - NOTE[DIFF] The recipe decides how to step, one for all heads; STAMP has AdamW, one cycle up to
      1e-4, 32 epochs, 64 bags a step.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    """

    name: ClassVar[str] = "attention-pool"

    hidden: int = whole(512, "width", low=1, high=65_536)
    feed_forward: int = whole(512, "width inside the layers", low=1, high=65_536)
    n_heads: int = whole(8, "attention heads; they divide the width", low=1, high=256)
    depth: int = whole(2, "self-attention layers; 0 is pooling alone", low=0, high=64)
    dropout: float = number(0.25, "dropout in layers", high=0.99)

    def build(self, n_features: int, n_classes: int) -> AttentionPoolModule:
        """Make the network with fresh weights."""
        if self.hidden % self.n_heads:
            raise RecipeError(
                f"head {self.name}: n_heads is {self.n_heads}, which does not divide hidden "
                f"({self.hidden})"
            )
        return AttentionPoolModule(self, n_features, n_classes)


class AttentionPoolModule(AttentionModule):
    """h = layers(P x); z = attention of the query over h; logits = C(norm z).

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: AttentionPool, n_features: int, n_classes: int) -> None:
        super().__init__()
        width = spec.hidden
        self.project = nn.Sequential(nn.Linear(n_features, width), nn.GELU())
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                spec.n_heads,
                spec.feed_forward,
                dropout=spec.dropout,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(spec.depth)
        )
        self.query = nn.Parameter(torch.randn(1, 1, width) * width**-0.5)
        self.norm = nn.LayerNorm(width)
        self.pool = nn.MultiheadAttention(width, spec.n_heads, batch_first=True)
        self.classify = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, n_classes))

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        logits: Tensor = self.classify(self._pooled(rows, layout)[0])
        return logits

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the query's attention, averaged over its heads."""
        return layout.unpad(self._pooled(rows, layout)[1])

    def _pooled(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Give vectors ``(bag, hidden)`` and weights ``(bag, patch)``."""
        x, mask = layout.pad(self.project(rows))
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=~mask)
        keys = self.norm(x)
        vectors, weights = self.pool(
            self.query.expand(len(x), -1, -1), keys, keys, key_padding_mask=~mask
        )
        return vectors.squeeze(1), weights.squeeze(1)
