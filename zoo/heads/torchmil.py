"""Models of the library torchmil, by their names: an optional extra."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from histostore.errors import MissingExtra
from zoo.errors import RecipeError
from zoo.heads.layers import Dropout
from zoo.heads.neural import TorchSpec
from zoo.settings import Kind, choice, number, whole
from zoo.training.loop import BagModule

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo.training.layout import Layout

__all__ = ["MODELS", "TorchMIL", "TorchMILModule"]

MODELS: dict[str, str] = {
    "ABMIL": "padded",
    "CLAM_SB": "padded",
    "DSMIL": "by length",
    "IIBMIL": "padded",
    "TransMIL": "alone",
    "TransformerABMIL": "padded",
}
"""Models that can be used, and which bags they may see at once.

``padded``: bags of any length; the model heeds its mask. ``by length``: bags of one length, for
padding could be taken for the most telling patch. ``alone``: one bag at a time, for the model
has no mask, and scales its attention by all bags of a batch.
"""

_REFUSED = {("TransformerABMIL", "transf_dropout"): "it stays on in predicting (torchmil 1.0.2)"}
"""Arguments that would break a promise of every head, and why."""

_OURS = ("self", "in_shape", "feat_ext", "criterion")
_ARGUMENT = re.compile(r"[a-z]\w*=[\w.+-]+")
_WORDS: dict[str, Any] = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Arguments(Kind):
    """Arguments as text, ``key=value`` joined by commas; empty for none."""

    def says(self) -> str:
        """Say in words what is allowed."""
        return "key=value pairs joined by commas, each key once"

    def accepts(self, value: object) -> bool:
        """Tell whether ``value`` can be read as arguments."""
        if not isinstance(value, str):
            return False
        pairs = value.split(",") if value else []
        keys = [pair.partition("=")[0] for pair in pairs]
        return all(_ARGUMENT.fullmatch(pair) for pair in pairs) and len({*keys}) == len(keys)

    def read(self, value: object) -> object:
        """Take spaces out."""
        return value.replace(" ", "") if isinstance(value, str) else value


def _read(arguments: str) -> dict[str, Any]:
    """Turn text into arguments: whole numbers, numbers, true, false, none, or else words."""
    found = {}
    for key, _, text in (pair.partition("=") for pair in arguments.split(",") if pair):
        found[key] = _WORDS[text.lower()] if text.lower() in _WORDS else _number_or_word(text)
    return found


def _number_or_word(text: str) -> float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


@dataclass(frozen=True, kw_only=True, slots=True)
class TorchMIL(TorchSpec):
    """A projection, then a model of torchmil on it.

    **Reference**: torchmil, https://torchmil.readthedocs.io, and the paper of each model.

    **Differences**

    - NOTE[DIFF] torchmil's models give one logit, for two classes. Here more classes have a model
      each, and their logits go through one softmax.
    - NOTE[DIFF] Only the loss of the bag is used; what some models add to it in torchmil (losses
      of patches for CLAM_SB and IIBMIL) is left out. The heads clam-sb, dsmil and transmil of
      the zoo have all of it.
    - NOTE[DIFF] DTFDMIL is left out: it shuffles by numpy's global random state, in predicting
      too, and sees padding. The zoo's dtfd does neither.
    - Models that need an adjacency matrix, coordinates on a grid or a second network (CAMIL,
      DeepGraphSurv, GTP, PatchGCN, ProbSmoothABMIL, SETMIL, SmABMIL, VAEABMIL, …) are left out.
    """

    name: ClassVar[str] = "torchmil"
    ordered: ClassVar[bool] = True  # to TransMIL
    tasks: ClassVar[tuple[str, ...]] = ("classification",)

    model: str = choice("ABMIL", "name in torchmil.models", among=tuple(MODELS))
    arguments: str = field(
        default="",
        metadata={"kind": _Arguments(sort="choice", meaning="what else torchmil is told")},
    )
    hidden: int | None = whole(
        256, "width of a projected patch; none is no projection", low=1, high=65_536, optional=True
    )
    dropout: float = number(0.25, "dropout of projected patches", high=0.99)

    def build(self, n_features: int, n_classes: int) -> TorchMILModule:
        """Make the network with fresh weights.

        Raises
        ------
        MissingExtra
            If torchmil is not installed.
        RecipeError
            If the model refuses an argument.
        """
        return TorchMILModule(self, n_features, n_classes)

    def make(self, width: int) -> nn.Module:
        """Make one model for patches of ``width`` features."""
        cls = _model_class(self.model)
        known = [key for key in inspect.signature(cls).parameters if key not in _OURS]
        given = _read(self.arguments)
        unknown = [key for key in given if key not in known]
        if unknown:
            raise RecipeError(
                f"head torchmil: {self.model} has no argument {unknown[0]!r}; it has "
                f"{', '.join(known)}"
            )
        for key in given:
            if (self.model, key) in _REFUSED:
                raise RecipeError(
                    f"head torchmil: {self.model} cannot have {key}: {_REFUSED[self.model, key]}"
                )
        try:
            made: nn.Module = cls(in_shape=(width,), **given)
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:  # fmt: skip
            raise RecipeError(
                f"head torchmil: {self.model} refuses {self.arguments or 'its own defaults'}: {error}"
            ) from error
        return made


def _model_class(name: str) -> Callable[..., nn.Module]:
    try:
        from torchmil import models
    except ImportError as error:
        raise MissingExtra.named("torchmil", extra="torchmil") from error
    cls: Callable[..., nn.Module] = getattr(models, name)
    return cls


class TorchMILModule(BagModule):
    """h = dropout(ReLU(P x)); one logit per class of a model each, or of one for two classes.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool → ``(bag, class)``.
    """

    def __init__(self, spec: TorchMIL, n_features: int, n_classes: int) -> None:
        super().__init__()
        width = n_features if spec.hidden is None else spec.hidden
        self.project = (
            nn.Identity()
            if spec.hidden is None
            else nn.Sequential(nn.Linear(n_features, width), nn.ReLU(), Dropout(spec.dropout))
        )
        self.models = nn.ModuleList(
            spec.make(width) for _ in range(1 if n_classes == 2 else n_classes)
        )
        self._together = MODELS[spec.model]

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        x, mask = layout.pad(self.project(rows))
        scores = [self._scores(model, x, mask) for model in self.models]  # (bag,) each
        if len(scores) == 1:
            scores.insert(0, torch.zeros_like(scores[0]))
        return torch.stack(scores, dim=1)

    def _scores(self, model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """Give one model's logits, ``(bag,)``, of bags that it may see together."""
        if self._together == "padded":
            padded: Tensor = model(x, mask)
            return padded
        lengths = mask.sum(dim=1)
        found = x.new_zeros(len(x))
        for length in sorted(set(lengths.tolist())):
            same = (lengths == length).nonzero().squeeze(1)
            for which in same.split(1) if self._together == "alone" else [same]:
                # Nothing is padded here, so a model without a mask needs none.
                found = found.index_copy(0, which, model(x[which, :length]))
        return found
