"""Predictions as a table, what they say of each image, and how good they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from zoo.metrics import METRICS, evaluate
from zoo.statistics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from numpy.typing import NDArray

__all__ = [
    "FIXED_COLUMNS",
    "ROLES",
    "Predictions",
    "average",
    "measure",
    "predictions_frame",
]

ROLES = ("train", "validation", "test")
"""What a fold used an image for."""

FIXED_COLUMNS = ("image_id", "patient_id", "fold", "seed", "role", "target")
"""Columns of ``predictions.parquet`` before the probabilities."""


class Predictions(NamedTuple):
    """One prediction per image, in the order of image ids."""

    image_ids: NDArray[np.object_]
    """Images ``(image,)``, sorted."""
    patient_ids: NDArray[np.object_]
    """Their patients."""
    y_true: NDArray[np.int64]
    """True classes, indices into the run's classes."""
    prob: NDArray[np.float64]
    """Probabilities ``(image, class)``."""


def predictions_frame(
    *,
    image_ids: Sequence[str] | NDArray[Any],
    patient_ids: Sequence[str] | NDArray[Any],
    fold: int,
    seed: int,
    role: str,
    target: Sequence[str] | NDArray[Any],
    prob: NDArray[np.float64],
    classes: Sequence[str],
) -> pd.DataFrame:
    """Make the rows of ``predictions.parquet`` for one fold, seed and role.

    Parameters
    ----------
    image_ids, patient_ids, target
        Image, patient and true class of each row.
    fold, seed, role
        The same for all rows.
    prob
        Probabilities ``(image, class)``.
    classes
        Names of the classes.
    """
    import pandas as pd

    values = (list(image_ids), list(patient_ids), fold, seed, role, list(target))
    columns: dict[str, Any] = dict(zip(FIXED_COLUMNS, values, strict=True))
    columns |= {f"prob_{name}": prob[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame(columns)


def average(frame: pd.DataFrame, classes: Sequence[str]) -> Predictions:
    """Average a table's probabilities over all rows of each image.

    Parameters
    ----------
    frame
        Rows of one role.
    classes
        Names of the classes.
    """
    images, first, place = np.unique(
        frame["image_id"].to_numpy(dtype=object).astype(str),
        return_index=True,
        return_inverse=True,
    )
    prob = frame[[f"prob_{name}" for name in classes]].to_numpy(dtype=np.float64)
    total = np.zeros((len(images), len(classes)))
    np.add.at(total, place, prob)
    known = {name: k for k, name in enumerate(classes)}
    target = frame["target"].to_numpy(dtype=object)[first]
    return Predictions(
        image_ids=images.astype(object),
        patient_ids=frame["patient_id"].to_numpy(dtype=object)[first],
        y_true=np.array([known[name] for name in target], dtype=np.int64),
        prob=total / np.bincount(place, minlength=len(images))[:, None],
    )


def measure(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Compute the metrics of a predictions table, for validation and test.

    Returns
    -------
    dict
        Role to metric to ``value``, ``low``, ``high`` (averaged probabilities, interval over
        patients), ``seeds`` (one value per seed), ``seed_mean`` and ``seed_sd`` (None for a
        single seed). A role without rows is left out.
    """
    found = {}
    for role in ("test", "validation"):
        frame = predictions[predictions["role"] == role]
        if len(frame) == 0:
            continue
        images = average(frame, classes)
        intervals = bootstrap(images.y_true, images.prob, images.patient_ids)
        by_seed = []
        for seed in sorted(frame["seed"].unique()):
            one = average(frame[frame["seed"] == seed], classes)
            by_seed.append(evaluate(one.y_true, one.prob))
        found[role] = {
            name: {**intervals[name].to_json(), **_spread([scores[name] for scores in by_seed])}
            for name in METRICS
        }
    return found


def _spread(values: list[float]) -> dict[str, Any]:
    """Tell mean and standard deviation (n − 1) over seeds; None where undefined."""
    numbers = [None if np.isnan(value) else float(value) for value in values]
    defined = [value for value in numbers if value is not None]
    whole = len(defined) == len(numbers)
    return {
        "seed_mean": float(np.mean(defined)) if whole else None,
        "seed_sd": float(np.std(defined, ddof=1)) if whole and len(defined) > 1 else None,
        "seeds": numbers,
    }
