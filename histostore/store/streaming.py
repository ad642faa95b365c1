"""A fragment that is written while its rows are still being computed.

The embedding of one large slide does not fit in memory, or should not. Its shards are put as
they fill, in the order of the rows; the record comes last, as ever, so that until then nothing
of it counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import OptionError
from histostore.store.encoding import ArrayEncoder, encode_patches
from histostore.store.layout import Encoding, plan_stream
from histostore.store.writer import FragmentWriter, check_provenance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from histostore.spec import FeatureSpec
    from histostore.store.fragment import Patches
    from histostore.store.layout import ChunkPlan
    from histostore.store.protocol import Backend
    from histostore.store.record import Record

__all__ = ["FragmentStream"]

_AT_ONCE = 2
"""Shards under way to the storage: one is put while the next fills."""


class FragmentStream:
    """One fragment, given row by row; used by one thread at a time.

    In memory are a shard or two that fill, the same again while one is encoded, and two on
    their way to the storage: some 48 MiB, whatever the number of rows.

    Parameters
    ----------
    backend, spec
        Where the feature set lies, and what it is.
    shape
        ``(augmentation, patch, feature)`` of the whole embedding.
    plan
        How to cut it; each shard spans all views.
    committed
        Told of the record once it was put.
    """

    def __init__(
        self,
        backend: Backend,
        spec: FeatureSpec,
        shape: tuple[int, int, int],
        *,
        plan: ChunkPlan | None = None,
        committed: Callable[[Record], None] = lambda _: None,
    ) -> None:
        self.shape = shape
        self._backend = backend
        self._spec = spec
        self._dtype = np.dtype(spec.dtype)
        self._plan = plan or plan_stream(shape, self._dtype.itemsize)
        self._committed = committed
        self._writer: FragmentWriter | None = None
        self._encoder: ArrayEncoder | None = None
        self._filling: dict[int, tuple[NDArray[Any], int]] = {}
        self._n_left = shape[0] * shape[1]
        self._ended = False

    def put(self, view: int, start: int, rows: NDArray[Any]) -> None:
        """Take rows ``start`` to ``start + len(rows)`` of a view; each row comes once.

        Parameters
        ----------
        view
            Position on the first axis.
        start
            First row.
        rows
            ``(patch, feature)``, of the stored type, finite.

        Raises
        ------
        StorageError
            If the storage refuses; nothing of the fragment is left there then.
        """
        if self._ended:
            return
        try:
            self._fill(view, start, rows)
        except BaseException:
            self.discard()
            raise

    def _fill(self, view: int, start: int, rows: NDArray[Any]) -> None:
        n_rows = self._plan.shard[1]
        stop = start + len(rows)
        self._n_left -= len(rows)
        for number in range(start // n_rows, -(-stop // n_rows)):
            base = number * n_rows
            first, last = max(start, base), min(stop, base + n_rows)
            if number not in self._filling:
                self._filling[number] = self._room(base)
            shard, missing = self._filling.pop(number)
            shard[view, first - base : last - base] = rows[first - start : last - start]
            missing -= last - first
            if missing:
                self._filling[number] = (shard, missing)
            else:
                self._write(base, shard)

    def _room(self, base: int) -> tuple[NDArray[Any], int]:
        """Make room for a shard; give how many of its rows are to come."""
        n_rows = min(self._plan.shard[1], self.shape[1] - base)
        room = np.empty((self.shape[0], n_rows, self.shape[2]), self._dtype)
        return room, self.shape[0] * n_rows

    def _write(self, base: int, shard: NDArray[Any]) -> None:
        if self._writer is None or self._encoder is None:
            self._writer = FragmentWriter(self._backend, self._spec, at_once=_AT_ONCE)
            self._encoder = ArrayEncoder(
                "embedding", self.shape, self._dtype, plan=self._plan, encoding=Encoding()
            )
            self._writer.add_head(self._encoder)
        self._writer.add_shard(self._encoder, (0, base, 0), shard)

    def commit(
        self, patches: Patches, provenance: Mapping[str, Any], *, replaces: Iterable[str] = ()
    ) -> str:
        """Write what there is beside the embedding, and make the fragment count; give its id.

        Parameters
        ----------
        patches
            Whose embedding this is.
        provenance
            JSON values that say how it came about.
        replaces
            Ids of fragments that shall not count from the moment on at which this one does.

        Raises
        ------
        OptionError
            If rows are missing, or it is not of these patches, or the provenance is not JSON.
        StorageError
            If the storage refuses, or the fragment lay still for so long that it may be gone.
        """
        try:
            check_provenance(provenance)
            writer = self._complete(patches)
            for encoder, values in encode_patches(patches, Encoding()):
                writer.add_array(encoder, values)
            record = writer.commit(patches, provenance=provenance, replaces=replaces)
        except BaseException:
            self.discard()
            raise
        self._ended = True
        self._committed(record)
        return record.fragment_id

    def _complete(self, patches: Patches) -> FragmentWriter:
        if self._ended or self._n_left or self._writer is None:
            raise OptionError(f"{self._n_left} rows of the embedding are missing, or it has ended")
        found = (len(patches.augmentations), patches.n_patches, self._spec.n_features)
        if found != self.shape:
            raise OptionError(f"the embedding has shape {self.shape}, its patches want {found}")
        return self._writer

    def discard(self) -> None:
        """Remove what was written; from now on rows are taken and dropped."""
        if not self._ended:
            self._ended = True
            self._filling.clear()
            if self._writer is not None:
                self._writer.discard()
