"""Transformer-based correlated multiple instance learning (TransMIL)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from zoo.heads.neural import TorchSpec
from zoo.heads.nystrom import NystromAttention
from zoo.settings import number, whole
from zoo.training.loop import BagModule

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["TransMIL", "TransMILModule"]

_N_HEADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class TransMIL(TorchSpec):
    """Nyström self-attention over the patches in their order, with position by convolution.

    The sequence of a bag is filled up to a square with its own first patches, and read as a
    picture by the position layer: so the order of patches matters, unlike in other heads.

    **Reference**: Shao et al. 2021, algorithms 1 and 2; sizes of the authors' code (512 wide,
    8 heads, half as many landmarks as channels, 6 iterations of the pseudo-inverse).

    **Differences**

    - NOTE[DIFF] The authors use the library ``nystrom-attention``, in which a bag's result
      depends on the bags beside it (one scale for the whole batch) and zeros are landmarks.
      Here each bag has its own scale, landmarks are means over stretches of nearly equal
      length, and a bag with no more tokens than landmarks has exact attention, which is what
      the landmarks approximate.
    - NOTE[DIFF] The paper trains with Lookahead over RAdam, rate 2e-4, decay 1e-5, on single bags;
      here the recipe decides, and bags whose squares are of one size are computed together.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    """

    name: ClassVar[str] = "transmil"
    ordered: ClassVar[bool] = True

    hidden: int = whole(512, "width; a multiple of 8", low=8, high=65_536)
    dropout: float = number(0.1, "dropout after each attention", high=0.99)

    def build(self, n_features: int, n_classes: int) -> TransMILModule:
        """Make the network with fresh weights."""
        return TransMILModule(self, n_features, n_classes)


class TransMILModule(BagModule):
    """Project, square, attention, position, attention, class token.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: TransMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(n_features, spec.hidden), nn.ReLU())
        self.token = nn.Parameter(torch.randn(1, 1, spec.hidden))
        self.first = _Layer(spec.hidden, spec.dropout)
        self.position = _Position(spec.hidden)
        self.second = _Layer(spec.hidden, spec.dropout)
        self.norm = nn.LayerNorm(spec.hidden)
        self.classify = nn.Linear(spec.hidden, n_classes)

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        x, mask = layout.pad(self.project(rows))
        lengths = mask.sum(dim=1)
        sides = lengths.sqrt().ceil().long()
        # Patch dropout leaves holes, so real patches need not stand first.
        real_first = mask.byte().argsort(dim=1, descending=True, stable=True)
        # The landmarks are means over stretches of the sequence, so padding would be seen: bags
        # whose squares are of one size go together, and nothing is padded.
        tokens = x.new_zeros(len(x), x.shape[-1])
        for side in sorted(set(sides.tolist())):
            which = (sides == side).nonzero()
            place = torch.arange(side * side, device=x.device)
            place = place - lengths[which] * (place >= lengths[which])
            squares = x[which, real_first[which.squeeze(1)].gather(1, place)]
            tokens = tokens.index_copy(0, which.squeeze(1), self._sequence(squares, side))
        logits: Tensor = self.classify(tokens)
        return logits

    def _sequence(self, squares: Tensor, side: int) -> Tensor:
        """Give the class token after all layers; ``squares (bag, side², hidden)``."""
        h = torch.cat([self.token.expand(len(squares), -1, -1), squares], dim=1)
        h = self.second(self.position(self.first(h), side))
        token: Tensor = self.norm(h)[:, 0]
        return token


class _Layer(nn.Module):
    """x + attention(norm(x)).

    **Shape**: ``(bag, token, hidden)`` → the same.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = NystromAttention(
            width, n_heads=_N_HEADS, n_landmarks=width // 2, dropout=dropout
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        attended: Tensor = x + self.attention(self.norm(x))
        return attended


class _Position(nn.Module):
    """Pyramid position encoding: depth-wise convolutions of 7, 5 and 3 over the square.

    **Shape**: ``(bag, 1 + side², hidden)`` → the same; the class token passes by.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, width, size, padding=size // 2, groups=width) for size in (7, 5, 3)
        )

    def forward(self, x: Tensor, side: int) -> Tensor:
        """Add what lies around each patch."""
        token, patches = x[:, :1], x[:, 1:]
        square = patches.transpose(1, 2).reshape(len(x), -1, side, side)
        summed = square + sum(convolve(square) for convolve in self.convolutions)
        return torch.cat([token, summed.flatten(2).transpose(1, 2)], dim=1)
