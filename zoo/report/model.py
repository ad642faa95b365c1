"""The report as plain data: what the three writers (HTML, Markdown, JSON) all read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from zoo.report.sections import (
        ClassRow,
        Cost,
        Experiment,
        External,
        Judged,
        Operating,
        Pair,
        Ranks,
    )

__all__ = [
    "ClassCount",
    "Curve",
    "Difference",
    "Example",
    "Facts",
    "Group",
    "Interval",
    "Learning",
    "PatchCounts",
    "Picture",
    "ReportData",
    "RunView",
    "to_json",
]

FORMAT = 2
"""Version of ``report.json``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """One metric: its value, a 95 % interval over patients and its spread over seeds."""

    value: float
    low: float
    high: float
    seed_mean: float
    seed_sd: float
    seeds: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The report's metric of a run minus that of the leading one, on the same draws of patients."""

    value: float
    low: float
    high: float
    p: float
    """Of the paired bootstrap; this and the next two by Holm over all runs."""
    mcnemar_p: float | None = None
    """Mid-p of McNemar's test; None in tasks without classes."""
    delong_p: float | None = None
    """Of DeLong's test of the AUROC."""

    @property
    def is_clear(self) -> bool:
        """Whether the 95 % interval leaves zero out."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassCount:
    """How many labelled images and patients a class has."""

    name: str
    images: int
    patients: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Mean of a quantity per epoch over all fits, with its standard deviation."""

    epoch: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """The task's metric while training; the curves are ``None`` where there are no epochs to draw."""

    note: str
    """What a reader must know: how many fits, or why there is no curve."""

    n_fits: int = 0
    train: Curve | None = None
    validation: Curve | None = None
    gap: Curve | None = None
    """How much better the training part scores, the overfit gap."""

    peak: tuple[int, float] | None = None
    """Epoch and mean validation metric where the latter is best."""

    metric: str = "macro_f1"
    """What is watched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One run or ensemble as the report shows it."""

    number: int
    """Rank by the report's metric, from 1; also its anchor in the page."""

    name: str
    path: str
    is_ensemble: bool
    head: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    members: tuple[Mapping[str, Any], ...]
    feature_set: str
    """Where the run belongs: its feature set, or :data:`zoo.comparison.SEVERAL`."""

    feature_sets: tuple[str, ...]
    train_views: tuple[str, ...]
    test_views: tuple[str, ...]
    seeds: tuple[int, ...]
    seconds: float
    created: str
    classes: tuple[str, ...]
    test: Mapping[str, Interval]
    validation: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    """``[true][predicted]`` image counts, classes in their own order; empty in other tasks."""

    report: tuple[ClassRow, ...]
    """One row per class, then accuracy, macro avg and weighted avg (labels: macro and micro)."""

    judged: Judged | None
    """What is drawn; ``None`` for runs beyond those shown in full."""

    operating: tuple[Operating, ...]
    learning: Learning
    difference: Difference | None
    """To the leading run; ``None`` for itself, and where the test images are others."""

    cost: Cost


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Runs of one feature set, the best first."""

    name: str
    numbers: tuple[int, ...]
    spec: Mapping[str, Any]
    """How its vectors were made; empty where that is not one way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was compared."""

    cohort_url: str
    cohort_digest: str
    target: str
    task: str
    """Kind of task."""

    metric: str
    """By which runs are ranked and compared."""

    n_images: int
    n_test: int
    n_patients: int
    has_patients: bool
    """Whether any patient id differs from its image id; without, each image stands alone."""

    n_unlabelled: int
    classes: tuple[ClassCount, ...]
    store_url: str
    feature_sets: tuple[str, ...]
    snapshot: str
    spec: Mapping[str, Any]
    augmentation: str
    split: Mapping[str, Any]
    seeds: tuple[int, ...]
    created: tuple[str, ...]
    """First and last day on which runs were made, ISO 8601; one entry where they are equal."""

    majority_accuracy: float | None
    majority_macro_f1: float | None
    """Of always guessing the largest class; ``None`` in tasks without classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchCounts:
    """How many patches the images have."""

    feature_set: str
    n_images: int
    n_patches: int
    smallest: int
    median: float
    largest: int
    bins: tuple[tuple[int, int, int], ...]
    """(first, last, images): so many images have between first and last patches, both included."""

    @property
    def is_even(self) -> bool:
        """Whether all images have as many patches, so that there is nothing to draw."""
        return self.smallest == self.largest


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A thumbnail and the patches on it; all lengths in level-0 pixels."""

    jpeg: bytes
    width_px: int
    height_px: int
    edge_px: int
    kept: tuple[tuple[int, int], ...]
    rejected: tuple[tuple[int, int], ...]
    is_shaded: bool = False
    """Too many patches to outline: rejected ground is bleached in the thumbnail itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One image worth looking at, and how the leading run judged it."""

    image_id: str
    why: str
    target: str
    predicted: str
    loss: float
    loss_name: str
    p_target: float | None = None
    p_predicted: float | None = None
    missed_by: int | None = None
    """How many of the runs shown in full take it for another class; None in other tasks."""

    n_kept: int | None = None
    n_rejected: int | None = None
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything in the report."""

    title: str
    subtitle: str
    """What was learned from what, in one line."""

    summary: str
    facts: Facts
    experiment: Experiment | None
    """Where all runs come from one."""

    runs: tuple[RunView, ...]
    n_full: int
    """So many of them, the best ones, are shown in full."""

    groups: tuple[Group, ...]
    ranks: Ranks | None
    ranks_note: str
    """Why there are no ranks, or what they are of."""

    pairs: tuple[Pair, ...]
    external: tuple[External, ...]
    patches: tuple[PatchCounts, ...]
    examples: tuple[Example, ...]
    notes: tuple[str, ...]
    """What a reader must know before trusting a comparison."""

    image_notes: tuple[str, ...]
    """What could not be shown of stores and images, and why."""

    commands: tuple[str, ...]
    digests: tuple[tuple[str, str], ...]
    versions: tuple[tuple[str, str], ...]


def to_json(data: ReportData) -> dict[str, Any]:
    """Give the report as JSON values; pictures stay in the page, numbers that are not finite become null."""
    document = dataclasses.asdict(data)
    for example in document["examples"]:
        del example["picture"]
    return {"format": FORMAT, "kind": "report", **_finite(document)}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
