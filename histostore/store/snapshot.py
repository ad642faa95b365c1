"""Which fragment holds what: the committed fragments of a feature set at one moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from numpy.typing import NDArray

    from histostore.store.record import Record

__all__ = ["Index", "Snapshot", "place_of"]


def place_of(record: Record) -> tuple[str, str]:
    """Give what fragments are sorted by: an id, which is its own unless it replaces others."""
    return min((record.fragment_id, *record.replaces)), record.fragment_id


class Snapshot:
    """Committed fragments, immutable; what follows from them is computed once, on demand.

    Where several fragments hold the same image in the same view, the smallest id wins: it
    does not matter in which order builders commit, or who looks first. A fragment that
    another one replaces does not count: both changes, the new rows and the end of the old
    ones, come into force by one put. The new one stands in the place of the first that it
    replaces, so that neither the order of images nor the winner of any changes.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.committed = tuple(sorted(records, key=place_of))
        """All there are, replaced ones too."""
        self.replaced = frozenset(name for record in self.committed for name in record.replaces)
        """Ids of those that do not count, and of some that may be gone."""
        self.records = tuple(
            record for record in self.committed if record.fragment_id not in self.replaced
        )
        """Those that count."""

    def __len__(self) -> int:
        return len(self.records)

    def with_record(self, record: Record) -> Snapshot:
        """Give the snapshot that holds one record more."""
        return Snapshot((*self.committed, record))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the ids of the committed fragments."""
        ids = "\n".join(sorted(record.fragment_id for record in self.records))
        return hashlib.sha256(ids.encode()).hexdigest()

    @cached_property
    def augmentations(self) -> tuple[str, ...]:
        """Views that at least one image has, in order of first appearance."""
        return tuple(
            dict.fromkeys(name for record in self.records for name in record.augmentations)
        )

    @cached_property
    def image_ids(self) -> tuple[str, ...]:
        """Images that have at least one view, in order of first appearance."""
        return tuple(dict.fromkeys(image for record in self.records for image in record.image_ids))

    @cached_property
    def offsets(self) -> tuple[NDArray[np.int64], ...]:
        """Row bounds of the images of each fragment: ``(image + 1)`` int64 each."""
        return tuple(
            np.concatenate(([0], np.cumsum(record.n_patches, dtype=np.int64)))
            for record in self.records
        )

    @cached_property
    def _places(self) -> dict[str, dict[str, tuple[int, int]]]:
        return {}

    def places(self, augmentation: str) -> dict[str, tuple[int, int]]:
        """Say where each image of a view lies.

        Returns
        -------
        places
            Image id to (position of the fragment, position of the image in it), in order of
            first appearance; empty if no fragment has the view.
        """
        if augmentation not in self._places:
            places: dict[str, tuple[int, int]] = {}
            for at, record in enumerate(self.records):
                if augmentation in record.augmentations:
                    for image, image_id in enumerate(record.image_ids):
                        if image_id not in places:
                            places[image_id] = (at, image)
            self._places[augmentation] = places
        return self._places[augmentation]

    def rows(self, place: tuple[int, int]) -> slice:
        """Give the rows of an image in its fragment."""
        at, image = place
        offset = self.offsets[at]
        return slice(int(offset[image]), int(offset[image + 1]))


class Index(Mapping[tuple[str, str], tuple["Record", slice]]):
    """What is committed: (image id, augmentation) to (record of the fragment, its rows)."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def __getitem__(self, key: tuple[str, str]) -> tuple[Record, slice]:
        image_id, augmentation = key
        place = self._snapshot.places(augmentation)[image_id]
        return self._snapshot.records[place[0]], self._snapshot.rows(place)

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, tuple) or len(key) != 2:
            return False
        return key[0] in self._snapshot.places(key[1])

    def of_view(self, augmentation: str) -> Collection[str]:
        """Give the images that have a view; to ask it 100,000 times costs little."""
        return self._snapshot.places(augmentation).keys()

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for augmentation in self._snapshot.augmentations:
            for image_id in self._snapshot.places(augmentation):
                yield image_id, augmentation

    def __len__(self) -> int:
        return sum(len(self._snapshot.places(name)) for name in self._snapshot.augmentations)
