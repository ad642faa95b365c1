"""Which images of a cohort a feature set holds, and which it cannot hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import NotFound
from zoo.labels import named

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from histostore.store import FeatureSet

__all__ = ["usable"]


def usable(
    features: FeatureSet, image_ids: Sequence[str] | NDArray[np.object_], augmentation: str
) -> NDArray[np.bool_]:
    """Tell images that are stored from those that failed in a build, ``(image,)`` bool.

    The records of builds are read only where an image is missing.

    Parameters
    ----------
    features
        Feature set of an open store.
    image_ids
        Images wanted.
    augmentation
        View wanted.

    Raises
    ------
    NotFound
        If an image is missing that no build has recorded as failed, or no image is left.
    """
    if augmentation not in features.augmentations:
        there = ", ".join(features.augmentations) or "no image yet: run histostore build"
        raise NotFound(f"{features.name} holds no view {augmentation!r}; it holds {there}")
    index = features.index
    stored = np.array([(image, augmentation) in index for image in image_ids], dtype=bool)
    if stored.all():
        return stored
    failed = {
        failure["image_id"]
        for document in features.builds()
        for failure in document.get("failed", ())
    }
    missing = [image for image, is_there in zip(image_ids, stored, strict=True) if not is_there]
    never = [image for image in missing if image not in failed]
    if never:
        view = "" if augmentation == "identity" else f" in view {augmentation}"
        what = f"not in feature set {features.name}{view}: run histostore build"
        raise NotFound(f"{named(never)} {what}")
    if not stored.any():
        raise NotFound(f"all of {named(missing)} failed in the build: histostore info says why")
    return stored
