"""Heads that are torch modules: fitted by the training loop, kept as safetensors."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from histostore.errors import OptionError
from zoo.errors import RecipeError
from zoo.heads import storage
from zoo.heads.base import Head, HeadSpec, Standardiser
from zoo.settings import flag
from zoo.training.batches import Batches, StoredRows, arrange, arrange_stored
from zoo.training.loop import BagModule, train

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.recipes import Recipe
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

    standardise: bool = flag(
        default=True, meaning="shift and scale features to those of the training patches"
    )

    @abstractmethod
    def build(self, n_features: int, n_classes: int) -> BagModule:
        """Make the network with fresh weights, from torch's own random state."""

    @property
    def trains_on_patches(self) -> bool:
        """Whether each patch is a training example of its own."""
        return False

    def check_recipe(self, recipe: Recipe, *, has_validation: bool) -> None:
        """Refuse a recipe that needs validation bags where there are none."""
        if recipe.needs_validation and not has_validation:
            raise RecipeError(
                f"recipe {recipe.name} watches validation bags to keep or stop, but there are "
                "none: give some, or set keep=last and patience=none"
            )

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
        del threads  # the limit around this call is all a torch head needs
        where = _device(device)
        standardiser = (
            Standardiser.learn_parts(lambda: (block.embedding for block in bags.blocks()))
            if self.standardise
            else Standardiser.idle(bags.n_features)
        )
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []):
            # torch.manual_seed would seed every other device too, which nobody restores.
            torch.default_generator.manual_seed(seed)
            if where.type == "cuda":
                torch.cuda.manual_seed(seed)
            module = self.build(bags.n_features, len(bags.classes)).to(where)
            places = _uses_coords(module)
            batches = _batches(
                standardiser, bags, where, coords=places, patchwise=self.trains_on_patches
            )
            watched = (
                None
                if validation is None
                else _batches(standardiser, validation, where, coords=places)
            )
            history = train(module, batches, watched, recipe=recipe, n_classes=len(bags.classes))
        return TorchHead(
            spec=self,
            recipe=recipe,
            seed=seed,
            classes=bags.classes,
            n_features=bags.n_features,
            history=tuple(history),
            module=module.to(_CPU).eval().requires_grad_(requires_grad=False),
            standardiser=standardiser,
        )


def _device(name: str) -> torch.device:
    if name not in ("auto", "cpu", "cuda"):
        raise OptionError(f"device is {name!r}, but must be auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise OptionError("device cuda was asked for, but torch sees no GPU: use auto or cpu")
    use_gpu = name != "cpu" and torch.cuda.is_available()
    return torch.device("cuda", torch.cuda.current_device()) if use_gpu else _CPU


def _uses_coords(module: BagModule) -> bool:
    return bool(getattr(module, "uses_coords", False))


def _batches(
    standardiser: Standardiser,
    bags: Bags,
    device: torch.device,
    *,
    coords: bool,
    patchwise: bool = False,
) -> Batches:
    """Standardise and arrange bags; ``patchwise`` makes each patch a bag of its image's label.

    Bags that are mapped stay where they are, and every batch reads its own rows.
    """
    lengths, labels, starts = bags.lengths, bags.labels, bags.starts
    if patchwise:
        starts = np.arange(lengths.sum()) + np.repeat(starts - bags.offset[:-1], lengths)
        labels = np.repeat(labels, lengths)
        lengths = np.ones(len(labels), np.int64)
    if bags.folder is None:
        places = bags.coords if coords else None
        rows = standardiser(bags.embedding)
        return arrange(rows, lengths, labels, device=device, coords=places)
    return arrange_stored(
        StoredRows(bags.table.embedding, device=device, prepare=standardiser),
        starts,
        lengths,
        labels,
        coords=StoredRows(bags.table.coords, device=device) if coords else None,
    )


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
        return _batches(self.standardiser, bags, _CPU, coords=coords).in_order()

    @torch.inference_mode()
    def _predict(self, bags: Bags) -> NDArray[np.float64]:
        steps = self.steps(bags)
        logits = torch.cat([self.module.logits(*step) for step in steps])
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
    spec, n_features, n_classes = common["spec"], common["n_features"], len(common["classes"])
    # On the meta device nothing is allocated: a file that claims huge settings costs nothing.
    with torch.device("meta"):
        module = spec.build(n_features, n_classes)
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
