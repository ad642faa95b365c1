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
from typing import TYPE_CHECKING, Any, Self

from histostore.errors import HistostoreError, OptionError, StorageError
from histostore.store.encoding import encode_embedding, encode_patches
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
    from collections.abc import Iterable, Mapping
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from histostore.spec import FeatureSpec
    from histostore.store.backend import Backend
    from histostore.store.encoding import ArrayEncoder
    from histostore.store.fragment import Fragment, Patches

__all__ = [
    "COMMIT_SECONDS",
    "FragmentWriter",
    "check_provenance",
    "commit_fragment",
    "put_build",
    "put_feature_set",
    "put_store",
]

logger = logging.getLogger(__name__)

COMMIT_SECONDS = 6 * 3600.0
"""A writer that took longer between one object and the next gives up; see ``gc``."""


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
    check_provenance(provenance)
    encoding = encoding or Encoding()
    with FragmentWriter(backend, spec) as writer:
        for encoder, values in (
            encode_embedding(fragment.embedding, encoding),
            *encode_patches(fragment, encoding),
        ):
            writer.add_array(encoder, values)
        return writer.commit(fragment, provenance=provenance, replaces=replaces)


def check_provenance(provenance: Mapping[str, Any]) -> None:
    """Refuse, before anything is written, what no record can hold.

    Raises
    ------
    OptionError
        If it is not JSON.
    """
    _json(provenance, "the provenance of a fragment")


class FragmentWriter:
    """A fragment on its way: objects written one by one, and the record that makes it count.

    As a context it removes what was written if it is left by an error before the record.

    Parameters
    ----------
    backend
        Where the store lies.
    spec
        The feature set's specification.
    at_once
        Objects under way at most, that is, held in memory; as many as the storage likes if
        None.
    """

    def __init__(self, backend: Backend, spec: FeatureSpec, *, at_once: int | None = None) -> None:
        self.fragment_id = new_id()
        self._backend = backend
        self._spec = spec
        self._folder = fragment_folder(spec.name, self.fragment_id)
        self._metadata: dict[str, Any] = {}
        self._objects: dict[str, StoredObject] = {}
        self._last: float | None = None
        self._at_once = min(at_once or backend.threads, backend.threads)
        # Its threads begin with the first object.
        self._pool = ThreadPoolExecutor(self._at_once)
        self._writes: set[Future[None]] = set()
        self._ended = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self.discard()

    def add_array(self, encoder: ArrayEncoder, values: NDArray[Any]) -> None:
        """Write all objects of an array."""
        self._metadata[encoder.name] = encoder.metadata
        for path, content in encoder.objects(values):
            self._add(path, content)

    def add_head(self, encoder: ArrayEncoder) -> None:
        """Write the metadata of an array of which the shards come later."""
        self._metadata[encoder.name] = encoder.metadata
        self._add(*encoder.head)

    def add_shard(
        self, encoder: ArrayEncoder, corner: tuple[int, ...], values: NDArray[Any]
    ) -> None:
        """Write one shard of an array."""
        for path, content in encoder.encode(corner, values):
            self._add(path, content)

    def _add(self, path: str, content: bytes) -> None:
        self._check_pace()
        self._objects[path] = StoredObject(
            n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest()
        )
        target = join(self._folder, path)
        self._writes.add(self._pool.submit(self._backend.write, target, content))
        # No more objects than these are held: memory does not grow with the fragment.
        if len(self._writes) >= self._at_once:
            self._writes = _settled(self._writes, FIRST_COMPLETED)

    def commit(
        self, patches: Patches, *, provenance: Mapping[str, Any], replaces: Iterable[str] = ()
    ) -> Record:
        """Make all that was written durable, and put the record.

        Raises
        ------
        StorageError
            If the storage refuses, or took so long that objects may have been cleared away.
        """
        _settled(self._writes, "ALL_COMPLETED")
        self._pool.shutdown()
        self._backend.settle(join(self._folder, path) for path in self._objects)
        self._check_pace()
        content = encode_record(
            patches,
            self.fragment_id,
            feature_set=self._spec.digest,
            metadata=self._metadata,
            objects=self._objects,
            provenance=provenance,
            replaces=replaces,
        )
        record = parse_record(content, self.fragment_id, feature_set=self._spec.digest)
        if record is None:
            raise HistostoreError(f"fragment {self.fragment_id}: its own commit record is not one")
        # If this put fails, it may still have happened: the objects stay, for gc to judge.
        self._ended = True
        self._backend.put(metadata_path(self._folder), content)
        logger.info(
            "committed fragment %s of %s: %d images",
            self.fragment_id,
            self._spec.name,
            patches.n_images,
        )
        return record

    def discard(self) -> None:
        """Remove what was written; without effect once the record was put."""
        if self._ended:
            return
        self._ended = True
        self._pool.shutdown(cancel_futures=True)
        # The record has not been put, so nobody can have seen these.
        self._backend.discard([join(self._folder, path) for path in self._objects])

    def _check_pace(self) -> None:
        """Refuse to go on where ``gc`` may have taken this for what a dead writer left."""
        now = time.time()
        seconds = 0.0 if self._last is None else now - self._last
        self._last = now
        if seconds > COMMIT_SECONDS:
            raise StorageError(
                f"fragment {self.fragment_id} lay still for {seconds / 3600:.1f} hours, was the "
                "machine asleep? What was written may be gone: run the same again"
            )


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


def _json(document: Mapping[str, Any], subject: str) -> bytes:
    try:
        return json.dumps(dict(document), allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise OptionError(f"{subject} is not JSON: {error}") from error
