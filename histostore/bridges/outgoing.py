"""What is exported: the images of one view, in batches that fit in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from histostore.bridges.naming import escape
from histostore.errors import NotFound, OptionError, summarise
from histostore.store import Bag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from histostore.bridges.target import Target
    from histostore.store import FeatureSet, Loaded

__all__ = ["BATCH_BYTES", "ExportJob"]

BATCH_BYTES = 64 * 2**20
"""Embeddings held at once: about this much, or one image where that is more."""


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """The images of a feature set in one view, and where they go."""

    features: FeatureSet
    augmentation: str
    target: Target
    told: Callable[[int, int], None] = field(default=lambda _, __: None)
    """Called with the numbers of images and patches after every batch."""

    @cached_property
    def n_rows(self) -> dict[str, int]:
        """Number of patches by image id, in the order of the export.

        Raises
        ------
        NotFound
            If no image has the view.
        """
        features, view = self.features, self.augmentation
        if view not in features.augmentations:
            there = ", ".join(features.augmentations) or "no image yet"
            raise NotFound(f"{features.name} holds no view {view!r}; it holds {there}")
        index = features.index
        bounds = {
            image_id: index[image_id, view][1]
            for image_id in features.image_ids
            if (image_id, view) in index
        }
        return {image_id: rows.stop - rows.start for image_id, rows in bounds.items()}

    @property
    def n_patches(self) -> int:
        """Patches of all images together."""
        return sum(self.n_rows.values())

    @property
    def patch_size(self) -> int | None:
        """Edge of a patch in pixels; None where the feature set was imported without knowing."""
        spec = self.features.spec
        unknown = spec.encoder.preprocessing.get("grid") == "unknown"
        return None if unknown else spec.grid.patch_size

    @property
    def places(self) -> str:
        """What the places of patches are: ``pixels`` of level 0, or what an import said."""
        return str(self.features.spec.encoder.preprocessing.get("coords", "pixels"))

    def stems(self) -> dict[str, str]:
        """Give each image a file name, without suffix.

        Raises
        ------
        OptionError
            If ids are too long for that; ``problems`` lists them all.
        """
        found, problems = {}, []
        for image_id in self.n_rows:
            try:
                found[image_id] = escape(image_id)
            except OptionError as error:
                problems.append(str(error))
        if problems:
            raise OptionError(summarise("image ids", problems), problems=problems)
        return found

    def batches(self) -> Iterator[Loaded]:
        """Read the images, some at a time."""
        import numpy as np

        spec = self.features.spec
        row_bytes = spec.n_features * np.dtype(spec.dtype).itemsize
        batch: list[str] = []
        n_bytes = 0
        for image_id, n_rows in self.n_rows.items():
            if batch and n_bytes + n_rows * row_bytes > BATCH_BYTES:
                yield self._load(batch)
                batch, n_bytes = [], 0
            batch.append(image_id)
            n_bytes += n_rows * row_bytes
        if batch:
            yield self._load(batch)

    def _load(self, image_ids: list[str]) -> Loaded:
        loaded = self.features.load(image_ids, self.augmentation)
        self.told(len(image_ids), len(loaded.embedding))
        return loaded

    def images(self) -> Iterator[Bag]:
        """Read the images, and give them one by one."""
        for loaded in self.batches():
            columns: Any = (loaded.embedding, loaded.coords, loaded.tissue)
            for number, image_id in enumerate(loaded.image_ids):
                rows = slice(int(loaded.offset[number]), int(loaded.offset[number + 1]))
                embedding, coords, tissue = (column[rows] for column in columns)
                yield Bag(image_id=image_id, embedding=embedding, coords=coords, tissue=tissue)
