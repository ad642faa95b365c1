"""Training bags held ready for batches, and what is done to them while training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from zoo.training.layout import Layout, Packed, Padded
from zoo.training.streams import normal_like, uniform

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from zoo.manyviews import Stacked
    from zoo.recipes import Recipe

__all__ = [
    "Batches",
    "PackedBatches",
    "PaddedBatches",
    "StoredPaddedBatches",
    "StoredRows",
    "arrange",
    "arrange_stored",
    "keep_patches",
]

_WASTE = 1.25
"""Bags are padded while that makes at most this many times the rows, and packed beyond."""

_ROWS_AT_ONCE, _VALUES_AT_ONCE = 16_384, 2**22
"""Rows, and values in them, of one prediction step: enough to keep the cores busy, little enough
for any memory."""


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
    scores = uniform(lengths, len(lengths), width).masked_fill(~real, -1.0)
    floor = scores.topk(min(least, width), dim=1).values[:, -1:]  # the least-th best, or −1
    return real & (scores >= floor.clamp_max(share))


class StoredRows:
    """Rows that stay in a mapped file until a batch asks for them.

    Parameters
    ----------
    array
        ``(row, column)``, mapped, or several of them; never changed.
    device
        Where what is taken shall lie.
    prepare
        What taken rows go through, ``(row, column)`` → float32; only the type is changed where
        left out.
    """

    def __init__(
        self,
        array: NDArray[Any] | Stacked,
        *,
        device: torch.device,
        prepare: Callable[[NDArray[Any]], NDArray[np.float32]] | None = None,
    ) -> None:
        self.device = device
        self.shape = array.shape
        self._array, self._prepare = array, prepare

    def index_select(self, dim: int, where: Tensor) -> Tensor:
        """Read the rows ``where``, ``(row, column)`` float32; ``dim`` is 0, as torch has it."""
        found = self._array.take(where.cpu().numpy(), axis=dim)
        ready = (
            found.astype(np.float32, copy=False) if self._prepare is None else self._prepare(found)
        )
        return torch.from_numpy(ready).to(self.device)


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
    coords
        Where patches lie, ``(patch, 2)`` float32; layouts have none where left out.
    """

    def __init__(
        self,
        rows: Tensor | StoredRows,
        lengths: Tensor,
        labels: Tensor,
        coords: Tensor | StoredRows | None = None,
    ) -> None:
        self.rows = rows
        self.lengths = lengths
        self.labels = labels
        self.coords = coords

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
        most = min(_ROWS_AT_ONCE, _VALUES_AT_ONCE // self.rows.shape[1])
        for bag, length in enumerate(self.lengths.tolist()):
            if rows and rows + length > most:
                yield self.take(torch.arange(start, bag, device=self.rows.device))
                start, rows = bag, 0
            rows += length
        if rows:
            yield self.take(torch.arange(start, len(self), device=self.rows.device))


class PaddedBatches(Batches):
    """All bags as one padded array ``(bag, patch, feature)``: a batch is one indexing."""

    def __init__(
        self, rows: Tensor, lengths: Tensor, labels: Tensor, coords: Tensor | None = None
    ) -> None:
        super().__init__(rows, lengths, labels, coords)
        self._mask = _mask(lengths, int(lengths.max()))
        self._padded = _padded(rows, self._mask)
        self._places = None if coords is None else _padded(coords, self._mask)

    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give rows ``(bag, patch, feature)`` and a :class:`Padded` layout."""
        rows, mask = self._padded.index_select(0, index), self._mask.index_select(0, index)
        places = None if self._places is None else self._places.index_select(0, index)
        return _finish_padded(rows, mask, places, self.lengths.index_select(0, index), recipe)


class PackedBatches(Batches):
    """All bags one after the other: a batch gathers their rows, and nothing is padding.

    Parameters
    ----------
    rows, lengths, labels, coords
        As of :class:`Batches`; rows and coords may be :class:`StoredRows`.
    starts
        ``(bag,)`` int64, first row of each bag; one bag after the other where left out.
    n_views
        The rows are those of all patches in a first view, then in a second one, and so on. While
        training, each patch's row is drawn from one of them; else it is that of the first.
    """

    def __init__(
        self,
        rows: Tensor | StoredRows,
        lengths: Tensor,
        labels: Tensor,
        coords: Tensor | StoredRows | None = None,
        *,
        starts: Tensor | None = None,
        n_views: int = 1,
    ) -> None:
        super().__init__(rows, lengths, labels, coords)
        self._starts = lengths.cumsum(0) - lengths if starts is None else starts
        self._n_views, self._n_patches = n_views, rows.shape[0] // n_views

    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give rows ``(row, feature)`` and a :class:`Packed` layout."""
        draws = recipe is not None and (recipe.patch_dropout or self._n_views > 1)
        if len(index) == 1 and not draws and isinstance(self.rows, Tensor):
            return self._alone(self.rows, index, recipe)
        starts, lengths = self._starts[index], self.lengths[index]
        if recipe is not None and recipe.patch_dropout:
            keep = _kept(lengths, int(lengths.max()), recipe)
            bag, patch = keep.nonzero(as_tuple=True)
            where, lengths = starts[bag] + patch, keep.sum(dim=1)
        else:
            where = _where(starts, lengths)
        rows, places = self._gather(where, self._drawn(recipe, len(where)))
        if recipe is not None:
            rows = _noisy(rows, recipe.embedding_noise)
        return rows, Packed(lengths, places)

    def _alone(self, rows: Tensor, index: Tensor, recipe: Recipe | None) -> tuple[Tensor, Layout]:
        """Give one bag as a view of ``rows``, without a look at each row's place."""
        lengths = self.lengths[index]
        start, length = int(self._starts[index]), int(lengths)
        own = rows.narrow(0, start, length)
        where = torch.arange(start, start + length, device=own.device)
        places = None if self.coords is None else self.coords.index_select(0, where)
        return own if recipe is None else _noisy(own, recipe.embedding_noise), Packed(
            lengths, places
        )

    def _drawn(self, recipe: Recipe | None, *shape: int) -> Tensor | None:
        """Draw views while training, each as likely; None where there is nothing to draw from."""
        if recipe is None or self._n_views == 1:
            return None
        views = (uniform(self.lengths, *shape) * self._n_views).long()
        return views.clamp_max_(self._n_views - 1)  # a product may be rounded up

    def _gather(self, where: Tensor, view: Tensor | None) -> tuple[Tensor, Tensor | None]:
        places = None if self.coords is None else self.coords.index_select(0, where)
        if view is not None:
            where = where + view * self._n_patches
        return self.rows.index_select(0, where), places


class StoredPaddedBatches(PackedBatches):
    """Bags of like size, each batch of which is padded when it is taken.

    So rows may stay in a mapped file, or be in several views. It gives the very numbers that
    :class:`PaddedBatches` gives.
    """

    def take(self, index: Tensor, *, recipe: Recipe | None = None) -> tuple[Tensor, Layout]:
        """Give rows ``(bag, patch, feature)`` and a :class:`Padded` layout."""
        starts, lengths = self._starts[index], self.lengths[index]
        mask = _mask(lengths, int(self.lengths.max()))
        view = self._drawn(recipe, *mask.shape)
        rows, places = self._gather(_where(starts, lengths), None if view is None else view[mask])
        padded = None if places is None else _padded(places, mask)
        return _finish_padded(_padded(rows, mask), mask, padded, lengths, recipe)


def _where(starts: Tensor, lengths: Tensor) -> Tensor:
    """List the rows of bags, ``(row,)``: row k of a bag lies at its start + k."""
    # Repeat what each bag adds to a running count.
    shifts = (starts - (lengths.cumsum(0) - lengths)).repeat_interleave(lengths)
    return torch.arange(len(shifts), device=shifts.device) + shifts


def _mask(lengths: Tensor, width: int) -> Tensor:
    """Tell what is real, ``(bag, width)`` bool."""
    return torch.arange(width, device=lengths.device) < lengths.unsqueeze(1)


def _padded(rows: Tensor, mask: Tensor) -> Tensor:
    """Lay ``(row, column)`` out as ``(bag, patch, column)``, zeros on padding."""
    if bool(mask.all()):
        return rows.view(*mask.shape, rows.shape[-1])
    padded = rows.new_zeros(*mask.shape, rows.shape[-1])
    padded[mask] = rows
    return padded


def _kept(lengths: Tensor, width: int, recipe: Recipe) -> Tensor:
    return keep_patches(lengths, width, share=recipe.patch_dropout, least=recipe.min_patches)


def _finish_padded(
    rows: Tensor, mask: Tensor, places: Tensor | None, lengths: Tensor, recipe: Recipe | None
) -> tuple[Tensor, Layout]:
    """Leave patches out and add noise while training."""
    if recipe is not None:
        if recipe.patch_dropout:
            mask = _kept(lengths, mask.shape[1], recipe)
        rows = _noisy(rows, recipe.embedding_noise)
    return rows, Padded(mask, places)


def _noisy(rows: Tensor, scale: float) -> Tensor:
    return rows + scale * normal_like(rows) if scale else rows


def _like_sized(lengths: NDArray[np.int64]) -> bool:
    """Whether padding costs little; both layouts give the same numbers."""
    return len(lengths) * int(lengths.max()) <= _WASTE * int(lengths.sum())


def arrange(
    rows: NDArray[np.float32],
    lengths: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    device: torch.device,
    coords: NDArray[Any] | None = None,
    n_views: int = 1,
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
    coords
        ``(patch, 2)``, for heads that use them: layouts then have them as float32.
    n_views
        ``rows`` are so many times as many, view after view; see :class:`PackedBatches`.
    """
    embedding = torch.from_numpy(np.require(rows, np.float32, ["C", "W"])).to(device)
    places = None if coords is None else torch.from_numpy(np.array(coords, np.float32)).to(device)
    of_bags = (_whole(lengths, device), _whole(labels, device))
    if n_views > 1:
        lazy = StoredPaddedBatches if _like_sized(lengths) else PackedBatches
        return lazy(embedding, *of_bags, places, n_views=n_views)
    cls = PaddedBatches if _like_sized(lengths) else PackedBatches
    return cls(embedding, *of_bags, places)


def arrange_stored(
    rows: StoredRows,
    starts: NDArray[np.int64],
    lengths: NDArray[np.int64],
    labels: NDArray[np.int64],
    *,
    coords: StoredRows | None = None,
    n_views: int = 1,
) -> Batches:
    """Do as :func:`arrange`, but leave the rows where they are: a batch reads its own.

    The batches are the same, number by number, as if the rows lay in memory.

    Parameters
    ----------
    rows, coords
        Of a mapped file.
    starts
        ``(bag,)``, first row of each bag in the file.
    lengths, labels
        ``(bag,)``.
    n_views
        As of :func:`arrange`.
    """
    cls = StoredPaddedBatches if _like_sized(lengths) else PackedBatches
    first = _whole(starts, rows.device)
    of_bags = (_whole(lengths, rows.device), _whole(labels, rows.device))
    return cls(rows, *of_bags, coords, starts=first, n_views=n_views)


def _whole(numbers: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(np.array(numbers, dtype=np.int64)).to(device)
