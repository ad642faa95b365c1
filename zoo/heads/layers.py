"""Layers that the heads share. They act on the last axis, or through a layout of bags."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.training.streams import dropout_mask

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = [
    "Attention",
    "Dropout",
    "GatedAttention",
    "GatedScores",
    "NormLinear",
    "SqueezeExcite",
]


class Dropout(nn.Dropout):
    """Dropout whose random bits are cheap on a CPU, and one training's own among several.

    x · m / (1 − p), m Bernoulli, as ever (:func:`~zoo.training.streams.dropout_mask`).

    **Shape**: any → the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Leave elements out while training."""
        if not self.training or self.p == 0.0:
            return x
        return x * dropout_mask(x, self.p)


class NormLinear(nn.Module):
    """LayerNorm, then Linear: W (γ ⊙ x̂ + β) + b.

    Computed as (W · diag γ) x̂ + (W β + b), the same sum in another order: where ``x`` are
    embeddings, which need no gradient, the whole backward pass of the norm is saved.

    **Shape**: ``(…, feature)`` → ``(…, hidden)``.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(n_in)
        self.linear = nn.Linear(n_in, n_out)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise and project."""
        plain = functional.layer_norm(x, self.norm.normalized_shape, eps=self.norm.eps)
        weight, bias = self.linear.weight, self.linear.bias
        return functional.linear(plain, weight * self.norm.weight, weight @ self.norm.bias + bias)


class SqueezeExcite(nn.Module):
    """Channel gates from the bag's mean: σ(W₂ ReLU(W₁ mean(x))).

    **Shape**: squeezed ``(bag, channel)`` → gates ``(bag, channel)`` in (0, 1).

    **Reference**: Hu et al. 2018, eq. 3; bias-free as in the report.
    """

    def __init__(self, channels: int, bottleneck: int) -> None:
        super().__init__()
        self.excitation = nn.Sequential(
            nn.Linear(channels, bottleneck, bias=False),
            nn.ReLU(),
            nn.Linear(bottleneck, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, squeezed: Tensor) -> Tensor:
        """Give one gate per channel of each bag."""
        gates: Tensor = self.excitation(squeezed)
        return gates


class GatedAttention(nn.Module):
    """Scores of patches: a = softmax(wᵀ (tanh(V h) ⊙ σ(U h))) over each bag.

    **Shape**: rows ``(bag, patch, channel)`` or ``(row, channel)`` → weights ``(bag, patch)``
    or ``(row,)``, sum 1 over the real patches of a bag.

    **Reference**: Ilse et al. 2018, eq. 9.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.V = nn.Linear(channels, width)
        self.U = nn.Linear(channels, width)
        self.w = nn.Linear(width, 1)

    def forward(self, rows: Tensor, layout: Layout) -> Tensor:
        """Weigh the patches of each bag."""
        gated = torch.tanh(self.V(rows)) * torch.sigmoid(self.U(rows))
        return layout.softmax(self.w(gated).squeeze(-1))


class Attention(nn.Module):
    """Scores of patches: a = softmax(wᵀ tanh(V h)) over each bag.

    **Shape**: as :class:`GatedAttention`.

    **Reference**: Ilse et al. 2018, eq. 8.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.V = nn.Linear(channels, width)
        self.w = nn.Linear(width, 1)

    def forward(self, rows: Tensor, layout: Layout) -> Tensor:
        """Weigh the patches of each bag."""
        return layout.softmax(self.w(torch.tanh(self.V(rows))).squeeze(-1))


class GatedScores(nn.Module):
    """Gated attention before its softmax, for several branches at once.

    **Shape**: rows ``(…, channel)`` → scores ``(…, branch)``.

    **Reference**: Ilse et al. 2018, eq. 9; the dropout is that of Lu et al. 2021.
    """

    def __init__(
        self, channels: int, width: int, n_branches: int = 1, *, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.V = nn.Sequential(nn.Linear(channels, width), nn.Tanh(), Dropout(dropout))
        self.U = nn.Sequential(nn.Linear(channels, width), nn.Sigmoid(), Dropout(dropout))
        self.w = nn.Linear(width, n_branches)

    def forward(self, rows: Tensor) -> Tensor:
        """Score each row."""
        scores: Tensor = self.w(self.V(rows) * self.U(rows))
        return scores
