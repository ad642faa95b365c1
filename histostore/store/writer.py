"""Committing a fragment: all its objects, made durable, and then one put that makes it count.

Killed at any instant before that put, a writer leaves objects that no reader looks at; after
it, the fragment is whole. Nothing is ever written in place, and no lock is held, so any
number of writers may commit at once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, OptionError, StorageError
from histostore.store.encoding import encoders
from histostore.store.layout import (
    Encoding,
    build_path,
    fragment_folder,
    join,
    metadata_path,
    new_id,
)
from histostore.store.record import (
    BLANK_DIGEST,
    DIGEST_NAME,
    Record,
    StoredObject,
    encode_record,
    parse_record,
    seal,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from concurrent.futures import Future

    from histostore.spec import FeatureSpec
    from histostore.store.backend import Backend
    from histostore.store.fragment import Fragment

__all__ = ["COMMIT_SECONDS", "commit_fragment", "put_build", "put_feature_set", "put_store"]

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 6 * 3600.0
"""A writer that took longer between its first object and its record gives up; see ``gc``."""


def put_store(backend: Backend) -> None:
    """Put the metadata that makes a URL a store."""
    backend.put(metadata_path(), _group({"format": 1}))


def put_feature_set(backend: Backend, spec: FeatureSpec) -> None:
    """Put the metadata of a feature set; two writers put the same bytes."""
    attributes = {"format": 1, "spec": spec.to_json(), "digest": spec.digest}
    backend.put(metadata_path(spec.name), _group(attributes))


def _group(attributes: Mapping[str, Any]) -> bytes:
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"histostore": dict(attributes)},
    }
    return json.dumps(document, sort_keys=True, indent=2, allow_nan=False).encode()


def put_build(backend: Backend, feature_set: str, document: Mapping[str, Any]) -> str:
    """Put the record of a build, sealed with its own digest; give its id.

    Raises
    ------
    OptionError
        If the document is not JSON.
    """
    build_id = new_id()
    content = _json({DIGEST_NAME: BLANK_DIGEST, **document}, "the record of a build")
    backend.put(build_path(feature_set, build_id), seal(content))
    return build_id


def commit_fragment(
    backend: Backend,
    spec: FeatureSpec,
    fragment: Fragment,
    *,
    provenance: Mapping[str, Any],
    encoding: Encoding | None = None,
    replaces: Iterable[str] = (),
) -> Record:
    """Write a fragment and make it count.

    Parameters
    ----------
    backend
        Where the store lies.
    spec
        The feature set's specification; dtype and width must be the fragment's.
    fragment
        What to commit.
    provenance
        JSON values that say how it came about.
    encoding
        How to cut and pack the embedding.
    replaces
        Ids of committed fragments that shall not count once this one does.

    Returns
    -------
    record
        What a reader will find.

    Raises
    ------
    OptionError
        If the fragment does not fit the feature set, or the provenance is not JSON.
    StorageError
        If the storage refuses, or took so long that the objects may have been cleared away;
        then the fragment does not count.
    """
    _check(fragment, spec)
    _json(provenance, "the provenance of a fragment")
    began = time.time()
    fragment_id = new_id()
    folder = fragment_folder(spec.name, fragment_id)
    metadata: dict[str, Any] = {}
    objects: dict[str, StoredObject] = {}
    try:
        with ThreadPoolExecutor(backend.threads) as pool:
            writes: set[Future[None]] = set()
            for path, content in _objects(fragment, encoding or Encoding(), metadata):
                objects[path] = StoredObject(n_bytes=len(content), sha256=_sha256(content))
                writes.add(pool.submit(backend.write, join(folder, path), content))
                # At most one object per thread is held: memory does not grow with the fragment.
                if len(writes) >= backend.threads:
                    writes = _settled(writes, FIRST_COMPLETED)
            _settled(writes, "ALL_COMPLETED")
        backend.settle(join(folder, path) for path in objects)
        _check_pace(time.time() - began, fragment_id)
    except BaseException:
        # The record has not been put, so nobody can have seen these.
        backend.discard([join(folder, path) for path in objects])
        raise
    content = encode_record(
        fragment,
        fragment_id,
        feature_set=spec.digest,
        metadata=metadata,
        objects=objects,
        provenance=provenance,
        replaces=replaces,
    )
    record = parse_record(content, fragment_id, feature_set=spec.digest)
    if record is None:
        raise HistostoreError(f"fragment {fragment_id}: its own commit record is not one")
    # If this put fails, it may still have happened: the objects stay, for gc to judge.
    backend.put(metadata_path(folder), content)
    logger.info("committed fragment %s of %s: %d images", fragment_id, spec.name, fragment.n_images)
    return record


def _objects(
    fragment: Fragment, encoding: Encoding, metadata: dict[str, Any]
) -> Iterator[tuple[str, bytes]]:
    """Yield every object but the record; fill in the metadata of each array on the way."""
    for encoder in encoders(fragment, encoding):
        metadata[encoder.name] = encoder.metadata
        yield from encoder.objects()


def _settled(writes: set[Future[None]], when: str) -> set[Future[None]]:
    """Wait, raise what a write has raised, and give the writes that still run."""
    done, running = wait(writes, return_when=when)
    for write in done:
        write.result()
    return running


def _check(fragment: Fragment, spec: FeatureSpec) -> None:
    found = (fragment.n_features, str(fragment.embedding.dtype))
    if found != (spec.n_features, spec.dtype):
        raise OptionError(
            f"the fragment holds {found[0]} features as {found[1]}; "
            f"feature set {spec.name} has {spec.n_features} as {spec.dtype}"
        )


def _check_pace(seconds: float, fragment_id: str) -> None:
    """Refuse to commit what ``gc`` may take for the leavings of a writer that is long dead."""
    if seconds > COMMIT_SECONDS:
        raise StorageError(
            f"fragment {fragment_id} took {seconds / 3600:.1f} hours to write, was the machine "
            "asleep? What was written may be gone: run the same again"
        )


def _json(document: Mapping[str, Any], subject: str) -> bytes:
    try:
        return json.dumps(dict(document), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise OptionError(f"{subject} is not JSON: {error}") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
