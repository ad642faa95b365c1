"""CLAM: HDF5 with features and coords, and a tensor per slide.

::

    <feat_dir>/h5_files/<slide>.h5   features (patch, feature), coords (patch, 2) level-0 pixels
    <feat_dir>/pt_files/<slide>.pt   the features alone, as one tensor

CLAM appends to the HDF5 file batch by batch and writes the tensor last: where there is a
folder of tensors, a slide without one is not finished. The HDF5 file is read where there are
both, because it alone knows the places.

Reference: mahmoodlab/CLAM, extract_features_fp.py and utils/file_utils.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.hdf5 import attributes, opened, packed, read_array, require_h5py, whole
from histostore.bridges.listing import find_files, id_of, nothing_found, stat_found
from histostore.bridges.tensors import packed_tensor, read_tensors, require_torch
from histostore.bridges.values import Facts, Listing, SourceImage, checked_rows
from histostore.build.pipeline import Failure
from histostore.errors import FormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.bridges.outgoing import ExportJob
    from histostore.bridges.values import Rows

__all__ = ["list_images", "write_images"]

_H5, _PT = "h5_files/", "pt_files/"


def list_images(source: str, storage_options: Mapping[str, Any]) -> Listing:
    """List the slides of a folder of features.

    Raises
    ------
    FormatError
        If there is neither an HDF5 nor a .pt file.
    StorageError, MissingExtra
        If the source cannot be read, or h5py or torch is needed and absent.
    """
    found = find_files(source, storage_options)
    h5 = _by_id(found, _H5, ".h5")
    pt = _by_id(found, _PT, ".pt")
    finished = any(relative.startswith(_PT) for relative in found)
    if not h5 and not pt:
        raise nothing_found(source, "h5_files/<slide>.h5, pt_files/<slide>.pt, or either", found)
    if h5:
        require_h5py()
    if pt.keys() - h5.keys():
        require_torch()
    undone = h5.keys() - pt.keys() if finished else set()
    chosen = {each: url for each, url in {**pt, **h5}.items() if each not in undone}
    sources, gone = stat_found(chosen, storage_options)
    return Listing(
        images=tuple(
            SourceImage(
                image_id=image_id,
                source=each,
                read=partial(_read_h5 if image_id in h5 else _read_pt, each.url, storage_options),
            )
            for image_id, each in sources.items()
        ),
        failed=gone
        + tuple(
            Failure(
                image_id=image_id,
                url=h5[image_id],
                reason="pt_files holds no tensor of it: CLAM has not finished it",
            )
            for image_id in sorted(undone)
        ),
    )


def _by_id(found: Mapping[str, str], folder: str, suffix: str) -> dict[str, str]:
    """Take the files of one kind: those in CLAM's own folder, or else all there are."""
    files = {relative: url for relative, url in found.items() if relative.endswith(suffix)}
    inside = {
        relative.removeprefix(folder): url
        for relative, url in files.items()
        if relative.startswith(folder)
    }
    return {id_of(r.removesuffix(suffix)): url for r, url in (inside or files).items()}


def _read_h5(url: str, storage_options: Mapping[str, Any]) -> Rows:
    with opened(url, storage_options) as file:
        features = read_array(file, "features")
        coords = read_array(file, "coords")
        if features is None:
            raise FormatError(f"it holds {', '.join(file) or 'nothing'}, not features")
        said = attributes(file["coords"]) if coords is not None else {}
        encoder = attributes(file["features"]).get("encoder")
    level: dict[str, Any] = {
        k: said[k] for k in ("patch_level", "downsample", "custom_downsample") if k in said
    }
    places = said.get("histostore_places", "pixels") if coords is not None else "row number"
    facts = Facts(
        encoder=encoder if isinstance(encoder, str) else None,
        preprocessing=level if places == "pixels" else {**level, "coords": places},
        patch_size=whole(said.get("patch_size")),
    )
    return checked_rows(features, facts, coords=coords)


def _read_pt(url: str, storage_options: Mapping[str, Any]) -> Rows:
    tensors = read_tensors(url, storage_options)
    features = tensors.get("features", tensors.get("feats"))
    if features is None:
        raise FormatError(f"it holds {', '.join(tensors)}, not features")
    coords = tensors.get("coords")
    facts = Facts(preprocessing={} if coords is not None else {"coords": "row number"})
    return checked_rows(features, facts, coords=coords)


def write_images(job: ExportJob) -> int:
    """Write an HDF5 file and a tensor per image, both float32 as CLAM reads them.

    The tensor is written last, as CLAM does; give the number of files.
    """
    require_h5py()
    require_torch()
    placing: dict[str, Any] = {"histostore_places": job.places}
    if job.patch_size is not None:
        placing["patch_size"] = job.patch_size
    stems = job.stems()
    for image in job.images():
        stem = stems[image.image_id]
        features = image.embedding.astype(np.float32, copy=False)
        content = packed(
            {"features": features, "coords": image.coords},
            {
                "features": {"encoder": job.features.name},
                "coords": {"name": stem, **placing},
            },
        )
        job.target.put(f"{_H5}{stem}.h5", content)
        job.target.put(f"{_PT}{stem}.pt", packed_tensor(features))
    return 2 * len(stems)
