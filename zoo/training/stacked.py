"""Several trainings of one network as one computation, each with a seed of its own.

The weights of all trainings ("members") are the rows of one matrix. A step takes a batch for
each member, maps the network over the rows (:func:`torch.vmap`), and changes the matrix at once:
as many calls as for one member, each on more numbers. On a GPU, where a call costs more than its
numbers, ten members then take little longer than one.

Nothing is shared between members but the computation: each has its own initial weights, order
of bags, dropout and noise (:mod:`zoo.training.streams`), its own gradient norm to be clipped, its
own best epoch. The result is that of training them one by one, but for the order of
floating-point sums.
"""

from __future__ import annotations

import contextlib
import logging
import math
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import NotSupported, RecipeError
from zoo.training.batches import PaddedBatches, StoredPaddedBatches
from zoo.training.layout import Padded
from zoo.training.loop import (
    Keeper,
    history_row,
    mixed_batch,
    monitored,
    order_of,
    passes_of,
    scores_of,
    unwatched,
    watched_scores,
)
from zoo.training.optim import Rates, WeightAverage, make_optimiser
from zoo.training.precision import autocast
from zoo.training.task_losses import make_loss

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from zoo.recipes import Recipe
    from zoo.tasks import Task
    from zoo.training.batches import Batches
    from zoo.training.layout import Layout
    from zoo.training.loop import BagModule
    from zoo.training.losses import Loss
    from zoo.training.streams import Streams

__all__ = ["can_stack", "members_at_once", "train_stacked"]

logger = logging.getLogger(__name__)

_VALUES_AT_ONCE = 2**28
"""Embedding values in the batches of one step, 1 GiB; the network takes a few times as much."""


def can_stack(bags: Batches) -> bool:
    """Whether bags are laid out so that members' batches have one shape: padded, not packed."""
    return isinstance(bags, PaddedBatches | StoredPaddedBatches)


