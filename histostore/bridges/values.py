"""What a foreign file says: rows, and facts about how they came about.

A feature set that was imported says so: its encoder is named ``import:<layout>:<encoder>``,
its weights and precision are ``unknown`` where the source does not record them, and its
preprocessing holds every fact that the source gives. What a source does not say takes neutral
values that no build would give: ``patch_size=1`` stands for a grid that is not known, a
tissue filter that keeps everything for one that is not known, a tissue share of 1 for every
patch. Without coordinates, x is the number of the row and y is 0.

So that two ways of making vectors never mix, the source's address is part of the identity,
unless the caller gives the encoder a name and thereby answers for it: under one name, several
sources whose facts agree share a feature set.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.encoders.base import EncoderIdentity
from histostore.errors import FormatError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from histostore.build.pipeline import Failure
    from histostore.files import Source

__all__ = ["Facts", "Listing", "Rows", "SourceImage", "checked_rows", "encoder_name", "imported"]

MOST_BYTES = 2**35
"""Largest array taken for one image's (32 GiB): beyond it, a header is wrong."""

_COORDS_LIMIT = 2**31


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What a source says of the way its vectors were made; None is what it does not say."""

    encoder: str | None = None
    weights: str = "unknown"
    precision: str = "unknown"
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """JSON values; all of them become part of the identity."""
    patch_size: int | None = None
    """Edge of a patch as the encoder saw it, in pixels."""
    stride: int | None = None
    mpp: float | None = None
    """Scale of the patches, in micrometres per pixel."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Rows:
    """One image's patches as they will be stored."""

    embedding: NDArray[Any]
    """``(patch, feature)``, float16 or float32, finite."""
    coords: NDArray[np.int32]
    """``(patch, 2)``, x then y."""
    tissue: NDArray[np.float32]
    """``(patch,)``, 0 to 1."""
    facts: Facts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SourceImage:
    """One image of a source, not yet read."""

    image_id: str
    source: Source
    read: Callable[[], Rows]
    """Reads it; raises a FormatError or StorageError if it is not sound."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Listing:
    """What a source holds."""

    images: tuple[SourceImage, ...]
    failed: tuple[Failure, ...] = ()
    """What cannot be imported, as was seen without reading it."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Image id to label, where the source has labels."""
    close: Callable[[], None] = field(default=lambda: None)
    """Lets go of what reading has opened."""


def checked_rows(
    embedding: NDArray[Any],
    facts: Facts,
    *,
    coords: NDArray[Any] | None = None,
    tissue: NDArray[Any] | None = None,
) -> Rows:
    """Check what was read, and bring it to the types of the store.

    Parameters
    ----------
    embedding
        ``(patch, feature)`` or ``(1, patch, feature)``; float16 and float32 are kept as they
        are, other numbers become float32.
    facts
        What the source says.
    coords
        ``(patch, 2)``, x then y, whole numbers from 0; row numbers where there are none.
    tissue
        ``(patch,)``, 0 to 1; 1 where there is none.

    Raises
    ------
    FormatError
        If they do not fit each other, or hold what a store cannot.

    Examples
    --------
    >>> rows = checked_rows(np.ones((1, 2, 3), "f2"), Facts())
    >>> rows.embedding.shape, rows.coords.tolist(), rows.tissue.tolist()
    ((2, 3), [[0, 0], [1, 0]], [1.0, 1.0])
    """
    if embedding.ndim == 3 and embedding.shape[0] == 1:
        embedding = embedding[0]
    if embedding.ndim != 2 or 0 in embedding.shape:
        raise FormatError(f"its features have shape {embedding.shape}, not (patch, feature)")
    if embedding.dtype.kind not in "fiu":
        raise FormatError(f"its features are {embedding.dtype}, not numbers")
    kind = embedding.dtype.newbyteorder("=")
    if kind not in (np.dtype(np.float16), np.dtype(np.float32)):
        kind = np.dtype(np.float32)
    with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused next
        embedding = np.ascontiguousarray(embedding, dtype=kind)
    if not np.isfinite(embedding).all():
        raise FormatError(f"its features are not finite in {_count_bad(embedding)} rows")
    n_patches = len(embedding)
    if coords is None:
        coords = np.stack([np.arange(n_patches), np.zeros(n_patches, np.int64)], axis=1)
    if tissue is None:
        tissue = np.ones(n_patches, np.float32)
    return Rows(
        embedding=embedding,
        coords=_checked_coords(coords, n_patches),
        tissue=_checked_tissue(tissue, n_patches),
        facts=facts,
    )


def _count_bad(embedding: NDArray[Any]) -> int:
    return int(np.count_nonzero(~np.isfinite(embedding).all(axis=1)))


def _checked_coords(coords: NDArray[Any], n_patches: int) -> NDArray[np.int32]:
    if coords.shape != (n_patches, 2) or coords.dtype.kind not in "fiu":
        raise FormatError(f"coords are {coords.dtype} {coords.shape} for {n_patches} features")
    if not ((coords >= 0) & (coords < _COORDS_LIMIT)).all():
        raise FormatError("coords lie outside 0 to 2³¹; they must be pixels inside the image")
    pixels: NDArray[np.int32] = coords.astype(np.int32)
    if not (pixels == coords).all():
        raise FormatError("coords are not whole numbers of pixels")
    return pixels


def _checked_tissue(tissue: NDArray[Any], n_patches: int) -> NDArray[np.float32]:
    if tissue.shape != (n_patches,) or tissue.dtype.kind not in "fiu":
        raise FormatError(f"tissue shares are {tissue.dtype} {tissue.shape}, not ({n_patches},)")
    if not ((tissue >= 0) & (tissue <= 1)).all():
        raise FormatError("tissue shares lie outside 0 to 1")
    return tissue.astype(np.float32)


def encoder_name(layout: str, encoder: str | None) -> str:
    """Name the encoder of an imported feature set.

    Examples
    --------
    >>> encoder_name("trident", "uni_v1"), encoder_name("npz", None)
    ('import:trident:uni_v1', 'import:npz')
    """
    return f"import:{layout}:{encoder}" if encoder else f"import:{layout}"


def imported(rows: Rows, layout: str, *, source: str, name: str | None) -> FeatureSpec:
    """Say what decides the vectors of imported rows.

    Parameters
    ----------
    rows
        One image.
    layout, source
        Where it came from.
    name
        The caller's own name for the encoder; takes the place of the source's address.

    Raises
    ------
    FormatError
        If the facts cannot be written down, or make no sense.
    """
    facts = rows.facts
    preprocessing = dict(facts.preprocessing)
    preprocessing["tissue"] = "unknown"
    if facts.patch_size is None:
        preprocessing["grid"] = "unknown"
    if name is None:
        preprocessing["source"] = source
    try:
        spec = FeatureSpec(
            encoder=EncoderIdentity(
                name=encoder_name(layout, name or facts.encoder),
                weights=facts.weights,
                preprocessing=preprocessing,
                precision=facts.precision,
            ),
            n_features=rows.embedding.shape[1],
            grid=PatchGrid(
                1 if facts.patch_size is None else facts.patch_size, facts.stride, facts.mpp
            ),
            tissue=TissueFilter("none", 0.0),
            dtype=str(rows.embedding.dtype),
        )
        spec.canonical().encode()
    except (TypeError, ValueError) as error:  # NaN, lone surrogates, a patch of no size, …
        raise FormatError(f"what it says of itself makes no sense: {error}") from error
    return spec
