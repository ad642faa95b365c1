"""What a store and its feature sets hold, as plain values, and as a notebook shows them."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError
from histostore.showing import html_card, html_table
from histostore.text import failures, table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.store.features import FeatureSet
    from histostore.store.reader import Store
    from histostore.store.record import Record

__all__ = ["describe", "features_html", "list_images", "store_html", "summary"]

_SUMMED = (
    *("name", "encoder", "n_features", "dtype", "augmentations"),
    *("n_images", "n_patches", "n_fragments", "n_failed"),
)


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


def summary(described: Sequence[Mapping[str, Any]]) -> str:
    """Draw what :func:`describe` gives of some feature sets, and list what failed in each."""
    lines = [table(described, _SUMMED)]
    for told in described:
        failed = [(failure["image_id"], failure["reason"]) for failure in told["failed"]]
        if failed:
            lines += [f"failed in {told['name']}; the next build tries them again:"]
            lines += failures(failed)
    return "\n".join(lines)


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


def features_html(features: FeatureSet) -> str:
    """Draw a feature set for a notebook."""
    spec = features.spec
    grid = spec.grid
    size = f"{grid.patch_size} px" + (f" at {grid.mpp:g} µm/px" if grid.mpp else "")
    stain = spec.stain if isinstance(spec.stain, str) else spec.stain.to_json()["method"]
    facts = {
        "store": features.backend.url,
        "encoder": spec.encoder.name,
        "images": len(features.image_ids),
        "patches": _n_patches(features),
        "embedding": f"{spec.n_features:,} × {spec.dtype}",
        "patch": size,
        "stain": None if stain == "none" else stain,
        "views": features.augmentations,
        "fragments": len(features.fragments),
    }
    return html_card("FeatureSet", features.name, facts)


def store_html(store: Store) -> str:
    """Draw a store for a notebook; a feature set that cannot be read says why."""
    rows = []
    for name in store:
        row: dict[str, Any] = {"feature set": name, "encoder": "", "images": None, "patches": None}
        row |= {"features": None, "views": ""}
        try:
            features = store[name]
        except HistostoreError as error:
            rows.append({**row, "encoder": str(error)})
            continue
        row |= {"encoder": features.spec.encoder.name, "images": len(features.image_ids)}
        row |= {"patches": _n_patches(features), "features": features.spec.n_features}
        rows.append({**row, "views": ", ".join(features.augmentations)})
    return html_card("Store", store.url, {"feature sets": len(rows)}, [html_table(rows)])


def _n_patches(features: FeatureSet) -> int:
    """Count the patches of all images, in whatever views."""
    rows = {image: where.stop - where.start for (image, _), (_, where) in features.index.items()}
    return sum(rows.values())
