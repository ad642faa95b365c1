"""Bags of a store, standardised and arranged for the networks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from zoo.manyviews import Stacked, in_view
from zoo.training.batches import Batches, StoredRows, arrange, arrange_stored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.heads.base import Standardiser

__all__ = ["batches_of"]


def batches_of(
    standardiser: Standardiser,
    bags: Bags,
    device: torch.device,
    *,
    coords: bool,
    patchwise: bool = False,
    views: tuple[str, ...] = (),
) -> Batches:
    """Standardise and arrange bags; those that are mapped stay where they are.

    Parameters
    ----------
    standardiser
        What all rows go through.
    bags
        Images in any order, in memory or mapped.
    device
        Where batches shall lie.
    coords
        Whether layouts have the places of patches.
    patchwise
        Makes each patch a bag of its image's label.
    views
        Views that were read with the bags, of which batches for training draw; the bags' own
        where left out.
    """
    views = views or (bags.augmentation,)
    tables = [in_view(bags, view).table for view in views]
    lengths, labels, starts = bags.lengths, bags.labels, bags.starts
    truth = None if bags.task.one_class else torch.from_numpy(bags.truth.astype(np.float32))
    if patchwise:
        starts = np.arange(lengths.sum()) + np.repeat(starts - bags.offset[:-1], lengths)
        labels = np.repeat(labels, lengths)
        lengths = np.ones(len(labels), np.int64)
    if all(table.folder is None for table in tables):
        places = bags.coords if coords else None
        rows = _standardised(standardiser, bags, views)
        batches = arrange(rows, lengths, labels, device=device, coords=places, n_views=len(views))
    else:
        arrays = [table.embedding for table in tables]
        stored = arrays[0] if len(arrays) == 1 else Stacked(arrays)
        batches = arrange_stored(
            StoredRows(stored, device=device, prepare=standardiser),
            starts,
            lengths,
            labels,
            coords=StoredRows(bags.table.coords, device=device) if coords else None,
            n_views=len(views),
        )
    if truth is not None:
        batches.labels = truth.to(device)
    return batches


def _standardised(
    standardiser: Standardiser, bags: Bags, views: tuple[str, ...]
) -> NDArray[np.float32]:
    """Standardise the rows of all views, ``(view · patch, feature)``, one view after the other."""
    if len(views) == 1:
        return standardiser(in_view(bags, views[0]).embedding)
    n = int(bags.lengths.sum())
    rows = np.empty((len(views) * n, bags.n_features), np.float32)
    for number, view in enumerate(views):
        rows[number * n : (number + 1) * n] = standardiser(in_view(bags, view).embedding)
    return rows
