"""The loop: phases of epochs over images, one history row and one checkpoint each.

What is random in an epoch is drawn anew from seed and epoch, so an epoch that was begun and not
ended is done again as it would have been: a training that was killed and goes on from its last
checkpoint ends where an unbroken one does, on a CPU to the last bit.

Scores of training are those of the passes that learned (see :mod:`zoo.training.loop`).
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from zoo.errors import RecipeError
from zoo.finetune.checkpoint import read_tensors, write_tensors
from zoo.finetune.loader import Draw
from zoo.finetune.phases import teach
from zoo.finetune.predicting import logits_of, shifted
from zoo.finetune.stepping import begin_phase
from zoo.recipes import Recipe
from zoo.training.loop import (
    history_row,
    monitored,
    order_of,
    scores_of,
    unwatched,
    watched_scores,
)
from zoo.training.losses import Loss, balanced_weights
from zoo.training.precision import autocast
from zoo.training.task_losses import make_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from zoo.finetune.loader import PixelLoader
    from zoo.finetune.networks import Network
    from zoo.finetune.phases import Phase
    from zoo.finetune.presets import FinetuneRecipe
    from zoo.tasks import Task

__all__ = ["Lesson", "train_network"]

_KIND = "checkpoint"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lesson:
    """What one training learns, and from what."""

    recipe: FinetuneRecipe
    loader: PixelLoader
    truth: Tensor
    """Truth of all images, ``(image,)`` int64 or ``(image, column)`` float32, on the device."""
    train: Sequence[int]
    """Images to learn from."""
    validation: Sequence[int]
    """Images to watch, never learned; may be none."""
    n_classes: int
    task: Task
    """What is learned, with what it has learned from the training images."""
    seed: int

    @property
    def device(self) -> torch.device:
        """Where it is computed."""
        return self.truth.device

    def plain(self, phase: Phase) -> Recipe:
        """Say of a phase what heads and networks have in common: loss, order, precision."""
        return Recipe(
            name=self.recipe.name,
            label_smoothing=self.recipe.label_smoothing,
            class_weights=self.recipe.class_weights,
            focal_gamma=self.recipe.focal_gamma,
            sampler=self.recipe.sampler,
            monitor=self.recipe.monitor,
            precision=phase.precision,
        )


@dataclass(slots=True)
class _Standing:
    """Where a training stands; what a checkpoint holds beside weights and the optimiser."""

    phase: int = 0
    """Phases done."""
    done: int = 0
    """Epochs done in this phase."""
    history: list[dict[str, Any]] = field(default_factory=list)
    best: tuple[float, float] = (-math.inf, -math.inf)
    """Score and minus loss of the weights that are kept."""
    waited: int = 0
    """Epochs of this phase without a better score."""
    ahead: float = -math.inf
    """Best score of this phase."""
    kept: dict[str, Tensor] | None = None
    """Weights of the best epoch."""


def train_network(
    net: Network, lesson: Lesson, checkpoint: Path, tell: Callable[[dict[str, Any]], None]
) -> list[dict[str, Any]]:
    """Train a network in place, or go on from where a checkpoint stands.

    Parameters
    ----------
    net
        On the device, as it was drawn; a checkpoint replaces its weights.
    lesson
        What to learn.
    checkpoint
        File to go on from, and to write after each epoch.
    tell
        Called with the history row of each epoch, of those before the checkpoint too.

    Returns
    -------
    history
        One row per epoch, counted from 1 through all phases, as of
        :func:`zoo.training.loop.train`.

    Raises
    ------
    RecipeError
        If the loss stops being finite.
    RunError
        If the checkpoint is damaged.
    StorageError
        If the checkpoint cannot be written.
    """
    found = read_tensors(checkpoint, _KIND) if checkpoint.is_file() else None
    standing = _Standing()
    if found is not None:
        standing = _standing(net, *found)
        for row in standing.history:
            tell(row)
    while standing.phase < len(lesson.recipe.phases):
        phase = lesson.recipe.phases[standing.phase]
        stretch = _Stretch(net, lesson, phase, standing)
        if found is not None:
            stretch.take_up(*found)
            found = None
        while standing.done < phase.epochs and not stretch.is_over:
            row = stretch.epoch()
            stretch.save(checkpoint)
            tell(row)
        if standing.kept is not None:
            net.module.load_state_dict(standing.kept)
        standing.phase, standing.done = standing.phase + 1, 0
        standing.waited, standing.ahead = 0, -math.inf
    return standing.history


class _Stretch:
    """One phase under way."""

    def __init__(self, net: Network, lesson: Lesson, phase: Phase, standing: _Standing) -> None:
        self._net, self._lesson, self._phase, self._standing = net, lesson, phase, standing
        self._plain = lesson.plain(phase)
        self._stepper, self._rates = begin_phase(net, phase)
        taught = lesson.truth[torch.as_tensor(list(lesson.train), device=lesson.device)]
        self._taught = taught
        self._loss: Loss = make_loss(self._plain, lesson.task, taught, lesson.n_classes)
        balanced = self._plain.class_weights == "balanced" and lesson.task.one_class
        self._weights = balanced_weights(taught, lesson.n_classes) if balanced else None

    @property
    def is_over(self) -> bool:
        """Whether the phase has waited long enough for a better score."""
        patience = self._phase.patience
        return patience is not None and self._standing.waited >= patience

    def epoch(self) -> dict[str, Any]:
        """Learn for an epoch, watch, and remember."""
        standing, lesson = self._standing, self._lesson
        number = len(standing.history) + 1
        with _drawn_from(lesson.seed, number, lesson.device):
            seen = self._learn(number)
        row = history_row(number, seen, self._watch(), lesson.task)
        standing.history.append(row)
        standing.done += 1
        if not len(lesson.validation):
            return row
        score = monitored(self._plain, row, lesson.task)
        self._rates.see(score)
        better = score > standing.ahead
        standing.waited = 0 if better else standing.waited + 1
        standing.ahead = max(score, standing.ahead)
        if lesson.recipe.keep == "best" and (score, -row["validation_loss"]) > standing.best:
            standing.best = (score, -row["validation_loss"])
            standing.kept = copy.deepcopy(self._net.module.state_dict())
        return row

    def _learn(self, number: int) -> dict[str, float]:
        """Step once through the training images; give loss and scores of the passes."""
        lesson, module = self._lesson, self._net.module
        teach(module)
        order = order_of(self._taught, self._plain, lesson.n_classes).cpu().numpy()
        rows = np.asarray(lesson.train)[order]
        batches = _batches(rows, 1 if self._net.bag else lesson.recipe.batch_size)
        look = lesson.recipe.augmentation_of(self._phase)
        draws = [
            [Draw(row, look, lesson.seed, number, index) for row, index in batch]
            for batch in _numbered(batches, len(lesson.truth))
        ]
        given, logits, losses = lesson.loader.batches(draws), [], []
        steps = [
            batches[at : at + self._phase.accumulation]
            for at in range(0, len(batches), self._phase.accumulation)
        ]
        for place, step in enumerate(steps):
            self._rates.begin((self._standing.done + place / len(steps)) / self._phase.epochs)
            for pixels, batch, share in zip(
                itertools.islice(given, len(step)), step, self._shares(step), strict=True
            ):
                with autocast(self._plain, lesson.device):
                    out = module(shifted(pixels, self._net))
                    target = lesson.truth[torch.as_tensor(batch, device=lesson.device)]
                    value = self._loss.of_logits(out, target)
                (value * share).backward()  # type: ignore[no-untyped-call]
                logits.append(out.detach().float())
                losses.append(value.detach().float())
            self._step()
        sizes = torch.tensor([len(batch) for batch in batches], device=lesson.device)
        total = float((torch.stack(losses) * sizes).sum()) / len(rows)
        if not math.isfinite(total):
            raise RecipeError(
                f"training diverged in epoch {number} (loss is {total}): lower lr (it is "
                f"{max(self._phase.learning_rates.values()):g})"
            )
        truth = lesson.truth[torch.as_tensor(rows, device=lesson.device)]
        return scores_of(total, torch.cat(logits), truth, lesson.task)

    def _shares(self, step: Sequence[NDArray[np.int64]]) -> list[float]:
        """Weigh the batches of one step so that they count as one batch would."""
        if self._weights is None:
            sizes = [float(len(batch)) for batch in step]
        else:
            truth, weights = self._lesson.truth, self._weights
            sizes = [float(weights[truth[torch.as_tensor(batch)]].sum()) for batch in step]
        return [size / sum(sizes) for size in sizes]

    def _step(self) -> None:
        if self._phase.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self._stepper.parameters, self._phase.gradient_clip)
        self._stepper.step()
        self._stepper.zero_grad()

    def _watch(self) -> dict[str, float]:
        lesson = self._lesson
        if not len(lesson.validation):
            return unwatched(lesson.task)
        logits = logits_of(
            self._net, lesson.loader, lesson.validation, size=lesson.recipe.batch_size
        )
        truth = lesson.truth[torch.as_tensor(list(lesson.validation), device=lesson.device)]
        return watched_scores(logits, truth, self._loss, self._plain, lesson.task)

    def save(self, path: Path) -> None:
        """Write where the training stands."""
        standing = self._standing
        tensors = {f"module.{name}": w for name, w in self._net.module.state_dict().items()}
        tensors |= {f"kept.{name}": w for name, w in (standing.kept or {}).items()}
        tensors |= {f"steps.{name}": w for name, w in self._stepper.state().items()}
        told = ("phase", "done", "history", "best", "waited", "ahead")
        document = {
            "standing": {name: getattr(standing, name) for name in told},
            "rates": self._rates.state(),
        }
        write_tensors(path, _KIND, document, tensors)

    def take_up(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go on with the steps and rates of a checkpoint."""
        self._stepper.load_state(_under("steps.", tensors))
        self._rates.load_state(document["rates"])


