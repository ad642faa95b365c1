"""Attention-challenging multiple instance learning (ACMIL)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.heads.layers import GatedScores
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import number, whole
from zoo.training.losses import Pass
from zoo.training.streams import uniform

if TYPE_CHECKING:
    from zoo.training.layout import Layout
    from zoo.training.losses import Loss

__all__ = ["ACMIL", "ACMILModule"]

_WIDTHS = ((384, 128), (512, 256))
"""Features at most, and the width of the authors' projection for them; 384 beyond."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ACMIL(TorchSpec):
    """Several attention branches kept apart, the most attended patches masked while training.

    **Reference**: Zhang et al. 2024, §3.2 (branches) and 3.3 (masking); sizes of the authors'
    code: 128 in the attention, 5 branches, 0.6 of the 10 most attended patches masked.

    **Differences**

    - NOTE[DIFF] The paper masks each of the ten with that chance; its code, and this, mask that
      share of them.
    - NOTE[DIFF] The authors' script hands the number of branches where the number of masked
      patches belongs; here the two are apart.
    - NOTE[DIFF] The authors' widths are for embeddings of 384, 512 and 768; others take the next.
    - NOTE[DIFF] The recipe decides how to step, one for all heads; the authors have AdamW, rate
      1e-4, decay 1e-5, cosine, 50 epochs, single bags.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    """

    name: ClassVar[str] = "acmil"
    stackable: ClassVar[bool] = True

    hidden: int | None = whole(
        None, "width of a projected patch; none goes by the embedding", low=1, high=65_536,
        optional=True,
    )  # fmt: skip
    attention: int = whole(128, "width of the attention network", low=1, high=65_536)
    n_branches: int = whole(5, "attention branches", low=1, high=64)
    n_masked: int = whole(10, "most attended patches that may be masked", low=0, high=65_536)
    mask_share: float = number(0.6, "share of them that is masked", high=1)

    def build(self, n_features: int, n_classes: int) -> ACMILModule:
        """Make the network with fresh weights."""
        return ACMILModule(self, n_features, n_classes)

    def width(self, n_features: int) -> int:
        """Width of the projection.

        Examples
        --------
        >>> ACMIL().width(384), ACMIL().width(512), ACMIL().width(1536), ACMIL(hidden=7).width(9)
        (128, 256, 384, 7)
        """
        if self.hidden is not None:
            return self.hidden
        return next((width for most, width in _WIDTHS if n_features <= most), 384)


class ACMILModule(AttentionModule):
    """Each branch classifies; the bag's vector is pooled by their average attention.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: ACMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        self._spec = spec
        hidden = spec.width(n_features)
        self.project = nn.Sequential(nn.Linear(n_features, hidden, bias=False), nn.ReLU())
        self.score = GatedScores(hidden, spec.attention, spec.n_branches)
        self.branches = nn.ModuleList(nn.Linear(hidden, n_classes) for _ in range(spec.n_branches))
        self.classify = nn.Linear(hidden, n_classes)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        x, attention = self._attend(rows, layout)
        return self._of_bag(x, attention)

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the average attention of the branches."""
        return layout.unpad(self._attend(rows, layout)[1].mean(dim=1))

    def objective(self, rows: Tensor, layout: Layout, target: Tensor, loss: Loss) -> Pass:
        """Add the branches' losses and how alike their attentions are (eq. 5 to 7)."""
        x, attention = self._attend(rows, layout)
        logits = self._of_bag(x, attention)
        vectors = attention @ x  # (bag, branch, hidden)
        of_branches = torch.stack(
            [
                loss.of_logits(classify(vectors[:, number]), target)
                for number, classify in enumerate(self.branches)
            ]
        ).mean()
        return Pass(logits, loss.of_logits(logits, target) + of_branches + _likeness(attention))

    def _of_bag(self, x: Tensor, attention: Tensor) -> Tensor:
        pooled = attention.mean(dim=1, keepdim=True) @ x
        logits: Tensor = self.classify(pooled.squeeze(1))
        return logits

    def _attend(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Give ``(bag, patch, hidden)`` and attention ``(bag, branch, patch)``."""
        x, mask = layout.pad(self.project(rows))
        scores = self.score(x).transpose(1, 2)  # (bag, branch, patch)
        scores = scores.masked_fill(~mask.unsqueeze(1), -torch.inf)
        if self.training and self._spec.n_masked:
            scores = scores.masked_fill(self._masked(scores, mask), -torch.inf)
        return x, scores.softmax(dim=-1)

    def _masked(self, scores: Tensor, mask: Tensor) -> Tensor:
        """Choose which of the most attended patches each branch must do without."""
        k = min(self._spec.n_masked, scores.shape[-1])
        top = scores.detach().topk(k, dim=-1).indices
        lengths = mask.sum(dim=1).view(-1, 1, 1)
        # int(share · top of the bag), so that a patch is always left.
        count = (lengths.clamp_max(k) * self._spec.mask_share).long().clamp_max(lengths - 1)
        real = torch.arange(k, device=top.device) < lengths
        draws = uniform(top).masked_fill(~real, torch.inf)
        chosen = draws.argsort(dim=-1).argsort(dim=-1) < count
        return torch.zeros_like(scores, dtype=torch.bool).scatter(2, top, chosen)


def _likeness(attention: Tensor) -> Tensor:
    """Average the cosine similarity of all pairs of branches; 0 for a single branch."""
    pairs = [
        functional.cosine_similarity(attention[:, i], attention[:, j], dim=-1).mean()
        for i, j in combinations(range(attention.shape[1]), 2)
    ]
    return torch.stack(pairs).mean() if pairs else attention.new_zeros(())
