"""Replacing one damaged fragment: sound rows copied, the others embedded again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.build.gather import gather_fragments
from histostore.build.pipeline import Failure, ImageJob, encode_images
from histostore.errors import FormatError
from histostore.files import Source, public_url, stat_many
from histostore.provenance import versions
from histostore.store.checked import arrange, images_between, read_fragment, read_texts, row_chunks
from histostore.store.compact import lineage
from histostore.store.layout import fragment_folder, join, metadata_path
from histostore.store.record import parse_record
from histostore.store.shards import read_column
from histostore.store.unflip import is_sealed, unflip
from histostore.store.verify import check_fragment
from histostore.store.writer import commit_fragment

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from histostore.build.options import EncoderOptions
    from histostore.cohort import Cohort, Given
    from histostore.encoders.base import Encoder
    from histostore.spec import FeatureSpec
    from histostore.store import Fragment
    from histostore.store.protocol import Backend
    from histostore.store.record import Record
    from histostore.store.survey import Problem

__all__ = ["CannotMend", "Mended", "Mender"]

_READ_THREADS = 2
SET_ASIDE = "damaged-record"
"""What a commit record is called that is beyond repair."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mended:
    """What became of one damaged thing."""

    path: str
    """Folder of the fragment, or object, relative to the store."""

    replacement: str | None = None
    """Id of the fragment that counts in its place."""

    n_copied: int = 0
    """Images whose rows were sound."""

    embedded: tuple[str, ...] = ()
    """Images that were embedded again."""

    kept: str = ""
    """Why it is damaged still; empty if it is mended."""


