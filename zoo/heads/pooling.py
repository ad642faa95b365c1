"""Heads without attention: patches are projected, and their mean or maximum is classified."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from zoo.heads.layers import Dropout
from zoo.heads.neural import TorchSpec
from zoo.settings import number, whole
from zoo.training.loop import BagModule

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["MaxPool", "MeanPool", "PoolingModule"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pooling(TorchSpec):
    """What the two share."""

    stackable: ClassVar[bool] = True

    hidden: int = whole(256, "width of a projected patch", low=1, high=65_536)
    dropout: float = number(0.25, "dropout of projected patches", high=0.99)

    def build(self, n_features: int, n_classes: int) -> PoolingModule:
        """Make the network with fresh weights."""
        project = nn.Sequential(
            nn.Linear(n_features, self.hidden), nn.ReLU(), Dropout(self.dropout)
        )
        return PoolingModule(project, nn.Linear(self.hidden, n_classes), pool=self._pool())

    @abstractmethod
    def _pool(self) -> str: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanPool(_Pooling):
    """The mean of projected patches, classified: what attention has to beat.

    **Reference**: Ilse et al. 2018, §2.3 (the embedding-level approach with the mean).

    **Differences**

    - NOTE[DIFF] The paper pools what it learns from pixels; here one projection, of half the
      width that CLAM has, stands before. Features are standardised first (``standardise``).
    """

    name: ClassVar[str] = "mean-pool"

    def _pool(self) -> str:
        return "mean"


@dataclass(frozen=True, kw_only=True, slots=True)
class MaxPool(_Pooling):
    """The maximum of each channel over projected patches, classified.

    **Reference**: Ilse et al. 2018, §2.3 (the embedding-level approach with the maximum).

    **Differences**

    - NOTE[DIFF] The paper pools what it learns from pixels; here one projection, of half the
      width that CLAM has, stands before. Features are standardised first (``standardise``).
    """

    name: ClassVar[str] = "max-pool"

    def _pool(self) -> str:
        return "max"


class PoolingModule(BagModule):
    """logits = C(pool(ReLU(P x))).

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, project: nn.Module, classify: nn.Module, *, pool: str) -> None:
        super().__init__()
        self.project = project
        self.classify = classify
        self.pool = pool

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        h = self.project(rows)
        if self.pool == "mean":
            z = layout.mean(h)
        else:
            padded, mask = layout.pad(h)
            z = padded.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(dim=1)
        logits: Tensor = self.classify(z)
        return logits
