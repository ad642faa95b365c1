"""The commit record: what a fragment's ``zarr.json`` says, checked to the last byte.

The document is an ordinary Zarr v3 group with inline consolidated metadata. Its attribute
``histostore`` holds ids, counts, sources and digests, and ``record_sha256``: the SHA-256 of
the document's own bytes, with the digits of that digest replaced by zeros.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from histostore.errors import CorruptError, FormatError, VersionError, summarise
from histostore.files import Source
from histostore.store.layout import ARRAYS, FORMAT, is_column

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from histostore.store.fragment import Patches

__all__ = [
    "BLANK_DIGEST",
    "DIGEST_NAME",
    "ArrayLayout",
    "Record",
    "StoredObject",
    "check_digest",
    "check_format",
    "encode_record",
    "parse_array",
    "parse_build",
    "parse_record",
    "seal",
]

DIGEST_NAME = "record_sha256"
"""Key of the digest that a document carries of itself."""

_DIGEST_KEY = f'"{DIGEST_NAME}": "'.encode()
BLANK_DIGEST = "0" * 64
_GROUP_KEYS = frozenset({"zarr_format", "node_type", "attributes"})
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC = {"name": "crc32c"}


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredObject:
    """One object of a fragment, as it was put."""

    n_bytes: int
    """Its length."""

    sha256: str
    """Digest of its content. The CRC32C of a chunk that ends in its own CRC32C is the same
    number for every chunk, and so would tell nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArrayLayout:
    """How one array lies in its objects."""

    shape: tuple[int, ...]
    """Shape of the array."""

    kind: str
    """Zarr data type."""

    shard: tuple[int, ...]
    """Shape that one object holds."""

    chunk: tuple[int, ...]
    """Shape that one checksum covers."""

    sharded: bool
    """Whether an object begins with an index of chunks, or is one bare chunk."""

    compressor: str | None
    """Name of the codec between the bytes and their checksum, if any."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Record:
    """What a committed fragment says of itself."""

    fragment_id: str
    """Its name; sorts by time of creation."""

    image_ids: tuple[str, ...]
    """One per image."""

    n_patches: tuple[int, ...]
    """One per image."""

    augmentations: tuple[str, ...]
    """Names of the views, in the order of the embedding's first axis."""

    flags: tuple[tuple[str, ...], ...]
    """One per image."""

    arrays: Mapping[str, ArrayLayout]
    """Layout by name, from the consolidated metadata."""

    objects: Mapping[str, StoredObject]
    """What the fragment consists of, by path inside it; the record itself apart."""

    provenance: Mapping[str, Any]
    """How it came about, as the build says; JSON values."""

    source_documents: tuple[Mapping[str, Any], ...]
    """One per image: :class:`~histostore.files.Source` as JSON, turned into one on demand."""

    replaces: tuple[str, ...] = ()
    """Fragments that do not count any more since this one is there."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns per patch; arrays of any other kind are not looked at."""
        return tuple(name for name, at in self.arrays.items() if is_column(name, at.kind, at.shape))

    def source(self, image: int) -> Source:
        """Give the source of the image at position ``image``, as it was when it was read."""
        return Source.from_json(self.source_documents[image])


def check_format(found: object, subject: str) -> None:
    """Refuse a format that is newer than ours, or none.

    Raises
    ------
    VersionError
        Naming both versions.
    FormatError
        If ``found`` is no version at all.
    """
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise FormatError(f"{subject}: format is {found!r}, not a version number")
    if found > FORMAT:
        raise VersionError(
            f"{subject} has store format {found}; this version of histostore reads up to "
            f"{FORMAT}: upgrade histostore"
        )


