"""One cohort in every layout that people use, written and read as each one's own tools do."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from histostore.encoders.base import EncoderIdentity
from histostore.files import Source
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.store import Fragment, open_store

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FRAGMENT_BYTES = 64 * 2**20
"""As the builder gathers them."""

UNIT_IMAGES = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cohort of equal bags."""

    n_images: int
    n_patches: int
    n_features: int
    dtype: str

    @property
    def name(self) -> str:
        kind = {"float32": "f32", "float16": "f16"}[self.dtype]
        return f"{self.n_images:,} × {self.n_patches:,} × {self.n_features:,} {kind}"


CASES = (
    Case(n_images=2000, n_patches=12, n_features=384, dtype="float32"),
    Case(n_images=2000, n_patches=100, n_features=384, dtype="float32"),
    Case(n_images=20, n_patches=10_000, n_features=1024, dtype="float16"),
)
"""The cohorts of the targets."""

SMOKE = (
    Case(n_images=300, n_patches=12, n_features=384, dtype="float32"),
    Case(n_images=200, n_patches=100, n_features=384, dtype="float32"),
    Case(n_images=4, n_patches=10_000, n_features=1024, dtype="float16"),
)
"""The same bags, fewer of them: per-file costs, and so ratios, keep their size."""


class Data:
    """Random numbers: what embeddings are to a compressor."""

    def __init__(self, case: Case) -> None:
        rng = np.random.default_rng(0)
        n_rows = case.n_images * case.n_patches
        self.case = case
        self.embedding = rng.standard_normal((n_rows, case.n_features), np.float32).astype(
            case.dtype
        )
        self.coords = rng.integers(0, 100_000, (n_rows, 2), np.int32)
        self.ids = [f"image-{image:05d}" for image in range(case.n_images)]

    def rows(self, image: int) -> slice:
        return slice(image * self.case.n_patches, (image + 1) * self.case.n_patches)


class PerImage:
    """One file per image."""

    suffix = ""

    def __init__(self, folder: Path, ids: list[str]) -> None:
        self.folder = folder
        self.paths = [str(folder / f"{image_id}{self.suffix}") for image_id in ids]

    def write(self, data: Data) -> None:
        self.folder.mkdir(exist_ok=True)
        for image, path in enumerate(self.paths):
            self.write_bag(path, data.embedding[data.rows(image)], data.coords[data.rows(image)])

    def bag(self, image: int) -> np.ndarray:
        return self.read_bag(self.paths[image])

    def all(self) -> np.ndarray:
        return np.concatenate([self.read_bag(path) for path in self.paths])

    def write_bag(self, path: str, embedding: np.ndarray, coords: np.ndarray) -> None:
        raise NotImplementedError

    def read_bag(self, path: str) -> np.ndarray:
        raise NotImplementedError


class Trident(PerImage):
    """TRIDENT's HDF5: resizable data sets in chunks of one row (its ``IO.py``)."""

    name, suffix = "one HDF5 per image, TRIDENT layout", ".h5"

    def write_bag(self, path: str, embedding: np.ndarray, coords: np.ndarray) -> None:
        with h5py.File(path, "w") as file:
            for key, rows in (("features", embedding), ("coords", coords)):
                file.create_dataset(
                    key, data=rows, chunks=(1, rows.shape[1]), maxshape=(None, rows.shape[1])
                )

    def read_bag(self, path: str) -> np.ndarray:
        with h5py.File(path, "r") as file:
            return file["features"][...]


class Pt(PerImage):
    """CLAM's tensors."""

    name, suffix = "one .pt per image", ".pt"

    def write_bag(self, path: str, embedding: np.ndarray, coords: np.ndarray) -> None:
        del coords  # CLAM keeps them in a file of their own
        import torch

        torch.save(torch.from_numpy(embedding), path)

    def read_bag(self, path: str) -> np.ndarray:
        import torch

        return torch.load(path, weights_only=True).numpy()  # noqa: TID251 - the baseline's way


