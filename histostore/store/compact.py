"""Merging small fragments into large ones, with every row to be had at every moment.

A merged fragment names those that it replaces in its own commit record. So one put makes the
new rows count and the old ones not: before it nothing has changed, after it everything has.
The old objects stay for readers that looked before; ``gc`` removes them a day later.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from histostore.errors import CorruptError
from histostore.provenance import versions
from histostore.store.checked import arrange, n_bytes_of, read_fragment
from histostore.store.layout import SHARD_BYTES
from histostore.store.reader import open_store
from histostore.store.snapshot import place_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from histostore.store.features import FeatureSet
    from histostore.store.layout import Encoding
    from histostore.store.record import Record

__all__ = ["CompactReport", "compact", "compact_store", "lineage", "plan_merges"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactReport:
    """What a compaction did."""

    feature_set: str
    n_before: int
    """Fragments that counted before."""

    n_after: int
    """Fragments that count now."""

    merged: tuple[tuple[str, tuple[str, ...]], ...]
    """Id of each new fragment, and of those that it replaces."""

    skipped: tuple[str, ...]
    """What could not be merged because it is damaged, one line each."""

    def to_json(self) -> dict[str, Any]:
        """Give the report as JSON values."""
        return {
            "feature_set": self.feature_set,
            "n_before": self.n_before,
            "n_after": self.n_after,
            "merged": [{"fragment": new, "replaces": list(old)} for new, old in self.merged],
            "skipped": list(self.skipped),
        }

    def to_text(self) -> str:
        """Say in a few lines what was done."""
        lines = [f"{self.feature_set}: {self.n_before:,} fragments are {self.n_after:,} now"]
        if self.merged:
            lines.append("  the old ones' space is free after: histostore gc (a day from now)")
        lines += [f"  left as it is: {line}; histostore verify --repair" for line in self.skipped]
        return "\n".join(lines)


def plan_merges(
    records: Iterable[Record], *, target_bytes: int = SHARD_BYTES
) -> tuple[tuple[Record, ...], ...]:
    """Say which fragments to merge; pure.

    Only fragments of the same views and columns are merged, in their order, as many as stay within
    ``target_bytes``. One that fills half of that alone stays as it is, and so does one with
    an image of which a fragment outside the group has the rows that count: after the merger,
    others might. Images that several of one group hold count once.

    Parameters
    ----------
    records
        Fragments that count.
    target_bytes
        Most that the embedding of a merged fragment shall hold; also the most that a
        compaction holds in memory, two or three times over.

    Returns
    -------
    groups
        Two fragments or more each.
    """
    ordered = sorted(records, key=place_of)
    winners: dict[tuple[str, str], str] = {}
    by_kind: dict[tuple[tuple[str, ...], frozenset[str]], list[Record]] = defaultdict(list)
    for record in ordered:
        for pair in product(record.image_ids, record.augmentations):
            winners.setdefault(pair, record.fragment_id)
        if n_bytes_of(record) * 2 <= target_bytes:
            by_kind[record.augmentations, frozenset(record.columns)].append(record)
    groups = [group for alike in by_kind.values() for group in _group(alike, winners, target_bytes)]
    return tuple(group for group in groups if len(group) > 1)


def _group(
    alike: Iterable[Record], winners: Mapping[tuple[str, str], str], target_bytes: int
) -> Iterator[tuple[Record, ...]]:
    """Cut fragments of the same views, in their order, into groups of bounded size."""
    group: list[Record] = []
    held: set[str] = set()
    size = 0
    for record in alike:
        new = _n_new_bytes(record, held)
        if group and size + new > target_bytes:
            yield tuple(group)
            group, held, size = [], set(), 0
            new = n_bytes_of(record)
        pairs = product(record.image_ids, record.augmentations)
        inside = {record.fragment_id, *(member.fragment_id for member in group)}
        if all(winners[pair] in inside for pair in pairs):
            group.append(record)
            held.update(record.image_ids)
            size += new
    yield tuple(group)


def _n_new_bytes(record: Record, held: set[str]) -> int:
    rows = sum(
        count
        for image_id, count in zip(record.image_ids, record.n_patches, strict=True)
        if image_id not in held
    )
    return n_bytes_of(record) * rows // sum(record.n_patches)


def compact(
    features: FeatureSet,
    *,
    target_bytes: int = SHARD_BYTES,
    encoding: Encoding | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CompactReport:
    """Merge the small fragments of a feature set into large ones.

    Killed at any moment, it leaves every row where it was or in its new place. Others may
    build, read, or compact at the same time. A fragment that is not what was written, to the
    last byte, is not merged: damage is never copied.

    Parameters
    ----------
    features
        From a store that is open for writing.
    target_bytes
        As :func:`plan_merges`.
    encoding
        How to cut and pack the merged embeddings.
    progress
        Told how many fragments are done, and of how many.

    Returns
    -------
    report
        What was merged.

    Raises
    ------
    OptionError
        If the store is open for reading only.
    StorageError
        If the storage refuses; what was merged until then stays merged.

    Examples
    --------
    >>> from histostore.store import open_store
    >>> from histostore.testing import fragment_of, spec_of
    >>> features = open_store("memory://doctest-compact", mode="a").create_feature_set(spec_of())
    >>> for image_id in "abc":
    ...     _ = features.commit(fragment_of([image_id]), {})
    >>> report = compact(features)
    >>> report.n_before, report.n_after, features.image_ids
    (3, 1, ('a', 'b', 'c'))
    """
    features.refresh()
    n_before = len(features.fragments)
    groups = plan_merges(features.fragments, target_bytes=target_bytes)
    total, done = sum(map(len, groups)), 0
    merged, skipped = [], []
    for group in groups:
        try:
            merged.append(_merge(features, group, encoding))
        except CorruptError as error:
            skipped.append(error.message)
        done += len(group)
        if progress is not None:
            progress(done, total)
    return CompactReport(
        feature_set=features.name,
        n_before=n_before,
        n_after=len(features.fragments),
        merged=tuple(merged),
        skipped=tuple(skipped),
    )


def compact_store(
    url: str,
    feature_set: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> tuple[CompactReport, ...]:
    """Merge the small fragments of one feature set of a store, or of each.

    Parameters
    ----------
    url
        Where the store lies.
    feature_set
        This one alone.
    storage_options
        For the storage driver.
    progress
        Told how many fragments are done, of how many, and of which feature set.

    Raises
    ------
    NotFound
        If there is no store, no such feature set, or none at all; nothing is made then.
    StorageError
        As of :func:`compact`.
    """
    open_store(url, storage_options)  # to read, first: nothing is made where nothing is
    opened = open_store(url, storage_options, mode="a")
    names = [feature_set] if feature_set else list(opened)
    if not names:
        opened.feature_set()  # says that there is none

    def merged(name: str) -> CompactReport:
        return compact(opened[name], progress=lambda done, total: progress(done, total, name))

    return tuple(map(merged, names))


def _merge(
    features: FeatureSet, group: tuple[Record, ...], encoding: Encoding | None
) -> tuple[str, tuple[str, ...]]:
    """Write one merged fragment; it holds all that the group holds."""
    held: dict[str, None] = {}
    parts = []
    for record in group:
        new = [at for at, image_id in enumerate(record.image_ids) if image_id not in held]
        if new:
            parts.append(read_fragment(features.backend, features.name, record, new))
            held.update((record.image_ids[at], None) for at in new)
    fragment = arrange(parts, tuple(held))
    del parts
    merged = features.commit(
        fragment,
        {"versions": versions(), "merged": _origins(group)},
        encoding=encoding,
        replaces=lineage(group),
    )
    return merged, tuple(record.fragment_id for record in group)


def _origins(group: tuple[Record, ...]) -> list[dict[str, Any]]:
    """List how the rows came about: equal provenance once, earlier merges seen through."""
    found: list[dict[str, Any]] = []
    for record in group:
        earlier = record.provenance.get("merged")
        own = [{"fragments": [record.fragment_id], "provenance": dict(record.provenance)}]
        for origin in earlier if isinstance(earlier, list) else own:
            alike = next(
                (each for each in found if each["provenance"] == origin["provenance"]), None
            )
            if alike is None:
                found.append({**origin, "fragments": list(origin["fragments"])})
            else:
                alike["fragments"] += origin["fragments"]
    return found


def lineage(replaced: Iterable[Record]) -> set[str]:
    """Give the ids that a fragment must say it replaces.

    Those that the replaced ones had replaced themselves are among them: were they left out,
    they would count again once ``gc`` has removed what replaced them.
    """
    found: set[str] = set()
    for record in replaced:
        found |= {record.fragment_id, *record.replaces}
    return found
