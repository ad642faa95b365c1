"""How good is every head on images whose truth is known?

A seeded synthetic cohort of three classes: patients differ in stain, classes in a few planted
patches alone. One feature set, one split, one recipe, every head with its defaults. Scores are out
of fold with intervals over patients; for heads that weigh patches, attention is held against the
patches that were planted. The images are easy on purpose: the table shows that every head learns
what it can learn (a head that averages all patches cannot find two of them), not which head is best
on tissue. For that there are cohorts; see the tutorial.

What would change our mind: a head that scores like guessing though it sees single patches, or
attention no better than chance (0.5).
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import histostore
from benchmarks.measure import Quality
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.cohort import Cohort
from histostore.errors import HistostoreError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.synthetic import load_truth, make_cohort
from zoo import Bags, fit_run, known_heads, make_split, recipe, spec
from zoo.localise import attention_auroc

if TYPE_CHECKING:
    import pandas as pd

    from zoo.heads.catalog import HeadCard
    from zoo.recipes import Recipe
    from zoo.run import Run
    from zoo.split import Split

PATCH = 64
CLASSES = 3
SIDE = 5
SHARE = 0.08
"""Two patches in an image of 25."""

SMALL: dict[str, dict[str, int]] = {
    "transmil": {"hidden": 64},
    "attention-pool": {"hidden": 64, "feed_forward": 64},
    "graph": {"hidden": 32},
    "fusion": {"hidden": 256, "bottleneck": 128},
}
"""Narrower networks in smoke size, for heads that take minutes on two cores; said in the table."""


def run(*, smoke: bool, heads: tuple[HeadCard, ...] | None = None) -> list[Quality]:
    """Fit every head that is installed; packages' own are left out."""
    cards = heads or tuple(card for card in known_heads() if not card.package)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        bags, truth = _bags(place, n_images=60 if smoke else 240)
        split = make_split(bags, folds=3 if smoke else 5)
        return [_measured(card, bags, truth, split, place, smoke=smoke) for card in cards]


def _bags(folder: Path, *, n_images: int) -> tuple[Bags, pd.DataFrame]:
    table = make_cohort(
        folder,
        n_images=n_images,
        n_classes=CLASSES,
        image_px=SIDE * PATCH,
        patch_px=PATCH,
        images_per_patient=3,
        planted_share=SHARE,
        threads=2,
    )
    options = BuildOptions(
        encoder=EncoderOptions(threads=2),
        grid=PatchGrid(patch_size=PATCH),
        tissue=TissueFilter(min_tissue=0.1),
    )
    build(table, str(folder / "store"), options)
    features = histostore.open(str(folder / "store")).feature_set()
    return Bags(features, Cohort.read(table)), load_truth(folder)


def _measured(
    card: HeadCard, bags: Bags, truth: pd.DataFrame, split: Split, folder: Path, *, smoke: bool
) -> Quality:
    """Fit one head over all folds."""
    training = _training(card) if smoke else recipe()
    settings = SMALL.get(card.name, {}) if smoke else {}
    began = time.perf_counter()
    try:
        made = fit_run(
            bags,
            spec(card.name, **settings),
            split=split,
            recipe=training,
            seeds=1 if smoke else 5,
            out=folder / "runs" / card.name,
            store_url=str(folder / "store"),
        )
    except HistostoreError as error:
        return _skipped(card.name, str(error))
    seconds = time.perf_counter() - began
    return _row(made, card, bags, truth, settings=settings, seconds=seconds)


def _training(card: HeadCard) -> Recipe:
    """Make the recipe of the small size: 35 training bags in one batch would be a step an epoch."""
    if not card.gradient:
        return recipe()
    rows = SIDE**2 if card.name == "patch-mean" else 1  # its batches are of patches
    return recipe(epochs=25, batch_size=8 * rows)


def _row(
    made: Run,
    card: HeadCard,
    bags: Bags,
    truth: pd.DataFrame,
    *,
    settings: dict[str, int],
    seconds: float,
) -> Quality:
    scores = made.document["metrics"]["test"]
    return Quality(
        head=card.name,
        settings=", ".join(f"{key}={value}" for key, value in settings.items()),
        macro_f1=_interval(scores["macro_f1"]),
        accuracy=_interval(scores["accuracy"]),
        auroc=_interval(scores["auroc"]),
        seed_sd=scores["macro_f1"].get("seed_sd"),
        attention_auroc=attention_auroc(made, bags, truth) if card.attention else None,
        seconds=round(seconds, 2),
    )


def _interval(score: dict[str, float]) -> dict[str, float]:
    return {key: round(score[key], 4) for key in ("value", "low", "high")}


def _skipped(head: str, reason: str) -> Quality:
    nothing: dict[str, float] = {}
    return Quality(
        head=head,
        settings="",
        macro_f1=nothing,
        accuracy=nothing,
        auroc=nothing,
        seed_sd=None,
        attention_auroc=None,
        seconds=0.0,
        not_run=reason,
    )


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line, flush=True)
