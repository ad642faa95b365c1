"""The whole way on synthetic images, with a truth to hold the result against."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import histostore
from histostore.build import BuildOptions, build
from histostore.cohort import Cohort
from histostore.errors import StorageError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.synthetic import load_truth, make_cohort
from zoo.bags import Bags
from zoo.ensembles import ensemble
from zoo.errors import RunError
from zoo.fit import fit_run, make_split
from zoo.heads.catalog import spec
from zoo.localise import attention_auroc
from zoo.recipes import recipe
from zoo.report import write_report
from zoo.run import Run

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["DemoResult", "run_demo"]

PATCH_PX = 64
PLANTED_SHARE = 0.04
"""Two or three patches in an image of 49: too few for a head that averages all patches."""
MEMBERS = (
    ("gated-mil", "r-drop"),
    ("mlp-simple", "default"),
    ("mlp-improved", "default"),
    ("logistic", "default"),
    ("lightgbm", "default"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What the demonstration made, and how well."""

    folder: Path
    report: Path
    macro_f1: dict[str, float]
    """Out-of-fold macro-F1 of each run."""
    attention_auroc: float
    """How well the attention of ``gated-mil`` finds the planted patches."""
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Give the result as JSON values."""
        return {
            "folder": str(self.folder),
            "report": str(self.report),
            "macro_f1": self.macro_f1,
            "attention_auroc": self.attention_auroc,
            "seconds": round(self.seconds, 1),
        }

    def to_text(self) -> str:
        """Say where to look."""
        scores = "\n".join(f"    {name:<14} {score:.3f}" for name, score in self.macro_f1.items())
        return (
            f"Done in {self.seconds:.0f} s. Open {self.report}\n"
            f"  macro-F1, out of fold:\n{scores}\n"
            f"  attention finds the planted patches: AUROC {self.attention_auroc:.3f}\n"
            f"  images {self.folder}/images   store {self.folder}/store   runs {self.folder}/runs"
        )


def run_demo(
    out: str | Path,
    *,
    say: Callable[[str], None] = lambda _: None,
    n_images: int = 96,
    seeds: int = 2,
    folds: int = 3,
) -> DemoResult:
    """Draw images, embed them, fit heads, ensemble and report.

    Parameters
    ----------
    out
        Folder to fill; new, empty, or left by a demonstration of the same size that was stopped.
    say
        Told, in one line each, what is being done.
    n_images, seeds, folds
        Size of the demonstration; the defaults take about a minute on two cores.

    Raises
    ------
    RunError
        If the folder holds something already.
    """
    began = time.monotonic()
    folder = Path(out)
    _claim(folder, {"n_images": n_images, "seeds": seeds, "folds": folds})
    say(f"1/4 drawing {n_images} synthetic H&E images, three classes")
    table = folder / "cohort.csv"
    if not table.exists():
        make_cohort(
            folder,
            n_images=n_images,
            n_classes=3,
            image_px=7 * PATCH_PX,
            patch_px=PATCH_PX,
            planted_share=PLANTED_SHARE,
            threads=2,
        )
    cohort = Cohort.read(str(table))
    store_url = str((folder / "store").resolve())
    say("2/4 embedding their patches with texture (the first time, its kernels are compiled)")
    options = BuildOptions(grid=PatchGrid(patch_size=PATCH_PX), tissue=TissueFilter(min_tissue=0.1))
    build(cohort, store_url, options)
    bags = Bags(histostore.open(store_url).feature_set(), cohort)
    split = make_split(bags, folds=folds)
    runs = []
    for head, preset in MEMBERS:
        say(f"3/4 fitting {head}: {folds} folds, {seeds} seeds")
        fit = partial(fit_run, bags, spec(head), split=split, recipe=recipe(preset), seeds=seeds)
        runs.append(_kept(folder / "runs" / head, partial(fit, store_url=store_url)))
    say("4/4 ensemble and report")
    together = _kept(folder / "runs" / "ensemble", partial(ensemble, [run.path for run in runs]))
    page = write_report([together.path, *(run.path for run in runs)], folder / "report")
    return DemoResult(
        folder=folder,
        report=page,
        macro_f1={
            run.name: run.document["metrics"]["test"]["macro_f1"]["value"]
            for run in (*runs, together)
        },
        attention_auroc=attention_auroc(runs[0], bags, load_truth(folder)),
        seconds=time.monotonic() - began,
    )


def _claim(folder: Path, size: dict[str, int]) -> None:
    """Take a new or empty folder, or go on where a demonstration was stopped."""
    mark = folder / "demo.json"
    try:
        is_ours = mark.is_file() and mark.read_text("utf-8") == json.dumps(size)
        if is_ours and not (folder / "report" / "index.html").exists():
            return
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise RunError(f"{folder} holds something already: give another folder, or delete it")
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(json.dumps(size), "utf-8")
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}") from error


def _kept(place: Path, make: Callable[..., Run]) -> Run:
    """Make a run, unless it was finished before."""
    return Run.load(place) if (place / "run.json").exists() else make(out=place)
