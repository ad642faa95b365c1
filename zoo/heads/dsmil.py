"""Dual-stream multiple instance learning (DSMIL)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from zoo.heads.layers import Dropout
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.settings import flag, number, whole
from zoo.training.losses import Pass

if TYPE_CHECKING:
    from zoo.training.layout import Layout
    from zoo.training.losses import Loss

__all__ = ["DSMIL", "DSMILModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DSMIL(TorchSpec):
    """The patch with the highest score, and all patches by their likeness to it.

    **Reference**: Li et al. 2021, eq. 2 to 7; sizes of the authors' code (queries of 128).

    **Differences**

    - NOTE[DIFF] Both streams are trained with the recipe's loss over classes that exclude each
      other, where the paper has a sigmoid and a binary cross-entropy per class.
    - NOTE[DIFF] Queries and values of the paper are linear; here, as the authors' later code has
      it, queries have a second layer and a tanh, and values a ReLU: with linear ones attention
      did not find the telling patches of small cohorts. ``linear=true`` is the paper's.
    - NOTE[DIFF] No decision threshold is learned: the authors' code picks it on the test set.
    - NOTE[DIFF] The recipe decides how to step, one for all heads; the authors' code has Adam with
      betas 0.5 and 0.9, rate 2e-4, decay 5e-3, cosine, 100 epochs, single bags.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    """

    name: ClassVar[str] = "dsmil"
    stackable: ClassVar[bool] = True

    query: int = whole(128, "width of the queries", low=1, high=65_536)
    dropout: float = number(0.0, "dropout of the values", high=0.99)
    linear: bool = flag(default=False, meaning="linear queries and values, as the paper has them")

    def build(self, n_features: int, n_classes: int) -> DSMILModule:
        """Make the network with fresh weights."""
        return DSMILModule(self, n_features, n_classes)


class DSMILModule(AttentionModule):
    """Per class c: a_c = softmax(q(x) · q(x_c) / √d), x_c the patch of highest score.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: DSMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.instance = nn.Linear(n_features, n_classes)
        self.query = nn.Sequential(nn.Linear(n_features, spec.query))
        if not spec.linear:
            self.query.extend([nn.ReLU(), nn.Linear(spec.query, spec.query), nn.Tanh()])
        self.value = nn.Sequential(Dropout(spec.dropout), nn.Linear(n_features, n_features))
        if not spec.linear:
            self.value.append(nn.ReLU())
        self.classify = nn.Conv1d(n_classes, n_classes, kernel_size=n_features)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags, by the stream that sees all patches."""
        return self._streams(rows, layout)[1]

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the attention of each patch for the predicted class."""
        _, logits, attention = self._streams(rows, layout)
        chosen = logits.argmax(dim=1).view(-1, 1, 1).expand(-1, attention.shape[1], 1)
        return layout.unpad(attention.gather(2, chosen).squeeze(2))

    def objective(self, rows: Tensor, layout: Layout, target: Tensor, loss: Loss) -> Pass:
        """Average the losses of the two streams."""
        best, logits, _ = self._streams(rows, layout)
        value = 0.5 * loss.of_logits(logits, target) + 0.5 * loss.of_logits(best, target)
        return Pass(logits, value)

    def _streams(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Give the best scores and the bag's logits ``(bag, class)``, attention last."""
        x, mask = layout.pad(rows)
        hidden = ~mask.unsqueeze(-1)
        scores = self.instance(x).masked_fill(hidden, -torch.inf)  # (bag, patch, class)
        best, where = scores.max(dim=1)
        q = self.query(x)  # (bag, patch, query)
        critical = q.gather(1, where.unsqueeze(-1).expand(-1, -1, q.shape[-1]))
        likeness = q @ critical.transpose(1, 2) / math.sqrt(q.shape[-1])
        attention = likeness.masked_fill(hidden, -torch.inf).softmax(dim=1)
        pooled = attention.transpose(1, 2) @ self.value(x)  # (bag, class, feature)
        return best, self.classify(pooled).squeeze(-1), attention
