"""Opening a store: a mapping from names to feature sets."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from histostore.errors import Ambiguous, FormatError, NotFound, OptionError
from histostore.spec import FeatureSpec
from histostore.store.backend import open_backend
from histostore.store.describe import store_html
from histostore.store.features import FeatureSet
from histostore.store.layout import metadata_path
from histostore.store.record import check_format
from histostore.store.writer import put_feature_set, put_store

if TYPE_CHECKING:
    from histostore.store.backend import Backend

__all__ = ["Store", "check_store", "open_store", "parse_feature_set"]

_SHOWN = 8


def open_store(
    url: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None = None,
    mode: str = "r",
) -> Store:
    """Open a store.

    Parameters
    ----------
    url
        Local path or any URL that fsspec knows.
    storage_options
        Handed to the fsspec driver; never shown in a message.
    mode
        ``r`` to read what is there, ``a`` to write too and to create what is not.

    Raises
    ------
    NotFound
        If nothing is there and ``mode`` is ``r``.
    FormatError
        If something else is there; lists what.
    VersionError
        If a newer format wrote it.
    StorageError
        If the storage refuses; with the driver's reason.

    Examples
    --------
    >>> store = open_store("memory://doctest-store", mode="a")
    >>> list(store), open_store("memory://doctest-store").url
    ([], 'memory://doctest-store')
    """
    if mode not in ("r", "a"):
        raise OptionError(f"{mode=} is not known; use 'r' to read or 'a' to write too")
    backend = open_backend(os.fspath(url), storage_options)
    content = backend.read(metadata_path())
    if content is None:
        content = _create(backend, mode)
    if content is not None:
        check_store(content, backend.url)
    return Store(backend, writable=mode == "a")


def _create(backend: Backend, mode: str) -> bytes | None:
    """Make a store where nothing is; give what another writer put there meanwhile."""
    names = backend.names("")
    if not names:
        if mode == "r":
            raise NotFound(f"no store at {backend.url}; histostore build makes one")
        put_store(backend)
        return None
    content = backend.read(metadata_path())
    if content is None:
        raise FormatError(f"{backend.url} is not a histostore: it holds {_some(names)}")
    return content


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def check_store(content: bytes, url: str) -> None:
    """Refuse a root document that is not that of a store.

    Raises
    ------
    FormatError, VersionError
        Saying what it is instead.
    """
    attributes = _attributes(content, url)
    if "histostore" not in attributes:
        held = _some(sorted(attributes)) or "none"
        raise FormatError(f"{url} is Zarr, but no histostore: its attributes are {held}")
    ours = attributes["histostore"]
    check_format(ours.get("format") if isinstance(ours, dict) else None, url)


def _attributes(content: bytes, subject: str) -> dict[str, Any]:
    try:
        document = json.loads(content)
        attributes: dict[str, Any] = dict(document.get("attributes") or {})
    except (AttributeError, TypeError, ValueError) as error:
        raise FormatError(f"{subject}: its zarr.json is not that of a Zarr group") from error
    return attributes


class Store(Mapping[str, FeatureSet]):
    """A store: names of feature sets to the feature sets.

    A feature set is read when it is first asked for, and then kept: it shows what was
    committed at that time, and after its ``refresh``.
    """

    def __init__(self, backend: Backend, *, writable: bool) -> None:
        self._backend = backend
        self._writable = writable
        self._open: dict[str, FeatureSet] = {}
        self._documents: dict[str, bytes] = {}
        self.refresh()

    @property
    def backend(self) -> Backend:
        """The storage, with paths relative to the store."""
        return self._backend

    def __repr__(self) -> str:
        return f"<Store {self.url}: {', '.join(self) or 'no feature set'}>"

    def _repr_html_(self) -> str:
        return store_html(self)

    @property
    def url(self) -> str:
        """Where it lies, without credentials."""
        return self._backend.url

    def refresh(self) -> None:
        """Look again at which feature sets there are."""
        names = [name for name in self._backend.names("") if name != metadata_path()]
        contents = self._backend.read_many([metadata_path(name) for name in names])
        self._documents = {
            name: content
            for name, content in zip(names, contents, strict=True)
            if content is not None
        }

    def __getitem__(self, name: str) -> FeatureSet:
        if name not in self._open:
            if name not in self._documents:
                raise NotFound(self._no_such(name))
            spec = parse_feature_set(self._documents[name], name)
            self._open[name] = FeatureSet(self._backend, spec, writable=self._writable)
        return self._open[name]

    def __contains__(self, name: object) -> bool:
        return name in self._documents

    def __iter__(self) -> Iterator[str]:
        return iter(self._documents)

    def __len__(self) -> int:
        return len(self._documents)

    def feature_set(self, name: str | None = None) -> FeatureSet:
        """Give a feature set by name, or the only one there is.

        Raises
        ------
        NotFound
            If there is none of this name, or none at all; lists what is there.
        Ambiguous
            If no name is given and there are several; lists them. Those without any image,
            as builds leave that could embed nothing, count only where there are no others.
        """
        if name is not None:
            return self[name]
        if not self:
            raise NotFound(f"{self.url} holds no feature set yet; histostore build makes one")
        if len(self) == 1:
            return self[next(iter(self))]
        filled = [each for each in self if not self.is_empty(each)]
        if len(filled) == 1:
            return self[filled[0]]
        names = ", ".join(filled or self)
        raise Ambiguous(f"{self.url} holds several feature sets, name one: {names}")

    def is_empty(self, name: str) -> bool:
        """Say whether a feature set has no image yet: builds that fail leave such ones.

        Raises
        ------
        NotFound
            If there is none of this name.
        StorageError
            If the storage refuses.
        """
        try:
            return not self[name].image_ids
        except FormatError:
            return False  # damaged, which is more than nothing

    def create_feature_set(self, spec: FeatureSpec) -> FeatureSet:
        """Give the feature set of a specification, made if it is not there.

        Raises
        ------
        OptionError
            If the store was opened for reading.
        FormatError
            If another specification holds the name.
        StorageError
            If the storage refuses.
        """
        if not self._writable:
            raise OptionError(f"{self.url} is open for reading; open it with mode='a' to write")
        if spec.name not in self._documents:
            content = self._backend.read(metadata_path(spec.name))
            if content is None:
                put_feature_set(self._backend, spec)
                content = self._backend.read(metadata_path(spec.name)) or b""
            self._documents[spec.name] = content
        features = self[spec.name]
        if features.spec.digest != spec.digest:
            raise FormatError(
                f"{spec.name} holds another specification: {features.spec.canonical()}"
            )
        return features

    def _no_such(self, name: str) -> str:
        if not self:
            return f"{self.url} holds no feature set yet, so not {name!r}"
        near = difflib.get_close_matches(str(name), self, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{self.url} holds no feature set {name!r}; {hint}it holds {', '.join(self)}"


def parse_feature_set(content: bytes, name: str) -> FeatureSpec:
    """Read the metadata of a feature set, and check that it is what its name says.

    Raises
    ------
    FormatError, VersionError
        If it is not.
    """
    subject = f"feature set {name}"
    ours = _attributes(content, subject).get("histostore")
    if not isinstance(ours, dict):
        raise FormatError(f"{subject}: its zarr.json holds no specification")
    check_format(ours.get("format"), subject)
    document = ours.get("spec")
    if not isinstance(document, dict):
        raise FormatError(f"{subject}: its zarr.json holds no specification")
    spec = FeatureSpec.from_json(document)
    if ours.get("digest") != spec.digest:
        raise FormatError(f"{subject}: its specification does not have the digest it names")
    if spec.name != name:
        raise FormatError(f"{subject}: its specification is that of {spec.name}")
    return spec
