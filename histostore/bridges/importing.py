"""Import: what others computed, into a store."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.bridges.catalog import IMPORTS, find
from histostore.bridges.listing import address
from histostore.bridges.report import ImportReport
from histostore.bridges.values import encoder_name, imported
from histostore.build.gather import FRAGMENT_BYTES
from histostore.build.pipeline import Failure
from histostore.build.report import Counter
from histostore.errors import FormatError, OptionError, StorageError
from histostore.provenance import versions
from histostore.store import Fragment, open_store
from histostore.tables import name_problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from histostore.bridges.values import Listing, Rows, SourceImage
    from histostore.build.report import Progress
    from histostore.files import Source
    from histostore.store import FeatureSet, Store

__all__ = ["import_layout"]

VIEW = "identity"
"""The view that foreign vectors are taken to be of."""


def import_layout(
    source: str | os.PathLike[str],
    store_url: str | os.PathLike[str],
    layout: str,
    *,
    name: str | None = None,
    mpp: float | None = None,
    storage_options: Mapping[str, Any] | None = None,
    cohort_out: str | os.PathLike[str] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> ImportReport:
    """Bring the vectors of others into a store.

    What is there already is not read again: after a crash, or for more images, run it again.
    Files that are not sound are recorded with the reason, and the rest goes on. Nothing in a
    file is executed. What becomes of the source's facts is said in
    :mod:`histostore.bridges.values`.

    Parameters
    ----------
    source
        Folder or file: a path or any fsspec URL.
    store_url
        Where the store is, or shall be.
    layout
        One of :data:`histostore.bridges.IMPORTS`.
    name
        Name of the encoder. Who gives one answers for it: several sources imported under one
        name share a feature set where their facts agree. Without it, the source's address
        keeps it apart from all others.
    mpp
        Micrometres per level-0 pixel of all images (``stamp`` alone needs it).
    storage_options
        For the storage driver, of the source and of the store.
    cohort_out
        Where to write a cohort table: image_id, path, and label where the source has labels.
        What such a table cannot name, fails.
    progress
        Called after every image.

    Returns
    -------
    report
        What was done, and which images failed.

    Raises
    ------
    OptionError
        If the layout is unknown, or does not take an option that was given.
    FormatError
        If the source is not of this layout.
    StorageError
        If the source or the store cannot be reached; what was committed stays.
    MissingExtra
        If an optional library is absent.
    """
    began = time.monotonic()
    source, table = os.fspath(source), None if cohort_out is None else os.fspath(cohort_out)
    options = _options(layout, mpp=mpp)
    storage = dict(storage_options or {})
    listing: Listing = find(layout, IMPORTS).load()(source, storage, **options)
    store = open_store(store_url, storage, mode="a")
    work = _Import(store, layout, address(source, storage), name, in_table=table is not None)
    work.run(listing, progress)
    report = ImportReport(
        layout=layout,
        source=work.origin,
        feature_sets=tuple(features.name for features in work.touched.values()),
        n_images=len(listing.images) + len(listing.failed),
        n_done=work.n_done,
        n_imported=work.n_imported,
        failed=tuple(work.failed),
        changed=tuple(work.changed),
        n_patches=work.n_patches,
        cohort=table,
        seconds=time.monotonic() - began,
    )
    if report.n_imported or report.failed:
        for features in work.touched.values():
            features.record_build({"import": layout, **report.to_json(), "versions": versions()})
    if table is not None:
        _write_cohort(listing, {failure.image_id for failure in work.failed}, table)
    return report


def _options(layout: str, **given: object) -> dict[str, object]:
    """Refuse options that the layout does not take, and leave out those not given."""
    takes = find(layout, IMPORTS).options
    options = {key: value for key, value in given.items() if value is not None}
    if unknown := options.keys() - set(takes):
        raise OptionError(f"layout {layout} takes no {', '.join(sorted(unknown))}; leave it out")
    return options


class _Import:
    """An import under way: what is read and not yet committed, and what was counted."""

    def __init__(
        self, store: Store, layout: str, origin: str, name: str | None, *, in_table: bool
    ) -> None:
        self.origin = origin
        self._in_table = in_table
        self.touched: dict[str, FeatureSet] = {}
        self.n_done = self.n_imported = self.n_patches = 0
        self.failed: list[Failure] = []
        self.changed: list[str] = []
        self._store = store
        self._layout = layout
        self._name = name
        self._known = self._recorded()
        self._taken: dict[tuple[str, str], str] = {}
        self._pending: dict[str, list[tuple[SourceImage, Rows]]] = {}
        self._n_bytes = 0

    def _recorded(self) -> dict[tuple[str, str], tuple[FeatureSet, Source]]:
        """Find what earlier imports of this source took: (URL, image id) to how it was then."""
        known = {}
        # By name first: a feature set is read when it is first asked for.
        slug = encoder_name(self._layout, None).replace(":", "-")
        for features in (self._store[each] for each in self._store if each.startswith(slug)):
            encoder = features.spec.encoder
            if self._name is None:
                ours = encoder.preprocessing.get("source") == self.origin
            else:
                ours = encoder.name == encoder_name(self._layout, self._name)
            if ours and encoder.name.split(":")[1:2] == [self._layout]:
                for image_id, source in features.sources.items():
                    known[source.url, image_id] = (features, source)
        return known

    def run(self, listing: Listing, progress: Callable[[Progress], None] | None) -> None:
        """Import what is not there yet."""
        todo = self.plan(listing)
        counter = Counter(len(todo), progress)
        try:
            for image in todo:
                n_patches = self.take(image)
                counter.add(n_images=1, n_patches=n_patches, n_failed=int(n_patches == 0))
            self.commit()
        finally:
            listing.close()

    def plan(self, listing: Listing) -> list[SourceImage]:
        """Say which images have to be read; count the others."""
        self.failed += listing.failed
        todo = []
        for image in listing.images:
            features, source = self._known.get((image.source.url, image.image_id), (None, None))
            if features is None:
                todo.append(image)
                continue
            self.n_done += 1
            self.touched[features.spec.digest] = features
            if source != image.source:
                self.changed.append(image.image_id)
        return todo

    def take(self, image: SourceImage) -> int:
        """Read an image and keep it for the next commit; give its patches, 0 if it failed."""
        try:
            image.image_id.encode()
            wrong = name_problem(image.image_id)
            if wrong and (self._in_table or not image.image_id):
                return self._fail(image, f"its name {wrong}; rename it")
            rows = image.read()
            spec = imported(rows, self._layout, source=self.origin, name=self._name)
        except UnicodeEncodeError:
            return self._fail(image, "its name is not UTF-8; rename it")
        except (FormatError, OptionError, StorageError) as error:
            return self._fail(image, str(error))
        if spec.digest not in self.touched:
            self.touched[spec.digest] = self._store.create_feature_set(spec)
        key = spec.digest, image.image_id
        if key in self._taken:
            return self._fail(image, f"{self._taken[key]} gave this image already")
        if (image.image_id, VIEW) in self.touched[spec.digest].index:
            self.n_done += 1
            return len(rows.embedding)
        self._taken[key] = image.source.url
        if self._n_bytes and self._n_bytes + rows.embedding.nbytes > FRAGMENT_BYTES:
            self.commit()
        self._pending.setdefault(spec.digest, []).append((image, rows))
        self._n_bytes += rows.embedding.nbytes
        return len(rows.embedding)

    def _fail(self, image: SourceImage, reason: str) -> int:
        failure = Failure(image_id=image.image_id, url=image.source.url, reason=reason)
        self.failed.append(failure)
        return 0

    def commit(self) -> None:
        """Commit what was read, a fragment for each feature set."""
        provenance = {"import": self._layout, "source": self.origin, "versions": versions()}
        while self._pending:
            digest = next(iter(self._pending))
            fragment = _join(self._pending.pop(digest))  # which lets go of the single images
            self.touched[digest].commit(fragment, provenance)
            self.n_imported += fragment.n_images
            self.n_patches += fragment.n_patches
        self._n_bytes = 0


def _join(images: list[tuple[SourceImage, Rows]]) -> Fragment:
    """Lay images end to end."""
    coords = np.concatenate([rows.coords for _, rows in images])
    return Fragment(
        embedding=np.concatenate([rows.embedding for _, rows in images])[None],
        augmentations=(VIEW,),
        image_ids=tuple(image.image_id for image, _ in images),
        offset=np.cumsum([0, *(len(rows.embedding) for _, rows in images)], dtype=np.int64),
        y=np.ascontiguousarray(coords[:, 1]),
        x=np.ascontiguousarray(coords[:, 0]),
        tissue=np.concatenate([rows.tissue for _, rows in images]),
        sources=tuple(image.source for image, _ in images),
        flags=((),) * len(images),
    )


def _write_cohort(listing: Listing, failed: Iterable[str], out: str) -> None:
    """Write the table of the images that are in the store."""
    import pandas as pd

    from histostore.datasets import write_cohort

    left_out = set(failed)
    paths = {
        image.image_id: image.source.url
        for image in listing.images
        if image.image_id not in left_out
    }
    columns: dict[str, list[str | None]] = {"image_id": [*paths], "path": [*paths.values()]}
    if listing.labels:
        columns["label"] = [listing.labels.get(image_id) for image_id in paths]
    write_cohort(pd.DataFrame(columns, dtype=object), out)
