"""What does a build cost beyond the encoder's bare forward passes, and against other orders?

- *Bare forward*: the encoder alone over the very same patches, in memory, in its best memory
  format and the same precision. The ratio is bare forward time over build time, so 1 would be a
  build that costs nothing. What would change our mind: a ratio below 0.95 for an encoder of
  ResNet-18's class or larger. For `texture` there is no promise: it is about as quick as decoding
  the PNG files is. A row says what reading its patches takes by itself, on one core: a build of
  which all cores compute cannot hide that.
- *A straight loop*: read, crop, encode, ``np.savez``, with our encoder.
- *TRIDENT's order of work* (:mod:`benchmarks.orders`) at its float32, against our bfloat16; what
  bfloat16 costs is measured by :mod:`benchmarks.bench_precision`.
- *TensorFlow in a process of its own* (:mod:`benchmarks.savedmodel`), against a process that does
  the forward passes and nothing else.
- What precision, memory order and compilation give by themselves (:mod:`benchmarks.arithmetic`).
- On a GPU, where there is one: ViT-S/16 in float16, images decoded from JPEG.

All three orders must give the same vectors, or there is no row. Every row says how many patches a
second a build does, and the most memory that a process held which embedded the first image and did
nothing else (:mod:`benchmarks.peaks`). The full size reads two real slides and some real images
where they are there (``shared/data`` beside the checkout), and takes about ten minutes on two cores;
the small one, and a machine without them, synthetic images: the rows say which.
"""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from benchmarks import savedmodel
from benchmarks.arithmetic import forward_times
from benchmarks.bench_precision import DATA
from benchmarks.measure import Ratio, medians
from benchmarks.orders import step_by_step, straight_loop
from benchmarks.peaks import options_of, peaks_of
from histostore import Cohort
from histostore.build import build
from histostore.encoders.catalog import available_cores
from histostore.encoders.tensorflow import resize
from histostore.images.patches import read_patches, select_patches
from histostore.images.readers import open_image
from histostore.store import open_store
from histostore.synthetic import make_cohort

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from histostore.build import BuildOptions

PATCH, SIDE = 256, 1024
TILE, N_TILED = 104, 24
"""Edge of patches of small images, and how many of these the full size reads."""
SLIDES = ("cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs")
RESNET = {"name": "timm:resnet18", "weights": "random:0", "device": "cpu"}
VIT = {"name": "timm:vit_small_patch16_224", "weights": "random:0", "device": "cpu"}
HALF = {"precision": "bfloat16"}
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 3e-3}
"""Vectors of the same patches may differ so far, for batches are filled in another order."""


@dataclass(frozen=True)
class Images:
    """What a row is measured on."""

    told: str
    """For its name."""
    cohort: Cohort
    patch: int

    @classmethod
    def synthetic(cls, folder: Path, n_images: int) -> Self:
        table = make_cohort(folder, n_images=n_images, image_px=SIDE, seed=0)
        return cls("", Cohort.read(table), PATCH)

    @classmethod
    def real(cls, folder: Path) -> tuple[Self, Self, Self]:
        """Take a slide in JPEG; the same and one in JPEG 2000; and PNG images of 12 patches each."""
        folder.mkdir(parents=True)
        slides = _cohort(folder / "slides.csv", [DATA / "wsi" / name for name in SLIDES])
        paths = sorted((DATA / "lymphoma").glob("*/*.png"))
        some = [paths[i] for i in np.linspace(0, len(paths) - 1, N_TILED).astype(int)]
        return (
            cls(", a slide in JPEG", slides.limit(1), PATCH),
            cls(", slides in JPEG and JPEG 2000", slides, PATCH),
            cls(", small PNG images", _cohort(folder / "tiled.csv", some), TILE),
        )


def _cohort(table: Path, images: Iterable[Path]) -> Cohort:
    rows = [f"{number},{path}\n" for number, path in enumerate(images)]
    table.write_text("".join(["image_id,path\n", *rows]), encoding="utf-8")
    return Cohort.read(table)


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


def all_of(cohort: Cohort, options: BuildOptions) -> np.ndarray:
    return np.concatenate([all_patches(url, options) for url in cohort.urls])


def cost_of_a_build(
    name: str, cohort: Cohort, options: BuildOptions, *, target: float | None, turns: int
) -> list[Ratio]:
    encoder, patch = options.encoder.load(), options.grid.patch_size
    with tempfile.TemporaryDirectory() as folder:
        pixels = all_of(cohort, options)
        vectors = bare_forward(encoder, pixels)
        build(cohort.limit(1), f"{folder}/warm-up", options)
        stores = iter(range(100))
        loop = Path(folder) / "loop"
        loop.mkdir()
        read_s, bare_s, loop_s, ours_s = medians(
            turns,
            lambda: all_of(cohort, options),
            lambda: bare_forward(encoder, pixels),
            lambda: straight_loop(cohort.urls, encoder, patch, loop),
            lambda: build(cohort, f"{folder}/{next(stores)}", options),
        )
        loops = [np.load(loop / f"{number}.npz")["features"] for number in range(len(cohort))]
        for theirs in (vectors, np.concatenate(loops)):
            agree(stored(f"{folder}/0"), theirs, options.encoder.precision)
        told = f"{len(vectors) / ours_s:.1f} patches/s, reading them alone {read_s:.2g} s, "
        told += told_memory(peaks_of(cohort.limit(1), options))
    rows = [
        ("bare forward", bare_s, target, "the encoder alone, patches in memory"),
        ("straight loop", loop_s, None, "read, crop, encode, np.savez, image by image"),
    ]
    return [
        Ratio(
            name=f"{what} ÷ build, {name}, {len(vectors)} patches of {patch} px",
            ours_s=ours_s,
            theirs_s=seconds,
            ratio=seconds / ours_s,
            target=goal,
            baseline=f"{baseline}; {told}",
        )
        for what, seconds, goal, baseline in rows
    ]


