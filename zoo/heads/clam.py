"""Clustering-constrained attention (CLAM), with one attention branch or one per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.heads.layers import Dropout, GatedScores
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import choice, flag, number, whole
from zoo.training.losses import Pass

if TYPE_CHECKING:
    from zoo.training.layout import Layout
    from zoo.training.losses import Loss

__all__ = ["CLAMMB", "CLAMSB", "CLAMModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CLAMSB(TorchSpec):
    """Gated attention, helped by telling its most from its least attended patches.

    **Reference**: Lu et al. 2021, methods; sizes and weights of the authors' code (its
    "small" network, 512 and 256, eight patches a side, weight 0.7 on the bag).

    **Differences**

    - NOTE[DIFF] A bag of fewer than twice ``k_sample`` patches gives half of them to each side,
      one at least; the authors' code stops there.
    - NOTE[DIFF] ``subtyping`` and the SVM loss of patches are what the authors' code has to be
      asked for; its own default is cross-entropy, classes that do not exclude each other.
    - NOTE[DIFF] The recipe decides the bag loss and how to step, one for all heads; the authors
      have Adam, rate 2e-4, decay 1e-5, single bags, a weighted sampler, and stop after 20 epochs
      without a lower loss.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    """

    name: ClassVar[str] = "clam-sb"
    stackable: ClassVar[bool] = True
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    hidden: int = whole(512, "width of a projected patch", low=1, high=65_536)
    attention: int = whole(256, "width of the attention network", low=1, high=65_536)
    dropout: float = number(0.25, "dropout of patches and attention", high=0.99)
    k_sample: int = whole(8, "most and least attended patches to learn from", low=1, high=65_536)
    bag_weight: float = number(0.7, "share of the bag loss; the rest is the patches'", high=1)
    instance_loss: str = choice(
        "svm", "smooth top-1 SVM (Berrada 2018) or cross-entropy", among=("svm", "ce")
    )
    subtyping: bool = flag(
        default=True, meaning="classes exclude each other: one's patches are not another's"
    )

    def build(self, n_features: int, n_classes: int) -> CLAMModule:
        """Make the network with fresh weights."""
        return CLAMModule(self, n_features, n_classes, n_branches=1)


@dataclass(frozen=True, kw_only=True, slots=True)
class CLAMMB(CLAMSB):
    """CLAM with an attention branch and a classifier of its own for each class.

    **Reference**: Lu et al. 2021, methods.

    **Differences**

    - NOTE[DIFF] Those of ``clam-sb``. The attention shown is that of the predicted class.
    """

    name: ClassVar[str] = "clam-mb"

    def build(self, n_features: int, n_classes: int) -> CLAMModule:
        """Make the network with fresh weights."""
        return CLAMModule(self, n_features, n_classes, n_branches=n_classes)


class CLAMModule(AttentionModule):
    """One attention branch and classifier for all classes, or one each.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: CLAMSB, n_features: int, n_classes: int, *, n_branches: int) -> None:
        super().__init__()
        self._spec = spec
        self.project = nn.Sequential(
            nn.Linear(n_features, spec.hidden), nn.ReLU(), Dropout(spec.dropout)
        )
        self.score = GatedScores(spec.hidden, spec.attention, n_branches, dropout=spec.dropout)
        # One row of weights per class: it meets the shared vector, or that of its own branch.
        self.classify = nn.Linear(spec.hidden, n_classes)
        self.instances = nn.ModuleList(nn.Linear(spec.hidden, 2) for _ in range(n_classes))

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        h = self.project(rows)
        return self._bag_logits(h, layout, self._attend(h, layout))

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the attention of each patch: that of the predicted class, where each has its own."""
        h = self.project(rows)
        branches = self._attend(h, layout)
        if len(branches) == 1:
            return branches[0]
        chosen = self._bag_logits(h, layout, branches).argmax(dim=1)
        # (bag, 1) spread over rows, then one branch picked per row.
        which = layout.spread(chosen.unsqueeze(1)).squeeze(-1).long().expand_as(branches[0])
        return torch.stack(branches).gather(0, which.unsqueeze(0)).squeeze(0)

    def objective(self, rows: Tensor, layout: Layout, target: Tensor, loss: Loss) -> Pass:
        """Add the loss of the patches that attention picks."""
        h = self.project(rows)
        branches = self._attend(h, layout)
        logits = self._bag_logits(h, layout, branches)
        labels = target if target.dim() == 1 else target.argmax(dim=1)
        weight = self._spec.bag_weight
        of_bags = loss.of_logits(logits, target)
        of_patches = self._instance_loss(h, layout, branches, labels)
        return Pass(logits, weight * of_bags + (1 - weight) * of_patches)

    def _attend(self, h: Tensor, layout: Layout) -> list[Tensor]:
        return [layout.softmax(scores) for scores in self.score(h).unbind(dim=-1)]

    def _bag_logits(self, h: Tensor, layout: Layout, branches: list[Tensor]) -> Tensor:
        pooled = [layout.sum(a, h) for a in branches]
        if len(pooled) == 1:
            logits: Tensor = self.classify(pooled[0])
            return logits
        z = torch.stack(pooled, dim=1)  # (bag, class, hidden)
        return (z * self.classify.weight).sum(dim=-1) + self.classify.bias

    def _instance_loss(
        self, h: Tensor, layout: Layout, branches: list[Tensor], labels: Tensor
    ) -> Tensor:
        """Average over classes: a bag's own class takes its top for yes and its bottom for no."""
        x, mask = layout.pad(h)
        of_class = []
        padded = [layout.pad(a)[0] for a in branches]
        for c, classify in enumerate(self.instances):
            a = padded[c] if len(padded) > 1 else padded[0]
            top, bottom, real = _extremes(a, mask, self._spec.k_sample)
            own = (labels == c).unsqueeze(1)
            yes = _take(x, top), own.expand_as(top).long(), real & (own | self._spec.subtyping)
            no = _take(x, bottom), torch.zeros_like(bottom), real & own
            patches = torch.cat([yes[0], no[0]], dim=1)
            truth, counts = torch.cat([yes[1], no[1]], dim=1), torch.cat([yes[2], no[2]], dim=1)
            values = self._of_instances(classify(patches), truth)
            # The mean over a bag's picked patches, then over the bags that have any.
            share = counts / counts.sum(dim=1, keepdim=True).clamp_min(1)
            of_bag = (values * share).sum(dim=1)
            of_class.append(of_bag)
        per_bag = torch.stack(of_class, dim=1)  # (bag, class)
        if self._spec.subtyping:
            return per_bag.mean(dim=1).mean()
        return per_bag.sum(dim=1).mean()

    def _of_instances(self, logits: Tensor, truth: Tensor) -> Tensor:
        """Measure the loss of each patch, ``(bag, patch)``; ``logits (bag, patch, 2)``."""
        right = logits.gather(-1, truth.unsqueeze(-1)).squeeze(-1)
        wrong = logits.sum(dim=-1) - right
        # With two classes both losses are a softplus: cross-entropy, or the smooth top-1 SVM
        # with a margin and a temperature of 1 (Berrada et al. 2018, eq. 7).
        margin = 1.0 if self._spec.instance_loss == "svm" else 0.0
        return functional.softplus(margin + wrong - right)


def _extremes(attention: Tensor, mask: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Find each bag's most and least attended patches.

    Returns
    -------
    top, bottom
        ``(bag, k)`` int64.
    real
        ``(bag, k)`` bool: a bag of n patches has min(k, max(1, n // 2)).
    """
    lengths = mask.sum(dim=1, keepdim=True)
    width = min(k, mask.shape[1])
    top = attention.masked_fill(~mask, -torch.inf).topk(width, dim=1).indices
    bottom = attention.masked_fill(~mask, torch.inf).topk(width, dim=1, largest=False).indices
    rank = torch.arange(width, device=mask.device)
    return top, bottom, rank < (lengths // 2).clamp_min(1)


def _take(x: Tensor, index: Tensor) -> Tensor:
    """Take patches ``(bag, k, feature)`` of ``x (bag, patch, feature)``."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
