"""Heads on frozen patch embeddings, with one evaluation for all of them.

>>> import numpy as np, zoo
>>> rng = np.random.default_rng(0)
>>> labels = np.arange(40) % 2
>>> embedding = rng.normal(size=(40, 5, 8)) + labels[:, None, None]  # 40 bags of 5 patches
>>> bags = zoo.Bags.from_arrays(
...     embedding.reshape(200, 8), offset=np.arange(0, 201, 5), labels=labels, classes=["a", "b"]
... )
>>> split = zoo.Split.k_fold(bags.labels, bags.patient_ids, n_folds=4)
>>> fold = split.folds[0]
>>> head = zoo.spec("logistic").fit(bags[fold.train], validation=bags[fold.validation])
>>> head.predict_proba(bags[fold.test]).shape
(10, 2)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zoo.bags import Bags
    from zoo.comparison import compare
    from zoo.ensembles import ensemble
    from zoo.explaining import explain
    from zoo.fit import fit_run, make_split
    from zoo.heads.catalog import known_heads, load_head, spec
    from zoo.prediction import predict
    from zoo.recipes import Recipe, known_recipes, recipe
    from zoo.report import write_report
    from zoo.run import Run
    from zoo.split import Split
    from zoo.tuning import tune

_HOMES = {
    "Bags": "zoo.bags",
    "Recipe": "zoo.recipes",
    "Run": "zoo.run",
    "Split": "zoo.split",
    "compare": "zoo.comparison",
    "ensemble": "zoo.ensembles",
    "explain": "zoo.explaining",
    "fit_run": "zoo.fit",
    "known_heads": "zoo.heads.catalog",
    "known_recipes": "zoo.recipes",
    "load_head": "zoo.heads.catalog",
    "make_split": "zoo.fit",
    "predict": "zoo.prediction",
    "recipe": "zoo.recipes",
    "spec": "zoo.heads.catalog",
    "tune": "zoo.tuning",
    "write_report": "zoo.report",
}
__all__ = [
    "Bags",
    "Recipe",
    "Run",
    "Split",
    "compare",
    "ensemble",
    "explain",
    "fit_run",
    "known_heads",
    "known_recipes",
    "load_head",
    "make_split",
    "predict",
    "recipe",
    "spec",
    "tune",
    "write_report",
]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first asked for: ``import zoo`` stays quick."""
    if name not in _HOMES:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