def encode_record(
    fragment: Patches,
    fragment_id: str,
    *,
    feature_set: str,
    metadata: Mapping[str, Mapping[str, Any]],
    objects: Mapping[str, StoredObject],
    provenance: Mapping[str, Any],
    replaces: Iterable[str] = (),
) -> bytes:
    """Write the commit record.

    Parameters
    ----------
    fragment
        What was stored.
    fragment_id
        Its name.
    feature_set
        Full digest of the specification.
    metadata
        Each array's own ``zarr.json``, by name.
    objects
        All other objects of the fragment, by path.
    provenance
        JSON values.
    replaces
        Ids of fragments that shall not count any more.

    Returns
    -------
    document
        The bytes of ``zarr.json``.
    """
    bounds = fragment.offset.tolist()
    commit = {
        "format": FORMAT,
        DIGEST_NAME: BLANK_DIGEST,
        "fragment": fragment_id,
        "feature_set": feature_set,
        "image_id": list(fragment.image_ids),
        "n_patches": [stop - start for start, stop in pairwise(bounds)],
        "augmentation": list(fragment.augmentations),
        "source": [source.to_json() for source in fragment.sources],
        "flags": [list(flags) for flags in fragment.flags],
        "objects": {path: [item.n_bytes, item.sha256] for path, item in objects.items()},
        "provenance": dict(provenance),
    }
    if replaced := sorted(set(replaces)):
        commit["replaces"] = replaced
    document = {
        "zarr_format": 3,
        "node_type": "group",
        "attributes": {"histostore": commit},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(metadata),
        },
    }
    return seal(json.dumps(document, allow_nan=False).encode())


def parse_record(
    content: bytes, fragment_id: str, *, feature_set: str, damaged: bool = False
) -> Record | None:
    """Read a fragment's ``zarr.json``.

    Parameters
    ----------
    content
        The bytes of the document.
    fragment_id
        Name of the folder in which it lies.
    feature_set
        Full digest that it must be of.
    damaged
        Take the document although it is not what was written: every word of it must then be
        found elsewhere too before it may be believed.

    Returns
    -------
    record
        None if this is the bare group that a Zarr writer leaves before it commits.

    Raises
    ------
    CorruptError
        If the bytes are not those that were written.
    VersionError
        If a newer format wrote it.
    FormatError
        If it is anything else; ``problems`` lists all that is wrong.
    """
    subject = f"fragment {fragment_id}"
    try:
        document = (
            json.loads(content.decode(errors="replace"), strict=False)
            if damaged
            else json.loads(content)
        )
    except ValueError as error:
        raise CorruptError(f"{subject}: its commit record is not JSON ({error})") from error
    if not isinstance(document, dict):
        raise CorruptError(f"{subject}: its commit record is not a JSON object")
    if document.keys() <= _GROUP_KEYS | {"consolidated_metadata"} and (
        document.get("consolidated_metadata") is None or not document.get("attributes")
    ):
        return None
    try:
        commit = document["attributes"]["histostore"]
        check_format(commit["format"], subject)
        if not damaged:
            check_digest(content, commit[DIGEST_NAME], f"{subject}: its commit record")
        metadata = document["consolidated_metadata"]["metadata"]
        record = _record(commit, metadata)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        reason = f"no key {error}" if isinstance(error, KeyError) else error
        raise FormatError(f"{subject}: its commit record does not parse: {reason}") from error
    problems = list(_problems(record, commit, fragment_id, feature_set))
    if problems:
        raise FormatError(summarise(subject, problems), problems=problems)
    return record


def seal(content: bytes) -> bytes:
    """Put the digest of a document into it, in place of :data:`BLANK_DIGEST`."""
    start = content.index(_DIGEST_KEY) + len(_DIGEST_KEY)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content[:start] + digest + content[start + len(BLANK_DIGEST) :]


def check_digest(content: bytes, stored: str, subject: str) -> None:
    """Hold a sealed document against the digest in it.

    Raises
    ------
    CorruptError
        If it is not what was written.
    """
    start = content.find(_DIGEST_KEY) + len(_DIGEST_KEY)
    blanked = content[:start] + BLANK_DIGEST.encode() + content[start + len(BLANK_DIGEST) :]
    if hashlib.sha256(blanked).hexdigest() != stored:
        raise CorruptError(f"{subject} fails its SHA-256; histostore verify --repair")


