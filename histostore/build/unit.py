"""What one worker does: embed a unit of images and commit them."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from histostore.build.pipeline import EncodedImage, Failure, encode_images, gather_fragments
from histostore.provenance import versions
from histostore.store import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from histostore.build.options import EncoderOptions
    from histostore.build.pipeline import ImageJob
    from histostore.encoders.base import Encoder, EncoderIdentity
    from histostore.store import FeatureSet

__all__ = ["UnitResult", "UnitTask", "build_unit", "encoder_of"]

READ_THREADS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitTask:
    """All that a worker needs to know; travels to other processes and machines."""

    store_url: str
    feature_set: str
    encoder: EncoderOptions
    views: tuple[str, ...]
    jobs: tuple[ImageJob, ...]
    storage_options: dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitResult:
    """What became of a unit."""

    n_embedded: int
    n_patches: int
    failed: tuple[Failure, ...]


def build_unit(
    task: UnitTask,
    *,
    on_image: Callable[[EncodedImage | Failure], None] = lambda _: None,
    stopped: Callable[[], bool] = lambda: False,
) -> UnitResult:
    """Embed the images of a unit and commit them, as one fragment as a rule.

    Parameters
    ----------
    task
        The unit.
    on_image
        Told of every image when it is finished or has failed.
    stopped
        Asked between batches; once it says yes, what is finished is committed and the rest
        left for another build.
    """
    features = _feature_set(task.store_url, task.feature_set, json.dumps(task.storage_options))
    failed: list[Failure] = []
    n_embedded = n_patches = 0

    def finished(images: Iterator[EncodedImage | Failure]) -> Iterator[EncodedImage]:
        nonlocal n_embedded, n_patches
        for image in images:
            on_image(image)
            if isinstance(image, Failure):
                failed.append(image)
            else:
                n_embedded += 1
                n_patches += image.n_patches
                yield image

    with ThreadPoolExecutor(READ_THREADS) as readers, ThreadPoolExecutor(1) as writer:
        images = encode_images(
            task.jobs,
            features.spec,
            encoder_of(task.encoder),
            task.views,
            pool=readers,
            storage_options=task.storage_options,
            stopped=stopped,
        )
        commits: list[Future[str]] = []
        for fragment in gather_fragments(finished(images), task.views, features.spec.dtype):
            _settle(commits)  # one fragment being written, one being filled: no more in memory
            commits.append(writer.submit(features.commit, fragment, {"versions": versions()}))
        _settle(commits)
    return UnitResult(n_embedded=n_embedded, n_patches=n_patches, failed=tuple(failed))


def _settle(commits: Sequence[Future[str]]) -> None:
    for commit in commits:
        commit.result()


@lru_cache(maxsize=4)
def _feature_set(store_url: str, name: str, storage_options: str) -> FeatureSet:
    """Open a feature set once per process."""
    return open_store(store_url, storage_options=json.loads(storage_options), mode="a").feature_set(
        name
    )


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


@lru_cache(maxsize=1)
def encoder_of(options: EncoderOptions) -> Encoder:
    """Load an encoder once per process."""
    return _OneAtATime(options.load())
