"""Whether an image looks like those of the training, as far as its vectors tell.

A head gives an answer to anything. One that is far from all that it learned from means little, and
its confidence does not show that (Nguyen et al. 2015, *Deep Neural Networks are Easily Fooled*).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.store import FeatureSet

__all__ = ["LEAST_IMAGES", "KnownImages"]

LEAST_IMAGES = 20
"""Images of the training without which nothing is compared."""

MOST_IMAGES = 200
MOST_PATCHES = 100_000
"""What is read of the training, spread evenly over it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KnownImages:
    """Where the images of a training lie among all vectors."""

    centre: NDArray[np.float64]
    """``(feature,)``, mean over images of the mean vector of each."""
    scale: NDArray[np.float64]
    """``(feature,)``, their standard deviation; infinite of a feature that never changes."""
    farthest: float
    """The largest distance of any of them."""
    n_images: int

    @classmethod
    def of(cls, features: FeatureSet, image_ids: Sequence[str], view: str) -> KnownImages | None:
        """Read some images of a training.

        Parameters
        ----------
        features
            What the run was trained on.
        image_ids
            Its images.
        view
            Which view to read.

        Returns
        -------
        known_images
            None where there are fewer than :data:`LEAST_IMAGES` within :data:`MOST_PATCHES`.
        """
        stored = [image for image in image_ids if (image, view) in features.index]
        step = max(1, -(-len(stored) // MOST_IMAGES))
        means: list[NDArray[np.float64]] = []
        n_patches = 0
        for image_id in stored[::step]:
            embedding = features.bag(image_id, augmentation=view).embedding
            means.append(embedding.mean(axis=0, dtype=np.float64))
            n_patches += len(embedding)
            if n_patches > MOST_PATCHES:
                break
        return cls.of_means(np.array(means)) if len(means) >= LEAST_IMAGES else None

    @classmethod
    def of_means(cls, means: NDArray[np.float64]) -> KnownImages:
        """Learn from the mean vectors of images, ``(image, feature)``.

        Examples
        --------
        >>> known = KnownImages.of_means(np.random.default_rng(0).normal(size=(50, 8)))
        >>> known.is_novel(np.zeros((3, 8))), known.is_novel(np.full((3, 8), 9.0))
        (False, True)
        """
        scale = means.std(axis=0)
        scale[scale < 1e-9] = np.inf
        centre = means.mean(axis=0)
        distance = np.sqrt((((means - centre) / scale) ** 2).mean(axis=1))
        return cls(centre=centre, scale=scale, farthest=float(distance.max()), n_images=len(means))

    def is_novel(self, embedding: NDArray[Any]) -> bool:
        """Tell whether an image, ``(patch, feature)``, lies farther out than all of the training."""
        offset = (embedding.mean(axis=0, dtype=np.float64) - self.centre) / self.scale
        return bool(np.sqrt((offset**2).mean()) > self.farthest)
