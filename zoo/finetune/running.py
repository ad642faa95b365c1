"""Training a network on a cohort's pixels over all folds and seeds, into a run directory.

The run is a peer of those of ``zoo fit``: the same images, split alike, give the same digests, and
all that works on predictions takes both. Each (fold, seed) ends with its network's file, then its
predictions; while it is trained, a checkpoint stands beside them. A run that was stopped goes on
from there when the same is asked for again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from zoo.claiming import begin
from zoo.errors import RecipeError, SplitError
from zoo.finetune.checkpoint import save_network
from zoo.finetune.data import Images, read_images
from zoo.finetune.export import write_encoder
from zoo.finetune.loader import PixelLoader
from zoo.finetune.loop import Lesson, train_network
from zoo.finetune.phases import rates_of
from zoo.finetune.pixels import read_pixels
from zoo.finetune.predicting import predict_rows
from zoo.finetune.presets import preset
from zoo.finetune.spec import Machine
from zoo.fit import check_split, chosen_seeds, history_table, make_split, predictions_table
from zoo.jobs import Job, Result
from zoo.metrics import headline, metric_title
from zoo.recipes import Recipe
from zoo.run import write_run
from zoo.training.threads import available, limited

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from histostore.cohort import Cohort
    from zoo.finetune.networks import Network
    from zoo.finetune.pixels import Pixels
    from zoo.finetune.presets import FinetuneRecipe
    from zoo.finetune.spec import FinetuneSpec
    from zoo.run import Run
    from zoo.split import Split
    from zoo.tasks import Task

    Progress = Callable[[int, int, str], None]

__all__ = ["Prepared", "check", "finetune", "prepare_images"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prepared:
    """Labelled images of a cohort that can be read, and their pixels."""

    images: Images
    pixels: Pixels


def prepare_images(
    images: Images | Cohort,
    spec: FinetuneSpec,
    *,
    cache: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: Progress = lambda *_: None,
) -> Prepared:
    """Decode what a network sees of labelled images; once, for all its runs.

    Parameters
    ----------
    images
        Labelled images, or a table whose column ``label`` is learned; its files were checked.
    spec
        The network.
    cache, storage_options, progress
        As of :func:`~zoo.finetune.pixels.read_pixels`.

    Raises
    ------
    OptionError
        If the cohort has no such target, or the network takes no such images.
    ImageError
        If no image can be read.
    """
    labelled = images if isinstance(images, Images) else read_images(images)
    plan = spec.plan(dataclasses.replace(spec, weights="none").network(2, seed=0))
    pixels = read_pixels(
        labelled.cohort,
        plan,
        cache=cache,
        storage_options=storage_options,
        threads=available(),
        progress=progress,
    )
    kept = np.flatnonzero([name not in pixels.failed for name in labelled.image_ids])
    return Prepared(images=labelled.without(pixels.failed), pixels=pixels.select(kept))


def finetune(
    prepared: Prepared,
    spec: FinetuneSpec,
    *,
    out: str | os.PathLike[str],
    recipe: FinetuneRecipe | None = None,
    split: Split | None = None,
    seeds: int | Sequence[int] = 1,
    name: str | None = None,
    machine: Machine | None = None,
    progress: Progress = lambda *_: None,
) -> Run:
    """Train a network over all folds and seeds, and write the run.

    Parameters
    ----------
    prepared
        Images and pixels, as :func:`prepare_images` gives them for this very ``spec``.
    spec
        The network.
    out
        Directory for the run: new, empty, or an unfinished run of the same plan, which is then
        finished.
    recipe
        How to train; ``default`` where left out.
    split
        Folds over the same images; five stratified, patient-grouped folds where left out.
    seeds
        How many seeds (0, 1, …), or which.
    name
        What to call the run; the directory's name where left out.
    machine
        Where to compute.
    progress
        Told of epochs done, of how many at most, and how good the network is.

    Raises
    ------
    SplitError, LeakError
        If the images cannot be split, or the split is over other images.
    RecipeError
        If the recipe does not fit the network, or training diverges.
    RunError
        If ``out`` holds something else.
    StorageError
        If ``out`` cannot be written.
    """
    start = time.monotonic()
    images = prepared.images
    recipe = preset() if recipe is None else recipe
    machine = Machine() if machine is None else machine
    split = make_split(images) if split is None else split
    check_split(images, split)
    if recipe.needs_validation and not all(len(fold.validation) for fold in split):
        raise SplitError(
            f"recipe {recipe.name} watches validation images, and a fold has none: use more "
            "images, or --set keep=last"
        )
    numbers = chosen_seeds(seeds)
    document = _document(prepared, spec, recipe, split, numbers)
    document["weights"] = check(spec, recipe, images)
    folder = Path(out)
    device = machine.torch_device()
    jobs = [Job(fold=fold, seed=seed) for fold in split for seed in numbers]
    with begin(folder, {**document, "pixels": prepared.pixels.digest}) as unfinished:
        course = _Course(
            prepared=prepared,
            spec=spec,
            recipe=recipe,
            device=device,
            loader=PixelLoader(
                prepared.pixels, workers=machine.loaders(device), pin=device.type == "cuda"
            ),
            heads=folder / "heads",
            unfinished=unfinished,
        )
        with limited(machine.threads or available()):
            results = [
                course.do(job, _Told(progress, at * recipe.epochs, len(jobs) * recipe.epochs))
                for at, job in enumerate(jobs)
            ]
        document["name"] = name or folder.resolve().name
        document["seconds"] = round(time.monotonic() - start, 3)
        return write_run(
            folder,
            document,
            predictions_table(images, results),
            history_table(results, images.task),
        )


def check(spec: FinetuneSpec, recipe: FinetuneRecipe, images: Images) -> str:
    """Refuse what cannot be trained, before anything is read or written.

    Parameters
    ----------
    spec, recipe
        The network, and how to train it.
    images
        What is learned.

    Returns
    -------
    weights
        SHA-256 of the weights that the network begins with, drawn from seed 0.

    Raises
    ------
    RecipeError
        If the recipe does not fit the network or the task.
    HistostoreError
        If the network is unknown, or its weights cannot be had or do not fit.
    """
    task = images.task
    net = spec.network(max(2, task.n_outputs(len(images.classes))), seed=0)
    spec.plan(net)
    plain = Recipe().to_json()
    told = {**plain, **{key: value for key, value in recipe.to_json().items() if key in plain}}
    unheeded = task.unheeded(told, plain)
    if task.kind != "classification" and recipe.monitor not in ("macro_f1", "loss"):
        unheeded.append("monitor")
    if unheeded:
        instead = " ".join(f"--set {key}={plain[key]}" for key in unheeded)
        raise RecipeError(
            f"recipe {recipe.name} sets {', '.join(unheeded)}, which means nothing to task "
            f"{task.kind}: give {instead}",
            problems=unheeded,
        )
    for phase in recipe.phases:
        rates_of(net, phase)
    weighs = recipe.class_weights == "balanced" and task.one_class
    if net.bag and weighs and any(phase.accumulation == 1 for phase in recipe.phases):
        raise RecipeError(
            "class_weights balanced means nothing for batches of one bag: set accumulation to "
            "several bags per step, or sampler to balanced"
        )
    if net.bag and task.loss == "cox":
        raise RecipeError(
            "loss cox compares the images of a batch, and a network that sees bags takes one at a "
            "time: use loss hazards"
        )
    digest = hashlib.sha256()
    for name, tensor in net.module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _document(
    prepared: Prepared,
    spec: FinetuneSpec,
    recipe: FinetuneRecipe,
    split: Split,
    seeds: list[int],
) -> dict[str, Any]:
    """Tell everything that decides the result, apart from the pixels themselves."""
    images = prepared.images
    told = {
        "kind": "run",
        "trained_on": prepared.pixels.plan.to_json(),
        "head": spec.to_json(),
        "recipe": recipe.to_json(),
        "target": ",".join(images.task.targets),
        "classes": list(images.classes),
        "split": split.to_json(),
        "seeds": seeds,
        "cohort": images.to_json(),
    }
    task = images.task
    return told if task.kind == "classification" else {**told, "task": task.to_json()}


@dataclasses.dataclass(frozen=True, slots=True)
class _Told:
    """Counts the epochs of one fit on among those of all."""

    progress: Progress
    before: int
    total: int

    def row(self, job: Job, row: Mapping[str, Any], metric: str) -> None:
        """Tell of one epoch."""
        score = row[f"validation_{metric}"]
        where = f"fold {job.fold.number}, seed {job.seed}"
        watched = "" if score != score else f", validation {metric_title(metric)} {score:.3f}"  # noqa: PLR0124
        message = f"{where}: loss {row['train_loss']:.3f}{watched}"
        self.progress(self.before + int(row["epoch"]), self.total, message)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Course:
    """What all fits of a run share."""

    prepared: Prepared
    spec: FinetuneSpec
    recipe: FinetuneRecipe
    device: torch.device
    loader: PixelLoader
    heads: Path
    unfinished: Path

    def do(self, job: Job, told: _Told) -> Result:
        """Train, predict and write, or go on with it, or read what is there."""
        self.heads.mkdir(exist_ok=True)
        if (self.unfinished / f"{job.name}.npz").is_file():
            return Result.load(self.unfinished, job)
        images, fold = self.prepared.images, job.fold
        task = images.task
        learned = task if task.one_class else task.learn(images.truth[fold.train])
        outputs = learned.n_outputs(len(images.classes))
        net = self.spec.network(outputs, job.seed)
        net.module.to(self.device)
        kind = torch.int64 if task.one_class else torch.float32
        lesson = Lesson(
            recipe=self.recipe,
            loader=self.loader,
            truth=torch.tensor(images.truth, dtype=kind, device=self.device),
            train=fold.train.tolist(),
            validation=fold.validation.tolist(),
            n_classes=len(images.classes),
            task=learned,
            seed=job.seed,
        )
        checkpoint = self.unfinished / f"{job.name}.checkpoint"
        history = train_network(
            net, lesson, checkpoint, lambda row: told.row(job, row, headline(task))
        )
        prob = {role: self._predict(net, rows, role, learned) for role, rows in fold.parts.items()}
        document = {
            "outputs": outputs,
            "classes": list(images.classes),
            "target": ",".join(task.targets),
            "task": learned.to_json(),
            "pixels": self.prepared.pixels.plan.to_json(),
        }
        save_network(self.heads / f"{job.name}.safetensors", net, document)
        write_encoder(self.heads.parent, job.name, net)
        result = Result(job=job, prob=prob, history=history)
        result.save(self.unfinished)
        checkpoint.unlink(missing_ok=True)
        return result

    def _predict(self, net: Network, rows: Any, role: str, task: Task) -> Any:
        if not len(rows):
            return np.empty((0, len(task.value_columns(self.prepared.images.classes))))
        # Training images are predicted as they are: their predictions are for the overfit gap.
        views = ("identity",) if role == "train" else self.recipe.test_views
        size = self.recipe.batch_size
        return predict_rows(net, self.loader, rows.tolist(), task=task, views=views, size=size)
