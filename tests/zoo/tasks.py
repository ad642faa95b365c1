"""Made-up bags of every kind of task, in which the mean of the patches tells the truth."""

from __future__ import annotations

import numpy as np

from zoo.bags import Bags
from zoo.tasks import Task

LEVELS = ("low", "mid", "high")
LABELS = ("er", "pr", "her2")


def drawn(kind, n, seed, *, skill=1.0, loss=None):
    """Give ``n`` bags of one to three patches of six features, with two bags per patient."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(n, 3))
    lengths = rng.integers(1, 4, size=n)
    offset = np.cumsum([0, *lengths])
    rows = rng.normal(size=(offset[-1], 6)) * 0.3
    rows[:, :3] += skill * np.repeat(hidden, lengths, axis=0)
    given = {
        "image_ids": [f"image {i:04}" for i in range(n)],
        "patient_ids": [f"patient {i // 2:04}" for i in range(n)],
    }
    signal = hidden[:, 0]
    if kind in ("classification", "ordinal"):
        codes = np.searchsorted([-0.5, 0.5], signal)
        task = Task.of(kind, "grade")
        return Bags.from_arrays(rows, offset, labels=codes, classes=LEVELS, task=task, **given)
    if kind == "multi-label":
        truth, classes, target = hidden > 0.3, LABELS, ",".join(LABELS)
    elif kind == "regression":
        truth, classes, target = 50 + 12 * signal[:, None], (), "age"
    else:
        death = rng.exponential(np.exp(-1.5 * signal)) * 30
        leaves = rng.exponential(60.0, size=n)
        truth = np.stack([np.minimum(death, leaves), death <= leaves], axis=1)
        classes, target = (), "months,dead"
    task = Task.of(kind, target, loss=loss)
    return Bags.from_arrays(rows, offset, truth=truth, classes=classes, task=task, **given)
