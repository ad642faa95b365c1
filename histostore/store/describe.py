"""What a feature set holds, as plain values for people and programs."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from histostore.store.features import FeatureSet
    from histostore.store.record import Record

__all__ = ["describe", "list_images"]


def describe(features: FeatureSet) -> dict[str, Any]:
    """Sum a feature set up, as JSON values.

    Images whose last build failed and that no fragment holds are listed under ``failed``,
    with the reason.
    """
    rows = {
        image_id: bounds.stop - bounds.start
        for (image_id, _), (_, bounds) in features.index.items()
    }
    there = set(rows)
    failed = {
        failure["image_id"]: failure
        for document in features.builds()
        for failure in document.get("failed", ())
        if failure["image_id"] not in there
    }
    return {
        "name": features.name,
        "encoder": features.spec.encoder.name,
        "n_features": features.spec.n_features,
        "dtype": features.spec.dtype,
        "augmentations": list(features.augmentations),
        "n_images": len(there),
        "n_patches": sum(rows.values()),
        "n_fragments": len(features.fragments),
        "n_bytes": sum(
            item.n_bytes for record in features.fragments for item in record.objects.values()
        ),
        "n_failed": len(failed),
        "failed": list(failed.values()),
        "snapshot": features.snapshot,
        "spec": features.spec.to_json(),
    }


def list_images(features: FeatureSet) -> list[dict[str, Any]]:
    """List the images of a feature set, in order of commitment, as JSON values."""
    views: dict[str, list[str]] = defaultdict(list)
    places: dict[str, tuple[Record, slice]] = {}
    for (image_id, view), (record, bounds) in features.index.items():
        views[image_id].append(view)
        places.setdefault(image_id, (record, bounds))
    flags = {
        (record.fragment_id, image_id): names
        for record in features.fragments
        for image_id, names in zip(record.image_ids, record.flags, strict=True)
    }
    return [
        {
            "image_id": image_id,
            "n_patches": bounds.stop - bounds.start,
            "augmentations": ",".join(views[image_id]),
            "flags": ",".join(flags[record.fragment_id, image_id]),
            "fragment": record.fragment_id,
            "source": features.sources[image_id].url,
        }
        for image_id, (record, bounds) in places.items()
    ]