def parse_build(content: bytes, build_id: str) -> dict[str, Any]:
    """Read the record of a build; the digest in it is checked, and left out.

    Raises
    ------
    CorruptError
        If it is not what was written.
    """
    subject = f"record of build {build_id}"
    try:
        document = json.loads(content)
    except ValueError as error:
        raise CorruptError(
            f"{subject} is not JSON ({error}); histostore verify --repair"
        ) from error
    if not isinstance(document, dict):
        raise CorruptError(f"{subject} is not a JSON object; histostore verify --repair")
    name, first = next(iter(document.items()), ("", ""))
    # Records without a digest are read as they are. A text of this length in its place is a
    # digest, whatever has become of its name.
    if isinstance(first, str) and len(first) >= len(BLANK_DIGEST) - 4:
        check_digest(content, first, subject)
        del document[name]
    return document


def _record(commit: Mapping[str, Any], metadata: Mapping[str, Any]) -> Record:
    return Record(
        fragment_id=commit["fragment"],
        image_ids=tuple(commit["image_id"]),
        n_patches=tuple(commit["n_patches"]),
        augmentations=tuple(commit["augmentation"]),
        flags=tuple(map(tuple, commit["flags"])),
        arrays={name: parse_array(name, document) for name, document in metadata.items()},
        objects={
            path: StoredObject(n_bytes=n_bytes, sha256=digest)
            for path, (n_bytes, digest) in commit["objects"].items()
        },
        provenance=commit["provenance"],
        source_documents=tuple(commit["source"]),
        replaces=tuple(commit.get("replaces", ())),
    )


def parse_array(name: str, document: Mapping[str, Any]) -> ArrayLayout:
    """Read the metadata of one array.

    Raises
    ------
    FormatError
        If it is cut or encoded in a way that format 1 does not have.
    """
    codecs = document["codecs"]
    outer = tuple(document["chunk_grid"]["configuration"]["chunk_shape"])
    inner, sharded = outer, codecs[0]["name"] == "sharding_indexed"
    if sharded:
        sharding = codecs[0]["configuration"]
        inner, codecs = tuple(sharding["chunk_shape"]), sharding["codecs"]
        if sharding["index_location"] != "start" or sharding["index_codecs"] != [_BYTES, _CRC]:
            raise FormatError(f"array {name}: its shard index is not of format {FORMAT}")
    serialiser, *compressors, checksum = codecs
    known = serialiser == _BYTES or serialiser["name"] in ("vlen-utf8", "bytes")
    if checksum["name"] != _CRC["name"] or len(compressors) > 1 or not known:
        names = ", ".join(codec["name"] for codec in codecs)
        raise FormatError(f"array {name}: codecs {names} are not of format {FORMAT}")
    return ArrayLayout(
        shape=tuple(document["shape"]),
        kind=document["data_type"],
        shard=outer,
        chunk=inner,
        sharded=sharded,
        compressor=compressors[0]["name"] if compressors else None,
    )


def _problems(
    record: Record, commit: Mapping[str, Any], fragment_id: str, feature_set: str
) -> Iterator[str]:
    """Compare what the record says with where it lies and with the arrays' metadata."""
    if record.fragment_id != fragment_id:
        yield f"its commit record is that of fragment {record.fragment_id}"
    if commit["feature_set"] != feature_set:
        yield f"it belongs to feature set {commit['feature_set'][:8]}, not {feature_set[:8]}"
    missing = ARRAYS.keys() - record.arrays.keys()
    if missing:
        yield f"arrays {', '.join(sorted(missing))} are missing"
        return
    n_images, n_patches = len(record.image_ids), sum(record.n_patches)
    shapes: dict[str, tuple[int, ...]] = {
        "embedding": (
            len(record.augmentations),
            n_patches,
            record.arrays["embedding"].shape[-1],
        ),
        "augmentation": (len(record.augmentations),),
        "image_id": (n_images,),
        "offset": (n_images + 1,),
        **dict.fromkeys(("y", "x", "tissue", *record.columns), (n_patches,)),
    }
    for name, shape in shapes.items():
        if record.arrays[name].shape != shape:
            yield f"array {name} has shape {record.arrays[name].shape}, the record says {shape}"
    for field in ("n_patches", "flags", "source_documents"):
        if len(getattr(record, field)) != n_images:
            yield f"{field} has {len(getattr(record, field))} entries for {n_images} images"
