"""Whole cohort into memory: this store against one HDF5 per image, as TRIDENT writes them.

Both sides start from nothing but a path and end with all embeddings in one array; both read
the same values, and both files lie in the page cache. Times are medians over several turns,
taken alternately in one process: only their ratio means anything on another machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import h5py
import numpy as np

from benchmarks.measure import Ratio
from histostore.encoders.base import EncoderIdentity
from histostore.files import Source
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.store import Fragment, open_store

if TYPE_CHECKING:
    from collections.abc import Callable

TARGET = 10.0
"""The promise: at least ten times faster, whatever the length of the bags."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A cohort of equal bags."""

    name: str
    n_images: int
    n_patches: int
    n_features: int
    dtype: str
    images_per_fragment: int = 64


CASES = (
    Case(name="2,000 × 12 × 384 f32", n_images=2000, n_patches=12, n_features=384, dtype="float32"),
    Case(
        name="2,000 × 100 × 384 f32", n_images=2000, n_patches=100, n_features=384, dtype="float32"
    ),
    Case(
        name="20 × 10,000 × 1,024 f16",
        n_images=20,
        n_patches=10_000,
        n_features=1024,
        dtype="float16",
    ),
)
SMOKE = (
    Case(name="100 × 12 × 64 f32", n_images=100, n_patches=12, n_features=64, dtype="float32"),
    Case(name="2 × 1,000 × 128 f16", n_images=2, n_patches=1000, n_features=128, dtype="float16"),
)


def run(*, smoke: bool) -> list[Ratio]:
    """Measure every case."""
    results = []
    for case in SMOKE if smoke else CASES:
        with tempfile.TemporaryDirectory() as folder:
            results += _measure(case, Path(folder), turns=1 if smoke else 5)
    return results


def _measure(case: Case, folder: Path, *, turns: int) -> list[Ratio]:
    embedding = _write(case, folder)
    n_rows, n_features = embedding.shape
    ids = [f"image-{image:05d}" for image in range(case.n_images)]

    def theirs() -> np.ndarray:
        out = np.empty((n_rows, n_features), case.dtype)
        at = 0
        for image_id in ids:
            with h5py.File(folder / "h5" / f"{image_id}.h5", "r") as file:
                features = file["features"]
                features.read_direct(out, dest_sel=np.s_[at : at + features.shape[0]])
                at += features.shape[0]
        return out

    def theirs_with_coords() -> np.ndarray:
        parts = []
        for image_id in ids:
            with h5py.File(folder / "h5" / f"{image_id}.h5", "r") as file:
                parts.append((file["features"][...], file["coords"][...]))
        np.concatenate([coords for _, coords in parts])
        return np.concatenate([features for features, _ in parts])

    def ours() -> np.ndarray:
        return open_store(str(folder / "store")).feature_set().load().embedding

    def ours_with_coords() -> np.ndarray:
        loaded = open_store(str(folder / "store")).feature_set().load()
        _ = loaded.coords
        return loaded.embedding

    pairs = {
        "": (ours, theirs),
        ", with coordinates": (ours_with_coords, theirs_with_coords),
    }
    results = []
    for suffix, (us, them) in pairs.items():
        np.testing.assert_array_equal(us(), embedding)
        np.testing.assert_array_equal(them(), embedding)
        ours_s, theirs_s = _alternately(us, them, turns)
        results.append(
            Ratio(
                name=f"whole cohort into memory, {case.name}{suffix}",
                ours_s=ours_s,
                theirs_s=theirs_s,
                ratio=theirs_s / ours_s,
                target=TARGET,
                baseline="one HDF5 per image, TRIDENT layout",
            )
        )
    return results


def _alternately(
    ours: Callable[[], object], theirs: Callable[[], object], turns: int
) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(turns):
        for side, call in zip(times, (ours, theirs), strict=True):
            began = time.perf_counter()
            call()
            side.append(time.perf_counter() - began)
    return median(times[0]), median(times[1])


def _write(case: Case, folder: Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    n_rows = case.n_images * case.n_patches
    embedding = rng.standard_normal((n_rows, case.n_features), np.float32).astype(case.dtype)
    coords = rng.integers(0, 100_000, (n_rows, 2), np.int32)
    offset = np.arange(case.n_images + 1) * case.n_patches
    ids = [f"image-{image:05d}" for image in range(case.n_images)]
    (folder / "h5").mkdir()
    for image, image_id in enumerate(ids):
        rows = slice(offset[image], offset[image + 1])
        _write_h5(folder / "h5" / f"{image_id}.h5", embedding[rows], coords[rows])
    spec = FeatureSpec(
        encoder=EncoderIdentity(name="benchmark"),
        n_features=case.n_features,
        grid=PatchGrid(patch_size=256),
        tissue=TissueFilter(),
        dtype=case.dtype,
    )
    features = open_store(str(folder / "store"), mode="a").create_feature_set(spec)
    for first in range(0, case.n_images, case.images_per_fragment):
        last = min(first + case.images_per_fragment, case.n_images)
        rows = slice(offset[first], offset[last])
        features.commit(
            Fragment(
                embedding=embedding[None, rows],
                augmentations=("identity",),
                image_ids=tuple(ids[first:last]),
                offset=offset[first : last + 1] - offset[first],
                y=coords[rows, 1].copy(),
                x=coords[rows, 0].copy(),
                tissue=np.ones(rows.stop - rows.start, np.float32),
                sources=tuple(
                    Source(url=f"s3://bucket/{name}.svs", size=1, version="1")
                    for name in ids[first:last]
                ),
                flags=((),) * (last - first),
            ),
            {},
        )
    return embedding


def _write_h5(path: Path, features: np.ndarray, coords: np.ndarray) -> None:
    """Lay a bag out as TRIDENT does: resizable data sets in chunks of one row."""
    with h5py.File(path, "w") as file:
        for name, rows in (("features", features), ("coords", coords)):
            file.create_dataset(
                name, data=rows, chunks=(1, rows.shape[1]), maxshape=(None, rows.shape[1])
            )


def main() -> None:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="small cohorts, one turn")
    size.add_argument("--full", action="store_true", help="the cohorts of the targets (default)")
    parser.add_argument("--json", type=Path, help="write the results to this file too")
    options = parser.parse_args()
    results = run(smoke=options.smoke)
    print(f"{'':60} {'ours':>9} {'HDF5':>9} {'ratio':>7} {'target':>7}")
    for row in results:
        print(
            f"{row.name:60} {row.ours_s:8.4f}s {row.theirs_s:8.4f}s "
            f"{row.ratio:6.1f}× {row.target:6.0f}×"
        )
    if options.json:
        options.json.write_text(json.dumps([row.to_json() for row in results], indent=2))


if __name__ == "__main__":
    main()
