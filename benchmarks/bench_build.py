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

All three must give the same vectors, or there is no row. Every row says how many patches a second a
build does, and the most memory that a process held which did nothing else (:mod:`benchmarks.peaks`).
"""

from __future__ import annotations

import tempfile
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import savedmodel
from benchmarks.measure import Ratio, best_of
from benchmarks.orders import step_by_step, straight_loop
from benchmarks.peaks import options_of, origins_of, peaks_of
from histostore import Cohort
from histostore.build import build
from histostore.encoders.catalog import available_cores
from histostore.encoders.tensorflow import resize
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.store import open_store
from histostore.synthetic import make_cohort

if TYPE_CHECKING:
    from histostore.build import BuildOptions

PATCH, SIDE = 256, 1024
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-3}
"""Vectors of the same patches may differ so far, for batches are filled in another order."""


def bare_forward(encoder, pixels: np.ndarray) -> np.ndarray:
    size = encoder.batch_size
    return np.concatenate(
        [encoder.encode(pixels[start : start + size]) for start in range(0, len(pixels), size)]
    )


def all_patches(url: str, options: BuildOptions) -> np.ndarray:
    with closing(open_image(url)) as reader:
        selection = select_patches(reader, options.grid, options.tissue)
        return read_patches(reader, selection, options.grid.patch_size)


def agree(ours: np.ndarray, theirs: np.ndarray, precision: str) -> None:
    """Refuse to compare times of what is not the same work."""
    error = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    if not error.max() <= TOLERANCE[precision]:
        raise ValueError(f"vectors differ by up to {error.max():.2g}; this is not the same work")


def stored(url: str) -> np.ndarray:
    """Read what a build left: ``(patch, feature)``, in the order of the cohort."""
    return open_store(url).feature_set().load().embedding.astype(np.float32)


def told_memory(peaks: dict[str, int | None]) -> str:
    return ", ".join(
        f"peak memory of the {kind} {'unknown' if mib is None else f'{mib:,} MiB'}"
        for kind, mib in peaks.items()
    )


def medians(turns: int, *functions) -> list[float]:
    """Time functions in turn, so that a change of the machine's speed hits all."""
    seconds = [[best_of(function, 1) for function in functions] for _ in range(turns)]
    return [float(np.median(column)) for column in zip(*seconds, strict=True)]


def cost_of_a_build(
    name: str, cohort: Cohort, options: BuildOptions, *, target: float | None, turns: int
) -> list[Ratio]:
    encoder = options.encoder.load()
    with tempfile.TemporaryDirectory() as folder:
        pixels = np.concatenate([all_patches(url, options) for url in cohort.urls])
        vectors = bare_forward(encoder, pixels)
        build(cohort.limit(1), f"{folder}/warm-up", options)
        stores = iter(range(100))
        origins, loop = origins_of(SIDE, SIDE, PATCH), Path(folder) / "loop"
        loop.mkdir()
        bare_s, loop_s, ours_s = medians(
            turns,
            lambda: bare_forward(encoder, pixels),
            lambda: straight_loop(cohort.urls, encoder, origins, PATCH, loop),
            lambda: build(cohort, f"{folder}/{next(stores)}", options),
        )
        loops = [np.load(loop / f"{number}.npz")["features"] for number in range(len(cohort))]
        for theirs in (vectors, np.concatenate(loops)):
            agree(stored(f"{folder}/0"), theirs, options.encoder.precision)
        told = f"{len(vectors) / ours_s:.1f} patches/s, "
        told += told_memory(peaks_of(cohort, SIDE, options))
    rows = [
        ("bare forward", bare_s, target, "the encoder alone, patches in memory"),
        ("straight loop", loop_s, None, "read, crop, encode, np.savez, image by image"),
    ]
    return [
        Ratio(
            name=f"{what} ÷ build, {name}, {len(vectors)} patches of {PATCH} px",
            ours_s=ours_s,
            theirs_s=seconds,
            ratio=seconds / ours_s,
            target=goal,
            baseline=f"{baseline}; {told}",
        )
        for what, seconds, goal, baseline in rows
    ]


def against_step_by_step(name: str, model: str, *, smoke: bool) -> Ratio:
    """Compare with TRIDENT's order of work on one slide of tiled JPEG."""
    from histostore.encoders.torchvision_guard import import_guarded

    timm, transforms = import_guarded("timm"), import_guarded("torchvision.transforms")
    options = options_of(
        patch=PATCH, name=f"timm:{model}", weights="random:0", precision="bfloat16"
    )
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
        origins = origins_of(side, side, PATCH)
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


