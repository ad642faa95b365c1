"""What does an encoder's precision cost: in its vectors, and in the macro-F1 of a head on them?

Tiles of the lymphoma images, mean-pooled per image, a logistic head in 5-fold cross-validation,
the folds dealt anew from several seeds. The cost is the mean change of macro-F1 against float32
over the same folds; it should be below the spread over seeds. SqueezeNet has its real weights;
ResNet-18 and ViT-S have random ones, so that their F1 says little and its change still counts.
float16 is for GPUs, and asked for only where there is one.

Run from the repository root::

    python -m benchmarks.bench_precision [--images N] [--save benchmarks/results/precision.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from benchmarks.measure import machine
from histostore.encoders.catalog import load_encoder

DATA = Path(__file__).parents[2] / "shared" / "data"
TILE = 104
SQUEEZENET = DATA / "weights" / "squeezenet1_1_imagenet_features_oihw.npz"
ENCODERS = {  # name, weights, tiles of an image
    "SqueezeNet 1.1, real weights": ("squeezenet1_1", str(SQUEEZENET), 12),
    "ResNet-18, random weights": ("timm:resnet18", "random:0", 2),
    "ViT-S/16, random weights": ("timm:vit_small_patch16_224", "random:0", 2),
}
SEEDS = range(5)


def tiles_of(n_images: int, n_tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Give tiles ``(image, tile, y, x, channel)`` and labels, spread evenly over the folder."""
    from PIL import Image

    paths = sorted((DATA / "lymphoma").glob("*/*.png"))
    paths = [paths[i] for i in np.linspace(0, len(paths) - 1, n_images).astype(int)]
    pictures = np.stack([np.asarray(Image.open(path).convert("RGB")) for path in paths])
    grid = pictures[:, :312, :416].reshape(-1, 3, TILE, 4, TILE, 3).swapaxes(2, 3)
    tiles = grid.reshape(len(paths), 12, TILE, TILE, 3)[:, :: 12 // n_tiles]
    return tiles, np.array([path.parent.name for path in paths])


def macro_f1(pooled: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score a logistic head: one macro-F1 per seed, of the predictions of all folds together."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    scores = []
    for seed in SEEDS:
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        guesses = cross_val_predict(head, pooled, labels, cv=folds)
        scores.append(f1_score(labels, guesses, average="macro"))
    return np.array(scores)


def embeddings(name: str, weights: str, tiles: np.ndarray, precision: str, device: str):
    """Encode all tiles: vectors ``(image, tile, feature)`` and patches a second of CPU time.

    CPU time, unlike the wall clock's, is that of this process alone on a busy machine; on a GPU
    it says nothing, and the wall clock is taken.
    """
    encoder = load_encoder(name, weights=weights, precision=precision, device=device)
    flat = tiles.reshape(-1, *tiles.shape[2:])
    encoder.encode(flat[: encoder.batch_size])
    clock = time.perf_counter if device == "cuda" else time.process_time
    began = clock()
    vectors = encoder.encode(flat)
    seconds = clock() - began
    return vectors.reshape(*tiles.shape[:2], -1), len(flat) / seconds


def measure(title: str, n_images: int) -> list[dict[str, object]]:
    import torch

    name, weights, n_tiles = ENCODERS[title]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiles, labels = tiles_of(n_images, n_tiles)
    full, full_rate = embeddings(name, weights, tiles, "float32", device)
    full_f1 = macro_f1(full.mean(axis=1), labels)
    length = np.linalg.norm(full, axis=-1)
    rows = []
    for precision in ("bfloat16", *(["float16"] if device == "cuda" else [])):
        rough, rate = embeddings(name, weights, tiles, precision, device)
        error = np.linalg.norm(rough - full, axis=-1) / length
        f1 = macro_f1(rough.mean(axis=1), labels)
        rows.append(
            {
                "encoder": title,
                "device": device,
                "precision": precision,
                "n_images": len(labels),
                "n_patches": int(length.size),
                "error_median": round(float(np.median(error)), 5),
                "error_max": round(float(error.max()), 5),
                "f1_float32": round(float(full_f1.mean()), 4),
                "f1_change": round(float((f1 - full_f1).mean()), 4),
                "f1_spread": round(float(full_f1.std(ddof=1)), 4),
                "speed": round(rate / full_rate, 2),
            }
        )
    return rows


def line(row: dict[str, object]) -> str:
    """Set a row out in Markdown."""
    return (
        f"| {row['encoder']} | {row['precision']} | {100 * row['error_median']:.2f} % "
        f"| {100 * row['error_max']:.2f} % | {row['f1_float32']:.3f} | {row['f1_change']:+.4f} "
        f"| {row['f1_spread']:.4f} | {row['speed']:.2f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=374)
    parser.add_argument("--save", type=Path)
    arguments = parser.parse_args()
    if not SQUEEZENET.is_file():
        parser.error(f"{SQUEEZENET} is absent: this question needs real images and weights")
    rows = [row for title in ENCODERS for row in measure(title, arguments.images)]
    document = {"machine": machine(), "seeds": len(SEEDS), "rows": rows}
    if arguments.save is not None:
        arguments.save.parent.mkdir(parents=True, exist_ok=True)
        arguments.save.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    print("\n".join(map(line, rows)))


if __name__ == "__main__":
    main()
