"""Training bags held ready for batches, and what is done to them while training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoo.training.layout import Layout, Packed, Padded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from zoo.recipes import Recipe

__all__ = ["Batches", "PackedBatches", "PaddedBatches", "arrange", "keep_patches"]

_WASTE = 1.25
"""Bags are padded while that makes at most this many times the rows, and packed beyond."""

_ROWS_AT_ONCE = 16_384
"""Rows of one prediction step: enough to keep the cores busy, little enough for any memory."""


def keep_patches(lengths: Tensor, width: int, *, share: float, least: int) -> Tensor:
    """Choose the patches that a training step sees.

    Each patch is left out with chance ``share``, but every bag keeps at least ``least``
    patches, or all where it has no more.

    Parameters
    ----------
    lengths
        ``(bag,)`` int64, patches per bag.
    width
        Patches of the longest bag, or more.
    share
        Chance to leave a patch out, ``0 <= share < 1``.
    least
        Patches that a bag always keeps.

    Returns
    -------
    keep
        ``(bag, width)`` bool, False beyond a bag's end.
    """
    real = torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)
    scores = torch.rand(len(lengths), width, device=lengths.device).masked_fill(~real, -1.0)
    floor = scores.topk(min(least, width), dim=1).values[:, -1:]  # the least-th best, or −1
    return real & (scores >= floor.clamp_max(share))


class Batches(ABC):
    """Bags on one device, from which any batch is taken by index.

    Parameters
    ----------
    rows
        Embeddings of all patches, ``(patch, feature)`` float32.
    lengths
        ``(bag,)`` int64, patches per bag.
    labels
        ``(bag,)`` int64.
    """

    def __init__(self, rows: Tensor, lengths: Tensor, labels: Tensor) -> None:
        self.rows = rows
        self.lengths = lengths
        self.labels = labels

    def __len__(self) -> int:
        return len(self.lengths)

    @abstractmethod
    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give the rows and the layout of the bags ``index``, in that order.

        Parameters
        ----------
        index
            ``(bag,)`` int64.
        recipe
            Given while training: its patch dropout and embedding noise are applied.
        """

    def in_order(self) -> Iterator[tuple[Tensor, Layout]]:
        """Give all bags in their order, in steps of bounded size."""
        start, rows = 0, 0
        for bag, length in enumerate(self.lengths.tolist()):
            if rows and rows + length > _ROWS_AT_ONCE:
                yield self.take(torch.arange(start, bag, device=self.rows.device))
                start, rows = bag, 0
            rows += length
        if rows:
            yield self.take(torch.arange(start, len(self), device=self.rows.device))


class PaddedBatches(Batches):
    """All bags as one padded array ``(bag, patch, feature)``: a batch is one indexing."""

    def __init__(self, rows: Tensor, lengths: Tensor, labels: Tensor) -> None:
        super().__init__(rows, lengths, labels)
        width = int(lengths.max())
        self._mask = torch.arange(width, device=rows.device) < lengths.unsqueeze(1)
        if bool(self._mask.all()):
            self._padded = rows.view(len(lengths), width, rows.shape[-1])
        else:
            self._padded = rows.new_zeros(len(lengths), width, rows.shape[-1])
            self._padded[self._mask] = rows

    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give rows ``(bag, patch, feature)`` and a :class:`Padded` layout."""
        rows, mask = self._padded.index_select(0, index), self._mask.index_select(0, index)
        if recipe is not None:
            if recipe.patch_dropout:
                mask = keep_patches(
                    self.lengths.index_select(0, index),
                    mask.shape[1],
                    share=recipe.patch_dropout,
                    least=recipe.min_patches,
                )
            rows = _noisy(rows, recipe.embedding_noise)
        return rows, Padded(mask)


class PackedBatches(Batches):
    """All bags one after the other: a batch gathers their rows, and nothing is padding."""

    def __init__(self, rows: Tensor, lengths: Tensor, labels: Tensor) -> None:
        super().__init__(rows, lengths, labels)
        self._starts = lengths.cumsum(0) - lengths

    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give rows ``(row, feature)`` and a :class:`Packed` layout."""
        starts, lengths = self._starts[index], self.lengths[index]
        if recipe is not None and recipe.patch_dropout:
            keep = keep_patches(
                lengths,
                int(lengths.max()),
                share=recipe.patch_dropout,
                least=recipe.min_patches,
            )
            bag, patch = keep.nonzero(as_tuple=True)
            where, lengths = starts[bag] + patch, keep.sum(dim=1)
        else:
            # Row k of a bag lies at its start + k: repeat what each bag adds to a running count.
            shift = starts - (lengths.cumsum(0) - lengths)
            shifts = shift.repeat_interleave(lengths)
            where = torch.arange(len(shifts), device=shifts.device) + shifts
        rows = self.rows.index_select(0, where)
        if recipe is not None:
            rows = _noisy(rows, recipe.embedding_noise)
        return rows, Packed(lengths)


def _noisy(rows: Tensor, scale: float) -> Tensor:
    return rows + scale * torch.randn_like(rows) if scale else rows


def arrange(
    rows: NDArray[np.float32],
    lengths: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    device: torch.device,
) -> Batches:
    """Hold bags ready in the layout that suits them: padded when of like size, else packed.

    Both layouts give the same numbers; the choice is one of speed.

    Parameters
    ----------
    rows
        Embeddings, ``(patch, feature)`` float32; neither changed nor kept by reference where
        padding is needed.
    lengths
        ``(bag,)``, patches per bag, at least one each.
    labels
        ``(bag,)``.
    device
        Where the arrays shall lie.
    """
    like_sized = len(lengths) * int(lengths.max()) <= _WASTE * len(rows)
    cls = PaddedBatches if like_sized else PackedBatches
    embedding = torch.from_numpy(np.require(rows, np.float32, ["C", "W"])).to(device)
    return cls(
        embedding,
        torch.from_numpy(np.array(lengths, dtype=np.int64)).to(device),
        torch.from_numpy(np.array(labels, dtype=np.int64)).to(device),
    )
