"""A small world for the tests of the application: images, a store, runs, and images left over."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.cohort import Cohort
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.synthetic import make_cohort
from zoo.bags import Bags
from zoo.ensembles import ensemble
from zoo.fit import fit_run, make_split
from zoo.heads import spec
from zoo.recipes import recipe

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = "random:0"
ENCODER = EncoderOptions(name="squeezenet1_1", weights=WEIGHTS, device="cpu", threads=1)
N_TRAINED, N_FRESH = 20, 2
NATIVE = BuildOptions(
    encoder=ENCODER,
    grid=PatchGrid(32),
    tissue=TissueFilter(method="hsv", min_tissue=0.1),
    stain="reinhard",
    dtype="float16",
)
SCALED = BuildOptions(encoder=ENCODER, grid=PatchGrid(32, mpp=1.0), views=("identity", "rot90"))
"""Patches of 64 px of images at 0.5 µm per pixel."""
PLAIN = BuildOptions(encoder=EncoderOptions(threads=1), grid=PatchGrid(32))
"""Needs no torch: a server of its own starts the sooner."""
QUICK = recipe("default", epochs=8, batch_size=4, lr=0.003)


@dataclass(frozen=True)
class AppWorld:
    """Where everything lies."""

    table: str
    fresh_table: str
    """Images that no run has seen."""
    store: str
    runs: Path
    """``mil`` on the native pixels, ``scaled`` on a view at a scale, ``both`` of them; ``plain``."""

    @property
    def cohort(self):
        return Cohort.read(self.table)

    @property
    def fresh(self):
        return Cohort.read(self.fresh_table)


def make_app_world(folder: Path, *, names=("mil", "scaled")) -> AppWorld:
    """Draw images, embed most of them, and fit a run on each feature set."""
    drawn = make_cohort(
        folder,
        n_images=N_TRAINED + N_FRESH,
        image_px=128,
        patch_px=32,
        images_per_patient=2,
        planted_share=0.5,
    )
    rows = pd.read_csv(drawn).assign(mpp=0.5)
    table, fresh = folder / "trained.csv", folder / "fresh.csv"
    rows.iloc[:N_TRAINED].to_csv(table, index=False)
    rows.iloc[N_TRAINED:].to_csv(fresh, index=False)
    store, runs = str(folder / "store"), folder / "runs"
    cohort = Cohort.read(str(table))
    split = None
    for name, options, head, view in (
        ("mil", NATIVE, "gated-mil", "identity"),
        ("scaled", SCALED, "logistic", "rot90"),
        ("plain", PLAIN, "logistic", "identity"),
    ):
        if name not in names:
            continue
        made = build(cohort, store, options)
        features = open_store(store)[made.feature_set]
        bags = Bags(features, cohort, augmentation=view)
        split = split or make_split(bags, folds=2)
        given = {"recipe": QUICK, "seeds": 2} if name == "mil" else {}
        fit_run(bags, spec(head), out=runs / name, split=split, store_url=store, **given)
    if len(names) > 1:
        ensemble([runs / name for name in names], out=runs / "both")
    return AppWorld(table=str(table), fresh_table=str(fresh), store=store, runs=runs)
