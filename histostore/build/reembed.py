"""Embedding images again whose files have changed since, on request.

A fragment never changes, so one that holds rows of a changed image is replaced: a new one holds
the new rows of that image and the old rows of the others, and its commit record says that the
old fragment does not count any more. One put does both: at every moment there are either the
old rows or the new ones, each once.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from histostore.build.gather import gather_fragments, patches_of
from histostore.build.pipeline import EncodedImage, Failure, encode_images
from histostore.errors import CorruptError
from histostore.store.checked import arrange, read_fragment
from histostore.store.compact import lineage
from histostore.store.streaming import FragmentStream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from histostore.build.pipeline import ImageJob
    from histostore.encoders.base import Encoder
    from histostore.files import Source
    from histostore.store import FeatureSet
    from histostore.store.record import Record

__all__ = ["embed_again", "find_stale"]

_READ_THREADS = 2


def find_stale(
    features: FeatureSet, image_ids: Sequence[str], sources: Mapping[str, Source | None]
) -> list[tuple[Record, tuple[int, ...]]]:
    """Find the fragments with rows of files that are no longer what was read.

    Parameters
    ----------
    features
        What is committed.
    image_ids
        The cohort, one id a row.
    sources
        By image id, as they are now.

    Returns
    -------
    stale
        Fragments, each with the rows of the cohort whose images are to be embedded again. An
        image whose views lie in several fragments appears with each.
    """
    rows = {image_id: row for row, image_id in enumerate(image_ids)}
    found = []
    for record in features.fragments:
        stale = tuple(
            rows[image_id]
            for image_id, then in zip(record.image_ids, record.source_documents, strict=True)
            if image_id in rows
            if (now := sources.get(image_id)) is not None
            if now.differs(then)
            # Rows of which another fragment's count instead are left alone.
            if any(features.index[image_id, view][0] is record for view in record.augmentations)
        )
        if stale:
            found.append((record, stale))
    return found


def embed_again(
    features: FeatureSet,
    fragment_id: str,
    jobs: Sequence[ImageJob],
    encoder: Encoder,
    *,
    provenance: Mapping[str, Any],
    storage_options: dict[str, Any] | None = None,
    on_image: Callable[[EncodedImage | Failure], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> tuple[list[EncodedImage], list[Failure]]:
    """Replace a fragment by one with new rows of some of its images.

    Images that cannot be embedded now keep their old rows. So do all if this is stopped before
    the last of them, or if somebody else has replaced the fragment since.

    Parameters
    ----------
    features
        From a store that is open for writing.
    fragment_id
        What to replace.
    jobs
        Images of it, where they are now.
    encoder
        The one of the feature set.
    provenance, storage_options, on_image, stopped
        As of :func:`~histostore.build.unit.build_unit`.

    Returns
    -------
    embedded, failed
        Images whose new rows count now, and those that could not be embedded.

    Raises
    ------
    StorageError
        If the storage refuses; the old rows count then.
    """
    record = next((each for each in features.fragments if each.fragment_id == fragment_id), None)
    if record is None:
        return [], []
    embedded: list[EncodedImage] = []
    failed: list[Failure] = []
    with ThreadPoolExecutor(_READ_THREADS) as pool:
        for image in encode_images(
            jobs,
            features.spec,
            encoder,
            record.augmentations,
            pool=pool,
            storage_options=storage_options,
            stopped=stopped,
            # Beside rows that are copied, new ones have to be held; one image has no others.
            stream=features.stream if len(record.image_ids) == 1 else None,
        ):
            on_image(image)
            if isinstance(image, Failure):
                failed.append(image)
            else:
                embedded.append(image)
    if embedded and len(embedded) + len(failed) == len(jobs):
        try:
            _replace(features, record, embedded, provenance)
        except CorruptError as error:
            reason = f"its old rows stay, what lies beside them is damaged: {error}"
            failed += [
                Failure(image_id=each.job.image_id, url=each.job.source.url, reason=reason)
                for each in embedded
            ]
            return [], failed
        return embedded, failed
    return [], failed


def _replace(
    features: FeatureSet,
    record: Record,
    embedded: Sequence[EncodedImage],
    provenance: Mapping[str, Any],
) -> None:
    """Commit new rows with the old ones of all other images."""
    views, replaces = record.augmentations, lineage([record])
    again = [image.job.image_id for image in embedded]
    told = {
        **provenance,
        "changed": {"fragment": record.fragment_id, "embedded": again},
        "provenance": dict(record.provenance),
    }
    rows = embedded[0].rows
    if isinstance(rows, FragmentStream):
        rows.commit(patches_of(embedded, views), told, replaces=replaces)
        return
    kept = [at for at, image_id in enumerate(record.image_ids) if image_id not in set(again)]
    parts = list(gather_fragments(embedded, views))
    if kept:
        parts.append(read_fragment(features.backend, features.name, record, kept))
    features.commit(arrange(parts, record.image_ids), told, replaces=replaces)
