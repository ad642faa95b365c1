"""Two layouts of a batch of bags, one set of operations.

A head is written once, against the operations of a layout, and works on both:

- :class:`Padded`: rows ``(bag, patch, ·)``, short bags filled up, a mask says what is real;
- :class:`Packed`: rows ``(row, ·)``, the patches of all bags one after the other, with offsets.

Per-patch layers (linear, norm, activation) act on the last axis and need no layout. Bags of
like size are quicker padded, uneven ones packed: the arithmetic on padding is left out. Both
give the same numbers.

Whatever is summed over a bag is summed in single precision at least, there and back: in
bfloat16 the 257th patch of a bag would no longer count.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Layout", "Packed", "Padded"]


class Layout(Protocol):
    """Which row belongs to which bag."""

    @property
    def coords(self) -> Tensor | None:
        """Where patches lie, x then y, float32, in the order of the rows; None where not asked for.

        ``(row, 2)`` or ``(bag, patch, 2)``, level-0 pixels, zeros on padding.
        """

    def softmax(self, scores: Tensor) -> Tensor:
        """Turn scores, one per row, into weights that sum to 1 over each bag's real rows."""

    def sum(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Add up ``weights · rows`` over each bag: ``(bag, feature)``."""

    def mean(self, rows: Tensor) -> Tensor:
        """Average each bag's real rows: ``(bag, feature)``."""

    def spread(self, per_bag: Tensor) -> Tensor:
        """Give ``(bag, feature)`` in a shape that broadcasts against rows."""

    def real(self, per_row: Tensor) -> Tensor:
        """Give one value per real row, bag after bag: ``(row,)``."""

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Give rows as ``(bag, patch, ·)`` with zeros on padding, and the mask ``(bag, patch)``.

        For heads that must see a bag as a sequence (self-attention, top patches, pseudo-bags).
        """

    def unpad(self, padded: Tensor) -> Tensor:
        """Invert :meth:`pad`: ``(bag, patch, ·)`` in the shape of rows."""


class Padded:
    """Bags filled up to one length.

    Parameters
    ----------
    mask
        ``(bag, patch)`` bool, True where a patch is real; at least one per bag.
    coords
        ``(bag, patch, 2)`` float32, where patches lie.
    """

    __slots__ = ("coords", "mask")

    def __init__(self, mask: Tensor, coords: Tensor | None = None) -> None:
        self.mask = mask
        self.coords = coords

    def softmax(self, scores: Tensor) -> Tensor:
        """Turn scores ``(bag, patch)`` into weights ``(bag, patch)``, 0 on padding."""
        return _wide(scores).masked_fill(~self.mask, -torch.inf).softmax(dim=1)

    def sum(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Add up weights ``(bag, patch)`` · rows ``(bag, patch, feature)``."""
        # A product adds up in single precision whatever it is given, but wants one type.
        return torch.bmm(weights.to(rows.dtype).unsqueeze(1), rows).squeeze(1)

    def mean(self, rows: Tensor) -> Tensor:
        """Average rows ``(bag, patch, feature)`` over the real ones."""
        share = self.mask.sum(dim=1, keepdim=True).to(_wide(rows[:0]).dtype).reciprocal()
        return self.sum(self.mask * share, rows)

    def spread(self, per_bag: Tensor) -> Tensor:
        """Give ``(bag, 1, feature)``."""
        return per_bag.unsqueeze(1)

    def real(self, per_row: Tensor) -> Tensor:
        """Give the values ``(bag, patch)`` that are no padding, ``(row,)``."""
        return per_row[self.mask]

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Put zeros on the padding of rows ``(bag, patch, ·)``; they are padded as they are."""
        hidden = ~self.mask.view(*self.mask.shape, *(1,) * (rows.dim() - 2))
        return rows.masked_fill(hidden, 0.0), self.mask

    def unpad(self, padded: Tensor) -> Tensor:
        """Give ``(bag, patch, ·)`` as it is."""
        return padded


class Packed:
    """Bags one after the other.

    Parameters
    ----------
    lengths
        ``(bag,)`` int64, rows per bag; at least one each.
    coords
        ``(row, 2)`` float32, where patches lie.
    """

    __slots__ = ("_bag", "alone", "coords", "lengths")

    def __init__(self, lengths: Tensor, coords: Tensor | None = None) -> None:
        self.lengths = lengths
        self.coords = coords
        # A single bag needs no look at which row is whose: that is most of the time of a step on
        # one small bag.
        self.alone = len(lengths) == 1
        self._bag: Tensor | None = None

    @property
    def bag(self) -> Tensor:
        """The bag of each row, ``(row,)`` int64."""
        if self._bag is None:
            bags = torch.arange(len(self.lengths), device=self.lengths.device)
            self._bag = bags.repeat_interleave(self.lengths)
        return self._bag

    def softmax(self, scores: Tensor) -> Tensor:
        """Turn scores ``(row,)`` into weights ``(row,)``."""
        scores = _wide(scores)
        if self.alone:
            return scores.softmax(dim=0)
        # The maximum only keeps exp in range and cancels out, so it needs no gradient.
        with torch.no_grad():
            top = scores.new_full((len(self.lengths),), -torch.inf)
            top = top.scatter_reduce(0, self.bag, scores, "amax")
        powers = (scores - top[self.bag]).exp()
        total = powers.new_zeros(len(self.lengths)).index_add(0, self.bag, powers)
        return powers / total[self.bag]

    def sum(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Add up weights ``(row,)`` · rows ``(row, feature)``."""
        parts = _wide(weights).unsqueeze(-1) * rows
        if self.alone:
            return parts.sum(dim=0, keepdim=True)
        total = parts.new_zeros(len(self.lengths), parts.shape[-1])
        return total.index_add(0, self.bag, parts)

    def mean(self, rows: Tensor) -> Tensor:
        """Average rows ``(row, feature)`` of each bag."""
        if self.alone:
            return _wide(rows).mean(dim=0, keepdim=True)
        share = self.lengths.to(_wide(rows[:0]).dtype).reciprocal()
        return self.sum(share[self.bag], rows)

    def spread(self, per_bag: Tensor) -> Tensor:
        """Give ``(row, feature)``, or ``(1, feature)`` of a single bag."""
        if self.alone:
            return _wide(per_bag)
        return _wide(per_bag).index_select(0, self.bag)

    def real(self, per_row: Tensor) -> Tensor:
        """Give the values ``(row,)`` as they are."""
        return per_row

    def pad(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Lay rows ``(row, ·)`` out as ``(bag, patch, ·)``."""
        if self.alone:
            return rows.unsqueeze(0), rows.new_ones(1, len(rows), dtype=torch.bool)
        width = int(self.lengths.max())
        mask = torch.arange(width, device=rows.device) < self.lengths.unsqueeze(1)
        padded = rows.new_zeros(*mask.shape, *rows.shape[1:])
        return padded.index_put((mask,), rows), mask

    def unpad(self, padded: Tensor) -> Tensor:
        """Take the real rows of ``(bag, patch, ·)``, ``(row, ·)``."""
        places = torch.arange(padded.shape[1], device=padded.device)
        return padded[places < self.lengths.unsqueeze(1)]


def _wide(values: Tensor) -> Tensor:
    """Give values in single precision where they have less."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
