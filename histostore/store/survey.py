"""What documents there are in a store, read one by one, so that damage to one hides no other.

Opening a store stops at the first document that is damaged; a survey names it and goes on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histostore.errors import FormatError, NotFound, StorageError
from histostore.store.layout import (
    build_path,
    builds_folder,
    fragment_folder,
    fragments_folder,
    metadata_path,
)
from histostore.store.reader import check_store, parse_feature_set
from histostore.store.record import parse_build, parse_record

if TYPE_CHECKING:
    from histostore.spec import FeatureSpec
    from histostore.store.protocol import Backend
    from histostore.store.record import Record

__all__ = ["Problem", "Survey", "survey"]

_SHOWN_IMAGES = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is not what was written."""

    kind: str
    """What is damaged: ``store``, ``feature-set``, ``build`` or ``record`` (a document),
    ``object``; or ``values``, where the bytes are those that were written, and wrong."""

    path: str
    """The object: inside its fragment if there is one, else inside the store."""

    what: str
    """What is wrong with it."""

    feature_set: str | None = None
    fragment: str | None = None
    """Where it lies."""

    chunks: tuple[int, ...] = ()
    """Positions in the object of the chunks that are damaged, as far as that can be told."""

    image_ids: tuple[str, ...] = ()
    """Images whose rows are damaged."""

    unreadable: bool = False
    """The storage refused: nothing is known of the object itself."""

    def __str__(self) -> str:
        parts = [self.feature_set, f"fragment {self.fragment}" if self.fragment else None]
        parts += [self.path if self.fragment or not self.feature_set else None]
        if self.kind in ("store", "feature-set", "build"):
            parts = [self.path]
        if self.chunks:
            parts.append("chunk " + ", ".join(map(str, self.chunks[:8])))
        named = ", ".join(self.image_ids[:_SHOWN_IMAGES])
        more = len(self.image_ids) - _SHOWN_IMAGES
        images = f" (images {named}{f' and {more} more' if more > 0 else ''})" if named else ""
        return f"{', '.join(part for part in parts if part)}: {self.what}{images}"


@dataclass(kw_only=True, slots=True)
class Survey:
    """The documents of a store."""

    specs: dict[str, FeatureSpec] = field(default_factory=dict)
    """By name of the feature set."""

    fragments: dict[str, tuple[Record, ...]] = field(default_factory=dict)
    """Records of the fragments that count, by name of the feature set."""

    problems: list[Problem] = field(default_factory=list)
    """Documents that are damaged."""

    uncommitted: tuple[str, ...] = ()
    """Folders of fragments without a commit record."""

    n_replaced: int = 0
    """Fragments that others replaced."""

    n_builds: int = 0
    """Records of builds."""


def survey(backend: Backend, *, feature_set: str | None = None) -> Survey:
    """Read all documents of a store.

    Raises
    ------
    NotFound
        If nothing is there, or not the feature set asked for.
    FormatError
        If something else is there.
    StorageError
        If the storage refuses altogether.
    """
    found = Survey()
    names = [name for name in backend.names("") if name != metadata_path()]
    damage = _check_root(backend)
    for name in names:
        if feature_set in (None, name):
            _survey_feature_set(backend, name, found)
    if damage is not None:
        if not (found.specs or found.problems):
            raise damage
        found.problems.insert(0, Problem(kind="store", path=metadata_path(), what=damage.message))
    if feature_set is not None and feature_set not in names:
        raise NotFound(
            f"{backend.url} holds no feature set {feature_set!r}; it holds {', '.join(names)}"
        )
    return found


def _check_root(backend: Backend) -> FormatError | NotFound | None:
    content = backend.read(metadata_path())
    if content is None:
        return NotFound(f"no store at {backend.url}: it has no zarr.json")
    try:
        check_store(content, backend.url)
        _check_group(content, backend.url)
    except FormatError as error:
        return error
    return None


