"""Learning curves from a run's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.metrics import higher_is_better, metric_title
from zoo.report.model import Curve, Learning
from zoo.report.text import count, number, signed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["learning"]


def learning(history: pd.DataFrame, *, is_ensemble: bool, metric: str = "macro_f1") -> Learning:
    """Average the curves of all fits of a run.

    A fit is one fold with one seed. Where fits stop at different epochs, the curves end as
    soon as fewer than half of the fits are left: a mean over the few longest says nothing
    about the rest.

    Parameters
    ----------
    history
        Columns ``fold, seed, epoch, train_<metric>, validation_<metric>, overfit_gap``.
    is_ensemble
        Ensembles train nothing themselves.
    metric
        What was watched.
    """
    columns = (f"train_{metric}", f"validation_{metric}", "overfit_gap")
    if is_ensemble:
        return Learning(
            note="An ensemble combines the predictions of its members and trains nothing itself; "
            "their learning curves stand in their own runs."
        )
    if len(history) == 0:
        return Learning(note="This run left no training history.")
    n_fits = int(history.groupby(["fold", "seed"]).ngroups)
    epochs = history.groupby("epoch")[list(columns)].agg(["mean", "std", "size"])
    n_left = epochs[columns[0]]["size"].to_numpy()
    if len(epochs) < 2:
        return Learning(note=_one_step(history, n_fits, columns), n_fits=n_fits, metric=metric)
    shown = epochs[2 * n_left >= n_fits]
    train, validation, gap = (_curve(shown[name]) for name in columns)
    last, end = int(epochs.index[-1]), int(shown.index[-1])
    note = f"Mean over {count(n_fits, 'fit')} (folds × seeds); bands: ± 1 standard deviation."
    if end < last:
        note += (
            f" Fits ran up to epoch {last}; the curves end at epoch {end}, "
            "after which fewer than half of the fits were left."
        )
    return Learning(
        note=note, n_fits=n_fits, train=train, validation=validation, gap=gap,
        peak=_peak(validation, metric), metric=metric,
    )  # fmt: skip


def _curve(told: pd.DataFrame) -> Curve | None:
    mean = told["mean"].to_numpy(dtype=np.float64)
    keep = np.isfinite(mean)
    if keep.sum() < 2:
        return None
    # of one fit there is no standard deviation, and so no band
    sd = np.nan_to_num(told["std"].to_numpy(dtype=np.float64))
    return Curve(
        epoch=tuple(int(epoch) for epoch in told.index.to_numpy()[keep]),
        mean=tuple(float(v) for v in mean[keep]),
        sd=tuple(float(v) for v in sd[keep]),
    )


def _peak(curve: Curve | None, metric: str) -> tuple[int, float] | None:
    if curve is None:
        return None
    best = int((np.argmax if higher_is_better(metric) else np.argmin)(curve.mean))
    return curve.epoch[best], curve.mean[best]


def _one_step(history: pd.DataFrame, n_fits: int, columns: tuple[str, str, str]) -> str:
    train, validation, gap = (float(history[name].mean()) for name in columns)
    name = metric_title(columns[0].removeprefix("train_"))
    return (
        "This head is fitted in one step and has no epochs, so there is no learning curve. "
        f"Mean over {count(n_fits, 'fit')}: {name} {number(train)} on the training part, "
        f"{number(validation)} on the validation part, overfit gap {signed(gap)}."
    )
