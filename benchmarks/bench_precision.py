"""What does a precision cost: in an encoder's vectors, and in the macro-F1 of a head on them?

Tiles of the lymphoma images, mean-pooled per image, a logistic head in 5-fold cross-validation,
the folds dealt anew from several seeds. Compared with float32 over the same folds are: arithmetic
in bfloat16 and float16 (``--precision``), and vectors kept in float16 (``--dtype``). The cost is the
mean change of macro-F1; it should be below the spread over seeds. Intervals are of a bootstrap over
images, of all seeds together, the same resamples for every precision. SqueezeNet has its real
weights; ResNet-18 and ViT-S have random ones, so that their F1 says little and its change still
counts. Arithmetic in float16 is for GPUs: where there is none, its rows say so.

Run from the repository root; some minutes on two cores::

    python -m benchmarks.bench_precision [--images N] [--save benchmarks/results/precision.json]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.measure import machine
from histostore.encoders.catalog import load_encoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from histostore.encoders.base import Encoder

DATA = Path(__file__).parents[2] / "shared" / "data"
TILE = 104
SQUEEZENET = DATA / "weights" / "squeezenet1_1_imagenet_features_oihw.npz"
ENCODERS = {  # name, weights, tiles of an image
    "SqueezeNet 1.1, ImageNet weights": ("squeezenet1_1", str(SQUEEZENET), 12),
    "ResNet-18, random weights": ("timm:resnet18", "random:0", 2),
    "ViT-S/16, random weights": ("timm:vit_small_patch16_224", "random:0", 1),
}
PRECISIONS = ("float32", "bfloat16", "float16")
STORED = ("float32", "float16")
RESULTS = Path(__file__).parent / "results" / "precision.json"
"""What is committed, and shown in ``docs/encoders.md``."""
N_FOLDS, N_SEEDS, N_RESAMPLES = 5, 5, 2000
SLICE = 64


def tiles_of(n_images: int, n_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Give tiles ``(image, tile, y, x, channel)`` and labels, spread evenly over the folder."""
    from PIL import Image

    paths = sorted((DATA / "lymphoma").glob("*/*.png"))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, n_images).astype(int)]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    grid = pictures[:, :312, :416].reshape(-1, 3, TILE, 4, TILE, 3).swapaxes(2, 3)
    tiles = grid.reshape(len(paths), 12, TILE, TILE, 3)[:, :: 12 // n_tiles]
    return tiles, np.array([path.parent.name for path in paths])


def guesses(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Predict every image out of fold: ``(seed, image)``, numbers of classes."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    deals = (StratifiedKFold(N_FOLDS, shuffle=True, random_state=seed) for seed in range(N_SEEDS))
    return np.stack([cross_val_predict(head, pooled, labels, cv=folds) for folds in deals])


def macro_f1(guessed: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Score predictions of several seeds over several resamples of the images.

    Parameters
    ----------
    guessed
        ``(seed, image)``, numbers of classes.
    labels
        ``(image,)``, the truth.
    weights
        ``(resample, image)``, how often each image was drawn.

    Returns
    -------
    f1
        ``(seed, resample)``; a class that was neither drawn nor guessed scores 0.
    """
    scores = []
    for name in np.unique(labels):
        true, said = labels == name, guessed == name
        hits, there, told = ((part * 1.0) @ weights.T for part in (true & said, true, said))
        scores.append(2 * hits / np.maximum(there + told, 1))
    return np.mean(scores, axis=0)


def resamples(n_images: int) -> np.ndarray:
    """Draw images with replacement: ``(resample, image)``, how often each was drawn."""
    rng = np.random.default_rng(0)
    return rng.multinomial(n_images, np.full(n_images, 1 / n_images), N_RESAMPLES)


def interval(value: float, drawn: np.ndarray) -> dict[str, float]:
    low, high = np.percentile(drawn, (2.5, 97.5))
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def embed(
    encoders: Mapping[str, Encoder], pixels: np.ndarray, device: str
) -> dict[str, tuple[np.ndarray, float]]:
    """Encode the same patches in every precision: vectors, and seconds.

    They take turns, slice by slice, so that what else the machine does hits all of them. CPU time,
    unlike the wall clock's, is that of this process alone; on a GPU it says nothing.
    """
    clock = time.perf_counter if device == "cuda" else time.process_time
    parts: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    seconds = dict.fromkeys(encoders, 0.0)
    for encoder in encoders.values():
        encoder.encode(pixels[:SLICE])
    for start in range(0, len(pixels), SLICE):
        for name, encoder in encoders.items():
            began = clock()
            parts[name].append(encoder.encode(pixels[start : start + SLICE]))
            seconds[name] += clock() - began
    return {name: (np.concatenate(parts[name]), seconds[name]) for name in encoders}


def measure(title: str, n_images: int) -> Iterator[dict[str, Any]]:
    """Give a row per precision and type of what is stored."""
    import torch

    name, weights, n_tiles = ENCODERS[title]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiles, classes = tiles_of(n_images, n_tiles)
    labels = np.unique(classes, return_inverse=True)[1]
    encoders = {
        precision: load_encoder(name, weights=weights, precision=precision, device=device)
        for precision in PRECISIONS
        if precision != "float16" or device == "cuda"
    }
    embedded = embed(encoders, tiles.reshape(-1, *tiles.shape[2:]), device)
    whole, base_s = embedded["float32"]
    weights_of = resamples(len(labels))
    every = np.ones((1, len(labels)))
    base: tuple[np.ndarray, np.ndarray] | None = None
    for precision in PRECISIONS:
        for stored in STORED:
            row = {"encoder": title, "device": device, "precision": precision, "stored": stored}
            if precision not in embedded:
                yield {**row, "not_run": "no GPU here"}
                continue
            vectors, seconds = embedded[precision]
            kept = vectors.astype(stored).astype(np.float32)
            error = np.linalg.norm(kept - whole, axis=1) / np.linalg.norm(whole, axis=1)
            guessed = guesses(kept.reshape(*tiles.shape[:2], -1).mean(axis=1), labels)
            f1, drawn = (macro_f1(guessed, labels, some) for some in (every, weights_of))
            base = base or (f1, drawn)
            yield {
                **row,
                "n_images": len(labels),
                "n_patches": len(whole),
                "error_median": float(f"{np.median(error):.3g}"),
                "error_max": float(f"{error.max():.3g}"),
                "macro_f1": interval(float(f1.mean()), drawn.mean(axis=0)),
                "change": interval(float((f1 - base[0]).mean()), (drawn - base[1]).mean(axis=0)),
                "seed_sd": round(float(f1.std(ddof=1)), 4),
                "speed": round(base_s / seconds, 2),
            }


def table(document: Mapping[str, Any]) -> str:
    """Set the rows out in Markdown; a ratio of times only from a machine that was quiet."""
    quiet = max(document["load"]) < document["machine"]["cores"]
    head = [
        "| encoder | arithmetic | stored | relative error, median | most | macro-F1 | change | "
        "sd over seeds | speed |",
        "|---|---|---|--:|--:|---|---|--:|--:|",
    ]
    return "\n".join([*head, *(_line(row, quiet=quiet) for row in document["rows"])])


def shown(committed: Path = RESULTS) -> str:
    """Say what the committed run found, in Markdown."""
    if not committed.is_file():
        return "No results of it are committed yet."
    document = json.loads(committed.read_text(encoding="utf-8"))
    images = max(row.get("n_images", 0) for row in document["rows"])
    return (
        f"{images} lymphoma images, {document['machine']['processor']}, {document['date']}; "
        "in brackets 95 % intervals of a bootstrap over images; speed is CPU time of float32 ÷ that of "
        f"the row, – where the machine was busy.\n\n{table(document)}"
    )


def _line(row: Mapping[str, Any], *, quiet: bool) -> str:
    start = f"| {row['encoder']} | {row['precision']} | {row['stored']} |"
    if "not_run" in row:
        return f"{start} not run: {row['not_run']} | | | | | |"
    f1, change = row["macro_f1"], row["change"]
    return (
        f"{start} {100 * row['error_median']:.2g} % | {100 * row['error_max']:.2g} % "
        f"| {f1['value']:.3f} ({f1['low']:.3f} to {f1['high']:.3f}) "
        f"| {change['value']:+.4f} ({change['low']:+.4f} to {change['high']:+.4f}) "
        f"| {row['seed_sd']:.4f} | {row['speed'] if quiet else '–'} |"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=374, help="how many, spread over the classes")
    parser.add_argument("--save", type=Path, help="write the JSON here, to be committed")
    chosen = parser.parse_args(arguments)
    if not SQUEEZENET.is_file():
        parser.error(f"{SQUEEZENET} is absent: this question needs real images and weights")
    began, before = time.perf_counter(), os.getloadavg()[0]
    rows = [row for title in ENCODERS for row in measure(title, chosen.images)]
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "load": [round(before, 2), round(os.getloadavg()[0], 2)],
        "took_s": round(time.perf_counter() - began, 1),
        "seeds": N_SEEDS,
        "rows": rows,
    }
    if chosen.save is not None:
        chosen.save.parent.mkdir(parents=True, exist_ok=True)
        chosen.save.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print(table(document))


if __name__ == "__main__":
    main()
