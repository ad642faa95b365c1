"""slide2vec: a tensor or npz file per slide, and a sidecar that says how.

::

    <output>/tile_embeddings/[<class>/]<slide>.pt | .npz   the vectors; npz: features
    <output>/tile_embeddings/[<class>/]<slide>.meta.json   encoder, sizes, spacing; written last
    <output>/tiles/[<class>/]<slide>.coordinates.npz       x, y, tissue_fractions

A sidecar is the mark of completion: without one, a slide is not finished. Paths that a
sidecar names are not followed; coordinates are looked for in ``tiles`` beside it.

Reference: clemsgrs/slide2vec, slide2vec/artifacts.py and docs/output-layout.rst.
"""

from __future__ import annotations

import io
import json
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.damage import DAMAGE, unsound
from histostore.bridges.hdf5 import number, whole
from histostore.bridges.listing import find_files, id_of, nothing_found, stat_found
from histostore.bridges.tensors import read_tensors, require_torch
from histostore.bridges.values import Facts, Listing, SourceImage, checked_rows
from histostore.build.pipeline import Failure
from histostore.errors import FormatError
from histostore.files import public_url, read_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from histostore.bridges.values import Rows

__all__ = ["list_images"]

_VECTORS, _TILES = "tile_embeddings/", "tiles/"


def list_images(source: str, storage_options: Mapping[str, Any]) -> Listing:
    """List the slides of an output folder, or of its folder of tile embeddings.

    Raises
    ------
    FormatError
        If there are no tile embeddings.
    StorageError, MissingExtra
        If the source cannot be read, or torch is needed and absent.
    """
    found = find_files(source, storage_options)
    inside = any(relative.startswith(_VECTORS) for relative in found)
    base = _VECTORS if inside else ""
    payloads = {
        relative.removeprefix(base): url
        for relative, url in found.items()
        if relative.startswith(base)
        and relative.endswith((".pt", ".npz"))
        and not relative.endswith(".coordinates.npz")
    }
    if not payloads:
        raise nothing_found(source, "tile_embeddings/<slide>.pt or .npz", found)
    if any(name.endswith(".pt") for name in payloads):
        require_torch()
    stems = sorted({name.rpartition(".")[0] for name in payloads})
    sidecars = {stem: found.get(f"{base}{stem}.meta.json") for stem in stems}
    finished = {id_of(stem): (stem, url) for stem, url in sidecars.items() if isinstance(url, str)}
    sources, gone = stat_found(
        {image_id: url for image_id, (_, url) in finished.items()}, storage_options
    )
    return Listing(
        images=tuple(
            SourceImage(
                image_id=image_id,
                source=each,
                read=partial(
                    _read,
                    each.url,
                    {
                        kind: payloads.get(f"{finished[image_id][0]}.{kind}")
                        for kind in ("pt", "npz")
                    },
                    found.get(f"{_TILES}{finished[image_id][0]}.coordinates.npz"),
                    storage_options,
                ),
            )
            for image_id, each in sources.items()
        ),
        failed=gone
        + tuple(
            Failure(
                image_id=id_of(stem),
                url=next(url for name, url in payloads.items() if name.rpartition(".")[0] == stem),
                reason="it has no .meta.json: slide2vec has not finished it",
            )
            for stem, url in sidecars.items()
            if url is None
        ),
    )


def _read(
    sidecar: str,
    payloads: Mapping[str, str | None],
    coordinates: str | None,
    storage_options: Mapping[str, Any],
) -> Rows:
    said = _document(sidecar, storage_options)
    kind = said.get("format", "pt")
    url = payloads.get(kind) if isinstance(kind, str) else None
    if url is None:
        raise FormatError(f"its .meta.json speaks of a {kind!r} file that is not there")
    if said.get("artifact_type", "tile_embeddings") != "tile_embeddings":
        raise FormatError(f"it holds {said['artifact_type']}, not tile_embeddings")
    reader = read_tensors if kind == "pt" else _read_npz
    arrays = reader(url, storage_options)
    if "features" not in arrays:
        raise FormatError(f"{public_url(url)} holds {', '.join(arrays)}, not features")
    places = {} if coordinates is None else _read_npz(coordinates, storage_options)
    coords = np.stack([places["x"], places["y"]], axis=1) if {"x", "y"} <= places.keys() else None
    return checked_rows(
        arrays["features"],
        _facts(said, placed=coords is not None),
        coords=coords,
        tissue=places.get("tissue_fractions"),
    )


def _document(url: str, storage_options: Mapping[str, Any]) -> dict[str, Any]:
    try:
        document = json.loads(read_bytes(url, storage_options))
    except ValueError as error:
        raise FormatError(f"{public_url(url)} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError(f"{public_url(url)} is not a JSON object")
    return document


def _facts(said: Mapping[str, Any], *, placed: bool) -> Facts:
    """Take the facts that decide a vector; those of the single slide are left out."""
    identity = said.get("compatibility")
    preprocessing: dict[str, Any] = dict(identity) if isinstance(identity, dict) else {}
    if not placed:
        preprocessing["coords"] = "row number"
    encoder = said.get("encoder_name", preprocessing.get("encoder_name"))
    precision = preprocessing.get("precision")
    return Facts(
        encoder=encoder if isinstance(encoder, str) else None,
        precision=precision if isinstance(precision, str) else "unknown",
        preprocessing=preprocessing,
        patch_size=whole(said.get("requested_tile_size_px")),
        mpp=number(said.get("requested_spacing_um")),
    )


def _read_npz(url: str, storage_options: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """Read the arrays of a small npz file.

    Raises
    ------
    FormatError
        If it is damaged, or holds Python objects.
    """
    content = read_bytes(url, storage_options)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return {name: np.asarray(arrays[name]) for name in arrays.files}
    except DAMAGE as error:
        raise unsound(url, "npz file", error) from error
