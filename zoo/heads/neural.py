"""Heads that are torch modules: fitted by the training loop, kept as safetensors."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
import torch
from torch import Tensor

from histostore.errors import OptionError
from zoo.errors import NotSupported, RecipeError
from zoo.heads import storage
from zoo.heads.base import Head, HeadSpec, Standardiser
from zoo.heads.batching import batches_of
from zoo.manyviews import in_view, training_views
from zoo.settings import flag
from zoo.tasks import KINDS, Task
from zoo.training.loop import BagModule, train
from zoo.training.streams import Streams

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.recipes import Recipe
    from zoo.training.batches import Batches
    from zoo.training.layout import Layout

__all__ = ["AttentionModule", "TorchHead", "TorchSpec", "load"]

_CPU = torch.device("cpu")


class AttentionModule(BagModule):
    """A network that weighs patches."""

    @abstractmethod
    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give one weight per row; they sum to 1 over each bag's real rows."""

    def attention(self, x: Tensor, mask: Tensor, coords: Tensor | None = None) -> Tensor:
        """Map padded bags, as in :meth:`forward`, to weights ``(bag, patch)``, 0 on padding."""
        return self.weights(*self.cleaned(x, mask, coords))


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchSpec(HeadSpec):
    """Settings of a head that is a torch module."""

    tasks: ClassVar[tuple[str, ...]] = KINDS

    stackable: ClassVar[bool] = False
    """Whether several seeds of it can be computed as one (:mod:`zoo.training.stacked` says what
    that takes); those that cannot are trained one by one."""

    standardise: bool = flag(
        default=True, meaning="shift and scale features to those of the training patches"
    )

    @abstractmethod
    def build(self, n_features: int, n_classes: int) -> BagModule:
        """Make the network with fresh weights, from torch's own random state.

        ``n_classes`` is the number of its outputs, which other tasks than classification have
        of their own (:meth:`zoo.tasks.Task.n_outputs`).
        """

    @property
    def trains_on_patches(self) -> bool:
        """Whether each patch is a training example of its own."""
        return False

    def check_task(self, task: Task, recipe: Recipe) -> None:
        """Refuse other tasks than classification where patches are what is classified."""
        if self.trains_on_patches and task.kind != "classification":
            raise NotSupported(
                f"head {self.name} averages the class probabilities of patches, so it cannot "
                f"learn task {task.kind}: use mlp-improved with pool=embedding"
            )
        HeadSpec.check_task(self, task, recipe)

    def check_recipe(self, recipe: Recipe, *, has_validation: bool) -> None:
        """Refuse a recipe that needs validation bags where there are none."""
        if recipe.needs_validation and not has_validation:
            raise RecipeError(
                f"recipe {recipe.name} watches validation bags to keep or stop, but there are "
                "none: give some, or set keep=last and patience=none"
            )

    def _taught(self, bags: Bags) -> Bags:
        """Leave bags as they are: every batch draws from the views named for training."""
        return bags

    def _fit(
        self,
        bags: Bags,
        validation: Bags | None,
        recipe: Recipe,
        *,
        seed: int,
        device: str,
        threads: int,
    ) -> TorchHead:
        return self._fit_many(
            bags,
            validation,
            recipe,
            seeds=(seed,),
            device=device,
            threads=threads,
            together="never",
        )[0]

    def trains_together(self, *, device: str, together: str) -> bool:
        """Whether several seeds are worth computing as one, or asked to be."""
        if together == "always" and not self.stackable:
            return HeadSpec.trains_together(self, device=device, together=together)
        if together == "never" or not self.stackable:
            return False
        return together == "always" or _device(device).type == "cuda"

    def _fit_many(
        self,
        bags: Bags,
        validation: Bags | None,
        recipe: Recipe,
        *,
        seeds: tuple[int, ...],
        device: str,
        threads: int,
        together: str,
    ) -> list[TorchHead]:
        del threads  # the limit around this call is all a torch head needs
        where = _device(device)
        task = bags.task.learn(bags.truth)
        n_outputs = task.n_outputs(len(bags.classes))
        seen = training_views(bags)
        standardiser = (
            Standardiser.learn_parts(
                # Each view's bags are made anew, so that what they gather is let go of.
                lambda: (block.embedding for view in seen for block in in_view(bags, view).blocks())
            )
            if self.standardise
            else Standardiser.idle(bags.n_features)
        )
        fresh = partial(_fresh, self, bags.n_features, n_outputs, where)
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            places = _uses_coords(fresh(seeds[0]))
            batches = batches_of(
                standardiser,
                bags,
                where,
                coords=places,
                patchwise=self.trains_on_patches,
                views=seen,
            )
            watched = (
                None
                if validation is None
                else batches_of(standardiser, validation, where, coords=places)
            )
            lesson = _Lesson(recipe=recipe, n_classes=len(bags.classes), task=task)
            if len(seeds) > 1 and self.trains_together(device=device, together=together):
                learned = _train_together(
                    fresh, seeds, batches, watched, lesson, must=together == "always"
                )
            else:
                learned = _train_apart(fresh, seeds, batches, watched, lesson)
        return [
            _centred(
                TorchHead(
                    spec=self,
                    recipe=recipe,
                    seed=seed,
                    classes=bags.classes,
                    n_features=bags.n_features,
                    history=tuple(history),
                    module=module.to(_CPU).eval().requires_grad_(requires_grad=False),
                    standardiser=standardiser,
                    task=task,
                ),
                bags,
            )
            for seed, (module, history) in zip(seeds, learned, strict=True)
        ]


class _Lesson(TypedDict):
    """What all seeds share beside bags."""

    recipe: Recipe
    n_classes: int
    task: Task


