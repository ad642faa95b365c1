"""Double-tier feature distillation (DTFD-MIL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from zoo.heads.layers import Dropout, GatedAttention, GatedScores
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import number, whole
from zoo.training.layout import Packed, Padded
from zoo.training.losses import Pass

if TYPE_CHECKING:
    from zoo.training.layout import Layout
    from zoo.training.losses import Loss

__all__ = ["DTFD", "DTFDModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DTFD(TorchSpec):
    """A bag is dealt into pseudo-bags; attention in each, then attention over them.

    **Reference**: Zhang et al. 2022, §3.2 and 3.3; sizes of the authors' code. Distilled is
    the attention-pooled vector of each pseudo-bag (their AFS, the best of the paper's four).

    **Differences**

    - NOTE[DIFF] While predicting, patches are dealt in the order of their attention, in turn,
      where the paper deals at random: one bag has one prediction, whatever the order of its
      patches.
    - NOTE[DIFF] One optimiser steps on the sum of both losses, where the authors' code has one
      for each tier with equal settings, and clips each part by itself. As there, the second
      tier's loss moves the second tier alone.
    - NOTE[DIFF] ``dropout`` is that of projected patches; the authors' stands before both
      classifiers. Both are 0 unless asked for.
    - NOTE[DIFF] The recipe decides how to step, one for all heads; the authors have Adam, rate and
      decay 1e-4, a fifth of the rate after 100 of 200 epochs, single bags.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    - NOTE[DIFF] A bag of fewer patches than pseudo-bags has as many pseudo-bags as patches.
    """

    name: ClassVar[str] = "dtfd"

    hidden: int = whole(512, "width of a projected patch", low=1, high=65_536)
    attention: int = whole(128, "width of both attention networks", low=1, high=65_536)
    n_groups: int = whole(4, "pseudo-bags", low=1, high=1024)
    dropout: float = number(0.0, "dropout of projected patches", high=0.99)

    def build(self, n_features: int, n_classes: int) -> DTFDModule:
        """Make the network with fresh weights."""
        return DTFDModule(self, n_features, n_classes)


class DTFDModule(AttentionModule):
    """Tier 1 on pseudo-bags, tier 2 on their vectors.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: DTFD, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.n_groups = spec.n_groups
        self.project = nn.Sequential(
            nn.Linear(n_features, spec.hidden, bias=False), nn.ReLU(), Dropout(spec.dropout)
        )
        self.first = GatedScores(spec.hidden, spec.attention)
        self.first_classify = nn.Linear(spec.hidden, n_classes)
        self.second = GatedAttention(spec.hidden, spec.attention)
        self.second_classify = nn.Linear(spec.hidden, n_classes)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags, by the second tier."""
        return self._tiers(rows, layout).logits

    def objective(self, rows: Tensor, layout: Layout, target: Tensor, loss: Loss) -> Pass:
        """Add up the losses of both tiers: each pseudo-bag has its bag's label."""
        tiers = self._tiers(rows, layout)
        inherited = target.repeat_interleave(tiers.groups.outer.lengths, dim=0)
        first = loss.of_logits(self.first_classify(tiers.vectors), inherited)
        return Pass(tiers.logits, first + loss.of_logits(tiers.logits, target))

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give each patch its share in its pseudo-bag times that of the pseudo-bag."""
        tiers = self._tiers(rows, layout)
        groups = tiers.groups
        dealt = tiers.within * tiers.between[groups.inner.bag]
        back = torch.empty_like(dealt).index_copy(0, groups.order, dealt)
        if isinstance(layout, Padded):
            return back.new_zeros(layout.mask.shape).masked_scatter(layout.mask, back)
        return back

    def _tiers(self, rows: Tensor, layout: Layout) -> _Tiers:
        padded, mask = layout.pad(self.project(rows))
        h, lengths = padded[mask], mask.sum(dim=1)  # (row, hidden), (bag,)
        scores = self.first(h).squeeze(-1)
        key = torch.rand_like(scores) if self.training else scores.detach()
        groups = _deal(key, lengths, self.n_groups)
        within = groups.inner.softmax(scores[groups.order])
        vectors = groups.inner.sum(within, h[groups.order])
        distilled = vectors.detach()  # each tier's loss is for its own parameters
        between = self.second(distilled, groups.outer)
        logits = self.second_classify(groups.outer.sum(between, distilled))
        return _Tiers(groups, within, vectors, between, logits)


class _Groups(NamedTuple):
    """Which patch is in which pseudo-bag."""

    order: Tensor
    """``(row,)`` int64: rows so that pseudo-bags lie one after the other."""
    inner: Packed
    """Of the dealt rows, by pseudo-bag."""
    outer: Packed
    """Of the pseudo-bags, by bag."""


class _Tiers(NamedTuple):
    """What both tiers found."""

    groups: _Groups
    within: Tensor
    """``(row,)``, share of a dealt patch in its pseudo-bag."""
    vectors: Tensor
    """``(pseudo-bag, hidden)``."""
    between: Tensor
    """``(pseudo-bag,)``, share of a pseudo-bag in its bag."""
    logits: Tensor
    """``(bag, class)``."""


def _deal(key: Tensor, lengths: Tensor, n_groups: int) -> _Groups:
    """Deal the patches of each bag in turn to its pseudo-bags, the largest key first.

    Examples
    --------
    >>> dealt = _deal(torch.tensor([0.1, 0.9, 0.5, 0.7]), torch.tensor([3, 1]), 2)
    >>> dealt.order.tolist(), dealt.inner.lengths.tolist(), dealt.outer.lengths.tolist()
    ([1, 0, 2, 3], [2, 1, 1], [2, 1])
    """
    bag = Packed(lengths).bag
    ranked = key.argsort(descending=True, stable=True)
    ranked = ranked[bag[ranked].argsort(stable=True)]  # by bag, then by key
    of_bag = lengths.clamp_max(n_groups)
    starts, first = lengths.cumsum(0) - lengths, of_bag.cumsum(0) - of_bag
    rank = torch.arange(len(key), device=key.device) - starts[bag]
    group = first[bag] + rank % of_bag[bag]
    order = ranked[group.argsort(stable=True)]
    return _Groups(order, Packed(torch.bincount(group)), Packed(of_bag))
