"""What does not depend on the machine: rows, requests, objects, damage found. Missed is wrong.

Nothing here is timed. A cohort is built, built again, opened through a storage that counts what it
is asked, and damaged bit by bit. What would change our mind: one row lost or doubled, one request
that grows with images, one flipped bit that goes unnoticed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.measure import Count
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.store.backend import open_backend
from histostore.store.reader import Store
from histostore.store.verify import verify
from histostore.synthetic import make_cohort
from histostore.testing import FaultyBackend, fragment_of, spec_of

if TYPE_CHECKING:
    from histostore.store import FeatureSet

EDGE, PATCH = 128, 32
VIEWS = ("identity", "rot90")


def run(*, smoke: bool) -> list[Count]:
    """Count."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return [
            *_rows(place / "rows", n_images=12 if smoke else 200),
            *_requests(place / "requests", n_fragments=6),
            _damage(place / "damage", tries=40 if smoke else 2_000),
        ]


def _rows(folder: Path, *, n_images: int) -> list[Count]:
    """Build a cohort, and build it again."""
    table = make_cohort(folder, n_images=n_images, image_px=EDGE, patch_px=PATCH)
    options = BuildOptions(
        encoder=EncoderOptions(threads=1),
        grid=PatchGrid(patch_size=PATCH),
        tissue=TissueFilter(method="none"),
        views=VIEWS,
    )
    url = str(folder / "store")
    build(table, url, options)
    loaded = [open_store(url).feature_set().load(augmentation=view) for view in VIEWS]
    rows = sum(len(one.embedding) for one in loaded)
    before = _objects(folder / "store")
    again = build(table, url, options)
    return [
        Count(
            name=f"rows of {n_images} images in {len(VIEWS)} views, each once",
            seen=rows,
            wanted=len(VIEWS) * n_images * (EDGE // PATCH) ** 2,
        ),
        Count(name="images embedded by a second build", seen=again.n_embedded, wanted=0),
        Count(
            name="objects of fragments a second build adds",
            seen=_objects(folder / "store") - before,
            wanted=0,
        ),
    ]


def _objects(store: Path) -> int:
    return sum(1 for path in store.glob("*/fragments/**/*") if path.is_file())


def _requests(folder: Path, *, n_fragments: int) -> list[Count]:
    """Count what opening asks of a storage, with few images in a fragment and with many."""
    asked = {n: _opened(folder / str(n), n_fragments, n_images=n) for n in (1, 50)}
    return [
        Count(
            name=f"requests that open a feature set of {n_fragments} fragments of {n} images",
            seen=number,
            wanted=4 + n_fragments,
            note="two listings, two of metadata, one commit record a fragment",
            at_most=True,
        )
        for n, number in asked.items()
    ] + [
        Count(
            name="requests that fifty times as many images add",
            seen=asked[50] - asked[1],
            wanted=0,
        )
    ]


def _opened(folder: Path, n_fragments: int, *, n_images: int) -> int:
    _filled(folder, n_fragments, n_images)
    counted = FaultyBackend(open_backend(str(folder)))
    features = Store(counted, writable=False).feature_set()
    assert len(features.image_ids) == n_fragments * n_images
    return counted.requests.total()


def _filled(folder: Path, n_fragments: int, n_images: int) -> FeatureSet:
    features = open_store(str(folder), mode="a").create_feature_set(spec_of())
    for at in range(n_fragments):
        ids = [f"{at}-{n}" for n in range(n_images)]
        features.commit(fragment_of(ids, counts=2, seed=at), {})
    return features


def _damage(folder: Path, *, tries: int) -> Count:
    """Flip one bit at a time in what a fragment stores, and look whether it is named."""
    _filled(folder, 1, 20)
    parts = sorted(path for path in folder.glob("*/fragments/*/*/**/*") if path.is_file())
    generator = np.random.default_rng(0)
    found = 0
    for _ in range(tries):
        part = parts[int(generator.integers(len(parts)))]
        content = part.read_bytes()
        at = int(generator.integers(8 * len(content)))
        broken = bytearray(content)
        broken[at // 8] ^= 1 << at % 8
        part.write_bytes(broken)
        found += not verify(str(folder)).ok
        part.write_bytes(content)
    assert verify(str(folder)).ok
    shutil.rmtree(folder)
    return Count(name=f"flipped bits that verify names, of {tries}", seen=found, wanted=tries)


if __name__ == "__main__":
    for count in run(smoke=True):
        print(count.line)
