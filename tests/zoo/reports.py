"""Runs, stores and pages for the tests of reports: seeded random numbers, real files."""

from __future__ import annotations

import html.parser
import itertools
import json
import math
import shutil
import subprocess
from pathlib import Path  # noqa: TC003 (used at run time)
from typing import Any

import numpy as np
import pandas as pd

from zoo.predictions import measure

CLASSES = ("CLL", "FL", "MCL")
EVIL = '<script>alert("x")</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def fake_run(
    path: Path,
    *,
    name: str = "gated-mil",
    classes: tuple[str, ...] = CLASSES,
    n_images: int = 45,
    n_folds: int = 3,
    seeds: tuple[int, ...] = (0, 1, 2),
    n_epochs: int = 12,
    skill: float = 1.2,
    ensemble: bool = False,
    seed: int = 0,
    id_prefix: str = "image",
    **document: Any,
) -> Path:
    """Write a run directory as ``zoo fit`` leaves it."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    y = np.arange(n_images) % len(classes)
    frame = pd.concat(
        [
            _fold_rows(rng, y, classes, k, s, n_folds, skill, id_prefix)
            for k, s in itertools.product(range(n_folds), seeds)
        ],
        ignore_index=True,
    )
    frame.to_parquet(path / "predictions.parquet", index=False)
    make_history(rng, n_folds, seeds, 0 if ensemble else n_epochs).to_parquet(
        path / "history.parquet", index=False
    )
    (path / "heads").mkdir()
    run = {
        "format": 1,
        "kind": "ensemble" if ensemble else "run",
        "name": name,
        "head": {"name": "mean", "settings": {"rule": "mean"}}
        if ensemble
        else {"name": "gated-mil", "settings": {"hidden": 160, "dropout": 0.4}},
        "recipe": {"name": "r-drop", "epochs": n_epochs, "lr": 0.0005, "r_drop": 1.0},
        "target": "label",
        "classes": list(classes),
        "augmentation": "identity",
        "split": {
            "digest": "5f" * 32,
            "method": "k-fold",
            "n_folds": n_folds,
            "repeats": 1,
            "seed": 0,
            "validation_share": 0.125,
        },
        "seeds": [0] if ensemble else list(seeds),
        "store": {
            "url": "store-is-not-there",
            "feature_set": "texture-1a2b3c4d",
            "snapshot": "ab" * 32,
            "spec": {},
        },
        "cohort": {
            "url": "cohort-is-not-there.csv",
            "digest": "cd" * 32,
            "n_images": n_images,
            "n_unlabelled": 2,
        },
        "members": [{"name": "a", "path": "runs/a", "digest": "ef" * 32}] if ensemble else [],
        "versions": {
            "python": "3.11.9",
            "numpy": "2.4.0",
            "torch": "2.13.0",
            "histostore": "0.1.0",
        },
        "seconds": 12.5 + 100 * seed,
        "created": f"2026-01-0{1 + seed % 9}T10:00:00+00:00",
        "metrics": measure(frame, classes),
    } | document
    (path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return path


def _fold_rows(rng, y, classes, fold, seed, n_folds, skill, id_prefix):
    rows = np.arange(len(y))
    part = rows // len(classes) % n_folds
    role = np.where(
        part == fold, "test", np.where(rows % 8 == (fold + 1) % 8, "validation", "train")
    )
    logits = rng.normal(size=(len(y), len(classes)))
    logits[rows, y] += skill
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frame = {
        "image_id": [f"{id_prefix}-{i:03d}" for i in rows],
        "patient_id": [f"patient-{i // 2:03d}" for i in rows],
        "fold": fold,
        "seed": seed,
        "role": role,
        "target": [classes[k] for k in y],
    }
    return pd.DataFrame(frame | {f"prob_{c}": prob[:, k] for k, c in enumerate(classes)})


def make_history(rng, n_folds, seeds, n_epochs):
    rows = []
    for fold, seed, epoch in itertools.product(range(n_folds), seeds, range(n_epochs)):
        share = 1 - math.exp(-4 * epoch / max(n_epochs, 1))
        train = 0.35 + 0.6 * share + rng.normal(0, 0.012)
        validation = 0.33 + 0.3 * share + rng.normal(0, 0.03)
        rows.append(
            (fold, seed, epoch, 1.1 - share, train, train, 1.1 - 0.5 * share, validation,
             validation, train - validation)
        )  # fmt: skip
    names = "fold seed epoch train_loss train_macro_f1 train_accuracy validation_loss validation_macro_f1 validation_accuracy overfit_gap"
    return pd.DataFrame(rows, columns=names.split())


def make_runs(root: Path) -> list[Path]:
    """Write three runs: a network, a head fitted in one step, an ensemble."""
    return [
        fake_run(root / "abmil", name="gated-mil", seed=1, skill=1.2),
        fake_run(root / "gbm", name="lightgbm", seed=2, skill=2.0, n_epochs=1),
        fake_run(root / "both", name="mean of all", seed=3, skill=2.4, ensemble=True, seeds=(0,)),
    ]


def make_embedded(root: Path) -> tuple[Path, Path, Path]:
    """A cohort of small pictures, half tissue, a store of them, and a run on both."""
    from PIL import Image

    from histostore.encoders.base import EncoderIdentity
    from histostore.files import Source
    from histostore.grid import PatchGrid
    from histostore.images.patches import select_patches
    from histostore.images.readers import open_image
    from histostore.images.tissue import TissueFilter
    from histostore.spec import FeatureSpec
    from histostore.store import Fragment, open_store

    rng = np.random.default_rng(0)
    grid, tissue = PatchGrid(patch_size=64), TissueFilter(min_tissue=0.3)
    selections, ids = [], [f"image-{i:03d}" for i in range(18)]
    for i, image_id in enumerate(ids):
        pixels = np.full((160, 256, 3), 250, dtype=np.uint8)
        width = 60 + 10 * i
        pixels[:, :width] = rng.integers([120, 30, 120], [200, 110, 200], size=(160, width, 3))
        Image.fromarray(pixels).save(root / f"{image_id}.png")
        reader = open_image(str(root / f"{image_id}.png"))
        selections.append(select_patches(reader, grid, tissue))
        reader.close()
    table = pd.DataFrame({"image_id": ids, "path": [f"{i}.png" for i in ids]})
    table.to_csv(root / "cohort.csv", index=False)
    spec = FeatureSpec(
        encoder=EncoderIdentity(name="texture"), n_features=4, grid=grid, tissue=tissue
    )
    offset = np.cumsum([0, *(len(s.kept) for s in selections)]).astype(np.int64)
    features = open_store(str(root / "store"), mode="a").create_feature_set(spec)
    features.commit(
        Fragment(
            embedding=rng.normal(size=(1, offset[-1], 4)).astype(np.float32),
            augmentations=("identity",),
            image_ids=tuple(ids),
            offset=offset,
            y=np.concatenate([s.placement.y[s.kept] for s in selections]),
            x=np.concatenate([s.placement.x[s.kept] for s in selections]),
            tissue=np.concatenate([s.tissue[s.kept] for s in selections]),
            sources=tuple(Source(url=f"{i}.png", size=1, version=None) for i in ids),
            flags=((),) * len(ids),
        ),
        {},
    )
    store = {
        "url": str(root / "store"),
        "feature_set": features.name,
        "snapshot": features.snapshot,
        "spec": spec.to_json(),
    }
    cohort = {"url": str(root / "cohort.csv"), "digest": "cd" * 32, "n_images": 18}
    run = fake_run(root / "run", n_images=18, store=store, cohort=cohort)
    return root, run, root / "cohort.csv"


VOID = {"meta", "link", "br", "img", "input", "hr", "wbr"}


class Page(html.parser.HTMLParser):
    """Checks nesting while reading, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [a[attribute] for _, a in self.elements if a.get(attribute)]


def chromium(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
