"""The report as plain data: what the three writers (HTML, Markdown, JSON) all read."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "ClassCount",
    "ClassRow",
    "Curve",
    "Difference",
    "Example",
    "Facts",
    "Interval",
    "Learning",
    "PatchCounts",
    "Picture",
    "ReportData",
    "RunView",
    "to_json",
]

FORMAT = 1
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
    """Macro-F1 of a run minus that of the leading one, on the same draws of patients."""

    value: float
    low: float
    high: float
    p: float

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
class ClassRow:
    """One line of the classification report; ``None`` where a line has no such number."""

    name: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Mean of a quantity per epoch over all fits, with its standard deviation."""

    epoch: tuple[int, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Learning:
    """Macro-F1 while training; the curves are ``None`` where there are no epochs to draw."""

    note: str
    """What a reader must know: how many fits, or why there is no curve."""

    n_fits: int = 0
    train: Curve | None = None
    validation: Curve | None = None
    gap: Curve | None = None
    """Train minus validation macro-F1, the overfit gap."""

    peak: tuple[int, float] | None = None
    """Epoch and mean validation macro-F1 where the latter is largest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunView:
    """One run or ensemble as the report shows it."""

    number: int
    """Rank by macro-F1, from 1; also its anchor in the page."""

    name: str
    path: str
    is_ensemble: bool
    head: str
    settings: Mapping[str, Any]
    recipe: Mapping[str, Any]
    members: tuple[Mapping[str, Any], ...]
    feature_set: str
    seeds: tuple[int, ...]
    seconds: float
    created: str
    classes: tuple[str, ...]
    test: Mapping[str, Interval]
    validation: Mapping[str, Interval]
    confusion: tuple[tuple[int, ...], ...]
    """``[true][predicted]`` image counts, classes in their own order."""

    report: tuple[ClassRow, ...]
    """One row per class, then accuracy, macro avg and weighted avg."""

    learning: Learning
    difference: Difference | None
    """To the leading run; ``None`` for itself, and where the test images are others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What was compared."""

    cohort_url: str
    cohort_digest: str
    target: str
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

    majority_accuracy: float
    majority_macro_f1: float


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
    p_target: float
    p_predicted: float
    log_loss: float
    n_kept: int | None = None
    n_rejected: int | None = None
    picture: Picture | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything in the report."""

    title: str
    summary: str
    facts: Facts
    runs: tuple[RunView, ...]
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
