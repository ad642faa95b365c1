"""TRIDENT: one HDF5 file per slide, in folders whose names say how.

::

    <job>/20x_256px_0px_overlap/features_uni_v1/<slide>.h5
        features  (patch, feature), or (1, patch, feature) in older files
        coords    (patch, 2) level-0 pixels; attributes patch_size, patch_size_level0,
                  target_magnification, overlap, name, ...

TRIDENT knows magnification, not µm per pixel: 20x is taken as its nominal 0.5 µm per pixel.
A file with a ``.lock`` beside it is still being written, or was left by a crash.

Reference: mahmoodlab/TRIDENT, trident/IO.py and README.md.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from histostore.bridges.hdf5 import attributes, number, opened, packed, read_array, require_h5py
from histostore.bridges.hdf5 import whole as whole_number
from histostore.bridges.listing import find_files, id_of, nothing_found, stat_found
from histostore.bridges.values import Facts, Listing, SourceImage, checked_rows
from histostore.build.pipeline import Failure
from histostore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.bridges.outgoing import ExportJob
    from histostore.bridges.values import Rows
    from histostore.spec import FeatureSpec

__all__ = ["list_images", "write_images"]

_PREFIX = "features_"
_FOLDER = re.compile(
    r"(?:(?P<magnification>\d+(?:\.\d+)?)x|native)_(?P<patch>\d+)px_(?P<overlap>-?\d+)px_overlap"
)
_NOMINAL = 10.0
"""µm per pixel times magnification, of a nominal objective: 20x is 0.5, 40x is 0.25."""


def list_images(source: str, storage_options: Mapping[str, Any]) -> Listing:
    """List the slides below a job folder, or in one of its folders of features.

    Raises
    ------
    FormatError
        If there is no HDF5 file of features.
    StorageError, MissingExtra
        If the source cannot be read, or h5py is absent.
    """
    require_h5py()
    found = find_files(source, storage_options)
    urls = {relative: url for relative, url in found.items() if relative.endswith(".h5")}
    inside = {r: url for r, url in urls.items() if _parts(url)[-2].startswith(_PREFIX)}
    chosen = inside or {r: url for r, url in urls.items() if "/" not in r}
    if not chosen:
        raise nothing_found(source, "features_<encoder>/<slide>.h5", found)
    locked = {relative for relative in chosen if f"{relative}.lock" in found}
    # The same slide may be there in several ways, so the key is the path and not the id.
    sources, gone = stat_found({r: chosen[r] for r in chosen if r not in locked}, storage_options)
    return Listing(
        images=tuple(
            SourceImage(
                image_id=_image_id(relative, inside=bool(inside)),
                source=each,
                read=partial(_read, each.url, storage_options),
            )
            for relative, each in sources.items()
        ),
        failed=gone
        + tuple(
            Failure(
                image_id=_image_id(relative, inside=bool(inside)),
                url=chosen[relative],
                reason="its .lock is still there: TRIDENT has not finished it",
            )
            for relative in sorted(locked)
        ),
    )


def _parts(url: str) -> list[str]:
    return ["", "", *url.split("/")]


def _image_id(relative: str, *, inside: bool) -> str:
    stem = relative.removesuffix(".h5")
    return id_of(stem.rpartition("/")[2] if inside else stem)


def _read(url: str, storage_options: Mapping[str, Any]) -> Rows:
    with opened(url, storage_options) as file:
        features = read_array(file, "features")
        coords = read_array(file, "coords")
        if features is None or coords is None:
            raise FormatError(f"it holds {', '.join(file) or 'nothing'}, not features and coords")
        own = {**attributes(file), **attributes(file["features"])}
        return checked_rows(features, _facts(url, own, attributes(file["coords"])), coords=coords)


def _facts(url: str, own: Mapping[str, Any], placing: Mapping[str, Any]) -> Facts:
    """Join what the folders say with what the attributes say; attributes win."""
    *_, above, folder, _ = _parts(url)
    named = _FOLDER.fullmatch(above)
    said = {key: value for key, value in (named.groupdict() if named else {}).items() if value}
    patch_size = whole_number(placing.get("patch_size", said.get("patch")))
    magnification = number(placing.get("target_magnification", said.get("magnification")))
    overlap = whole_number(placing.get("overlap", said.get("overlap")))
    stride = None if patch_size is None or overlap is None else patch_size - overlap
    encoder = own.get("encoder")
    if not isinstance(encoder, str):
        encoder = folder.removeprefix(_PREFIX) if folder.startswith(_PREFIX) else None
    places = placing.get("histostore_places", "pixels")
    facts = {
        "target_magnification": magnification,
        "overlap": overlap,
        "coords": None if places == "pixels" else places,
    }
    return Facts(
        encoder=encoder,
        preprocessing={key: value for key, value in facts.items() if value is not None},
        patch_size=patch_size,
        stride=stride if stride is None or stride > 0 else None,
        mpp=_NOMINAL / magnification if magnification else None,
    )


def write_images(job: ExportJob) -> int:
    """Write one HDF5 file per image; give their number.

    ``patch_size_level0`` is written where patches were cut at level 0; otherwise it depends
    on the scale of each image, which a store does not keep.
    """
    require_h5py()
    spec = job.features.spec
    placing: dict[str, Any] = {"histostore_places": job.places}
    above = "unknown_grid"
    if job.patch_size is not None:
        above, placing = _folder_name(spec), {**placing, **_placing(spec)}
    folder = f"{above}/{_PREFIX}{job.features.name}"
    stems = job.stems()
    for image in job.images():
        stem = stems[image.image_id]
        content = packed(
            {"features": image.embedding, "coords": image.coords.astype("int64")},
            {
                "features": {"name": stem, "encoder": job.features.name},
                "coords": {"name": stem, **placing},
            },
        )
        job.target.put(f"{folder}/{stem}.h5", content)
    return len(stems)


def _overlap(spec: FeatureSpec) -> int:
    return spec.grid.patch_size - (spec.grid.stride or spec.grid.patch_size)


def _folder_name(spec: FeatureSpec) -> str:
    scale = f"{_NOMINAL / spec.grid.mpp:g}x" if spec.grid.mpp else "native"
    return f"{scale}_{spec.grid.patch_size}px_{_overlap(spec)}px_overlap"


def _placing(spec: FeatureSpec) -> dict[str, Any]:
    placing: dict[str, Any] = {"patch_size": spec.grid.patch_size, "overlap": _overlap(spec)}
    if spec.grid.mpp:
        return {**placing, "target_magnification": _NOMINAL / spec.grid.mpp}
    return {**placing, "patch_size_level0": spec.grid.patch_size}
