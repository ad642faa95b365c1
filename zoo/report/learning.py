"""Learning curves from a run's history."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from zoo.report.model import Curve, Learning
from zoo.report.text import count, number, signed

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["learning"]

_COLUMNS = ("train_macro_f1", "validation_macro_f1", "overfit_gap")


def learning(history: pd.DataFrame, *, is_ensemble: bool) -> Learning:
    """Average the curves of all fits of a run.

    A fit is one fold with one seed. Where fits stop at different epochs, the curves end as
    soon as fewer than half of the fits are left: a mean over the few longest says nothing
    about the rest.

    Parameters
    ----------
    history
        Columns ``fold, seed, epoch, train_macro_f1, validation_macro_f1, overfit_gap``.
    is_ensemble
        Ensembles train nothing themselves.
    """
    if is_ensemble:
        return Learning(
            note="An ensemble combines the predictions of its members and trains nothing itself; "
            "their learning curves stand in their own runs."
        )
    if len(history) == 0:
        return Learning(note="This run left no training history.")
    n_fits = int(history.groupby(["fold", "seed"]).ngroups)
    epochs = history.groupby("epoch")[list(_COLUMNS)].agg(["mean", "std", "size"])
    n_left = epochs["train_macro_f1"]["size"].to_numpy()
    if len(epochs) < 2:
        return Learning(note=_one_step(history, n_fits), n_fits=n_fits)
    shown = epochs[2 * n_left >= n_fits]
    train, validation, gap = (_curve(shown[name]) for name in _COLUMNS)
    last, end = int(epochs.index[-1]), int(shown.index[-1])
    note = f"Mean over {count(n_fits, 'fit')} (folds × seeds); bands: ± 1 standard deviation."
    if end < last:
        note += (
            f" Fits ran up to epoch {last}; the curves end at epoch {end}, "
            "after which fewer than half of the fits were left."
        )
    return Learning(
        note=note, n_fits=n_fits, train=train, validation=validation, gap=gap,
        peak=_peak(validation),
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


def _peak(curve: Curve | None) -> tuple[int, float] | None:
    if curve is None:
        return None
    best = int(np.argmax(curve.mean))
    return curve.epoch[best], curve.mean[best]


def _one_step(history: pd.DataFrame, n_fits: int) -> str:
    train, validation, gap = (float(history[name].mean()) for name in _COLUMNS)
    return (
        "This head is fitted in one step and has no epochs, so there is no learning curve. "
        f"Mean over {count(n_fits, 'fit')}: macro-F1 {number(train)} on the training part, "
        f"{number(validation)} on the validation part, overfit gap {signed(gap)}."
    )