def _standing(net: Network, document: dict[str, Any], tensors: dict[str, Tensor]) -> _Standing:
    """Put the weights of a checkpoint into a network, and tell where it stands."""
    net.module.load_state_dict(_under("module.", tensors))
    told = document["standing"]
    return _Standing(**{**told, "best": tuple(told["best"])}, kept=_under("kept.", tensors) or None)


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _numbered(
    batches: Sequence[NDArray[np.int64]], n_images: int
) -> Iterator[list[tuple[int, int]]]:
    """Give each image a number for its augmentation: one that is drawn twice has two."""
    seen: Counter[int] = Counter()
    for batch in batches:
        numbered = []
        for row in batch.tolist():
            numbered.append((row, row + seen[row] * n_images))
            seen[row] += 1
        yield numbered


@contextlib.contextmanager
def _drawn_from(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Draw from seed and epoch alone, and leave torch's own random state as it was."""
    # As in zoo.heads.neural: torch.manual_seed would seed devices that nobody restores.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        mixed = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0]
        torch.default_generator.manual_seed(int(mixed) >> 1)
        if device.type == "cuda":
            torch.cuda.manual_seed(int(mixed) >> 1)
        yield


def _batches(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Cut an order into batches; one image that would be left alone joins the batch before.

    A batch of one has no variance that a batch norm could divide by.
    """
    cuts = list(range(size, len(rows), size))
    if size > 1 and cuts and len(rows) - cuts[-1] == 1:
        cuts.pop()
    return np.split(rows, cuts)
