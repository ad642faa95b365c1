"""A feature set: everything that was computed in one way, as rows, bags or a data set."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from histostore.errors import CorruptError, FormatError, NotFound, OptionError
from histostore.files import Source
from histostore.store.describe import features_html
from histostore.store.layout import build_path, builds_folder, fragments_folder, metadata_path
from histostore.store.layout import fragment_folder as folder_of
from histostore.store.loading import Bag, Loaded, load_array, plan_load
from histostore.store.record import parse_build, parse_record
from histostore.store.snapshot import Index, Snapshot
from histostore.store.streaming import FragmentStream
from histostore.store.writer import commit_fragment, put_build

if TYPE_CHECKING:
    from collections.abc import Iterable

    import xarray as xr
    from numpy.typing import NDArray

    from histostore.spec import FeatureSpec
    from histostore.store.backend import Backend
    from histostore.store.fragment import Fragment
    from histostore.store.layout import Encoding
    from histostore.store.loading import LoadPlan
    from histostore.store.record import Record

__all__ = ["Bag", "FeatureSet", "Sources"]


class FeatureSet:
    """What a store holds of one specification, as it was when it was opened.

    Fragments that others commit later are seen after :meth:`refresh`; those committed
    through this object are seen at once. Safe to share by threads.
    """

    def __init__(self, backend: Backend, spec: FeatureSpec, *, writable: bool) -> None:
        self._backend = backend
        self._writable = writable
        self._lock = threading.Lock()
        self._state = Snapshot(())
        self.spec = spec
        self.name = spec.name
        self.refresh()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def __repr__(self) -> str:
        return (
            f"<FeatureSet {self.name}: {len(self.image_ids)} images, "
            f"{len(self.fragments)} fragments at {self._backend.url}>"
        )

    def _repr_html_(self) -> str:
        return features_html(self)

    @property
    def backend(self) -> Backend:
        """The storage that the feature set lies in, with paths relative to the store."""
        return self._backend

    @property
    def committed(self) -> tuple[Record, ...]:
        """Commit records of all fragments, replaced ones that ``gc`` has not removed too."""
        return self._state.committed

    @property
    def fragments(self) -> tuple[Record, ...]:
        """Commit records of all fragments that count, in their order."""
        return self._state.records

    @property
    def index(self) -> Index:
        """What is committed: (image id, augmentation) to (fragment, row slice)."""
        return Index(self._state)

    @property
    def image_ids(self) -> tuple[str, ...]:
        """Images with at least one view, in order of commitment."""
        return self._state.image_ids

    @property
    def augmentations(self) -> tuple[str, ...]:
        """Views that at least one image has."""
        return self._state.augmentations

    @property
    def sources(self) -> Sources:
        """Where each image came from, and what its file was like: image id to Source."""
        return Sources(self._state)

    @property
    def snapshot(self) -> str:
        """Digest over the ids of the committed fragments, 64 hexadecimal digits."""
        return self._state.digest

    def refresh(self) -> None:
        """Look again at what is committed: one listing, and one read per new fragment.

        Raises
        ------
        FormatError
            If a commit record is not one, or of another feature set; names the fragment.
        VersionError
            If a newer format wrote it.
        StorageError
            If the storage refuses.
        """
        before = {record.fragment_id: record for record in self._state.committed}
        names = self._backend.names(fragments_folder(self.name))
        digest = self.spec.digest
        fresh = [name for name in names if name not in before]
        contents = self._backend.read_many(
            [metadata_path(folder_of(self.name, name)) for name in fresh]
        )
        found = {name: before[name] for name in names if name in before}
        damaged: dict[str, FormatError] = {}
        for name, content in zip(fresh, contents, strict=True):
            try:
                record = self._parse(name, content, digest)
            except FormatError as error:
                damaged[name] = error
                continue
            if record is not None:
                found[name] = record
        replaced = {name for record in found.values() for name in record.replaces}
        for name, damage in damaged.items():
            if name not in replaced:
                raise damage
        with self._lock:
            # What was committed through this object since may be missing from the listing.
            found.update(
                (record.fragment_id, record)
                for record in self._state.committed
                if record.fragment_id not in before
            )
            self._state = Snapshot(found.values())

    def _parse(self, name: str, content: bytes | None, digest: str) -> Record | None:
        if content is None:
            return None
        record = parse_record(content, name, feature_set=digest)
        if record is not None:
            self._check_embedding(record)
        return record

    def _check_embedding(self, record: Record) -> None:
        layout = record.arrays["embedding"]
        found = (layout.shape[2], layout.kind)
        if found != (self.spec.n_features, self.spec.dtype):
            raise FormatError(
                f"fragment {record.fragment_id}: its embedding has {found[0]} features as "
                f"{found[1]}, the feature set {self.spec.n_features} as {self.spec.dtype}"
            )

    def commit(
        self,
        fragment: Fragment,
        provenance: Mapping[str, Any],
        *,
        encoding: Encoding | None = None,
        replaces: Iterable[str] = (),
    ) -> str:
        """Write a fragment and make it count; give its id.

        Parameters
        ----------
        fragment
            Embeddings in this feature set.
        provenance
            JSON values that say how it came about.
        encoding
            How to cut and pack the embedding; plain chunks of 4 MiB if None.
        replaces
            Ids of fragments that shall not count from the moment on at which this one does.

        Raises
        ------
        OptionError
            If the fragment does not fit the feature set, or the store is open for reading.
        StorageError
            If the storage refuses; nothing of the fragment counts then.
        """
        self._check_writable()
        record = commit_fragment(
            self._backend,
            self.spec,
            fragment,
            provenance=provenance,
            encoding=encoding,
            replaces=replaces,
        )
        self._add(record)
        return record.fragment_id

    def stream(self, shape: tuple[int, int, int]) -> FragmentStream:
        """Begin a fragment whose embedding, of this shape, is written while it is computed.

        Raises
        ------
        OptionError
            If the store is open for reading.
        """
        self._check_writable()
        return FragmentStream(self._backend, self.spec, shape, committed=self._add)

    def _add(self, record: Record) -> None:
        with self._lock:
            self._state = self._state.with_record(record)

    def record_build(self, document: Mapping[str, Any]) -> str:
        """Keep what one build did and could not do; give its id.

        Raises
        ------
        OptionError
            If the document is not JSON, or the store is open for reading.
        StorageError
            If the storage refuses.
        """
        self._check_writable()
        return put_build(self._backend, self.name, document)

    def _check_writable(self) -> None:
        if not self._writable:
            raise OptionError(
                f"{self._backend.url} is open for reading; open it with mode='a' to write"
            )

    def builds(self) -> list[dict[str, Any]]:
        """Read the records of all builds, in the order in which they ended.

        Raises
        ------
        CorruptError
            If one is not what was written; names it.
        """
        ids = [name.removesuffix(".json") for name in self._backend.names(builds_folder(self.name))]
        contents = self._backend.read_many([build_path(self.name, build_id) for build_id in ids])
        return [
            parse_build(content or b"", build_id)
            for build_id, content in zip(ids, contents, strict=True)
        ]

    def load(
        self, image_ids: Iterable[str] | None = None, augmentation: str = "identity"
    ) -> Loaded:
        """Read many images into memory, by whole chunks, every checksum verified.

        Parameters
        ----------
        image_ids
            Which images, in which order; all that have the view, in order of commitment,
            if None.
        augmentation
            The view.

        Returns
        -------
        loaded
            Rows of all images in one array.

        Raises
        ------
        NotFound
            If an image, or the view, is not there; names what is near.
        CorruptError
            If stored bytes fail their checksum; names fragment, array and chunk.
        """
        state = self._state
        plan = self._plan(state, image_ids, augmentation)
        read = partial(self._read, plan)
        return Loaded(
            embedding=read("embedding"),
            offset=plan.offset,
            image_ids=plan.image_ids,
            read_column=read,
            column_names=plan.columns,
        )

    def _read(self, plan: LoadPlan, name: str) -> NDArray[Any]:
        """Read an array of a plan, from where its rows lie now if fragments were replaced."""
        try:
            return load_array(self._backend, self.name, plan, name)
        except CorruptError:
            self.refresh()
            state = self._state
            there = {record.fragment_id for record in state.records}
            places = state.places(plan.augmentation)
            moved = any(record.fragment_id not in there for record, _ in plan.parts)
            if not moved or any(image_id not in places for image_id in plan.image_ids):
                raise
            again = plan_load(state, plan.image_ids, plan.augmentation)
            if again.offset.tolist() != plan.offset.tolist():
                raise
        return load_array(self._backend, self.name, again, name)

    def bag(self, image_id: str, augmentation: str = "identity") -> Bag:
        """Read one image's patches.

        For many images, :meth:`load` is faster by orders of magnitude: it reads each chunk once.

        Raises
        ------
        NotFound, CorruptError
            As :meth:`load`.
        """
        loaded = self.load([image_id], augmentation)
        return Bag(
            image_id=image_id,
            embedding=loaded.embedding,
            coords=loaded.coords,
            tissue=loaded.tissue,
            columns=dict(loaded.columns),
        )

    def to_xarray(self, augmentation: str = "identity") -> xr.Dataset:
        """Give all images that have a view as one lazy data set.

        ``embedding (patch, feature)`` is a dask array of which nothing is read yet, one
        block per stored chunk; ``image_id``, ``y``, ``x`` and ``tissue`` stand along
        ``patch``, in memory, and so do further columns that were stored. Images and places
        are selected by label::

            ds.sel(image_id="image-7")
            ds.sel(image_id=["image-7", "image-9"])
            ds.sel(image_id="image-7", y=512, x=256)
            ds.sel(y=slice(0, 1024))

        Raises
        ------
        NotFound
            If no image has the view.
        """
        from histostore.store.dataset import lazy_dataset

        plan = self._plan(self._state, None, augmentation)
        return lazy_dataset(self._backend, self.name, plan)

    def _plan(
        self, state: Snapshot, image_ids: Iterable[str] | None, augmentation: str
    ) -> LoadPlan:
        places = state.places(augmentation)
        if not places:
            there = ", ".join(state.augmentations) or "no fragment yet"
            raise NotFound(f"{self.name} holds no view {augmentation!r}; it holds {there}")
        chosen = tuple(places if image_ids is None else image_ids)
        missing = [image_id for image_id in chosen if image_id not in places]
        if missing:
            raise NotFound(_missing(self.name, missing, augmentation, state))
        return plan_load(state, chosen, augmentation)


def _missing(name: str, missing: list[str], augmentation: str, state: Snapshot) -> str:
    """Say which images are not there, and what their ids may have been meant to be."""
    first = missing[0]
    others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    if first in state.image_ids:
        views = ", ".join(view for view in state.augmentations if first in state.places(view))
        return f"{name} holds image {first!r}{others} not in view {augmentation!r}; in {views}"
    near = difflib.get_close_matches(str(first), state.image_ids, n=3, cutoff=0.5)
    hint = "nearest: " + ", ".join(map(repr, near)) if near else f"it holds {len(state.image_ids)}"
    return f"{name} holds no image {first!r}{others}; {hint}"


class Sources(Mapping[str, Source]):
    """Image id to the source that the first fragment holding the image recorded."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.documents: dict[str, Mapping[str, Any]] = {}
        """The same as JSON: 100,000 of them are compared at once by every build."""
        for record in snapshot.records:
            for image_id, document in zip(record.image_ids, record.source_documents, strict=True):
                self.documents.setdefault(image_id, document)

    def __getitem__(self, image_id: str) -> Source:
        return Source.from_json(self.documents[image_id])

    def __iter__(self) -> Iterator[str]:
        return iter(self.documents)

    def __len__(self) -> int:
        return len(self.documents)
