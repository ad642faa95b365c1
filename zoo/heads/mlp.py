"""Multi-layer perceptrons on bags: the two baselines of the AN2DL challenge report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from zoo.heads.layers import Dropout, NormLinear
from zoo.heads.neural import TorchSpec
from zoo.settings import choice, number, whole
from zoo.training.loop import BagModule

if TYPE_CHECKING:
    from zoo.training.layout import Layout

__all__ = ["MLPImproved", "MLPSimple", "PatchMean", "PooledMLP"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPSimple(TorchSpec):
    """A shallow perceptron on the mean of a bag's embeddings.

    **Reference**: "AN2DL – Second Challenge Report", Backprop. Brothers, 2025, A.1.

    **Differences**

    - NOTE[DIFF] The report gives no sizes: one hidden layer with ReLU, its width and dropout
      those of the report's gated MIL. Features are standardised first (``standardise``).
    """

    name: ClassVar[str] = "mlp-simple"
    stackable: ClassVar[bool] = True

    hidden: int = whole(160, "width of the hidden layer", low=1, high=65_536)
    dropout: float = number(0.4, "dropout of the hidden layer", high=0.99)

    def build(self, n_features: int, n_classes: int) -> PooledMLP:
        """Make the network with fresh weights."""
        body = nn.Sequential(
            nn.Linear(n_features, self.hidden),
            nn.ReLU(),
            Dropout(self.dropout),
            nn.Linear(self.hidden, n_classes),
        )
        return PooledMLP(body, pool="embedding")


@dataclass(frozen=True, kw_only=True, slots=True)
class MLPImproved(TorchSpec):
    """LayerNorm → Linear → GELU → dropout, ``depth`` times; then LayerNorm → Linear.

    With ``pool="embedding"`` it sees the mean of a bag's embeddings (A.1). With
    ``pool="probability"`` it sees single patches, each with the label of its image, and a
    bag's probability is the mean over its patches (A.3, there called ImprovedHead): one step
    then takes ``batch_size`` patches, not bags.

    **Reference**: "AN2DL – Second Challenge Report", Backprop. Brothers, 2025, A.1 and A.3.

    **Differences**

    - NOTE[DIFF] The report gives no sizes: width and dropout are those of its gated MIL, two
      blocks. Features are standardised first (``standardise``).
    """

    name: ClassVar[str] = "mlp-improved"
    stackable: ClassVar[bool] = True

    hidden: int = whole(160, "width of each block", low=1, high=65_536)
    depth: int = whole(2, "number of blocks", low=1, high=64)
    dropout: float = number(0.4, "dropout after each block", high=0.99)
    pool: str = choice(
        "embedding", "what is averaged over a bag's patches", among=("embedding", "probability")
    )

    @property
    def trains_on_patches(self) -> bool:
        """Whether each patch is a training example of its own."""
        return self.pool == "probability"

    def build(self, n_features: int, n_classes: int) -> PooledMLP:
        """Make the network with fresh weights."""
        layers: list[nn.Module] = []
        for block in range(self.depth):
            width = n_features if block == 0 else self.hidden
            layers += [NormLinear(width, self.hidden), nn.GELU(), Dropout(self.dropout)]
        return PooledMLP(nn.Sequential(*layers, NormLinear(self.hidden, n_classes)), pool=self.pool)


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchMean(MLPImproved):
    """The improved perceptron on single patches; a bag's probability is their mean.

    It is ``mlp-improved`` with ``pool="probability"`` under a name of its own.

    **Reference**: "AN2DL – Second Challenge Report", Backprop. Brothers, 2025, A.3; with
    recipe ``r4`` and three seeds it is the report's fourth model.

    **Differences**

    - NOTE[DIFF] The report gives no sizes, as with ``mlp-improved``, nor a batch: a step of
      ``r4`` sees 32 patches. Features are standardised first (``standardise``).
    """

    name: ClassVar[str] = "patch-mean"
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    pool: str = choice("probability", "fixed: patches are classified", among=("probability",))


class PooledMLP(BagModule):
    """A perceptron before or after the mean over a bag's patches.

    ``embedding``: logits = f(mean x). ``probability``: logits = log mean softmax f(x); on bags
    of one patch, as in training, that is log softmax f(x), with which losses and
    probabilities are the same as with f(x).

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, body: nn.Sequential, *, pool: str) -> None:
        super().__init__()
        self.body = body
        self.pool = pool

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        if self.pool == "embedding":
            logits: Tensor = self.body(layout.mean(rows))
            return logits
        share = layout.mean(self.body(rows).softmax(dim=-1))  # (bag, class)
        return share.clamp_min(torch.finfo(share.dtype).tiny).log()
