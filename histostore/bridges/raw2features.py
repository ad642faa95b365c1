"""raw2features: one Zarr store per slide, several grids and models in each.

::

    <slide>.embeddings.zarr/grids/<grid>/          attribute raw2features: the header
        coords            (patch, 2) int32 level-0 pixels
        grid_index        (patch, 2) int32 row and column; optional
        mask              (row, column) uint8, tissue share times 255; optional
        features/<model>  (patch, feature)

Every grid and model is an image of its own, in a feature set of its own. Stores from before
there were several grids have the same in their root.

Reference: CraigMyles/raw2features, docs/SPEC.md, format 0.1.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.damage import DAMAGE, unsound
from histostore.bridges.hdf5 import number, whole
from histostore.bridges.listing import find_stores, id_of, nothing_found
from histostore.bridges.values import MOST_BYTES, Facts, Listing, SourceImage, checked_rows
from histostore.build.pipeline import Failure
from histostore.errors import FormatError, HistostoreError
from histostore.files import Source, local_path, stat_many

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.bridges.values import Rows

__all__ = ["list_images"]

_SUFFIXES = (".embeddings.zarr", ".zarr")
_METADATA = ("zarr.json", ".zarray")  # Zarr 3, Zarr 2
_KEPT = ("mean", "std", "input_size", "pooling", "interpolation", "inference_amp")


def list_images(source: str, storage_options: Mapping[str, Any]) -> Listing:
    """List the grids and models of the stores below a folder, or of one store.

    Raises
    ------
    FormatError
        If there is no Zarr store.
    StorageError
        If the source cannot be read.
    """
    stores = find_stores(source, ".zarr", storage_options)
    if not stores:
        raise nothing_found(source, "<slide>.embeddings.zarr", ())
    images: list[SourceImage] = []
    failed: list[Failure] = []
    for url in stores:
        image_id = id_of(_stem(url))
        try:
            found = list(_arrays(url, storage_options))
            if not found:
                raise FormatError("it holds no grids/<grid>/features/<model>")
        except HistostoreError as error:
            failed.append(Failure(image_id=image_id, url=url, reason=str(error)))
            continue
        versions = _versions(url, found, storage_options)
        images += [
            SourceImage(
                image_id=image_id,
                source=Source(url=f"{url}/{path}", size=None, version=versions[path]),
                read=partial(_read, url, path, storage_options),
            )
            for path in found
        ]
    return Listing(images=tuple(images), failed=tuple(failed))


def _stem(url: str) -> str:
    name = url.rpartition("/")[2]
    return name.removesuffix(next(suffix for suffix in _SUFFIXES if name.endswith(suffix)))


def _open(url: str, storage_options: Mapping[str, Any]) -> Any:
    import zarr

    options: Any = {} if local_path(url) is not None else {"storage_options": dict(storage_options)}
    try:
        return zarr.open_group(url, mode="r", **options)
    except DAMAGE as error:
        raise unsound(url, "Zarr store", error) from error


def _arrays(url: str, storage_options: Mapping[str, Any]) -> Iterator[str]:
    """Yield the paths of the arrays of features."""
    root = _open(url, storage_options)
    try:
        grids = [f"grids/{key}/" for key in root["grids"].group_keys()] if "grids" in root else [""]
        for grid in grids:
            if f"{grid}features" in root:
                for model in root[f"{grid}features"].array_keys():
                    yield f"{grid}features/{model}"
    except DAMAGE as error:
        raise unsound(url, "Zarr store", error) from error


def _versions(
    url: str, paths: list[str], storage_options: Mapping[str, Any]
) -> dict[str, str | None]:
    """Take the version of an array's metadata for that of the array."""
    asked = {path: [f"{url}/{path}/{name}" for name in _METADATA] for path in paths}
    found = stat_many([each for urls in asked.values() for each in urls], storage_options)
    seen = {path: [found[each] for each in urls] for path, urls in asked.items()}
    return {
        path: next((source.version for source in sources if source is not None), None)
        for path, sources in seen.items()
    }


def _read(url: str, path: str, storage_options: Mapping[str, Any]) -> Rows:
    root = _open(url, storage_options)
    base, _, model = path.rpartition("features/")
    try:
        group = root[base.rstrip("/")] if base else root
        features = _whole_array(group, f"features/{model}")
        coords = _whole_array(group, "coords")
        tissue = None
        if "mask" in group and "grid_index" in group:
            row, column = _whole_array(group, "grid_index").T
            tissue = _whole_array(group, "mask")[row, column].astype(np.float32) / 255
        header = dict(group.attrs).get("raw2features") or {}
    except DAMAGE as error:
        raise unsound(f"{url}/{path}", "Zarr array", error) from error
    if len(features) > 1 and not features[-1].any():
        raise FormatError("its last vector is zero: raw2features has not finished it")
    facts = _facts(header if isinstance(header, dict) else {}, model)
    return checked_rows(features, facts, coords=coords, tissue=tissue)


def _whole_array(group: Any, name: str) -> NDArray[Any]:
    array = group[name]
    if array.nbytes > MOST_BYTES:
        raise FormatError(f"{name} says it is {array.dtype} {array.shape}: too large")
    return np.asarray(array[...])


def _facts(header: Mapping[str, Any], model: str) -> Facts:
    patching, models = header.get("patching"), header.get("models")
    cut: Mapping[str, Any] = patching if isinstance(patching, dict) else {}
    card = models.get(model) if isinstance(models, dict) else None
    said: Mapping[str, Any] = card if isinstance(card, dict) else {}
    digest, revision = said.get("weights_sha256"), said.get("weights_revision")
    precision = said.get("inference_amp")
    return Facts(
        encoder=model,
        weights=f"sha256:{digest}" if digest else f"revision:{revision}" if revision else "unknown",
        precision=precision if isinstance(precision, str) else "unknown",
        preprocessing={key: said[key] for key in _KEPT if said.get(key) is not None},
        patch_size=whole(cut.get("patch_px")),
        stride=whole(cut.get("step_out_px")),
        mpp=number(cut.get("target_mpp")),
    )
