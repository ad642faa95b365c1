"""The external test: how good predictions of labelled images are, and how much worse than at home."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.text import table
from zoo.intervals import square_and_add
from zoo.metrics import higher_is_better, metric_names, metric_title
from zoo.statistics import bootstrap

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from zoo.run import Run
    from zoo.statistics import Interval

__all__ = ["ExternalTest", "Truth", "judge"]

Truth = tuple[tuple[str, str, str], ...]
"""Image, patient and class of labelled images."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ExternalTest:
    """How good the predictions of labelled images are."""

    n_images: int
    """Images with a label."""
    n_patients: int
    metrics: dict[str, dict[str, float | None]]
    """Metric to ``value``, ``low``, ``high`` (95 % over patients), the same three of the run's
    images out of fold (``own``, ``own_low``, ``own_high``), and of how much worse it is here
    (``drop``, ``drop_low``, ``drop_high``; below 0: better)."""
    truth: Truth = ()
    """Image, patient and class of those images."""

    def to_json(self) -> dict[str, Any]:
        """Give the scores as JSON values."""
        columns = tuple(zip(*self.truth, strict=True)) or ((), (), ())
        names = ("image_id", "patient_id", "target")
        return {
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "metrics": self.metrics,
            "truth": {name: list(column) for name, column in zip(names, columns, strict=True)},
        }

    def to_text(self) -> str:
        """Draw the scores as a plain table."""
        rows = [
            {
                "metric": metric_title(name),
                "here": told["value"],
                "95 % interval": f"{_number(told['low'])} to {_number(told['high'])}",
                "out of fold": told["own"],
                "drop": told["drop"],
                "its interval": f"{_number(told['drop_low'])} to {_number(told['drop_high'])}",
            }
            for name, told in self.metrics.items()
        ]
        who = f"{self.n_images:,} labelled images of {self.n_patients:,} patients"
        return "\n".join([f"{who}, against the run's own out-of-fold scores:", table(rows)])


def judge(run: Run, rows: Mapping[str, NDArray[np.float64]], truth: Truth) -> ExternalTest:
    """Score the labelled images that were predicted.

    Parameters
    ----------
    run
        Who predicted.
    rows
        Image to probabilities ``(class,)``.
    truth
        Of labelled images, not all of which need have been predicted.
    """
    known = [(image, patient, label) for image, patient, label in truth if image in rows]
    code = {name: k for k, name in enumerate(run.classes)}
    y_true = np.array([code[label] for _, _, label in known], dtype=np.int64)
    prob = np.array([rows[image] for image, _, _ in known])
    patients = [patient for _, patient, _ in known]
    intervals = bootstrap(y_true, prob, patients, task=run.task)
    own = run.document["metrics"].get("test", {})
    metrics = {
        name: {**intervals[name].to_json(), **_drop(name, own.get(name) or {}, intervals[name])}
        for name in metric_names(run.task)
    }
    return ExternalTest(
        n_images=len(known),
        n_patients=len(set(patients)),
        metrics=metrics,
        truth=tuple(known),
    )


def _drop(name: str, own: Mapping[str, Any], here: Interval) -> dict[str, float | None]:
    """Say how much worse a metric is here than on the run's own images.

    Both sides were drawn by patient, independently; their intervals are put together by
    :func:`zoo.intervals.square_and_add`.
    """
    before = tuple(own.get(key) for key in ("value", "low", "high"))
    told = dict(zip(("own", "own_low", "own_high"), before, strict=True))
    drop: list[float | None] = [None, None, None]
    after = (here.value, here.low, here.high)
    if before[0] is not None and after[0] is not None:
        sign = 1 if higher_is_better(name) else -1
        drop[0] = sign * (before[0] - after[0])
    if None not in before and None not in after:
        # What a lower value makes better is subtracted the other way round.
        sides = (before, after) if higher_is_better(name) else (after, before)
        drop[1:] = square_and_add(*sides)
    return {**told, **dict(zip(("drop", "drop_low", "drop_high"), drop, strict=True))}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
