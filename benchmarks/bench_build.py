"""What does a build cost beyond the encoder's bare forward passes?

Baseline: the encoder alone over the very same patches, in memory, at its best memory format.
The ratio is bare forward time over build time, so 1 would be a build that costs nothing.
What would change our mind: a ratio below 0.95 for an encoder of ResNet-18's class or larger.
For `texture` there is no promise: it is about as quick as decoding the PNG files is.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from benchmarks.measure import Ratio, best_of
from histostore import Cohort
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.grid import PatchGrid
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from histostore.synthetic import make_cohort

PATCH = 256


def bare_forward(encoder, pixels) -> None:
    for start in range(0, len(pixels), encoder.batch_size):
        encoder.encode(pixels[start : start + encoder.batch_size])


def question(
    name: str, encoder_name: str, weights: str | None, target: float | None, n_images: int
) -> Ratio:
    options = BuildOptions(
        encoder=EncoderOptions(name=encoder_name, weights=weights),
        grid=PatchGrid(patch_size=PATCH),
        tissue=TissueFilter(method="none"),
    )
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder) / "images", n_images=n_images, image_px=1024, seed=0)
        cohort = Cohort.read(str(table))
        encoder = options.encoder.load()
        pixels = np.concatenate([all_patches(url, options) for url in cohort.urls])
        bare_forward(encoder, pixels[: encoder.batch_size])
        build(cohort.limit(1), f"{folder}/warm-up", options)
        stores = iter(range(100))
        ours, theirs = [], []
        for _ in range(3):  # in turn, so that a change of the machine's speed hits both
            theirs.append(best_of(lambda: bare_forward(encoder, pixels), 1))
            ours.append(best_of(lambda: build(cohort, f"{folder}/{next(stores)}", options), 1))
    ours_s, theirs_s = float(np.median(ours)), float(np.median(theirs))
    return Ratio(
        name=f"bare forward ÷ build, {name}, {len(pixels)} patches of {PATCH} px",
        ours_s=ours_s,
        theirs_s=theirs_s,
        ratio=theirs_s / ours_s,
        target=target,
        baseline="the encoder alone, patches in memory",
    )


def all_patches(url: str, options: BuildOptions) -> np.ndarray:
    reader = open_image(url)
    selection = select_patches(reader, options.grid, options.tissue)
    return read_patches(reader, selection, PATCH)


def run(*, smoke: bool) -> list[Ratio]:
    n_images = 12 if smoke else 64
    return [
        question("ResNet-18", "timm:resnet18", "random:0", 0.95, n_images),
        question("texture", "texture", None, None, n_images),
    ]
