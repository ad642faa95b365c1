"""Mixing two bags into one, as mixup mixes two images."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.training.layout import Layout, Packed, Padded

__all__ = ["mix_bags", "mix_targets"]


def mix_bags(
    rows: Tensor, layout: Layout, partner: Tensor, share: float
) -> tuple[Tensor, Padded | Packed]:
    """Fill each bag with some of its own patches and some of its partner's.

    Every own patch stays with chance ``share``, every patch of the partner joins with chance
    ``1 − share``; one own patch always stays. A convex combination of embeddings, as mixup has
    it, needs patches that correspond; those of two images do not, so patches are exchanged
    whole.

    **Reference**: Zhang et al. 2018 (mixup); mixing bags by exchanging instances follows
    the idea of Liu et al. 2024 (PseMix), without its clustering.

    Parameters
    ----------
    rows
        In the shape that ``layout`` describes.
    layout
        Of the batch.
    partner
        ``(bag,)`` int64, with whom each bag is mixed.
    share
        Of a bag's own patches that stay, ``0 < share <= 1``.

    Returns
    -------
    mixed
        Rows and a layout of the same kind.
    """
    x, mask = layout.pad(rows)
    draws = torch.rand(2, *mask.shape, device=mask.device)
    # The own patch that always stays is the one with the smallest draw.
    first = draws[0].masked_fill(~mask, torch.inf).argmin(dim=1, keepdim=True)
    own = (mask & (draws[0] < share)).scatter(1, first, value=True)
    theirs = mask[partner] & (draws[1] < 1 - share)
    both, real = torch.cat([x, x[partner]], dim=1), torch.cat([own, theirs], dim=1)
    if isinstance(layout, Packed):
        return both[real], Packed(real.sum(dim=1))
    return both, Padded(real)


def mix_targets(labels: Tensor, partner: Tensor, share: float, n_classes: int) -> Tensor:
    """Give ``(bag, class)``: ``share`` on a bag's own class, the rest on its partner's.

    Examples
    --------
    >>> mix_targets(torch.tensor([0, 1]), torch.tensor([1, 1]), 0.75, 2).tolist()
    [[0.75, 0.25], [0.0, 1.0]]
    """
    own = torch.nn.functional.one_hot(labels, n_classes).to(torch.float32)
    return share * own + (1 - share) * own[partner]
