"""How long does a build take that has nothing to do?

A table of images on disk, every one of them embedded already: the table is read and checked,
every image's size and time are compared with what was recorded, and the store's catalogue is read.
The ratio is the target of two seconds (at 100,000 images, in proportion below) over what was seen:
of the call in a process that is up and has the encoder, and of the whole command, Python's start
and all imports included (at full size only: with few images it is nothing else).
What would change our mind: more than two seconds, or a time that grows faster than the images.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import Ratio, best_of
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.unit import encoder_of
from histostore.files import stat_many
from histostore.spec import FeatureSpec
from histostore.store import Fragment, open_store

TARGET_S, TARGET_IMAGES = 2.0, 100_000
UNIT_IMAGES = 64


def run(*, smoke: bool) -> list[Ratio]:
    """Measure a cohort, and a tenth of it."""
    n_images = 10_000 if smoke else TARGET_IMAGES
    options = BuildOptions(encoder=EncoderOptions(threads=1))
    with tempfile.TemporaryDirectory() as folder:
        table, store = _prepare(Path(folder), n_images, options)
        assert build(table, store, options).n_done == n_images
        seconds = best_of(lambda: build(table, store, options), 3)
        command = best_of(lambda: _command(table, store), 1 if smoke else 3)
        began = time.perf_counter()
        open_store(store).feature_set()
        opening = time.perf_counter() - began
    allowed = TARGET_S * n_images / TARGET_IMAGES
    n_fragments = -(-n_images // UNIT_IMAGES)
    return [
        Ratio(
            name=f"build with nothing to do, {n_images:,} images on disk",
            ours_s=seconds,
            theirs_s=allowed,
            ratio=allowed / seconds,
            target=1.0,
            baseline=f"{TARGET_S:g} s for {TARGET_IMAGES:,} images",
        ),
        Ratio(
            name=f"histostore build with nothing to do, the whole command, {n_images:,} images",
            ours_s=command,
            theirs_s=allowed,
            ratio=allowed / command,
            target=None if smoke else 1.0,
            baseline=f"{TARGET_S:g} s for {TARGET_IMAGES:,} images",
        ),
        Ratio(
            name=f"open a feature set of {n_fragments:,} fragments",
            ours_s=opening,
            theirs_s=allowed,
            ratio=allowed / opening,
            target=None,
            baseline="what the whole build may take",
        ),
    ]


def _command(table: str, store: str) -> None:
    start = "from cli import histostore_main; histostore_main()"
    subprocess.run(
        [sys.executable, "-c", start, "build", table, store],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
    )


def _prepare(folder: Path, n_images: int, options: BuildOptions) -> tuple[str, str]:
    ids = [f"image-{number:06d}" for number in range(n_images)]
    (folder / "images").mkdir()
    paths = [folder / "images" / f"{name}.png" for name in ids]
    for path in paths:
        path.touch()
    table = folder / "cohort.csv"
    table.write_text("image_id,path\n" + "".join(f"{name},images/{name}.png\n" for name in ids))
    sources = list(stat_many(map(str, paths)).values())
    encoder = encoder_of(options.encoder)
    spec = FeatureSpec(
        encoder=encoder.identity,
        n_features=encoder.n_features,
        grid=options.grid,
        tissue=options.tissue,
        dtype=options.dtype,
    )
    features = open_store(str(folder / "store"), mode="a").create_feature_set(spec)
    for first in range(0, n_images, UNIT_IMAGES):
        part = slice(first, first + UNIT_IMAGES)
        n = len(ids[part])
        features.commit(
            Fragment(
                embedding=np.ones((1, n, spec.n_features), np.float32),
                augmentations=options.views,
                image_ids=tuple(ids[part]),
                offset=np.arange(n + 1),
                y=np.zeros(n, np.int32),
                x=np.zeros(n, np.int32),
                tissue=np.ones(n, np.float32),
                sources=tuple(sources[part]),
                flags=((),) * n,
            ),
            {},
        )
    return str(table), str(folder / "store")


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line)
