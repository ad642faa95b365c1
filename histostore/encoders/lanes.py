"""Forward passes side by side on a CPU, each on a thread of its own.

One forward pass on all threads makes them wait for each other in every layer, and for the one
whose core a reader has borrowed; passes of a few patches, one a thread, wait for nobody, and what
they compute stays in the cache of their core. So a batch is cut, and the pieces are dealt to lanes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["PIECE", "Lanes"]

PIECE = 8
"""Patches of one forward pass; of ResNet-18 and ViT-S, 16 are as quick and 32 are slower."""


class Lanes:
    """Threads that run forward passes side by side.

    Parameters
    ----------
    threads
        Threads to use in all; torch's number of threads for the rest of the process stays.
    batch_size
        Patches in all lanes at once, at most; where that is less than :data:`PIECE` for every
        thread, lanes have several threads each, all as many: so vectors are the same each time.
    """

    def __init__(self, threads: int, *, batch_size: int) -> None:
        most = max(1, batch_size // PIECE)
        self._n = max(n for n in range(1, threads + 1) if n <= most and threads % n == 0)
        self._piece = min(PIECE, batch_size)
        self._pool = ThreadPoolExecutor(self._n, "lane", _take, (threads // self._n,))
        # The number that was set last is that of threads which have not asked for theirs yet:
        # so all lanes begin now, and then it is put right.
        before, ready = torch.get_num_threads(), Barrier(self._n)
        list(self._pool.map(lambda _: ready.wait(), range(self._n)))
        torch.set_num_threads(before)

    def map(self, function: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Apply a function to pieces of a batch, and join what it gives.

        Parameters
        ----------
        function
            Rows to as many rows; called on several threads at once.
        batch
            ``(row, …)``, one row at least.

        Returns
        -------
        joined
            ``(row, …)``, in the order of ``batch``.
        """
        rounds = -(-len(batch) // (self._n * self._piece))
        pieces = batch.tensor_split(min(len(batch), rounds * self._n))
        return torch.cat(list(self._pool.map(function, pieces)))


def _take(threads: int) -> None:
    """Set how many threads torch uses for the thread that calls."""
    torch.get_num_threads()  # who asks for the first time is given the process's number
    torch.set_num_threads(threads)
