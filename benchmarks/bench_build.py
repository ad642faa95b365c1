"""What does a build cost beyond the encoder's bare forward passes, and against other orders?

- *Bare forward*: the encoder alone over the very same patches, in memory, in its best memory
  format and the same precision. The ratio is bare forward time over build time, so 1 would be a
  build that costs nothing. What would change our mind: a ratio below 0.95 for an encoder of
  ResNet-18's class or larger. For `texture` there is no promise: it is about as quick as decoding
  the PNG files is.
- *A straight loop*: read, crop, encode, ``np.savez``, with our encoder.
- *TRIDENT's order of work* (:mod:`benchmarks.orders`) at its float32, against our bfloat16; what
  bfloat16 costs is measured by :mod:`benchmarks.bench_precision`.
- *TensorFlow in a process of its own* (:mod:`benchmarks.savedmodel`), against a process that does
  the forward passes and nothing else.
- On a GPU, where there is one: ViT-S/16 in float16, images decoded from JPEG.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks import savedmodel
from benchmarks.measure import Ratio, best_of
from benchmarks.orders import step_by_step, straight_loop
from histostore import Cohort
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.grid import PatchGrid
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from histostore.synthetic import make_cohort

PATCH, SIDE = 256, 1024

_PEAK = """
import json, resource, sys
from benchmarks.bench_build import options_of
from histostore import Cohort
from histostore.build import build
table, store, encoder = sys.argv[1:]
build(Cohort.read(table), store, options_of(**json.loads(encoder)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


def options_of(**encoder) -> BuildOptions:
    return BuildOptions(
        encoder=EncoderOptions(**encoder),
        grid=PatchGrid(patch_size=PATCH),
        tissue=TissueFilter(method="none"),
    )


def origins_of(width: int, height: int) -> np.ndarray:
    """Top-left corners, row by row: ``(patch, 2)`` as x, y."""
    y, x = np.mgrid[0 : height - PATCH + 1 : PATCH, 0 : width - PATCH + 1 : PATCH]
    return np.stack([x.ravel(), y.ravel()], axis=1)


def bare_forward(encoder, pixels) -> None:
    for start in range(0, len(pixels), encoder.batch_size):
        encoder.encode(pixels[start : start + encoder.batch_size])


def all_patches(url: str, options: BuildOptions) -> np.ndarray:
    reader = open_image(url)
    selection = select_patches(reader, options.grid, options.tissue)
    return read_patches(reader, selection, PATCH)


def peak_mib(table: Path, store: str, options: BuildOptions) -> int:
    """Most memory that a process held which did one build and nothing else."""
    arguments = [str(table), store, json.dumps(asdict(options.encoder))]
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, *arguments], capture_output=True, text=True, check=True
    )
    return int(done.stdout.split()[-1])


def medians(turns: int, *functions) -> list[float]:
    """Time functions in turn, so that a change of the machine's speed hits all."""
    seconds = [[best_of(function, 1) for function in functions] for _ in range(turns)]
    return [float(np.median(column)) for column in zip(*seconds, strict=True)]


def cost_of_a_build(
    name: str, options: BuildOptions, *, target: float | None, smoke: bool, jpeg: bool = False
) -> list[Ratio]:
    n_images = 6 if smoke else 16
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder) / "images", n_images=n_images, image_px=SIDE, seed=0)
        cohort = Cohort.read(str(_as_jpeg(table) if jpeg else table))
        encoder = options.encoder.load()
        pixels = np.concatenate([all_patches(url, options) for url in cohort.urls])
        bare_forward(encoder, pixels[: encoder.batch_size])
        build(cohort.limit(1), f"{folder}/warm-up", options)
        stores = iter(range(100))
        loop = Path(folder) / "loop"
        loop.mkdir()
        bare_s, loop_s, ours_s = medians(
            2 if smoke else 3,
            lambda: bare_forward(encoder, pixels),
            lambda: straight_loop(cohort.urls, encoder, origins_of(SIDE, SIDE), PATCH, loop),
            lambda: build(cohort, f"{folder}/{next(stores)}", options),
        )
        told = f"{len(pixels) / ours_s:.1f} patches/s"
        if not smoke:
            told += f", peak memory {peak_mib(table, f'{folder}/peak', options)} MiB"
    rows = [
        ("bare forward", bare_s, target, f"the encoder alone, patches in memory; {told}"),
        ("straight loop", loop_s, None, "read, crop, encode, np.savez, image by image"),
    ]
    return [
        Ratio(
            name=f"{what} ÷ build, {name}, {len(pixels)} patches of {PATCH} px",
            ours_s=ours_s,
            theirs_s=seconds,
            ratio=seconds / ours_s,
            target=goal,
            baseline=baseline,
        )
        for what, seconds, goal, baseline in rows
    ]


