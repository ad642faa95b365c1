"""Small stores of real images with made-up vectors, for the tests of what reads both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from histostore.cohort import Cohort
from histostore.files import stat
from histostore.store import open_store
from histostore.store.fragment import Fragment
from histostore.testing import spec_of
from tests.commands import picture, write_table
from zoo.bags import Bags
from zoo.fit import fit_run, make_split
from zoo.heads import spec

if TYPE_CHECKING:
    from pathlib import Path

CLASSES = ("benign", "malignant")
EDGE = 16  # the grid of spec_of
COLUMNS, ROWS = 6, 4


@dataclass(frozen=True)
class World:
    """Images, their table, a store, and where in each image the class can be seen."""

    table: Path
    store: str
    planted: dict[str, int]

    def bags(self, feature_set=None, *, task=None):
        features = open_store(self.store).feature_set(feature_set)
        return Bags(features, Cohort.read(str(self.table), check_files=False), task=task)

    def fit(self, out, head="logistic", *, folds=3, task=None, **options):
        bags = self.bags(task=task)
        split = make_split(bags, folds=folds)
        return fit_run(bags, spec(head), out=out, split=split, store_url=self.store, **options)


TARGETS = {
    "classification": "label",
    "ordinal": "grade",
    "multi-label": "er,pr",
    "regression": "age",
    "survival": "months,dead",
}
"""Columns that :func:`make_world` writes for each task."""


def targets_of(rng, label, skill):
    """Draw what else is told of an image, which its class has to do with as far as skill goes."""
    sign = (2 * label - 1) * np.sign(skill)
    return {
        "grade": str(int(np.clip(1 + label + rng.integers(-1, 1), 0, 2))),
        "er": int(label),
        "pr": int(rng.random() < 0.5 - 0.3 * sign),
        "age": round(float(60 + 10 * sign + rng.normal(0, 3)), 1),
        "months": round(float(rng.exponential(30 * np.exp(-sign))), 2),
        "dead": int(rng.random() < 0.8),
    }


def make_world(
    folder, n=32, *, classes=CLASSES, prefix="i", seed=0, views=("identity",), specs=None, skill=6.0
):
    """Write images of 6 × 4 patches; in one patch of each, the vector tells the class."""
    told = np.random.default_rng(seed + 1)
    rng = np.random.default_rng(seed)
    rows, sources, planted, parts = [], [], {}, []
    (folder / "images").mkdir(parents=True)
    for number in range(n):
        path = folder / "images" / f"{number}.png"
        pixels = picture(number, height=ROWS * EDGE, width=COLUMNS * EDGE)
        label, name = number % len(classes), f"{prefix}{number}"
        place = planted[name] = int(rng.integers(COLUMNS * ROWS))
        y, x = (EDGE * k for k in divmod(place, COLUMNS))
        pixels[y : y + EDGE, x : x + EDGE] //= 2
        Image.fromarray(pixels).save(path)
        rows.append({"image_id": name, "path": f"images/{number}.png", "label": classes[label]})
        rows[-1]["patient_id"] = f"{prefix}-patient-{number // 2}"
        rows[-1] |= targets_of(told, label, skill)
        sources.append(stat(str(path)))
        vectors = rng.normal(0, 0.2, (COLUMNS * ROWS, 4))
        vectors[place, label] += skill
        parts.append(vectors)
    places = np.tile(np.arange(COLUMNS * ROWS), n)
    embedding = np.stack([np.concatenate(parts) + 0.1 * k for k in range(len(views))])
    store = str(folder / "store")
    for one in specs or (spec_of(),):
        fragment = Fragment(
            embedding=embedding.astype(one.dtype),
            augmentations=tuple(views),
            image_ids=tuple(row["image_id"] for row in rows),
            offset=np.arange(n + 1) * COLUMNS * ROWS,
            y=(places // COLUMNS * EDGE).astype(np.int32),
            x=(places % COLUMNS * EDGE).astype(np.int32),
            tissue=np.ones(len(places), np.float32),
            sources=tuple(sources),
            flags=((),) * n,
        )
        open_store(store, mode="a").create_feature_set(one).commit(fragment, {})
    return World(table=write_table(folder / "cohort.csv", rows), store=store, planted=planted)