def _check_group(content: bytes, subject: str) -> dict[str, Any]:
    """Hold a document that carries no digest against what format 1 says of it."""
    document: dict[str, Any] = json.loads(content)
    if document.get("zarr_format") != 3 or document.get("node_type") != "group":
        raise FormatError(f"{subject}: its zarr.json is not that of a Zarr v3 group")
    return document


def _survey_feature_set(backend: Backend, name: str, found: Survey) -> None:
    folders = backend.names(fragments_folder(name))
    path = metadata_path(name)
    try:
        content = backend.read(path)
        if content is None and not folders:
            return  # no feature set at all: something else that lies there
        spec = _parse_spec(content, name)
    except (FormatError, StorageError) as error:
        found.problems.append(
            Problem(
                kind="feature-set",
                feature_set=name,
                path=path,
                what=error.message,
                unreadable=isinstance(error, StorageError),
            )
        )
        return
    found.specs[name] = spec
    _survey_fragments(backend, name, folders, found)
    _survey_builds(backend, name, found)


def _parse_spec(content: bytes | None, name: str) -> FeatureSpec:
    if content is None:
        raise FormatError("it is missing, and there are fragments below it")
    spec = parse_feature_set(content, name)
    document = _check_group(content, name)
    if document["attributes"]["histostore"]["spec"] != spec.to_json():
        raise FormatError("its specification is not written as format 1 says")
    return spec


def _parse_record(
    content: bytes | StorageError | None, folder: str, spec: FeatureSpec
) -> Record | None:
    if isinstance(content, StorageError):
        raise content
    record = None if content is None else parse_record(content, folder, feature_set=spec.digest)
    if record is not None:
        layout = record.arrays["embedding"]
        if (layout.shape[2], layout.kind) != (spec.n_features, spec.dtype):
            raise FormatError("its embedding is not of the feature set's width and type")
    return record


def _survey_fragments(backend: Backend, name: str, folders: list[str], found: Survey) -> None:
    spec = found.specs[name]
    records: dict[str, Record] = {}
    damaged: dict[str, Problem] = {}
    uncommitted = []
    paths = [metadata_path(fragment_folder(name, folder)) for folder in folders]
    for folder, content in zip(folders, _read_all(backend, paths), strict=True):
        try:
            record = _parse_record(content, folder, spec)
        except (FormatError, StorageError) as error:
            damaged[folder] = Problem(
                kind="record",
                feature_set=name,
                fragment=folder,
                path=metadata_path(),
                what="; ".join(error.problems) or error.message,
                unreadable=isinstance(error, StorageError),
            )
        else:
            if record is None:
                uncommitted.append(fragment_folder(name, folder))
            else:
                records[folder] = record
    replaced = {other for record in records.values() for other in record.replaces}
    found.problems += [problem for folder, problem in damaged.items() if folder not in replaced]
    found.uncommitted += tuple(uncommitted)
    found.n_replaced += len(replaced & {*records, *damaged})
    found.fragments[name] = tuple(
        record for folder, record in sorted(records.items()) if folder not in replaced
    )


def _survey_builds(backend: Backend, name: str, found: Survey) -> None:
    ids = [build.removesuffix(".json") for build in backend.names(builds_folder(name))]
    paths = [build_path(name, build_id) for build_id in ids]
    found.n_builds += len(ids)
    for build_id, path, content in zip(ids, paths, _read_all(backend, paths), strict=True):
        try:
            if isinstance(content, StorageError):
                raise content
            parse_build(content or b"", build_id)
        except (FormatError, StorageError) as error:
            found.problems.append(
                Problem(
                    kind="build",
                    feature_set=name,
                    path=path,
                    what=error.message,
                    unreadable=isinstance(error, StorageError),
                )
            )


def _read_all(backend: Backend, paths: list[str]) -> list[bytes | StorageError | None]:
    """Read objects; where the storage refuses, find out by one which it refuses."""
    try:
        return list(backend.read_many(paths))
    except StorageError:
        answers: list[bytes | StorageError | None] = []
        for path in paths:
            try:
                answers.append(backend.read(path))
            except StorageError as error:
                answers.append(error)
        return answers
