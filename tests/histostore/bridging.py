"""Vectors, places and files of them as other tools write them, and their import."""

from __future__ import annotations

import numpy as np
import pytest

from histostore.bridges import import_layout
from histostore.store import open_store


def vectors(n=5, width=6, dtype="f4", seed=0):
    return np.random.default_rng(seed).standard_normal((n, width)).astype(dtype)


def places(n=5):
    return np.stack([np.arange(n) * 384, np.full(n, 768)], axis=1)


def write_h5(path, arrays, attrs=None, file_attrs=None):
    h5py = pytest.importorskip("h5py")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.attrs.update(file_attrs or {})
        for name, array in arrays.items():
            file.create_dataset(name, data=array).attrs.update((attrs or {}).get(name, {}))
    return path


def write_pt(path, value):
    torch = pytest.importorskip("torch")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path)
    return path


def imported(tmp_path, source, layout, **options):
    report = import_layout(str(source), str(tmp_path / "store"), layout, **options)
    return report, open_store(str(tmp_path / "store"))


def only(store):
    return store.feature_set()
