"""Reading all there is in a store, and naming whatever is not what was written.

Each object is held against the length and the SHA-256 in its fragment's commit record, each
chunk against its CRC32C, and the numbers against what a fragment may hold. Nothing is
changed; ``histostore.build.repair`` mends.
"""

from __future__ import annotations

import errno
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import CorruptError, FormatError, StorageError
from histostore.store.backend import open_backend
from histostore.store.checked import (
    check_object,
    chunks_of,
    images_between,
    read_texts,
    row_chunks,
)
from histostore.store.layout import ARRAYS, fragment_folder, join
from histostore.store.survey import Problem, survey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from histostore.store.protocol import Backend
    from histostore.store.record import Record

__all__ = ["Problem", "VerifyReport", "check_fragment", "verify"]

THREADS = 4
"""Objects held at once; one is 64 MiB at most as a rule, so this bounds the memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What a store holds, and what of it is damaged."""

    url: str
    problems: tuple[Problem, ...]
    """All damage found."""

    n_feature_sets: int
    n_fragments: int
    """Fragments that count."""

    n_replaced: int
    """Fragments that others have replaced and ``gc`` has not removed: not looked into."""

    uncommitted: tuple[str, ...]
    """Folders of fragments without a commit record: left by a writer that was killed or is
    still at work, or the record was deleted. No damage; ``gc`` removes them."""

    n_builds: int
    """Records of builds."""

    n_objects: int
    """Objects of fragments that were read."""

    n_bytes: int
    """Their length, as it should be."""

    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        document = {name: getattr(self, name) for name in self.__slots__}
        return {
            **document,
            "problems": [asdict(problem) for problem in self.problems],
            "uncommitted": list(self.uncommitted),
            "seconds": round(self.seconds, 3),
            "ok": self.ok,
        }

    def to_text(self) -> str:
        """Say in a few lines what was found."""
        gib = self.n_bytes / 2**30
        lines = [
            f"{self.url}: {self.n_feature_sets:,} feature sets, {self.n_fragments:,} fragments, "
            f"{self.n_objects:,} objects, {gib:,.2f} GiB read in {self.seconds:.1f} s"
        ]
        if self.uncommitted:
            lines.append(f"  {len(self.uncommitted):,} folders were never committed: histostore gc")
        if self.n_replaced:
            lines.append(f"  {self.n_replaced:,} fragments were replaced: histostore gc")
        lines += [f"  {problem}" for problem in self.problems]
        lines.append(f"  {len(self.problems):,} damaged" if self.problems else "  all is sound")
        return "\n".join(lines)