class Npz(PerImage):
    name, suffix = "one .npz per image", ".npz"

    def write_bag(self, path: str, embedding: np.ndarray, coords: np.ndarray) -> None:
        np.savez(path, features=embedding, coords=coords)

    def read_bag(self, path: str) -> np.ndarray:
        with np.load(path) as file:
            return file["features"]


class Lance:
    """One Lance table, a row per patch."""

    name = "one Lance table"

    def __init__(self, folder: Path, ids: list[str]) -> None:
        del ids  # rows have numbers
        self.folder = folder / "table.lance"
        self.n_patches = 0
        self._table: Any = None

    def write(self, data: Data) -> None:
        import lance
        import pyarrow as pa

        self.n_patches = data.case.n_patches

        values = pa.FixedSizeListArray.from_arrays(
            pa.array(data.embedding.reshape(-1)), data.case.n_features
        )
        table = pa.table({"features": values, "x": data.coords[:, 0], "y": data.coords[:, 1]})
        lance.write_dataset(table, str(self.folder), mode="create")

    def all(self) -> np.ndarray:
        import lance

        return _array(lance.dataset(str(self.folder)).to_table(columns=["features"]))

    def bag(self, image: int) -> np.ndarray:
        """Take one image's rows from a table that stays open."""
        import lance

        self._table = self._table or lance.dataset(str(self.folder))
        first = image * self.n_patches
        return _array(self._table.take(range(first, first + self.n_patches), columns=["features"]))


def _array(table: Any) -> np.ndarray:
    chunks = table["features"].chunks
    return np.concatenate([chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in chunks])


RIVALS = (Trident, Pt, Npz, Lance)


def missing(rival: type) -> str | None:
    """Say why a layout cannot be measured here; None where it can."""
    if rival is Lance and find_spec("lance") is None:
        return "pylance is not installed (pip install 'histostore[bench]')"
    return None


CANNOT_EVICT = (
    None if hasattr(os, "posix_fadvise") else "this system has no call to drop cached pages"
)
"""Why nothing can be measured cold here; None where it can."""


def write_store(folder: Path, data: Data) -> None:
    """Write a store as a build does: fragments of 64 images or 64 MiB, flushed to the disk."""
    case = data.case
    spec = FeatureSpec(
        encoder=EncoderIdentity(name="benchmark"),
        n_features=case.n_features,
        grid=PatchGrid(patch_size=256),
        tissue=TissueFilter(),
        dtype=case.dtype,
    )
    features = open_store(str(folder), mode="a").create_feature_set(spec)
    bag_bytes = case.n_patches * case.n_features * np.dtype(case.dtype).itemsize
    step = min(UNIT_IMAGES, max(1, FRAGMENT_BYTES // bag_bytes))
    for first in range(0, case.n_images, step):
        ids = data.ids[first : first + step]
        rows = slice(data.rows(first).start, data.rows(first + len(ids) - 1).stop)
        features.commit(
            Fragment(
                embedding=data.embedding[None, rows],
                augmentations=("identity",),
                image_ids=tuple(ids),
                offset=np.arange(len(ids) + 1) * case.n_patches,
                y=data.coords[rows, 1].copy(),
                x=data.coords[rows, 0].copy(),
                tissue=np.ones(rows.stop - rows.start, np.float32),
                sources=tuple(
                    Source(url=f"s3://bucket/{name}.svs", size=1, version="1") for name in ids
                ),
                flags=((),) * len(ids),
            ),
            {},
        )


def evict(folder: Path) -> None:
    """Flush the files of a folder and drop their pages; a host may still cache them."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def alternately(
    calls: dict[str, Callable[[], object]],
    turns: int,
    before: Callable[[str], object] = lambda _: None,
) -> dict[str, float]:
    """Median seconds of each call, taken in turn, so that a change of pace hits all of them."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, call in calls.items():
            before(name)
            began = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - began)
    return {name: median(seconds) for name, seconds in times.items()}
