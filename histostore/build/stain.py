"""Which target the colours of a build go to: given, found in the store, or measured."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.build.pipeline import prefetch
from histostore.errors import (
    Ambiguous,
    FormatError,
    ImageError,
    MissingExtra,
    NotFound,
    OptionError,
    StorageError,
)
from histostore.files import public_url, read_bytes
from histostore.images.patches import THUMBNAIL_PX
from histostore.images.readers import open_image
from histostore.images.stain import StainTarget, measure, pool
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from histostore.cohort import Cohort
    from histostore.images.stain import Measurement
    from histostore.spec import FeatureSpec
    from histostore.store.reader import Store

__all__ = ["MOST_IMAGES", "FoundTarget", "find_target", "load_target", "measure_cohort"]

MOST_IMAGES = 2000
"""Images that are measured, spread evenly over a larger cohort."""

_THREADS = 2
_AHEAD = 6
_FEATURE_SET = re.compile(r"[a-z0-9_][a-z0-9._-]*-[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundTarget:
    """A target, and where it was found."""

    target: StainTarget
    origin: str


def find_target(
    spec: FeatureSpec,
    cohort: Cohort,
    store_url: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FoundTarget:
    """Find the target of a method that was asked for without one.

    If the store holds a feature set that is the same but for the target, its target it is:
    so a build goes on where it was, and images that are added look like those that are
    there. Else the cohort is measured (:func:`measure_cohort`).

    Parameters
    ----------
    spec
        The feature set wanted; its ``stain`` is the name of the method.
    cohort
        All images, whichever of them are embedded now: every part of a cohort that is built
        in parts then finds the same target.
    store_url
        Where the store is, or shall be.
    storage_options
        For the storage driver.
    progress
        Told how many images are measured, of how many.

    Raises
    ------
    Ambiguous
        If the store holds several such feature sets; lists them.
    OptionError
        If the cohort gives no target.
    """
    store = _store_at(store_url, storage_options)
    plain = replace(spec, stain="none")
    alike = {} if store is None else _targets(store, spec.stain, plain)
    if len(set(alike.values())) > 1:
        raise Ambiguous(
            f"{public_url(store_url)} holds {len(alike)} feature sets like this one, with other "
            f"{spec.stain} targets; name one by --stain-from {public_url(store_url)}/NAME: "
            f"{', '.join(alike)}"
        )
    if alike:
        name, target = next(iter(alike.items()))
        return FoundTarget(target=target, origin=f"{name} in the store")
    target = measure_cohort(
        cohort, str(spec.stain), storage_options=storage_options, progress=progress
    )
    return FoundTarget(target=target, origin=f"measured of {public_url(cohort.url)}")


def load_target(
    url: str, method: str = "none", storage_options: Mapping[str, Any] | None = None
) -> FoundTarget:
    """Take the target from a feature set, or from a file.

    Parameters
    ----------
    url
        A store; a store and the name of a feature set in it, as ``STORE/texture-1a2b3c4d``;
        or a JSON file that holds what :meth:`StainTarget.to_json` gives.
    method
        The method wanted; ``none`` takes whichever it is.
    storage_options
        For the storage driver.

    Raises
    ------
    NotFound
        If there is no target (of the method), or no store.
    Ambiguous
        If the store holds several; lists them.
    FormatError
        If the file holds something else.
    """
    if url.endswith(".json"):
        found = {url: _read_target(read_bytes(url, storage_options), url)}
    else:
        parent, _, name = url.rstrip("/").rpartition("/")
        if _FEATURE_SET.fullmatch(name):
            store = open_store(parent, storage_options)
            found = _targets(store, names=[store[name].name])
        else:
            found = _targets(open_store(url, storage_options))
    wanted = {name: target for name, target in found.items() if method in ("none", target.method)}
    if not wanted:
        kind = "normalised" if method == "none" else f"normalised by {method}"
        raise NotFound(f"{public_url(url)} holds no feature set that is {kind}")
    if len(set(wanted.values())) > 1:
        raise Ambiguous(
            f"{public_url(url)} holds several stain targets; add the feature set to the URL: "
            f"{', '.join(wanted)}"
        )
    name, target = next(iter(wanted.items()))
    return FoundTarget(target=target, origin=public_url(name))


def measure_cohort(
    cohort: Cohort,
    method: str,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StainTarget:
    """Measure a cohort: one thumbnail an image, :data:`MOST_IMAGES` at most.

    Where the cohort has a column ``split``, only images marked ``train`` count: what is held
    out shall not be known. Images that cannot be read, or have too little stain, do not count.

    Parameters
    ----------
    cohort
        The images.
    method
        ``reinhard`` or ``macenko``.
    storage_options
        For the storage driver.
    progress
        Told how many images are measured, of how many.

    Raises
    ------
    OptionError
        If no image counts, or none is marked for training.
    """
    rows = _training_rows(cohort)
    if len(rows) > MOST_IMAGES:
        rows = rows[np.linspace(0, len(rows) - 1, MOST_IMAGES).astype(np.int64)]
    work = partial(_measure, cohort, method, dict(storage_options or {}))

    def found() -> Iterator[Measurement]:
        with ThreadPoolExecutor(_THREADS) as threads:
            # In the cohort's order, whoever is ready first: the sum is the same every time.
            results = prefetch(threads, work, rows.tolist(), depth=_AHEAD)
            for done, result in enumerate(results, start=1):
                if progress is not None:
                    progress(done, len(rows))
                if result is not None:
                    yield result

    return pool(method, found())


def _training_rows(cohort: Cohort) -> np.ndarray[Any, np.dtype[np.int64]]:
    if not cohort.has("split"):
        return np.arange(len(cohort))
    rows = np.flatnonzero(cohort.column("split") == "train")
    if len(rows) == 0:
        raise OptionError(
            f"no image of {public_url(cohort.url)} is marked train in its column split: take the "
            "target of the training cohort, by --stain-from STORE"
        )
    return rows


def _measure(
    cohort: Cohort, method: str, storage_options: dict[str, Any], row: int
) -> Measurement | None:
    try:
        reader = open_image(cohort.urls[row], storage_options, cohort.mpp[row])
        with closing(reader):
            return measure(reader.thumbnail(THUMBNAIL_PX), method)
    except (ImageError, StorageError, MissingExtra):
        return None  # the build itself records it, with the reason


def _store_at(url: str, storage_options: Mapping[str, Any] | None) -> Store | None:
    try:
        return open_store(url, storage_options)
    except NotFound:
        return None


def _targets(
    store: Store,
    method: object = None,
    like: FeatureSpec | None = None,
    names: list[str] | None = None,
) -> dict[str, StainTarget]:
    """Give the targets of feature sets, by name; of a method, and of those like one, if asked."""
    targets = {}
    for name in store if names is None else names:
        if like is not None and name.rpartition("-")[0] != like.name.rpartition("-")[0]:
            continue  # another encoder: not even opened
        spec = store[name].spec
        if (
            isinstance(spec.stain, StainTarget)
            and (method is None or spec.stain.method == method)
            and (like is None or replace(spec, stain="none").digest == like.digest)
        ):
            targets[name] = spec.stain
    return targets


def _read_target(content: bytes, url: str) -> StainTarget:
    try:
        return StainTarget.from_json(json.loads(content))
    except ValueError as error:  # FormatError is one
        raise FormatError(f"{public_url(url)}: {error}") from error