def on_a_gpu(cohort: Cohort) -> list[Ratio]:
    import torch

    what = "ViT-S/16 in float16 on one GPU, from JPEG"
    if not torch.cuda.is_available():
        baseline = "the encoder alone, patches in memory"
        name = f"bare forward ÷ build, {what}"
        return [Ratio.skipped(name, baseline=baseline, reason="no GPU here", target=0.9)]
    options = options_of(
        patch=PATCH,
        name="timm:vit_small_patch16_224",
        weights="random:0",
        precision="float16",
        device="cuda",
    )
    jpeg = Cohort.read(str(_as_jpeg(Path(cohort.url))))
    return cost_of_a_build(what, jpeg, options, target=0.9, turns=3)


def in_tensorflow(cohort: Cohort, *, depth: int, turns: int) -> Ratio:
    """Ask the same of a model in a process of its own, against a process that has nothing else."""
    layers = "" if depth == savedmodel.DEPTH else f" of {depth} layers"
    name = f"bare forward ÷ build, ViT-S/16{layers} in TensorFlow (path-foundation)"
    baseline = "the SavedModel alone, patches in memory, in batches of 16"
    if find_spec("tensorflow") is None:
        reason = "tensorflow is not installed"
        return Ratio.skipped(name, baseline=baseline, reason=reason, target=0.95)
    with tempfile.TemporaryDirectory() as folder:
        savedmodel.in_a_process("make", f"{folder}/model", depth)
        options = options_of(patch=PATCH, name="path-foundation", weights=f"{folder}/model")
        pixels = np.concatenate([all_patches(url, options) for url in cohort.urls])
        resized = np.empty((len(pixels), savedmodel.SIDE, savedmodel.SIDE, 3), np.uint8)
        resize(pixels, resized)
        np.save(f"{folder}/pixels.npy", resized)
        del pixels, resized
        build(cohort.limit(1), f"{folder}/warm-up", options)
        theirs, ours = [], []
        words = [f"{folder}/{name}" for name in ("model", "pixels.npy", "vectors.npy")]
        for turn in range(turns):
            alone = savedmodel.in_a_process("time", *words, available_cores())
            theirs.append(float(alone))
            ours += medians(1, partial(build, cohort, f"{folder}/{turn}", options))
        vectors = np.load(f"{folder}/vectors.npy")
        agree(stored(f"{folder}/0"), vectors, "float32")
        memory = told_memory(peaks_of(cohort, SIDE, options))
    ours_s, theirs_s = float(np.median(ours)), float(np.median(theirs))
    return Ratio(
        name=f"{name}, {len(vectors)} patches of {PATCH} px",
        ours_s=ours_s,
        theirs_s=theirs_s,
        ratio=theirs_s / ours_s,
        target=0.95,
        baseline=f"{baseline}; {len(vectors) / ours_s:.1f} patches/s, {memory}",
    )


def run(*, smoke: bool) -> list[Ratio]:
    resnet = {"name": "timm:resnet18", "weights": "random:0", "device": "cpu"}
    vit = {"name": "timm:vit_small_patch16_224", "weights": "random:0", "device": "cpu"}
    half = {"precision": "bfloat16"}
    asked = [  # name, encoder, target, images and turns of a smoke run; none: not in it
        ("ResNet-18", resnet, 0.95, (4, 2)),
        ("texture", {"name": "texture"}, None, (4, 2)),
        ("ResNet-18 in bfloat16", {**resnet, **half}, 0.95, None),
        ("ViT-S/16", vit, 0.95, None),
        ("ViT-S/16 in bfloat16", {**vit, **half}, 0.95, (2, 1)),
    ]
    rows: list[Ratio] = []
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder), n_images=4 if smoke else 16, image_px=SIDE, seed=0)
        cohort = Cohort.read(str(table))
        for name, encoder, target, small in asked:
            if smoke and small is None:
                continue
            n_images, turns = small if smoke and small else (len(cohort), 3)
            options = options_of(patch=PATCH, **encoder)
            some = cohort.limit(n_images)
            rows += cost_of_a_build(name, some, options, target=target, turns=turns)
        rows.append(against_step_by_step("ResNet-18", "resnet18", smoke=smoke))
        if smoke:
            rows.append(in_tensorflow(cohort.limit(2), depth=2, turns=1))
        else:
            rows.append(against_step_by_step("ViT-S/16", "vit_small_patch16_224", smoke=smoke))
            rows.append(in_tensorflow(cohort, depth=savedmodel.DEPTH, turns=3))
        return [*rows, *on_a_gpu(cohort)]
