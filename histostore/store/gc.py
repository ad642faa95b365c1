"""Removing what counts for nothing: the leavings of killed writers, and replaced fragments.

What a builder at work has written looks just like what a killed one has left, so age decides:
the time since the newest object of a fragment was written, by the clock of the storage, and
the time since its id was made. A writer, for its part, does not commit what lay still for longer
than :data:`~histostore.store.writer.COMMIT_SECONDS`.
"""

from __future__ import annotations

import re
import secrets
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from histostore.errors import FormatError, OptionError, StorageError
from histostore.store.backend import open_backend
from histostore.store.layout import (
    fragment_folder,
    fragments_folder,
    id_seconds,
    is_id,
    join,
    metadata_path,
)
from histostore.store.record import parse_record
from histostore.store.survey import survey
from histostore.store.verify import check_fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from histostore.store.protocol import Backend, Entry
    from histostore.store.record import Record

__all__ = ["MIN_AGE_SECONDS", "Garbage", "GcReport", "collect_garbage"]

MIN_AGE_SECONDS = 24 * 3600.0
"""What is younger may belong to a writer or a reader that is at work."""

_SHOWN = 10
_HIDDEN = re.compile(r"\..+\.[0-9a-f]{8}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Garbage:
    """Something that counts for nothing."""

    path: str
    """Folder or object, relative to the store."""

    kind: str
    """``uncommitted``, ``replaced`` or ``temporary``."""

    n_objects: int
    n_bytes: int

    kept: str = ""
    """Why it was not removed; empty if it was, or would be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GcReport:
    """What was removed, and what was left for later."""

    url: str
    found: tuple[Garbage, ...]
    dry_run: bool
    """Whether nothing was removed in fact."""

    @property
    def removed(self) -> tuple[Garbage, ...]:
        """What is gone, or would be."""
        return tuple(each for each in self.found if not each.kept)

    @property
    def kept(self) -> tuple[Garbage, ...]:
        """What is still there, and why."""
        return tuple(each for each in self.found if each.kept)

    @property
    def n_bytes(self) -> int:
        """Bytes freed."""
        return sum(each.n_bytes for each in self.removed)

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "url": self.url,
            "dry_run": self.dry_run,
            "n_removed": len(self.removed),
            "n_bytes": self.n_bytes,
            "found": [
                {name: getattr(each, name) for name in Garbage.__slots__} for each in self.found
            ],
        }

    def to_text(self) -> str:
        """Say in a few lines what was done."""
        verb = "would go" if self.dry_run else "removed"
        lines = [f"{self.url}: {self.n_bytes / 2**20:,.1f} MiB {verb}"]
        lines += [f"  {each.kind:<12}{each.path}" for each in self.removed[:_SHOWN]]
        if len(self.removed) > _SHOWN:
            lines.append(f"  … and {len(self.removed) - _SHOWN:,} more: --json has them all")
        reasons = Counter(each.kept for each in self.kept)
        lines += [f"  kept {count:,}: {reason}" for reason, count in reasons.items()]
        return "\n".join(lines)


def collect_garbage(
    url: str,
    storage_options: Mapping[str, Any] | None = None,
    *,
    min_age_s: float = MIN_AGE_SECONDS,
    dry_run: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> GcReport:
    """Remove what counts for nothing and is old enough.

    A replaced fragment goes only after what replaced it was read to the last byte and found
    sound. A fragment whose commit record is damaged is never touched.

    Parameters
    ----------
    url
        Where the store lies.
    storage_options
        Handed to the fsspec driver.
    min_age_s
        Age in seconds from which on something is removed. Less than a day only where nobody
        builds, and nobody reads a store that was opened before the last compaction.
    dry_run
        Say what would go, and leave it.
    progress
        Told how many candidates are done, and of how many.

    Returns
    -------
    report
        What was removed and what was kept.

    Raises
    ------
    OptionError
        If ``min_age_s`` is negative.
    NotFound, FormatError
        If no store is there.
    StorageError
        If the storage refuses.

    Examples
    --------
    >>> from histostore.store import open_store
    >>> _ = open_store("memory://doctest-gc", mode="a")
    >>> collect_garbage("memory://doctest-gc").found
    ()
    """
    if min_age_s < 0:
        raise OptionError(f"min_age_s={min_age_s:g}: an age is not negative")
    backend = open_backend(url, storage_options)
    known = survey(backend)
    now = time.time() if dry_run else _storage_clock(backend)
    collectors = [
        _Collector(backend, name, spec.digest, now, min_age_s) for name, spec in known.specs.items()
    ]
    jobs = [(collector, *each) for collector in collectors for each in collector.find()]
    hidden = [entry for entry in backend.walk("") if _HIDDEN.fullmatch(_leaf(entry.path))]
    found = []
    for done, (collector, garbage, paths) in enumerate(jobs, 1):
        found.append(garbage)
        if not (dry_run or garbage.kept):
            collector.remove(garbage, paths)
        if progress is not None:
            progress(done, len(jobs))
    gone = {path for _, garbage, paths in jobs if not garbage.kept for path in paths}
    for entry in hidden:
        if entry.path not in gone:
            why = _too_young([entry], None, now, min_age_s)
            found.append(
                Garbage(
                    path=entry.path, kind="temporary", n_objects=1, n_bytes=entry.n_bytes, kept=why
                )
            )
            if not (dry_run or why):
                backend.remove(entry.path)
    return GcReport(url=backend.url, found=tuple(found), dry_run=dry_run)


def _leaf(path: str) -> str:
    return path.rpartition("/")[2]


def _storage_clock(backend: Backend) -> float:
    """Ask the storage what time it is: its clock wrote the ages of objects, not ours.

    Raises
    ------
    StorageError
        If it does not tell times; nothing can be said of any age then.
    """
    probe = f".gc.{secrets.token_hex(4)}"
    backend.put(probe, b"")
    try:
        times = [entry.modified for entry in backend.walk("") if entry.path == probe]
    finally:
        backend.remove(probe)
    if not times or times[0] is None:
        raise StorageError(f"{backend.url}: it does not say when objects were written")
    return times[0]


def _too_young(
    entries: Iterable[Entry], fragment_id: str | None, now: float, min_age_s: float
) -> str:
    """Say why something may still be wanted; nothing if it is old enough."""
    times = [entry.modified for entry in entries]
    if None in times:
        return "the storage does not say when it was written"
    newest = max((time for time in times if time is not None), default=None)
    ages = [] if newest is None else [now - newest]
    if fragment_id is not None and id_seconds(fragment_id) <= now:
        # An id from the future was made by a clock that is wrong: it tells nothing.
        ages.append(now - id_seconds(fragment_id))
    age = max(0.0, min(ages, default=0.0))
    if age >= min_age_s:
        return ""
    return f"{age / 3600:.1f} hours old; goes after {min_age_s / 3600:g}"


class _Collector:
    """Finds the garbage of one feature set."""

    def __init__(
        self, backend: Backend, feature_set: str, digest: str, now: float, min_age_s: float
    ) -> None:
        self._backend = backend
        self._feature_set = feature_set
        self._digest = digest
        self._now = now
        self._min_age_s = min_age_s
        self._sound: dict[str, bool] = {}

    def find(self) -> Iterator[tuple[Garbage, list[str]]]:
        """Yield garbage with its objects, oldest id first.

        The order matters: were a fragment removed before one that it replaces, that one would
        count again.
        """
        top = fragments_folder(self._feature_set) + "/"
        entries: dict[str, list[Entry]] = defaultdict(list)
        for entry in self._backend.walk(fragments_folder(self._feature_set)):
            fragment_id, inside, _ = entry.path.removeprefix(top).partition("/")
            if inside and is_id(fragment_id):
                entries[fragment_id].append(entry)
        for name in self._backend.names(fragments_folder(self._feature_set)):
            if is_id(name):
                entries.setdefault(name, [])
        records: dict[str, Record] = {}
        uncommitted = []
        for fragment_id in sorted(entries):
            try:
                record = self._record(fragment_id)
            except FormatError:
                continue
            if record is None:
                uncommitted.append(fragment_id)
            else:
                records[fragment_id] = record
        replaced = {other for record in records.values() for other in record.replaces}
        for fragment_id in sorted({*uncommitted, *(replaced & entries.keys())}):
            inside_it = entries[fragment_id]
            kind = "uncommitted" if fragment_id in uncommitted else "replaced"
            if kind == "uncommitted":
                kept = _too_young(inside_it, fragment_id, self._now, self._min_age_s)
            else:
                kept = self._still_needed(fragment_id, records, replaced, entries)
            yield (
                Garbage(
                    path=fragment_folder(self._feature_set, fragment_id),
                    kind=kind,
                    n_objects=len(inside_it),
                    n_bytes=sum(entry.n_bytes for entry in inside_it),
                    kept=kept,
                ),
                [entry.path for entry in inside_it],
            )

    def _record(self, fragment_id: str) -> Record | None:
        folder = fragment_folder(self._feature_set, fragment_id)
        content = self._backend.read(metadata_path(folder))
        if content is None:
            return None
        return parse_record(content, fragment_id, feature_set=self._digest)

    def _still_needed(
        self,
        fragment_id: str,
        records: Mapping[str, Record],
        replaced: set[str],
        entries: Mapping[str, list[Entry]],
    ) -> str:
        """Say why a replaced fragment must stay; nothing if nobody can want it."""
        heirs = [record for record in records.values() if fragment_id in record.replaces]
        # Replaced for as long as the first of those that replaced it is there.
        young = [
            _too_young(
                [each for each in entries[heir.fragment_id] if _leaf(each.path) == "zarr.json"],
                heir.fragment_id,
                self._now,
                self._min_age_s,
            )
            for heir in heirs
        ]
        if all(young):
            return f"replaced {young[0]}" if young else "nothing replaces it any more"
        counting = [heir for heir in heirs if heir.fragment_id not in replaced]
        for heir in counting:
            if heir.fragment_id not in self._sound:
                problems = check_fragment(self._backend, self._feature_set, heir)
                self._sound[heir.fragment_id] = not problems
            if not self._sound[heir.fragment_id]:
                return f"what replaced it, {heir.fragment_id}, is damaged: histostore verify"
        return "" if counting else "what replaced it was replaced without it"

    def remove(self, garbage: Garbage, paths: list[str]) -> None:
        """Remove a fragment: its record first, so that at no moment half a fragment counts."""
        if garbage.kind == "uncommitted" and self._record(_leaf(garbage.path)) is not None:
            return  # committed since we looked
        record = join(garbage.path, metadata_path())
        self._backend.remove(record)
        for path in paths:
            if path != record:
                self._backend.remove(path)
        self._backend.prune(garbage.path)
