"""What one worker does: embed a unit of images and commit them."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from histostore.build.allocator import share_one_heap
from histostore.build.gather import gather_fragments, patches_of
from histostore.build.pipeline import READ_AHEAD, EncodedImage, Failure, encode_images
from histostore.build.reembed import embed_again
from histostore.encoders.weightless import available_cores
from histostore.errors import EncoderError, NotFound, StorageError
from histostore.provenance import versions
from histostore.store import open_store
from histostore.store.streaming import FragmentStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from histostore.build.options import EncoderOptions
    from histostore.build.pipeline import ImageJob
    from histostore.encoders.base import Encoder, EncoderIdentity
    from histostore.store import FeatureSet

__all__ = ["UnitResult", "UnitTask", "build_unit", "encoder_of"]

READ_THREADS = (2, 8)
"""Threads that read, at least and at most: as many as there are cores to decode on, so that a
GPU is not kept waiting."""

_LOADING = Lock()


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitTask:
    """All that a worker needs to know; travels to other processes and machines."""

    build_id: str
    """Which build planned it; recorded with what is committed."""
    store_url: str
    feature_set: str
    encoder: EncoderOptions
    views: tuple[str, ...]
    jobs: tuple[ImageJob, ...]
    storage_options: dict[str, Any]
    replaces: str | None = None
    """A fragment whose rows of these images, in its views, are to be replaced by new ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What became of a unit."""

    n_embedded: int
    """Images that this build embedded, …"""
    n_patches: int
    """… with this many patches, …"""
    n_flagged: int
    """… of which this many images carry a flag."""
    n_found: int
    """Images that somebody else had embedded meanwhile."""
    failed: tuple[Failure, ...]
    reembedded: tuple[str, ...] = ()
    """Images that had rows, and have new ones now."""

    @property
    def n_images(self) -> int:
        """Images of the unit."""
        return self.n_embedded + self.n_found + len(self.failed) + len(self.reembedded)


def build_unit(
    task: UnitTask,
    *,
    features: FeatureSet | None = None,
    on_image: Callable[[EncodedImage | Failure], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> UnitResult:
    """Embed the images of a unit and commit them, as one fragment as a rule.

    A unit may be given out twice: its first worker died, or another builder works on the
    same cohort. So what has been committed since the plan was made is left out.

    Parameters
    ----------
    task
        The unit.
    features
        The feature set, where it is open in this process; else it is opened.
    on_image
        Told of every image when it is finished or has failed.
    stopped
        Asked between batches; once it says yes, what is finished is committed and the rest
        left for another build.

    Raises
    ------
    EncoderError
        If the encoder cannot be loaded here, or is not the one that the build was planned with.
    StorageError
        If the store cannot be seen from here, or refuses.
    """
    share_one_heap()
    if features is None:
        options = json.dumps(task.storage_options)
        features = _feature_set(task.build_id, task.store_url, task.feature_set, options)
    encoder = encoder_of(task.encoder)
    _check_encoder(encoder.identity, features.spec.encoder)
    provenance = {"build": task.build_id, "versions": versions()}
    if task.replaces is not None:
        return _reembed(task, features, encoder, provenance, on_image, stopped)
    jobs, tally = _left_over(features, task)

    def finished(images: Iterator[EncodedImage | Failure]) -> Iterator[EncodedImage]:
        for image in images:
            on_image(image)
            if isinstance(image, Failure):
                tally.failed.append(image)
            else:
                tally.add(image.n_patches, flagged=bool(image.selection.flags))
                if isinstance(image.rows, FragmentStream):
                    image.rows.commit(patches_of([image], task.views), provenance)
                else:
                    yield image

    n_readers = _n_readers(task.encoder)
    with ThreadPoolExecutor(n_readers) as readers, ThreadPoolExecutor(1) as writer:
        images = encode_images(
            jobs,
            features.spec,
            encoder,
            task.views,
            pool=readers,
            storage_options=task.storage_options,
            stopped=stopped,
            stream=features.stream,
            read_ahead=READ_AHEAD + n_readers - READ_THREADS[0],
        )
        commits: list[Future[str]] = []
        for fragment in gather_fragments(finished(images), task.views):
            _settle(commits)  # one fragment being written, one being filled: no more in memory
            commits.append(writer.submit(features.commit, fragment, provenance))
        _settle(commits)
    return UnitResult(
        n_embedded=tally.n_embedded,
        n_patches=tally.n_patches,
        n_flagged=tally.n_flagged,
        n_found=tally.n_found,
        failed=tuple(tally.failed),
    )


def _n_readers(encoder: EncoderOptions) -> int:
    """Count the threads that read: those of a process that was given few cores are few."""
    least, most = READ_THREADS
    return min(max(encoder.threads or available_cores(), least), most)


def _reembed(
    task: UnitTask,
    features: FeatureSet,
    encoder: Encoder,
    provenance: dict[str, Any],
    on_image: Callable[[EncodedImage | Failure], None],
    stopped: Callable[[], bool],
) -> UnitResult:
    """Carry out a unit of images that are there, and have changed."""
    features.refresh()
    embedded, failed = embed_again(
        features,
        task.replaces or "",
        task.jobs,
        encoder,
        provenance=provenance,
        storage_options=task.storage_options,
        on_image=on_image,
        stopped=stopped,
    )
    return UnitResult(
        n_embedded=0,
        n_patches=sum(image.n_patches for image in embedded),
        n_flagged=sum(bool(image.selection.flags) for image in embedded),
        n_found=0,  # they were there before, all of them
        failed=tuple(failed),
        reembedded=tuple(image.job.image_id for image in embedded),
    )


@dataclass(kw_only=True, slots=True)
class _Tally:
    """What a unit has come to so far."""

    n_embedded: int = 0
    n_patches: int = 0
    n_flagged: int = 0
    n_found: int = 0
    failed: list[Failure] = field(default_factory=list)

    def add(self, n_patches: int, *, flagged: bool) -> None:
        self.n_embedded += 1
        self.n_patches += n_patches
        self.n_flagged += flagged


def _left_over(features: FeatureSet, task: UnitTask) -> tuple[list[ImageJob], _Tally]:
    """Look again at the store: which images of a unit are to be done, and what of it is there."""
    features.refresh()
    tally = _Tally()
    lacking = {job.image_id: set(task.views) for job in task.jobs}
    for record in features.fragments:
        # Views that were there before are not wanted here, so this finds later ones alone.
        for image_id in lacking.keys() & record.image_ids:
            if not lacking[image_id].intersection(record.augmentations):
                continue
            lacking[image_id].difference_update(record.augmentations)
            if lacking[image_id]:
                continue
            if record.provenance.get("build") == task.build_id:
                at = record.image_ids.index(image_id)
                tally.add(record.n_patches[at], flagged=bool(record.flags[at]))
            else:
                tally.n_found += 1
    return [job for job in task.jobs if lacking[job.image_id]], tally


def _check_encoder(found: EncoderIdentity, planned: EncoderIdentity) -> None:
    """Refuse to mix vectors of two encoders: a worker may have other weights at the same path."""
    here, there = found.to_json(), planned.to_json()
    for key, value in there.items():
        if here[key] != value:
            raise EncoderError(
                f"the encoder of this worker is not that of the build: {key} {here[key]} here, "
                f"{value} where the build was planned; give all the same files and versions"
            )


def _settle(commits: Sequence[Future[str]]) -> None:
    for commit in commits:
        commit.result()


@lru_cache(maxsize=4)
def _feature_set(build_id: str, store_url: str, name: str, storage_options: str) -> FeatureSet:
    """Open a feature set once per process and build: a store may be made anew between two."""
    del build_id
    options = json.loads(storage_options)
    try:
        # To read first: what is not there must not be made here.
        open_store(store_url, options)
        return open_store(store_url, options, mode="a").feature_set(name)
    except NotFound as error:
        raise StorageError(
            f"a worker does not see the store that the build was planned for ({error}): give it "
            "the same file system, or a bucket"
        ) from error


class _OneAtATime:
    """An encoder that several units share: their calls queue up."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = Lock()

    @property
    def identity(self) -> EncoderIdentity:
        return self._encoder.identity

    @property
    def n_features(self) -> int:
        return self._encoder.n_features

    @property
    def batch_size(self) -> int:
        return self._encoder.batch_size

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        with self._lock:
            return self._encoder.encode(patches)


def encoder_of(options: EncoderOptions) -> Encoder:
    """Load an encoder once per process, even when several threads want it at once."""
    with _LOADING:
        return _load(options)


@lru_cache(maxsize=1)
def _load(options: EncoderOptions) -> Encoder:
    return _OneAtATime(options.load())