class CannotMend(Exception):
    """Why a fragment stays as it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Damaged:
    """A fragment with damage, and what of it must be computed again."""

    record: Record
    suspects: tuple[int, ...]
    """Positions, rising, of images of which some row may be wrong."""

    places_are_sound: bool
    """Whether the stored coordinates can be held against those of today."""

    trusted: bool
    """Whether the record is what was written; its sources cannot be taken as changed else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mender:
    """Mends fragments of one feature set."""

    backend: Backend
    spec: FeatureSpec
    encoder: EncoderOptions
    storage: dict[str, Any]
    cohort: Cohort | None
    accept_changed: bool

    def mend(self, fragment_id: str, problems: Sequence[Problem]) -> Mended:
        """Replace a fragment.

        Raises
        ------
        CannotMend
            Saying why it stays as it is.
        EncoderError
            If the encoder cannot be had.
        StorageError
            If the storage refuses.
        """
        for problem in problems:
            if problem.unreadable:
                raise CannotMend(problem.what)
        folder = fragment_folder(self.spec.name, fragment_id)
        if any(problem.kind == "record" for problem in problems) and self._restored(folder):
            return Mended(path=folder)
        damaged = self._assess(fragment_id, problems)
        record = damaged.record
        sound = sorted(set(range(len(record.image_ids))) - set(damaged.suspects))
        lost = tuple(record.image_ids[at] for at in damaged.suspects)
        parts = self._embed(damaged) if lost else []
        if sound:
            parts.append(read_fragment(self.backend, self.spec.name, record, sound))
        whole = arrange(parts, record.image_ids)
        # What this version cannot compute again, it cannot keep for some of the images either.
        left_out = sorted(set(record.columns) - set(whole.columns))
        replacement = commit_fragment(
            self.backend,
            self.spec,
            whole,
            provenance={
                "versions": versions(),
                "repaired": {"fragment": fragment_id, "embedded": list(lost), "left_out": left_out},
                "provenance": dict(record.provenance),
            },
            replaces={fragment_id, *lineage([record])},
        )
        return Mended(
            path=folder,
            replacement=replacement.fragment_id,
            n_copied=len(sound),
            embedded=lost,
        )

    def _restored(self, folder: str) -> bool:
        """Put a commit record back as it was written, if one bit of it has flipped."""
        path = join(folder, metadata_path())
        content = self.backend.read(path) or b""
        restored = None if is_sealed(content) else unflip(content)
        if restored is not None:
            self.backend.put(path, restored)
        return restored is not None

    def _assess(self, fragment_id: str, problems: Sequence[Problem]) -> _Damaged:
        """Find out what of a fragment is to be believed."""
        folder = fragment_folder(self.spec.name, fragment_id)
        content = self.backend.read(join(folder, metadata_path())) or b""
        trusted = all(problem.kind != "record" for problem in problems)
        if trusted:
            record = parse_record(content, fragment_id, feature_set=self.spec.digest)
            if record is None:
                raise CannotMend("its commit record is gone")
        else:
            record = self._salvage(content, folder, fragment_id)
            problems = check_fragment(self.backend, self.spec.name, record)
        suspects: set[int] = set()
        for problem in problems:
            if problem.kind == "values":
                suspects |= {record.image_ids.index(image_id) for image_id in problem.image_ids}
            # Of an object that is not the one that was written no row is to be believed,
            # whatever its chunks' own checksums say: it may be another fragment's.
            for chunk in row_chunks(record, problem.path) if problem.kind == "object" else ():
                suspects |= set(images_between(record, chunk.start, chunk.stop))
        return _Damaged(
            record=record,
            suspects=tuple(sorted(suspects)),
            places_are_sound=not any(each.path.startswith(("x/", "y/")) for each in problems),
            trusted=trusted,
        )

    def _salvage(self, content: bytes, folder: str, fragment_id: str) -> Record:
        """Take a damaged record's word for what the arrays beside it say too.

        Names and bounds are compared here; rows, by the caller, with the digests in the
        record: damage to a record does not make it agree with bytes that are not its own.
        """
        if is_sealed(content):
            # What is wrong with it was written so: it lies in the wrong place, or is newer.
            parse_record(content, fragment_id, feature_set=self.spec.digest)
            raise CannotMend("its commit record is what was written, and cannot be used")
        try:
            record = parse_record(content, fragment_id, feature_set=self.spec.digest, damaged=True)
            if record is not None and self._agrees(record, folder):
                return record
        except (FormatError, KeyError, TypeError, ValueError, AttributeError):
            pass  # it tells nothing that could be believed
        self.backend.put(join(folder, SET_ASIDE), content)
        self.backend.remove(join(folder, metadata_path()))
        raise CannotMend(
            "its commit record is beyond repair and was set aside, so that the rest can be read; "
            "its images are not in the store now: run histostore build with their cohort"
        )

    def _agrees(self, record: Record, folder: str) -> bool:
        for name, told in (
            ("image_id", record.image_ids),
            ("augmentation", record.augmentations),
        ):
            stored = self.backend.read(join(folder, name, "c.0"))
            if stored is None or read_texts(stored, record.arrays[name]) != told:
                return False
        bounds = read_column(self.backend, folder, "offset", record.arrays["offset"])
        for at in range(len(record.image_ids)):
            record.source(at)
        return bool(tuple(np.diff(bounds).tolist()) == record.n_patches)

    def _embed(self, damaged: _Damaged) -> list[Fragment]:
        """Embed the suspects again; all of them, or none."""
        views, failed = damaged.record.augmentations, []
        jobs = self._jobs(damaged)

        def finished(images: Iterator[Any]) -> Iterator[Any]:
            for image in images:
                if isinstance(image, Failure):
                    failed.append(image)
                else:
                    yield image

        with ThreadPoolExecutor(_READ_THREADS) as pool:
            images = encode_images(
                jobs, self.spec, self._load(), views, pool=pool, storage_options=self.storage
            )
            parts = list(gather_fragments(finished(images), views))
        if failed:
            raise CannotMend(f"image {failed[0].image_id}: {failed[0].reason}")
        if not self.accept_changed:
            self._check_places(damaged, parts)
        return parts

    def _jobs(self, damaged: _Damaged) -> list[ImageJob]:
        """Say where the suspects are read from, and refuse files that are not the same."""
        record = damaged.record
        table = self.cohort
        rows = {} if table is None else {name: at for at, name in enumerate(table.image_ids)}
        given = () if table is None else table.given
        wanted: list[tuple[str, Source, str, float | None, Given | None]] = []
        for at in damaged.suspects:
            image_id, recorded = record.image_ids[at], record.source(at)
            row = rows.get(image_id)
            if table is None or row is None:
                wanted.append((image_id, recorded, recorded.url, recorded.mpp, None))
            else:
                wanted.append((image_id, recorded, table.urls[row], table.mpp[row], given[row]))
        files = [places.url for *_, places in wanted if places]
        there = stat_many([*(address for _, _, address, _, _ in wanted), *files], self.storage)
        jobs = []
        for image_id, recorded, address, mpp, places in wanted:
            now = there[address]
            if now is None:
                raise CannotMend(
                    f"image {image_id} is not at {public_url(address)} any more: "
                    "give the cohort that says where it is"
                )
            if places and (file := there[places.url]):
                now = now.placed_by(file)
            if self.spec.grid.mpp is not None:
                now = now.scaled_by(mpp)
            if now.differs(recorded.to_json()) and not (damaged.trusted and self.accept_changed):
                raise CannotMend(_what_changed(image_id, recorded, now, places))
            jobs.append(ImageJob(image_id=image_id, source=now, mpp=mpp, given=places))
        return jobs

    def _load(self) -> Encoder:
        identity = self.spec.encoder
        options = replace(self.encoder, name=identity.name, precision=identity.precision)
        encoder = options.load()
        if encoder.identity != identity:
            raise CannotMend(
                f"{identity.name} is not here what it was when it made {self.spec.name} "
                f"(weights {encoder.identity.weights[:19]}, then {identity.weights[:19]}): "
                "give the same weights and preprocessing"
            )
        return encoder

    def _check_places(self, damaged: _Damaged, parts: Sequence[Fragment]) -> None:
        """Refuse rows of other patches than those that were stored."""
        record = damaged.record
        bounds = np.concatenate(([0], np.cumsum(record.n_patches, dtype=np.int64)))
        folder = fragment_folder(self.spec.name, record.fragment_id)
        stored = {
            name: read_column(self.backend, folder, name, record.arrays[name])
            for name in ("y", "x")
            if damaged.places_are_sound
        }
        for part in parts:
            for at, image_id in enumerate(part.image_ids):
                new = slice(*part.offset[at : at + 2].tolist())
                number = record.image_ids.index(image_id)
                old = slice(*bounds[number : number + 2].tolist())
                same = new.stop - new.start == old.stop - old.start and all(
                    np.array_equal(getattr(part, name)[new], column[old])
                    for name, column in stored.items()
                )
                if not same:
                    raise CannotMend(
                        f"image {image_id} gives other patches now than were stored; if its scale "
                        "came from a cohort, give the cohort"
                    )


def _what_changed(image_id: str, recorded: Source, now: Source, places: Given | None) -> str:
    """Say which of an image's files is no longer what was read."""
    if (now.size, now.version) != (recorded.size, recorded.version):
        return f"image {image_id} has changed since it was embedded: {public_url(now.url)}"
    if now.scale != (recorded.scale or now.scale):
        return (
            f"image {image_id} was embedded at the scale of {recorded.scale} (µm per pixel), now"
            f" it is {now.scale}: give the cohort that says so"
        )
    if places is None:
        return f"a file said where the patches of image {image_id} lie: give the cohort with it"
    return f"where the patches of image {image_id} lie has changed: {public_url(places.url)}"