_Fresh = Callable[[int], BagModule]
_Learned = list[tuple[BagModule, list[dict[str, Any]]]]
"""Networks that were trained, with their histories."""


def _fresh(
    spec: TorchSpec, n_features: int, n_outputs: int, where: torch.device, seed: int
) -> BagModule:
    """Seed torch's random state, and draw a network's weights from it."""
    # torch.manual_seed would seed every other device too, which nobody restores.
    torch.default_generator.manual_seed(seed)
    if where.type == "cuda":
        torch.cuda.manual_seed(seed)
    return spec.build(n_features, n_outputs).to(where)


def _train_apart(
    fresh: _Fresh,
    seeds: tuple[int, ...],
    batches: Batches,
    watched: Batches | None,
    lesson: _Lesson,
) -> _Learned:
    """Train one seed after the other."""
    learned = []
    for seed in seeds:
        module = fresh(seed)
        learned.append((module, train(module, batches, watched, **lesson)))
    return learned


def _train_together(
    fresh: _Fresh,
    seeds: tuple[int, ...],
    batches: Batches,
    watched: Batches | None,
    lesson: _Lesson,
    *,
    must: bool,
) -> _Learned:
    """Train seeds as one computation, as many at once as memory takes."""
    from zoo.training.stacked import can_stack, members_at_once, train_stacked

    if not can_stack(batches):
        if must:
            raise NotSupported(
                "bags of uneven size are not padded, so their seeds cannot be trained together: "
                "use together=auto"
            )
        return _train_apart(fresh, seeds, batches, watched, lesson)
    learned: _Learned = []
    most = members_at_once(batches, lesson["recipe"])
    for start in range(0, len(seeds), most):
        streams, modules = Streams(batches.lengths.device), []
        for seed in seeds[start : start + most]:
            modules.append(fresh(seed))
            streams.add()
        histories = train_stacked(modules, batches, watched, **lesson, streams=streams)
        learned += zip(modules, histories, strict=True)
    return learned


def _centred(head: TorchHead, bags: Bags) -> TorchHead:
    """Give risks a mean of 0: a partial likelihood leaves it open, but folds are judged together."""
    if head.task.loss != "cox":
        return head
    risk = float(head._predict(bags).mean())  # noqa: SLF001 (our own)
    return dataclasses.replace(head, task=dataclasses.replace(head.task, shift=-risk))


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device is {name!r}, but must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device cuda was asked for, but torch sees no GPU: use auto or cpu")
    use_gpu = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu else _CPU


def _uses_coords(module: BagModule) -> bool:
    return bool(getattr(module, "uses_coords", False))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TorchHead(Head):
    """A trained network with the standardisation in front of it; predicts on the CPU."""

    module: BagModule
    """The network, in evaluation mode."""
    standardiser: Standardiser
    """What embeddings go through first."""

    def steps(self, bags: Bags) -> Iterator[tuple[Tensor, Layout]]:
        """Give standardised rows and their layouts, all bags in order, a few at once."""
        coords = _uses_coords(self.module)
        return batches_of(self.standardiser, bags, _CPU, coords=coords).in_order()

    @torch.inference_mode()
    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        steps = self.steps(bags)
        logits = torch.cat([self.module.logits(*step) for step in steps])
        if self.task.kind != "classification":
            return self.task.decode(logits.double().numpy())
        probabilities: NDArray[np.float64] = logits.double().softmax(dim=1).numpy()
        return probabilities

    @torch.inference_mode()
    def _attention(self, bags: Bags) -> list[NDArray[np.float64]]:
        if not isinstance(self.module, AttentionModule):
            return Head._attention(self, bags)  # noqa: SLF001 (our parent's)
        steps = self.steps(bags)
        flat = np.concatenate(
            [
                layout.real(self.module.weights(rows, layout)).double().numpy()
                for rows, layout in steps
            ]
        )
        parts = np.split(flat, bags.offset[1:-1])
        return [part / part.sum() for part in parts]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write weights, standardisation and settings as one safetensors file."""
        arrays = {f"module.{name}": w.numpy() for name, w in self.module.state_dict().items()}
        arrays["standardise.mean"] = self.standardiser.mean
        arrays["standardise.scale"] = self.standardiser.scale
        storage.write_arrays(path, self.document(), arrays)


def load(
    path: str | os.PathLike[str], common: dict[str, Any], arrays: dict[str, NDArray[np.float32]]
) -> TorchHead:
    """Build the head whose arrays were read.

    Parameters
    ----------
    path
        Where they come from, for messages.
    common
        Fields of :class:`~zoo.heads.base.Head`.
    arrays
        As written by :meth:`TorchHead.save`.
    """
    spec, n_features = common["spec"], common["n_features"]
    n_outputs = common["task"].n_outputs(len(common["classes"]))
    # On the meta device nothing is allocated: a file that claims huge settings costs nothing.
    with torch.device("meta"):
        module = spec.build(n_features, n_outputs)
    shapes = {f"module.{name}": tuple(w.shape) for name, w in module.state_dict().items()}
    shapes |= {"standardise.mean": (n_features,), "standardise.scale": (n_features,)}
    storage.check_arrays(path, arrays, shapes)
    single = {name: np.array(array, np.float32) for name, array in arrays.items()}
    standardiser = Standardiser(
        mean=single.pop("standardise.mean"), scale=single.pop("standardise.scale")
    )
    state = {name.removeprefix("module."): torch.from_numpy(w) for name, w in single.items()}
    module.load_state_dict(state, assign=True)
    module = module.eval().requires_grad_(requires_grad=False)
    return TorchHead(**common, module=module, standardiser=standardiser)
