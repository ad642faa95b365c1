"""What a report shows of one set of predictions, as plain data: curves, bins, points, groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.calibration import Bin, BrierParts

__all__ = [
    "Calibration",
    "ClassCurves",
    "ClassRow",
    "Cost",
    "Experiment",
    "External",
    "Judged",
    "Line",
    "Operating",
    "Pair",
    "Range",
    "Ranks",
    "RiskGroup",
    "Scatter",
    "Shift",
    "Survival",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """A value with its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassRow:
    """One line of the classification report; ``None`` where a line has no such number."""

    name: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A curve, and a band over resamples of patients, pointwise 95 %."""

    x: tuple[float, ...]
    y: tuple[float, ...]
    band_x: tuple[float, ...]
    band_low: tuple[float, ...]
    band_high: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCurves:
    """One class, or label, against the rest."""

    name: str
    n_positive: int
    n_negative: int
    auroc: Range
    average_precision: Range
    roc: Line
    """False positive rate, true positive rate."""
    pr: Line
    """Recall, precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """Whether probabilities hold."""

    of: str
    """Whose probability is judged, in words."""
    bins: tuple[Bin, ...]
    ece: Range
    """The interval is NaN for several labels."""
    mce: float
    chance: float
    """Mean calibration error that chance alone makes."""
    chance_high: float
    """What it exceeds in one of twenty cohorts like this."""
    brier: Range | None
    parts: BrierParts | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Operating:
    """Deciding by thresholds that were chosen on validation images."""

    positive: str
    rule: str
    threshold_low: float
    """Smallest threshold of a fold."""
    threshold_high: float
    sensitivity: Range
    specificity: Range
    ppv: Range
    npv: Range


@dataclass(frozen=True, kw_only=True, slots=True)
class Scatter:
    """Predicted numbers against true ones, and how far they agree (Bland & Altman 1986)."""

    target: str
    truth: tuple[float, ...]
    """Of the points drawn; not all where there are very many."""
    predicted: tuple[float, ...]
    n_images: int
    bias: float
    """Mean of predicted minus true."""
    sd: float
    limits: tuple[float, float]
    """95 % limits of agreement: bias ± 1.96 standard deviations."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RiskGroup:
    """Images of like predicted risk, and how many are left without an event (Kaplan & Meier 1958)."""

    name: str
    n_images: int
    n_events: int
    median: float
    """Time by which half had the event; NaN where it is never reached."""
    time: tuple[float, ...]
    share: tuple[float, ...]
    """Without an event after each time."""
    low: tuple[float, ...]
    high: tuple[float, ...]
    at_risk: tuple[int, ...]
    """Still watched at each of :attr:`Survival.ticks`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Survival:
    """Groups of risk, cut at the median of the predicted risks."""

    time_name: str
    groups: tuple[RiskGroup, ...]
    logrank_p: float
    ticks: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """What is drawn of predictions; empty or None where a task has no such part."""

    n_images: int
    n_patients: int
    curves: tuple[ClassCurves, ...] = ()
    calibration: Calibration | None = None
    scatter: Scatter | None = None
    survival: Survival | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a run took."""

    seconds: float
    n_fits: int
    parameters: int | None
    """Numbers in the file of one head; None where it is no file of arrays."""
    bytes_of_heads: int
    peak_memory_bytes: int | None
    """Most resident memory of a process that fitted, as the run recorded it, where it did."""
    peak_device_memory_bytes: int | None = None
    """Most memory of the GPU, likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """The experiment that all runs come from."""

    name: str
    file: str
    """Where it was read."""
    text: str
    """Its copy beside the runs; empty where there is none."""
    command: str
    """That does all of it again."""
    digest: str
    """SHA-256 of the file."""
    n_runs: int
    """Runs and ensembles that it led to."""
    failed: tuple[tuple[str, str], ...]
    """Name and reason."""
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """Mean ranks over folds (Friedman, Nemenyi)."""

    runs: tuple[str, ...]
    """The first in rank first."""
    ranks: tuple[float, ...]
    n_folds: int
    p: float
    critical_difference: float
    groups: tuple[tuple[float, float], ...]
    """Lowest and highest rank of runs that do not lie apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One run minus another in the metric of the report."""

    first: int
    """Number of the run."""
    second: int
    value: float
    low: float
    high: float
    p: float
    """By Holm over all pairs of the table."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """A metric on the run's own images, out of fold, and on those of another cohort."""

    metric: str
    own: Range
    here: Range
    drop: Range
    """How much worse it is there; below 0: better."""


@dataclass(frozen=True, kw_only=True, slots=True)
class External:
    """A run on images of another cohort."""

    run: str
    number: int
    """Of the run in the report."""
    source: str
    """File of the predictions."""
    cohort_url: str
    store_url: str
    views: tuple[str, ...]
    label_map: str
    classes: tuple[str, ...]
    shifts: tuple[Shift, ...]
    confusion: tuple[tuple[int, ...], ...]
    report: tuple[ClassRow, ...]
    judged: Judged
    notes: tuple[str, ...]