def verify(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    feature_set: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> VerifyReport:
    """Read a whole store and say what of it is not what was written.

    Parameters
    ----------
    url
        Where the store lies.
    storage_options
        Handed to the fsspec driver.
    feature_set
        Look into this one alone.
    progress
        Told now and then how many bytes are done, and of how many; from one thread.

    Returns
    -------
    report
        What was read and what is wrong; never raises for damage.

    Raises
    ------
    NotFound
        If nothing is there, or not this feature set.
    FormatError
        If something else is there.
    StorageError
        If the storage refuses altogether.

    Examples
    --------
    >>> from histostore.store import open_store
    >>> from histostore.testing import fragment_of, spec_of
    >>> features = open_store("memory://doctest-verify", mode="a").create_feature_set(spec_of())
    >>> _ = features.commit(fragment_of(["a", "b"]), {})
    >>> report = verify("memory://doctest-verify")
    >>> report.ok, report.n_fragments, report.n_objects
    (True, 1, 14)
    """
    began = time.monotonic()
    backend = open_backend(url, storage_options)
    found = survey(backend, feature_set=feature_set)
    jobs = [
        (name, record, path)
        for name, records in found.fragments.items()
        for record in records
        for path in record.objects
    ]
    problems = list(found.problems)
    total = sum(record.objects[path].n_bytes for _, record, path in jobs)
    done = 0
    with ThreadPoolExecutor(min(backend.threads, THREADS)) as pool:
        answers = pool.map(lambda job: _check_object(backend, *job), jobs)
        for (_, record, path), answer in zip(jobs, answers, strict=True):
            problems += answer
            done += record.objects[path].n_bytes
            if progress is not None:
                progress(done, total)
    for name, records in found.fragments.items():
        problems += chain.from_iterable(_unlisted(name, record) for record in records)
    return VerifyReport(
        url=backend.url,
        problems=tuple(problems),
        n_feature_sets=len(found.fragments),
        n_fragments=sum(map(len, found.fragments.values())),
        n_replaced=found.n_replaced,
        uncommitted=found.uncommitted,
        n_builds=found.n_builds,
        n_objects=len(jobs),
        n_bytes=total,
        seconds=time.monotonic() - began,
    )


def check_fragment(backend: Backend, feature_set: str, record: Record) -> list[Problem]:
    """Read one fragment and say what is wrong with it, object by object."""
    problems = list(_unlisted(feature_set, record))
    for path in record.objects:
        problems += _check_object(backend, feature_set, record, path)
    return problems


def _unlisted(feature_set: str, record: Record) -> Iterator[Problem]:
    """Find objects that the arrays need and the record has no digest of."""
    for name, layout in record.arrays.items():
        if name not in ARRAYS and name not in record.columns:
            continue  # of a later version, which knows what it needs
        paths = {f"{name}/zarr.json"}
        if layout.kind != "string":
            paths |= {chunk.path for chunk in chunks_of(name, layout)}
        for path in sorted(paths - record.objects.keys()):
            yield _problem(feature_set, record, path, "the commit record has no digest of it")


def _problem(
    feature_set: str,
    record: Record,
    path: str,
    what: str,
    *,
    chunks: Iterable[int] = (),
    images: Iterable[int] = (),
    kind: str = "object",
    unreadable: bool = False,
) -> Problem:
    return Problem(
        kind=kind,
        feature_set=feature_set,
        fragment=record.fragment_id,
        path=path,
        chunks=tuple(dict.fromkeys(chunks)),
        image_ids=tuple(record.image_ids[at] for at in sorted(set(images))),
        what=what,
        unreadable=unreadable,
    )


def _check_object(backend: Backend, feature_set: str, record: Record, path: str) -> list[Problem]:
    """Check one object of a fragment, to its last byte and number."""
    folder = fragment_folder(feature_set, record.fragment_id)
    name, _, leaf = path.partition("/")
    layout = record.arrays.get(name)
    try:
        content = backend.read(join(folder, path))
    except StorageError as error:
        # A bad sector is damage; a storage that does not let us in says nothing of the data.
        cause = error.__cause__
        bad_sector = isinstance(cause, OSError) and cause.errno == errno.EIO
        images = _images_of(record, path)
        return [
            _problem(
                feature_set, record, path, str(error), images=images, unreadable=not bad_sector
            )
        ]
    what = check_object(content, record.objects[path])
    if layout is None or leaf == "zarr.json" or layout.kind == "string" or name == "offset":
        what = what or _check_names(content or b"", record, path)
        return [_problem(feature_set, record, path, what)] if what else []
    if not what:
        return list(_check_numbers(content or b"", feature_set, record, path))
    failing = _failing_chunks(content, record, path)
    images = _images_of(record, path)
    if failing:
        images = set().union(*(images_between(record, *rows) for _, *rows in failing))
    if failing and content is not None:
        what += f"; {len(failing)} of its chunks fail their CRC32C"
    chunks = [position for position, _, _ in failing]
    return [_problem(feature_set, record, path, what, chunks=chunks, images=images)]


def _check_names(content: bytes, record: Record, path: str) -> str:
    """Hold names and bounds against the commit record, which readers go by."""
    name, _, leaf = path.partition("/")
    expected = {"image_id": record.image_ids, "augmentation": record.augmentations}.get(name)
    layout = record.arrays.get(name)
    if layout is None or leaf == "zarr.json" or len(layout.shape) != 1:
        return ""
    if expected is not None and layout.shard == layout.shape:
        try:
            texts = read_texts(content, layout)
        except FormatError as error:
            return str(error)
        return "" if texts == expected else "it differs from the commit record"
    if name == "offset":
        bounds = np.concatenate(([0], np.cumsum(record.n_patches, dtype=np.int64)))
        for chunk in chunks_of(name, layout):
            if chunk.path == path:
                rows = chunk.read(content, record.fragment_id, layout)
                if not np.array_equal(rows, bounds[chunk.start : chunk.stop]):
                    return "it differs from the numbers of patches in the commit record"
    return ""


def _check_numbers(
    content: bytes, feature_set: str, record: Record, path: str
) -> Iterator[Problem]:
    """Look for numbers that no fragment may hold, in an object that is as it was written."""
    name = path.partition("/")[0]
    layout = record.arrays[name]
    wrong: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for chunk in row_chunks(record, path):
        try:
            rows = chunk.read(content, record.fragment_id, layout)
        except CorruptError as error:
            wrong[str(error)].append((chunk.position, chunk.start))
            continue
        what, sound = _rule(name, rows)
        wrong[what] += [(chunk.position, chunk.start + int(at)) for at in np.flatnonzero(~sound)]
    for what, places in wrong.items():
        if places:
            images = chain.from_iterable(images_between(record, at, at + 1) for _, at in places)
            chunks = [position for position, _ in places]
            yield _problem(
                feature_set, record, path, what, kind="values", chunks=chunks, images=images
            )


def _rule(name: str, rows: NDArray[Any]) -> tuple[str, NDArray[np.bool_]]:
    """Say what numbers of an array must be like, and which rows are."""
    if name == "embedding":
        return "it holds values that are not finite", np.isfinite(rows).all(axis=1)
    if name == "tissue":
        return "it holds shares outside 0 to 1", (rows >= 0) & (rows <= 1)
    if name in ("y", "x"):
        return "it holds negative coordinates", rows >= 0
    return "it holds values that are not finite", np.isfinite(rows)


def _failing_chunks(content: bytes | None, record: Record, path: str) -> list[tuple[int, int, int]]:
    """Find the chunks of an object that fail: (position, first row, row after the last)."""
    layout = record.arrays[path.partition("/")[0]]
    failing = []
    for chunk in row_chunks(record, path):
        try:
            chunk.read(content or b"", record.fragment_id, layout)
        except CorruptError:
            failing.append((chunk.position, chunk.start, chunk.stop))
    return failing


def _images_of(record: Record, path: str) -> set[int]:
    """Give the positions of all images of which an object holds rows."""
    return set().union(
        *(images_between(record, chunk.start, chunk.stop) for chunk in row_chunks(record, path))
    )
