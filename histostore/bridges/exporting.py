"""Export: a feature set of a store, in another's layout."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from histostore.bridges.catalog import EXPORTS, find
from histostore.bridges.outgoing import ExportJob
from histostore.bridges.report import ExportReport
from histostore.bridges.target import Target
from histostore.build.report import Counter
from histostore.files import public_url
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.build.report import Progress

__all__ = ["export_layout"]


def export_layout(
    store_url: str | os.PathLike[str],
    target: str | os.PathLike[str],
    layout: str,
    *,
    feature_set: str | None = None,
    augmentation: str = "identity",
    overwrite: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ExportReport:
    """Write a feature set in another's layout.

    Images are read in batches of at most 64 MiB, or one by one where one is larger, and every
    checksum is verified. Ids become file names by :func:`histostore.bridges.naming.escape`.

    Parameters
    ----------
    store_url
        The store.
    target
        Folder to write to; for ``anndata``, ``parquet`` and ``npz`` the one thing to write.
    layout
        One of :data:`histostore.bridges.EXPORTS`.
    feature_set
        Needed where the store has several.
    augmentation
        The view; images without it are left out, and counted.
    overwrite
        Write even if something is there. Files of other names stay, so a folder that held
        more images before still does.
    storage_options
        For the storage driver, of the store and of the target.
    progress
        Called after every batch.

    Returns
    -------
    report
        What was written.

    Raises
    ------
    OptionError
        If the layout is unknown, the target is there, or an id cannot be a name in it.
    NotFound, Ambiguous
        If the feature set or the view is not there, or which one is meant is not clear.
    CorruptError
        If stored bytes fail their checksum.
    StorageError, MissingExtra
        If the storage refuses, or an optional library is absent.
    """
    began = time.monotonic()
    card, target = find(layout, EXPORTS), os.fspath(target)
    storage = dict(storage_options or {})
    features = open_store(store_url, storage).feature_set(feature_set)
    place = Target(target, storage)
    if not overwrite:
        place.refuse_if_taken()
    counter = Counter(len(features.image_ids), progress)
    job = ExportJob(
        features=features,
        augmentation=augmentation,
        target=place,
        told=lambda n_images, n_patches: counter.add(
            n_images=n_images, n_patches=n_patches, n_failed=0
        ),
    )
    n_images = len(job.n_rows)
    n_files = card.load()(job)
    return ExportReport(
        layout=layout,
        target=public_url(target),
        feature_set=features.name,
        augmentation=augmentation,
        n_images=n_images,
        n_left_out=len(features.image_ids) - n_images,
        n_patches=job.n_patches,
        n_files=n_files,
        seconds=time.monotonic() - began,
    )
