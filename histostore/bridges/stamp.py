"""STAMP: one HDF5 file per slide, with coordinates in micrometres.

::

    <output>/<extractor>/<slide>.h5
        feats   (patch, feature) float16; patch_embeddings in old files
        coords  (patch, 2) µm
        attributes: extractor, unit, tile_size_um (once tile_size), tile_size_px, feat_type,
                    stamp_version, code_hash

A store keeps places in level-0 pixels, and STAMP's files do not say how large those are. If
the caller does (``mpp``), places become level-0 pixels; otherwise pixels of the tiles, at
``tile_size_um / tile_size_px`` micrometres each, and the feature set says so.

Reference: KatherLab/STAMP, src/stamp/preprocessing/__init__.py.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.hdf5 import attributes, number, opened, read_array, require_h5py, whole
from histostore.bridges.listing import find_files, id_of, nothing_found, stat_found
from histostore.bridges.values import Facts, Listing, SourceImage, checked_rows
from histostore.errors import FormatError, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from histostore.bridges.values import Rows

__all__ = ["list_images"]

_USUAL_PX = 224  # STAMP's tiles from before the size was written down


def list_images(
    source: str, storage_options: Mapping[str, Any], *, mpp: float | None = None
) -> Listing:
    """List the slides below a folder.

    Parameters
    ----------
    source, storage_options
        Where they are.
    mpp
        Micrometres per level-0 pixel, of all slides alike.

    Raises
    ------
    FormatError
        If there is no HDF5 file.
    OptionError
        If ``mpp`` makes no sense.
    StorageError, MissingExtra
        If the source cannot be read, or h5py is absent.
    """
    require_h5py()
    if mpp is not None and not 0 < mpp < np.inf:
        raise OptionError(f"{mpp=}: give a number of µm per level-0 pixel above 0")
    found = find_files(source, storage_options)
    files = {
        id_of(relative.removesuffix(".h5")): url
        for relative, url in found.items()
        if relative.endswith(".h5")
    }
    if not files:
        raise nothing_found(source, "<slide>.h5", found)
    sources, gone = stat_found(files, storage_options)
    images = (
        SourceImage(
            image_id=image_id, source=each, read=partial(_read, each.url, storage_options, mpp)
        )
        for image_id, each in sources.items()
    )
    return Listing(images=tuple(images), failed=gone)


def _read(url: str, storage_options: Mapping[str, Any], mpp: float | None) -> Rows:
    with opened(url, storage_options) as file:
        features = read_array(file, "feats", "patch_embeddings")
        coords = read_array(file, "coords")
        said = attributes(file)
        if features is None or coords is None:
            raise FormatError(f"it holds {', '.join(file) or 'nothing'}, not feats and coords")
    if said.get("feat_type", "tile") != "tile":
        raise FormatError(f"it holds one vector per {said['feat_type']}, not per tile")
    size_um = number(said.get("tile_size_um", said.get("tile_size")))
    in_um = said.get("unit") == "um" or "tile_size_um" in said
    size_px = whole(said.get("tile_size_px")) or (_USUAL_PX if in_um else None)
    if in_um and not size_um:
        raise FormatError("its coords are in µm, but it does not say how large a tile is")
    scale = size_um / size_px if in_um and size_um and size_px else None
    facts = {"stamp_version": said.get("stamp_version"), "code_hash": said.get("code_hash")}
    facts["coords"] = _unit(scale, mpp)
    extractor = said.get("extractor")
    return checked_rows(
        features,
        Facts(
            encoder=extractor if isinstance(extractor, str) else None,
            preprocessing={key: value for key, value in facts.items() if value is not None},
            patch_size=size_px,
            mpp=scale,
        ),
        coords=coords if scale is None else np.rint(coords.astype(np.float64) / (mpp or scale)),
    )


def _unit(scale: float | None, mpp: float | None) -> str | None:
    """Say what a unit of the stored places is, where it is not a level-0 pixel for certain."""
    if scale is None:
        return "as given, unit unknown"
    return f"pixels of {scale:g} µm" if mpp is None else f"level-0 pixels, taken as {mpp:g} µm"
