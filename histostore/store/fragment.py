"""A fragment: the embeddings of a batch of images, as one immutable value."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import FormatError, summarise
from histostore.store.layout import is_column_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.files import Source

__all__ = ["Fragment", "Patches"]

_CHECKED_ROWS = 4096
"""Rows looked at in one go: what is thought about an embedding is smaller than it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Patches:
    """What a fragment holds beside the embedding.

    Rows of image *i* are ``offset[i]:offset[i + 1]`` of every array along ``patch``.

    Raises
    ------
    FormatError
        If the parts do not fit each other; ``problems`` lists everything found.
    """

    augmentations: tuple[str, ...]
    """Names of the views, in the order of the embedding's first axis."""

    image_ids: tuple[str, ...]
    """One per image, distinct."""

    offset: NDArray[np.int64]
    """``(image + 1)``, from 0 to the number of patches, rising: no image is empty."""

    y: NDArray[np.int32]
    """``(patch,)``, top edge in level-0 pixels."""

    x: NDArray[np.int32]
    """``(patch,)``, left edge in level-0 pixels."""

    tissue: NDArray[np.float32]
    """``(patch,)``, share of tissue, 0 to 1."""

    sources: tuple[Source, ...]
    """One per image: the file as it was when it was read."""

    flags: tuple[tuple[str, ...], ...]
    """One per image: what was odd about it, as ``no-tissue`` or ``small-image``."""

    columns: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    """By name, ``(patch,)`` float32, finite: what else is known of each patch."""

    def __post_init__(self) -> None:
        problems = list(_problems(self))
        if problems:
            raise FormatError(summarise("fragment", problems), problems=problems)

    @property
    def n_images(self) -> int:
        """Images held."""
        return len(self.image_ids)

    @property
    def n_patches(self) -> int:
        """Patches held, of all images together, counted once for all views."""
        return len(self.tissue)

    def with_embedding(self, embedding: NDArray[Any]) -> Fragment:
        """Make it a fragment."""
        parts = {each.name: getattr(self, each.name) for each in fields(Patches)}
        return Fragment(embedding=embedding, **parts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Fragment(Patches):
    """Embeddings of some images in one feature set, in one or more views.

    Rows of image *i* are ``offset[i]:offset[i + 1]`` of every array along ``patch``.

    Raises
    ------
    FormatError
        If the parts do not fit each other; ``problems`` lists everything found.

    Examples
    --------
    >>> from histostore.files import Source
    >>> fragment = Fragment(
    ...     embedding=np.ones((1, 3, 4), "f4"),
    ...     augmentations=("identity",),
    ...     image_ids=("a", "b"),
    ...     offset=np.array([0, 1, 3]),
    ...     y=np.zeros(3, "i4"),
    ...     x=np.zeros(3, "i4"),
    ...     tissue=np.ones(3, "f4"),
    ...     sources=(Source(url="a.png", size=1, version=None),) * 2,
    ...     flags=((), ("no-tissue",)),
    ... )
    >>> fragment.n_images, fragment.n_patches, fragment.n_features
    (2, 3, 4)
    """

    embedding: NDArray[Any]
    """``(augmentation, patch, feature)``, float16 or float32, finite."""

    @property
    def n_patches(self) -> int:
        """Patches held, of all images together, counted once for all views."""
        return int(self.embedding.shape[1])

    @property
    def n_features(self) -> int:
        """Width of a vector."""
        return int(self.embedding.shape[2])


def _problems(fragment: Patches) -> Iterator[str]:
    """Yield all that is wrong: names first, and the arrays only where names are sound."""
    yield from _name_problems("image_ids", fragment.image_ids)
    yield from _name_problems("augmentations", fragment.augmentations)
    n_images = len(fragment.image_ids)
    for name in ("sources", "flags"):
        count = len(getattr(fragment, name))
        if count != n_images:
            yield f"{name} has {count} entries for {n_images} images"
    if isinstance(fragment, Fragment):
        if fragment.embedding.ndim != 3:
            yield f"embedding has shape {fragment.embedding.shape}, not (augmentation, patch, feature)"
            return
        yield from _embedding_problems(fragment)
    yield from _offset_problems(fragment.offset, n_images, fragment.n_patches)
    for name, kind in (("y", np.int32), ("x", np.int32), ("tissue", np.float32)):
        yield from _column_problems(name, getattr(fragment, name), kind, fragment.n_patches)
    for name, column in fragment.columns.items():
        if not is_column_name(name):
            yield f"columns holds {name!r}: a name is like 'sharpness', and not one in use"
        yield from _column_problems(name, column, np.float32, fragment.n_patches)


def _name_problems(field: str, names: tuple[str, ...]) -> Iterator[str]:
    if not names:
        yield f"{field} is empty"
    if len(set(names)) != len(names):
        yield f"{field} repeats {next(name for name in names if names.count(name) > 1)!r}"
    for name in names:
        if not name:
            yield f"{field} holds an empty name"
        elif not _is_utf8(name):
            yield f"{field} holds {name!r}, which UTF-8 cannot express"


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _embedding_problems(fragment: Fragment) -> Iterator[str]:
    embedding = fragment.embedding
    if embedding.dtype not in (np.dtype(np.float16), np.dtype(np.float32)):
        yield f"embedding is {embedding.dtype}, not float16 or float32"
    else:
        # NaN is what an absent chunk reads as, so that it can never pass for a number.
        for start in range(0, embedding.shape[1], _CHECKED_ROWS):
            finite = np.isfinite(embedding[:, start : start + _CHECKED_ROWS]).all(axis=2)
            if not finite.all():
                view, patch = np.argwhere(~finite)[0]
                yield f"embedding is not finite at augmentation {view}, patch {start + patch}"
                break
    if embedding.shape[0] != len(fragment.augmentations):
        yield f"embedding has {embedding.shape[0]} views for {len(fragment.augmentations)} names"
    if embedding.shape[2] < 1:
        yield "embedding has no feature"


def _offset_problems(offset: NDArray[np.int64], n_images: int, n_patches: int) -> Iterator[str]:
    if offset.dtype != np.int64 or offset.shape != (n_images + 1,):
        yield f"offset is {offset.dtype} {offset.shape}, not int64 ({n_images + 1},)"
    elif offset[0] != 0 or offset[-1] != n_patches:
        yield f"offset runs from {offset[0]} to {offset[-1]}, not from 0 to {n_patches}"
    elif (np.diff(offset) < 1).any():
        yield f"image {int(np.argmax(np.diff(offset) < 1))} has no patch"


def _column_problems(
    field: str, column: NDArray[Any], kind: type[np.generic], n_patches: int
) -> Iterator[str]:
    if column.dtype != kind or column.shape != (n_patches,):
        yield f"{field} is {column.dtype} {column.shape}, not {np.dtype(kind)} ({n_patches},)"
    elif field == "tissue":
        if not ((column >= 0) & (column <= 1)).all():
            yield "tissue lies outside 0 to 1"
    elif field in ("y", "x"):
        if n_patches and column.min() < 0:
            yield f"{field} is negative; patches lie inside the image"
    elif not np.isfinite(column).all():
        yield f"{field} is not finite at patch {int(np.argmax(~np.isfinite(column)))}"