def members_at_once(bags: Batches, recipe: Recipe) -> int:
    """Count the members whose batches fit in memory together, one at least."""
    of_step = min(recipe.batch_size, len(bags)) * int(bags.lengths.max()) * bags.rows.shape[1]
    return max(1, _VALUES_AT_ONCE // of_step)


def train_stacked(
    modules: Sequence[BagModule],
    bags: Batches,
    validation: Batches | None,
    *,
    recipe: Recipe,
    n_classes: int,
    task: Task,
    streams: Streams,
) -> list[list[dict[str, Any]]]:
    """Train ``modules`` in place, all on the same bags.

    Parameters
    ----------
    modules
        One network in as many copies as members, each with its own weights. It must be of those
        that :func:`torch.vmap` can map: no branch that depends on numbers, nothing random but
        through :mod:`zoo.training.streams`; no coordinates, buffers or outer parameters.
    bags
        What to learn, padded.
    validation, recipe, n_classes, task
        As of :func:`zoo.training.loop.train`.
    streams
        One random state per module, as it was when its weights had been drawn.

    Returns
    -------
    histories
        Per member what :func:`zoo.training.loop.train` returns; shorter where it stopped early.

    Raises
    ------
    RecipeError
        If the loss of a member stops being finite.
    NotSupported
        If the network is none of those.
    """
    _check(modules[0])
    members = _Members(modules)
    loss = make_loss(recipe, task, bags.labels, n_classes)
    step = _Step(members, recipe, loss, streams, n_classes, task)
    keepers = [Keeper(recipe, task) for _ in modules]
    histories: list[list[dict[str, Any]]] = [[] for _ in modules]
    kept: dict[int, Tensor] = {}
    judged: Tensor = members.values
    for epoch in range(1, recipe.epochs + 1):
        seen = _one_epoch(step, bags, epoch, task, {*range(len(modules))} - kept.keys())
        if recipe.swa_start is not None and epoch > recipe.swa_start * recipe.epochs:
            step.average.add(members)
        judged = step.average.state()["values"] if step.average.count else members.values.detach()
        watched = _evaluate(members, judged, validation, loss, recipe, task)
        for member in {*range(len(modules))} - kept.keys():
            row = history_row(epoch, seen[member], watched[member], task)
            histories[member].append(row)
            if recipe.needs_validation:
                step.rate_of(member).see(monitored(recipe, row, task))
                if keepers[member].see(_Row(judged[member].clone()), row):
                    # It goes on in the matrix, which changes nothing of the others.
                    kept[member] = judged[member].clone()
        logger.debug(
            "epoch %d of %d: %d of %d go on",
            epoch,
            recipe.epochs,
            len(modules) - len(kept),
            len(modules),
        )
        if len(kept) == len(modules):
            break
    for member, module in enumerate(modules):
        last = _Row(kept.get(member, judged[member]).detach().clone())
        keepers[member].restore(last)
        members.put(last.values, module)
    return histories


def _check(module: BagModule) -> None:
    if getattr(module, "uses_coords", False) or module.outer_parameters or [*module.buffers()]:
        raise NotSupported(
            f"{type(module).__name__} uses coordinates, buffers or outer parameters, so its seeds "
            "cannot be trained together: use together=never, and stackable = False in its head"
        )


class _Row(nn.Module):
    """The weights of one member, or of all, as one parameter, so that they can be kept."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values)


class _Members(_Row):
    """The weights of all members, ``values (member, weight)``, and the network that they are of."""

    def __init__(self, modules: Sequence[BagModule]) -> None:
        rows = [torch.cat([w.detach().flatten() for w in one.parameters()]) for one in modules]
        super().__init__(torch.stack(rows))
        # A list hides its parameters, which are not ours.
        self._hidden = [modules[0]]
        self._own = [*modules[0].parameters()]
        self._shapes = [weight.shape for weight in self._own]
        self._sizes = [weight.numel() for weight in self._own]
        self._places: list[tuple[dict[str, Any], str]] = [
            (modules[0].get_submodule(path.rpartition(".")[0])._parameters, path.rpartition(".")[2])  # noqa: SLF001
            for path, _ in modules[0].named_parameters()
        ]

    def __len__(self) -> int:
        return len(self.values)

    @property
    def module(self) -> BagModule:
        """The network, whose own weights do not matter."""
        return self._hidden[0]

    def cut(self, values: Tensor) -> tuple[Tensor, ...]:
        """Cut ``(…, weight)`` into the network's parameters ``(…, *shape)``."""
        parts = torch.split(values, self._sizes, dim=-1)
        before = values.shape[:-1]
        return tuple(
            part.view(*before, *shape) for part, shape in zip(parts, self._shapes, strict=True)
        )

    @contextlib.contextmanager
    def wearing(self, weights: Sequence[Tensor]) -> Iterator[BagModule]:
        """Give the network with other weights, for the time of a block.

        It does what :func:`torch.func.functional_call` does, in a tenth of its time: a step of a
        small network is hardly longer than that.
        """
        try:
            for (owner, name), weight in zip(self._places, weights, strict=True):
                owner[name] = weight
            yield self.module
        finally:
            for (owner, name), weight in zip(self._places, self._own, strict=True):
                owner[name] = weight

    def put(self, values: Tensor, module: BagModule) -> None:
        """Write ``values (weight,)`` into a network."""
        with torch.no_grad():
            for weight, new in zip(module.parameters(), self.cut(values.detach()), strict=True):
                weight.copy_(new)


class _Step:
    """One step of all members, and all it needs."""

    def __init__(
        self,
        members: _Members,
        recipe: Recipe,
        loss: Loss,
        streams: Streams,
        n_classes: int,
        task: Task,
    ) -> None:
        self.members, self.recipe = members, recipe
        self.streams, self.n_classes = streams, n_classes
        self.average = WeightAverage(recipe.ema_decay)
        self._loss, self._task = loss, task
        # One optimiser for all, unless rates go by each member's own scores.
        values = members.values
        self._apart = recipe.schedule == "plateau"
        self._parts = [*values.data] if self._apart else [values]
        self._optimisers = [make_optimiser(recipe, [cast("Any", part)]) for part in self._parts]
        self.rates = [Rates(recipe, optimiser) for optimiser in self._optimisers]

    def rate_of(self, member: int) -> Rates:
        """Give what decides the rate of a member."""
        return self.rates[member % len(self.rates)]

    def take(self, bags: Batches, index: Tensor) -> tuple[Tensor, Tensor]:
        """Step on the bags ``index (member, bag)``; give ``(member, bag, class)``, ``(member,)``."""
        values = self.members.values
        rows, mask, target = self._batch(bags, index)
        with autocast(self.recipe, index.device), self.streams.together():
            ahead = self.streams.ahead(tuple(rows.shape))
            weights = self.members.cut(values)
            logits, losses = torch.vmap(self._mapped)(weights, rows, mask, target, ahead)
        # Members share no weight, so the slope of the sum is each one's own.
        (slope,) = torch.autograd.grad(losses.sum(), values)
        self._clip(slope)
        for part, own in zip(self._parts, slope if self._apart else [slope], strict=True):
            part.grad = own
        for optimiser in self._optimisers:
            optimiser.step()
        if self.recipe.ema_decay is not None:
            self.average.add(self.members)
        return logits.detach().float(), losses.detach().float()

    def _mapped(
        self,
        weights: tuple[Tensor, ...],
        rows: Tensor,
        mask: Tensor,
        target: Tensor,
        ahead: tuple[Tensor, ...],
    ) -> tuple[Tensor, Tensor]:
        """Give one member's logits and loss."""
        # All members' batches have one shape, and that decides what is drawn.
        key = (len(self.members), *rows.shape)
        with self.streams.using(key, ahead), self.members.wearing(weights) as module:
            done = passes_of(module, rows, Padded(mask), target, self._loss, self.recipe)
        return done.logits, done.loss

    def _batch(self, bags: Batches, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take all members' bags, at once where what is drawn for them can be."""
        if isinstance(bags, PaddedBatches) and not self.recipe.mixup:
            with self.streams.together():
                rows, layout = bags.take(index.flatten(), recipe=self.recipe)
            mask = cast("Padded", layout).mask
            rows, mask = (part.view(*index.shape, *part.shape[1:]) for part in (rows, mask))
            return rows, mask, self._shares(bags.labels[index])
        taken = []
        for member, own in enumerate(index):
            with self.streams.own(member):
                rows, layout = bags.take(own, recipe=self.recipe)
                target = bags.labels[own]
                if self.recipe.mixup:
                    batch = rows, layout, target
                    rows, layout, target = mixed_batch(*batch, self.recipe, self.n_classes)
            taken.append((rows, cast("Padded", layout).mask, target))
        rows, mask, target = (torch.stack(parts) for parts in zip(*taken, strict=True))
        return rows, mask, target if self.recipe.mixup else self._shares(target)

    def _shares(self, target: Tensor) -> Tensor:
        """Give classes as shares, as mixing does: torch's cross-entropy of classes maps slowly.

        With class weights it does not map at all, and else it imports a computer algebra system.
        """
        if self._task.kind != "classification":
            return target
        return functional.one_hot(target, self.n_classes).float()

    def _clip(self, gradients: Tensor) -> None:
        """Scale each member's gradient down to the norm allowed, as torch does for one."""
        if self.recipe.gradient_clip is not None:
            norms = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
            gradients.mul_((self.recipe.gradient_clip / (norms + 1e-6)).clamp_max(1.0))


def _one_epoch(
    step: _Step, bags: Batches, epoch: int, task: Task, going: set[int]
) -> dict[int, dict[str, float]]:
    """Step once through all bags; give loss and scores of the members ``going``."""
    step.members.module.train()
    orders = []
    for member in range(len(step.members)):
        with step.streams.own(member):
            orders.append(order_of(bags.labels, step.recipe, step.n_classes))
    order = torch.stack(orders)
    batches = torch.split(order, step.recipe.batch_size, dim=1)
    passes = []
    for number, index in enumerate(batches):
        for rates in step.rates:
            rates.begin((epoch - 1 + number / len(batches)) / step.recipe.epochs)
        passes.append(step.take(bags, index))
    sizes = torch.tensor([index.shape[1] for index in batches], device=order.device)
    losses = torch.stack([loss for _, loss in passes], dim=1)  # (member, step)
    totals = ((losses * sizes).sum(dim=1) / order.shape[1]).tolist()
    logits = torch.cat([logits for logits, _ in passes], dim=1).cpu()
    truth = bags.labels[order].cpu()
    for member in going:
        if not math.isfinite(totals[member]):
            raise RecipeError(
                f"training diverged in epoch {epoch} (loss of one seed is {totals[member]}): "
                f"lower lr (it is {step.recipe.lr:g})"
            )
    return {m: scores_of(totals[m], logits[m], truth[m], task) for m in going}


@torch.inference_mode()
def _evaluate(
    members: _Members, values: Tensor, bags: Batches | None, loss: Loss, recipe: Recipe, task: Task
) -> list[dict[str, float]]:
    """Score the validation bags with every member's weights, ``values (member, weight)``."""
    if bags is None:
        return [unwatched(task) for _ in values]
    members.module.eval()

    def logits_of(weights: tuple[Tensor, ...], rows: Tensor, layout: Layout) -> Tensor:
        with members.wearing(weights) as module:
            return module.logits(rows, layout)

    parts = []
    for step in bags.in_order():
        if isinstance(step[1], Padded):
            every = partial(logits_of, rows=step[0], layout=step[1])
            parts.append(torch.vmap(every)(members.cut(values)))
        else:
            parts.append(torch.stack([logits_of(members.cut(one), *step) for one in values]))
    return [
        watched_scores(logits, bags.labels, loss, recipe, task)
        for logits in torch.cat(parts, dim=1)
    ]