def against_step_by_step(name: str, model: str, slide: str, *, turns: int) -> Ratio:
    """Compare with TRIDENT's order of work on one slide."""
    import torch

    from histostore.encoders.torchvision_guard import import_guarded

    timm, transforms = import_guarded("timm"), import_guarded("torchvision.transforms")
    options = options_of(
        patch=PATCH, name=f"timm:{model}", weights="random:0", device="cpu", precision="bfloat16"
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
        cohort = _cohort(Path(folder) / "cohort.csv", [Path(slide)])
        n_patches = build(cohort, f"{folder}/warm-up", options).n_patches
        with torch.inference_mode():
            network(torch.zeros(64, 3, facts["input_px"], facts["input_px"]))
        stores = iter(range(100))
        theirs_s, ours_s = medians(
            turns,
            lambda: step_by_step(slide, network, transform, PATCH, Path(folder)),
            lambda: build(cohort, f"{folder}/{next(stores)}", options),
        )
    return Ratio(
        name=f"TRIDENT's order, float32 ÷ build, bfloat16, {name}, {n_patches} patches",
        ours_s=ours_s,
        theirs_s=theirs_s,
        ratio=theirs_s / ours_s,
        target=2.5,
        baseline=f"segment, coordinates, patch by patch, HDF5; {n_patches / ours_s:.1f} patches/s",
    )


def _slide(folder: Path, *, tiles: int) -> str:
    """Write a square slide of JPEG tiles; its path."""
    import tifffile
    from PIL import Image

    table = make_cohort(folder / "tiles", n_images=tiles, image_px=SIDE, seed=1)
    pictures = [np.asarray(Image.open(url)) for url in Cohort.read(str(table)).urls]
    grid = [np.hstack([pictures[(row + i) % tiles] for i in range(tiles)]) for row in range(tiles)]
    pixels = np.vstack(grid)
    path = folder / "slide.tif"
    tifffile.imwrite(path, pixels, tile=(256, 256), compression="jpeg", photometric="rgb")
    return str(path)


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


def in_tensorflow(told: str, cohort: Cohort, *, turns: int) -> Ratio:
    """Ask the same of a model in a process of its own, against a process that has nothing else."""
    name = f"bare forward ÷ build, ViT-S/16 in TensorFlow (path-foundation){told}"
    baseline = "the SavedModel alone, patches in memory, in batches of 16"
    if find_spec("tensorflow") is None:
        reason = "tensorflow is not installed"
        return Ratio.skipped(name, baseline=baseline, reason=reason, target=0.95)
    with tempfile.TemporaryDirectory() as folder:
        savedmodel.in_a_process("make", f"{folder}/model", savedmodel.DEPTH)
        options = options_of(patch=PATCH, name="path-foundation", weights=f"{folder}/model")
        pixels = all_of(cohort, options)
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
        memory = told_memory(peaks_of(cohort.limit(1), options))
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
    began, rows = time.perf_counter(), []
    with tempfile.TemporaryDirectory() as folder:
        for row in _small(Path(folder)) if smoke else _full(Path(folder)):
            # Minutes pass: whoever waits sees how far it is.
            print(f"{time.perf_counter() - began:5.0f} s {row.line}", file=sys.stderr, flush=True)
            rows.append(row)
    return rows


def _small(folder: Path) -> Iterator[Ratio]:
    cohort = Images.synthetic(folder / "images", 4).cohort
    for name, encoder, target, n_images, turns in (
        ("ResNet-18", RESNET, 0.95, 4, 2),
        ("texture", {"name": "texture"}, None, 4, 2),
        ("ViT-S/16 in bfloat16", VIT | HALF, 0.95, 2, 1),
    ):
        options = options_of(patch=PATCH, **encoder)
        some = cohort.limit(n_images)
        yield from cost_of_a_build(name, some, options, target=target, turns=turns)
    yield against_step_by_step("ResNet-18", "resnet18", _slide(folder, tiles=2), turns=1)
    yield in_tensorflow("", cohort, turns=1)
    yield from on_a_gpu(cohort)


def _full(folder: Path) -> Iterator[Ratio]:
    drawn = Images.synthetic(folder / "images", 16)
    if (DATA / "wsi").is_dir():
        slide, slides, tiled = Images.real(folder / "tables")
    else:
        slide = slides = drawn
        tiled = Images("", drawn.cohort.limit(3), TILE)
    for name, encoder, target, images, turns in (
        ("texture", {"name": "texture"}, None, slides, 3),
        ("ResNet-18", RESNET, 0.95, slides, 3),
        ("ResNet-18 in bfloat16", RESNET | HALF, 0.95, slides, 3),
        ("ResNet-18 in bfloat16", RESNET | HALF, 0.95, tiled, 3),
        ("ViT-S/16", VIT, 0.95, slide, 3),
        ("ViT-S/16 in bfloat16", VIT | HALF, 0.95, slides, 2),
    ):
        options = options_of(patch=images.patch, **encoder)
        what = f"{name}{images.told}"
        yield from cost_of_a_build(what, images.cohort, options, target=target, turns=turns)
    first = slide.cohort.urls[0] if slide.told else _slide(folder, tiles=3)
    for title, model in (("ResNet-18", "resnet18"), ("ViT-S/16", "vit_small_patch16_224")):
        yield against_step_by_step(f"{title}{slide.told}", model, first, turns=3)
        yield from forward_times(title, model, turns=3)
    yield in_tensorflow(slide.told, slide.cohort, turns=3)
    yield from on_a_gpu(drawn.cohort)
