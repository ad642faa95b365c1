"""The store's contract, for tests: random fragments, and storages that fail or are counted.

Whoever writes a storage driver, or builds on the store, tests against these. Hypothesis is
needed, so nothing else imports this module.
"""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
from hypothesis import strategies as st

from histostore.encoders.base import EncoderIdentity
from histostore.files import Source
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.store.fragment import Fragment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from histostore.store.backend import Backend, Entry, StoredBytes

__all__ = ["FaultyBackend", "fragment_of", "fragments", "names", "spec_of"]


_ENDS = ("max", "min", "tiny", "smallest_subnormal", "eps")


def spec_of(
    *, name: str = "test", n_features: int = 4, dtype: str = "float32", **settings: Any
) -> FeatureSpec:
    """Make a small specification."""
    return FeatureSpec(
        encoder=EncoderIdentity(name=name),
        n_features=n_features,
        grid=PatchGrid(patch_size=16),
        tissue=TissueFilter(),
        dtype=dtype,
        **settings,
    )


def fragment_of(
    image_ids: Sequence[str],
    *,
    counts: Sequence[int] | int = 3,
    n_features: int = 4,
    augmentations: Sequence[str] = ("identity",),
    dtype: str = "float32",
    seed: int = 0,
) -> Fragment:
    """Make a fragment of random numbers.

    Parameters
    ----------
    image_ids
        Its images.
    counts
        Patches of each, or of all.
    n_features, augmentations, dtype
        Shape and type of the embedding.
    seed
        Decides the numbers.
    """
    generator = np.random.default_rng(seed)
    per_image = [counts] * len(image_ids) if isinstance(counts, int) else list(counts)
    n_patches = sum(per_image)
    shape = (len(augmentations), n_patches, n_features)
    places = generator.integers(0, 2**31, (2, n_patches), np.int32)
    return Fragment(
        embedding=generator.standard_normal(shape, np.float32).astype(dtype),
        augmentations=tuple(augmentations),
        image_ids=tuple(image_ids),
        offset=np.concatenate(([0], np.cumsum(per_image))).astype(np.int64),
        y=places[0],
        x=places[1],
        tissue=generator.random(n_patches, np.float32),
        sources=tuple(
            Source(url=f"{image_id}.png", size=number, version=str(seed))
            for number, image_id in enumerate(image_ids)
        ),
        flags=tuple(("small-image",) if number % 2 else () for number in range(len(image_ids))),
    )


def names(min_size: int = 1, max_size: int = 4) -> st.SearchStrategy[list[str]]:
    """Draw distinct names: any Unicode that UTF-8 can express, slashes and quotes too."""
    name = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
    return st.lists(name, min_size=min_size, max_size=max_size, unique=True)


@st.composite
def fragments(draw: st.DrawFn, n_features: int | None = None, dtype: str | None = None) -> Fragment:
    """Draw a fragment of any shape, names, type and numbers that format 1 can hold."""
    kind = np.dtype(dtype or draw(st.sampled_from(["float16", "float32"])))
    image_ids = draw(names())
    per_image = draw(st.lists(st.integers(1, 7), min_size=len(image_ids), max_size=len(image_ids)))
    n_patches = sum(per_image)
    views = draw(names(max_size=3))
    shape = (len(views), n_patches, n_features or draw(st.integers(1, 5)))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Zeros are what other stores leave out; the rest are the ends of what a float can hold.
    numbers = np.array([0, -0.0, 1, -1.5, *map(np.finfo(kind).__getattribute__, _ENDS)], kind)
    pool = numbers[: draw(st.integers(1, len(numbers)))]
    places = generator.integers(0, draw(st.sampled_from([1, 2**31])), (2, n_patches), np.int32)
    return Fragment(
        embedding=generator.choice(pool, shape),
        augmentations=tuple(views),
        image_ids=tuple(image_ids),
        offset=np.concatenate(([0], np.cumsum(per_image))).astype(np.int64),
        y=places[0],
        x=places[1],
        tissue=generator.choice(np.array([0, 1, 0.5, 1e-30], np.float32), n_patches),
        sources=tuple(
            Source(url=f"s3://bucket/{image_id}", size=None, version=None) for image_id in image_ids
        ),
        flags=((),) * len(image_ids),
    )


class FaultyBackend:
    """A storage that counts what it is asked, and fails when it is told to.

    Parameters
    ----------
    backend
        The storage behind it.
    fault
        Called before each change of the storage with the number of changes so far, the path
        and the content; may raise, or do worse.
    """

    def __init__(
        self, backend: Backend, fault: Callable[[int, str, bytes], None] | None = None
    ) -> None:
        self._backend = backend
        self._fault = fault
        self._lock = threading.Lock()
        self.url = backend.url
        self.threads = backend.threads
        self.requests: Counter[str] = Counter()
        self.paths: list[str] = []

    def _count(self, kind: str, path: str) -> int:
        with self._lock:
            self.paths.append(path)
            self.requests[kind] += 1
            return self.requests["change"] - 1

    def _change(self, path: str, content: bytes) -> None:
        number = self._count("change", path)
        if self._fault is not None:
            self._fault(number, path, content)

    def read(self, path: str) -> bytes | None:
        """Count, then read."""
        self._count("read", path)
        return self._backend.read(path)

    def read_many(self, paths: Sequence[str]) -> list[bytes | None]:
        """Count each, then read."""
        for path in paths:
            self._count("read", path)
        return self._backend.read_many(paths)

    def names(self, folder: str) -> list[str]:
        """Count, then list."""
        self._count("list", folder)
        return self._backend.names(folder)

    def open(self, path: str) -> StoredBytes | None:
        """Count, then open."""
        self._count("open", path)
        return self._backend.open(path)

    def write(self, path: str, content: bytes) -> None:
        """Count, perhaps fail, then write."""
        self._change(path, content)
        self._backend.write(path, content)

    def settle(self, paths: Iterable[str]) -> None:
        """Count, perhaps fail, then settle."""
        self._change("", b"")
        self._backend.settle(paths)

    def put(self, path: str, content: bytes) -> None:
        """Count, perhaps fail, then put."""
        self._change(path, content)
        self._backend.put(path, content)

    def discard(self, paths: Iterable[str]) -> None:
        """Discard: this never raises."""
        self._backend.discard(paths)

    def walk(self, folder: str) -> list[Entry]:
        """Count, then list all below."""
        self._count("walk", folder)
        return self._backend.walk(folder)

    def remove(self, path: str) -> None:
        """Count, perhaps fail, then remove."""
        self._change(path, b"")
        self._backend.remove(path)

    def prune(self, folder: str) -> None:
        """Prune: this never raises."""
        self._backend.prune(folder)