def against_step_by_step(name: str, model: str, *, smoke: bool) -> Ratio:
    """Compare with TRIDENT's order of work on one slide of tiled JPEG."""
    from histostore.encoders.torchvision_guard import import_guarded

    timm, transforms = import_guarded("timm"), import_guarded("torchvision.transforms")
    options = options_of(name=f"timm:{model}", weights="random:0", precision="bfloat16")
    encoder = options.encoder.load()  # and torch's threads are set
    network = timm.create_model(model, pretrained=False, num_classes=0).eval()
    facts = encoder.identity.preprocessing
    transform = transforms.Compose(
        [
            transforms.Resize(facts["input_px"]),
            transforms.ToTensor(),
            transforms.Normalize(facts["mean"], facts["std"]),
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        slide, side = _slide(Path(folder), tiles=2 if smoke else 4)
        origins = origins_of(side, side)
        table = Path(folder) / "cohort.csv"
        table.write_text(f"image_id,path\nslide,{slide}\n", encoding="utf-8")
        cohort = Cohort.read(str(table))
        build(cohort, f"{folder}/warm-up", options)
        stores = iter(range(100))
        theirs_s, ours_s = medians(
            1 if smoke else 3,
            lambda: step_by_step(slide, network, transform, origins, PATCH, Path(folder)),
            lambda: build(cohort, f"{folder}/{next(stores)}", options),
        )
    return Ratio(
        name=f"TRIDENT's order, float32 ÷ build, bfloat16, {name}, {len(origins)} patches",
        ours_s=ours_s,
        theirs_s=theirs_s,
        ratio=theirs_s / ours_s,
        target=2.5,
        baseline=f"segment, coordinates, patch by patch, HDF5; {len(origins) / ours_s:.1f} patches/s",
    )


def _slide(folder: Path, *, tiles: int) -> tuple[str, int]:
    """Write a square slide of JPEG tiles; its path and side in px."""
    import tifffile
    from PIL import Image

    table = make_cohort(folder / "tiles", n_images=tiles, image_px=SIDE, seed=1)
    pictures = [np.asarray(Image.open(url)) for url in Cohort.read(str(table)).urls]
    grid = [np.hstack([pictures[(row + i) % tiles] for i in range(tiles)]) for row in range(tiles)]
    pixels = np.vstack(grid)
    path = folder / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    return str(path), len(pixels)


def _as_jpeg(table: Path) -> Path:
    """Write the images of a cohort again as JPEG; give the new table."""
    import pandas as pd
    from PIL import Image

    frame = pd.read_csv(table)
    for name in frame["path"]:
        picture = Image.open(table.parent / name)
        picture.save((table.parent / name).with_suffix(".jpg"), quality=90)
    frame["path"] = frame["path"].str.replace(".png", ".jpg")
    new = table.with_name("jpeg.csv")
    frame.to_csv(new, index=False)
    return new


def on_a_gpu(*, smoke: bool) -> list[Ratio]:
    import torch

    what = "ViT-S/16 in float16 on one GPU, from JPEG"
    if not torch.cuda.is_available():
        baseline = "the encoder alone, patches in memory"
        name = f"bare forward ÷ build, {what}"
        return [Ratio.skipped(name, baseline=baseline, reason="no GPU here", target=0.9)]
    vit = {"name": "timm:vit_small_patch16_224", "weights": "random:0"}
    options = options_of(**vit, precision="float16", device="cuda")
    return cost_of_a_build(what, options, target=0.9, smoke=smoke, jpeg=True)


def in_tensorflow(*, smoke: bool) -> Ratio:
    """Ask the same of a model in a process of its own, against a process that has nothing else."""
    from importlib.util import find_spec

    from histostore.encoders.catalog import available_cores

    name = "bare forward ÷ build, ViT-S/16 in TensorFlow (path-foundation)"
    baseline = "the SavedModel alone, patches in memory, in batches of 16"
    if smoke or find_spec("tensorflow") is None:
        reason = "takes a minute" if smoke else "tensorflow is not installed"
        return Ratio.skipped(name, baseline=baseline, reason=reason, target=0.95)
    with tempfile.TemporaryDirectory() as folder:
        savedmodel.in_a_process("make", f"{folder}/model")
        options = options_of(name="path-foundation", weights=f"{folder}/model")
        table = make_cohort(Path(folder) / "images", n_images=16, image_px=SIDE, seed=0)
        cohort = Cohort.read(str(table))
        n_patches = len(cohort.urls) * len(origins_of(SIDE, SIDE))
        build(cohort.limit(1), f"{folder}/warm-up", options)
        theirs, ours = [], []
        for turn in range(3):
            words = ("time", f"{folder}/model", n_patches, available_cores())
            theirs.append(float(savedmodel.in_a_process(*words)))
            ours += medians(1, partial(build, cohort, f"{folder}/{turn}", options))
    ours_s, theirs_s = float(np.median(ours)), float(np.median(theirs))
    return Ratio(
        name=f"{name}, {n_patches} patches of {PATCH} px",
        ours_s=ours_s,
        theirs_s=theirs_s,
        ratio=theirs_s / ours_s,
        target=0.95,
        baseline=f"{baseline}; {n_patches / ours_s:.1f} patches/s",
    )


def run(*, smoke: bool) -> list[Ratio]:
    resnet = {"name": "timm:resnet18", "weights": "random:0", "device": "cpu"}
    vit = {"name": "timm:vit_small_patch16_224", "weights": "random:0", "device": "cpu"}
    asked = [("ResNet-18", resnet, 0.95), ("texture", {"name": "texture"}, None)]
    if not smoke:
        half = {"precision": "bfloat16"}
        asked.append(("ResNet-18 in bfloat16", {**resnet, **half}, 0.95))
        asked.append(("ViT-S/16", vit, 0.95))
        asked.append(("ViT-S/16 in bfloat16", {**vit, **half}, 0.95))
    rows: list[Ratio] = []
    for name, encoder, target in asked:
        rows += cost_of_a_build(name, options_of(**encoder), target=target, smoke=smoke)
    rows.append(against_step_by_step("ResNet-18", "resnet18", smoke=smoke))
    if not smoke:
        rows.append(against_step_by_step("ViT-S/16", "vit_small_patch16_224", smoke=smoke))
    return [*rows, in_tensorflow(smoke=smoke), *on_a_gpu(smoke=smoke)]
