"""From mapped pixels to batches: augmented in loader processes, some batches ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from histostore.views import apply_view
from zoo.errors import RunError
from zoo.finetune.augment import augmentation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zoo.finetune.pixels import Pixels

__all__ = ["Draw", "PixelLoader"]

_AHEAD = 2
"""Batches that each loader process keeps ready."""


class Draw(NamedTuple):
    """An image as it is to be seen once: all that decides the pixels."""

    row: int
    """Its number."""
    look: str = "none"
    """Name of the augmentation."""
    seed: int = 0
    epoch: int = 0
    number: int = 0
    """What the augmentation draws from, all three."""
    view: str = "identity"
    """View that a test averages over."""


class _Data(Dataset[Tensor]):
    """Images by :class:`Draw`, ``(patch, 3, px, px)`` uint8."""

    def __init__(self, pixels: Pixels) -> None:
        self._pixels = pixels

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, draw: Draw) -> Tensor:
        # A copy: torch warns of memory that must not be written to.
        seen = np.array(apply_view(self._pixels.image(draw.row), draw.view))
        images = torch.from_numpy(seen).permute(0, 3, 1, 2).contiguous()
        if draw.look == "none":
            return images
        look = augmentation(draw.look)
        px, index = self._pixels.plan.px, [draw.number] * len(images)  # patches are drawn alike
        return look(images, px=px, seed=draw.seed, epoch=draw.epoch, index=index)


class _Order(Sampler[list[Draw]]):
    """The batches of the next pass; persistent loader processes are told them anew each time."""

    def __init__(self) -> None:
        self.batches: Sequence[list[Draw]] = ()

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class PixelLoader:
    """Gives batches of images in any order that is asked for.

    Its processes start once and serve all epochs, folds and seeds of a run.

    Parameters
    ----------
    pixels
        What networks see.
    workers
        Loader processes; 0: none, batches are made when they are asked for. The batches do not
        depend on it.
    pin
        Put batches where a GPU fetches them faster.
    """

    def __init__(self, pixels: Pixels, *, workers: int = 0, pin: bool = False) -> None:
        self._order = _Order()
        self._loader: DataLoader[Tensor] = DataLoader(
            _Data(pixels),
            batch_sampler=self._order,
            collate_fn=torch.cat,
            num_workers=workers,
            persistent_workers=workers > 0,
            prefetch_factor=_AHEAD if workers else None,
            multiprocessing_context="spawn" if workers else None,
            pin_memory=pin,
            generator=torch.Generator(),  # else each pass would draw from torch's own state
        )

    def batches(self, draws: Sequence[list[Draw]]) -> Iterator[Tensor]:
        """Give batches in their order, ``(image, 3, px, px)`` uint8; or of one bag, its patches.

        Parameters
        ----------
        draws
            The images of each batch; of networks that see bags, one image each.

        Raises
        ------
        RunError
            If a loader process dies.
        """
        self._order.batches = draws
        try:
            yield from self._loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                "a loader process died, perhaps for want of memory: run the same again with fewer "
                "workers; what is finished is kept"
            ) from error
