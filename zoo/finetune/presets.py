"""Recipes of networks that are trained on pixels; each reference system has one."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zoo import settings as _settings
from zoo.errors import RecipeError
from zoo.finetune.augment import augmentation
from zoo.finetune.phases import HEAD, Phase
from zoo.settings import choice, names, number, whole

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PRESETS", "TEST_VIEWS", "FinetuneRecipe", "preset"]

TEST_VIEWS = (
    "identity",
    "rot90",
    "rot180",
    "rot270",
    "flip-h",
    "flip-v",
    "transpose",
    "anti-transpose",
)
"""Views that predictions may be averaged over: the exact ones of :mod:`histostore.views`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneRecipe:
    """How to train a network on pixels.

    Raises
    ------
    RecipeError
        If a value has the wrong type or lies outside its range, or two settings contradict
        each other; ``problems`` lists everything found.
    """

    name: str = "default"
    phases: tuple[Phase, ...] = (Phase(),)
    """One after the other, each with the weights that the one before left."""
    augmentation: str = "none"
    """Name of an augmentation, for phases that name none of their own."""

    test_views: tuple[str, ...] = names(
        ("identity",), "views whose probabilities are averaged at test time", among=TEST_VIEWS
    )
    label_smoothing: float = number(
        0.0, "share of the target spread evenly over the classes", high=0.99
    )
    class_weights: str = choice(
        "none", "balanced: weigh classes by 1 / their number of images", among=("none", "balanced")
    )
    focal_gamma: float = number(0.0, "focal loss exponent; 0 is plain cross-entropy", high=10)
    sampler: str = choice(
        "shuffle",
        "each image once an epoch, or drawn with replacement so that classes come alike",
        among=("shuffle", "balanced"),
    )
    batch_size: int = whole(16, "images per batch; a bag network takes one", low=1, high=100_000)
    monitor: str = choice(
        "macro_f1",
        "validation score that keep, patience and schedule plateau watch",
        among=("macro_f1", "accuracy", "auroc", "loss"),
    )
    keep: str = choice(
        "best", "weights to keep: last epoch, or the best by monitor", among=("last", "best")
    )

    def __post_init__(self) -> None:
        problems = _settings.problems_of(self)
        if not self.phases:
            problems.append("it has no phases")
        twice = sorted(
            {p.name for p in self.phases if [q.name for q in self.phases].count(p.name) > 1}
        )
        if twice:
            problems.append(f"two phases are called {twice[0]}")
        _settings.check(f"recipe {self.name}", problems)
        for phase in self.phases:
            augmentation(self.augmentation_of(phase))

    @property
    def needs_validation(self) -> bool:
        """Whether training looks at validation images to decide anything."""
        return self.keep == "best" or any(
            phase.patience is not None or phase.schedule == "plateau" for phase in self.phases
        )

    @property
    def epochs(self) -> int:
        """Epochs of all phases, at most."""
        return sum(phase.epochs for phase in self.phases)

    def augmentation_of(self, phase: Phase) -> str:
        """Name the augmentation of one phase."""
        return self.augmentation if phase.augmentation is None else phase.augmentation

    def to_json(self) -> dict[str, Any]:
        """Give the recipe as JSON values."""
        return {
            "name": self.name,
            "phases": [phase.to_json() for phase in self.phases],
            "augmentation": self.augmentation,
            **_settings.to_json(self),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FinetuneRecipe:
        """Invert :meth:`to_json`; unknown keys are refused."""
        rest = dict(document)
        name, phases = rest.pop("name", None), rest.pop("phases", None)
        look = rest.pop("augmentation", "none")
        if not isinstance(name, str) or not isinstance(phases, list | tuple):
            raise RecipeError(f"a stored recipe needs a name and phases, but this is {name!r}")
        return cls(
            name=name,
            phases=tuple(Phase.from_json(phase) for phase in phases),
            augmentation=look,
            **_settings.parse(cls, rest, subject=f"recipe {name}"),
        )

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, 64 hexadecimal digits."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_settings(self, /, **overrides: Any) -> FinetuneRecipe:
        """Give a recipe with some settings changed; text is read as on the command line.

        A key is a setting of the recipe (``batch_size``), of every phase (``epochs``), of one
        phase (``phase-2.epochs``), ``lr``, the fastest rate of a phase, which the others follow
        in proportion, or ``augmentation``.
        """
        return dataclasses.replace(self, **_changes(self, overrides))


_OWN = tuple(f.name for f in dataclasses.fields(FinetuneRecipe) if "kind" in f.metadata)
_OF_PHASES = tuple(f.name for f in dataclasses.fields(Phase) if "kind" in f.metadata)
_MORE = ("lr", "augmentation")


def _changes(recipe: FinetuneRecipe, overrides: Mapping[str, Any]) -> dict[str, Any]:
    own: dict[str, Any] = {}
    phases = {phase.name: phase for phase in recipe.phases}
    problems: list[str] = []
    for key, value in overrides.items():
        which, _, setting = key.rpartition(".")
        if key in _OWN:
            own[key] = value
        elif key == "augmentation":
            own[key] = str(value)
            phases = {n: dataclasses.replace(p, augmentation=None) for n, p in phases.items()}
        elif setting in (*_OF_PHASES, *_MORE) and (not which or which in phases):
            for name in (which,) if which else tuple(phases):
                phases[name] = _changed(phases[name], setting, value)
        else:
            problems.append(_unknown(key, tuple(phases)))
    subject = f"recipe {recipe.name}"
    _settings.check(subject, problems)
    look = {"augmentation": own.pop("augmentation")} if "augmentation" in own else {}
    parsed = _settings.parse(FinetuneRecipe, own, subject=subject)
    return {**look, **parsed, "phases": tuple(phases.values())}


def _changed(phase: Phase, setting: str, value: Any) -> Phase:
    subject = f"phase {phase.name}"
    if setting == "lr":
        kind = _settings.Kind(sort="number", meaning="", low=0, high=10, open_low=True)
        rate = kind.read(value)
        if not kind.accepts(rate) or not isinstance(rate, float):
            raise RecipeError(f"{subject}: lr is {value!r}, but must be {kind.says()}")
        return phase.with_rate(rate)
    if setting == "augmentation":
        return dataclasses.replace(phase, augmentation=str(value))
    parsed = _settings.parse(Phase, {setting: value}, subject=subject)
    return dataclasses.replace(phase, **parsed)


def _unknown(key: str, phases: tuple[str, ...]) -> str:
    known = (*_OWN, *_OF_PHASES, *_MORE)
    every = (*known, *(f"{name}.{each}" for name in phases for each in (*_OF_PHASES, *_MORE)))
    nearest = difflib.get_close_matches(key, every, n=1)
    hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
    several = f"; or PHASE.KEY of the phases {', '.join(phases)}" if len(phases) > 1 else ""
    return f"unknown setting {key!r}{hint}; known: {', '.join(known)}{several}"


def _r6_phases() -> tuple[Phase, ...]:
    """Make the three phases of the hybrid (§3.4.3; epochs, batch and patience of §4.1).

    NOTE[DIFF] "The last 3 stages" of EfficientNetV2-S are 5, 6 and 7 of its paper's table 4, the
    last of which is the 1 × 1 convolution. "Associated projection/token layers" of the last 4
    transformer blocks is read as the norm that closes them: the patch projection lies before
    blocks that stay frozen. Mixed precision is bfloat16, which needs no scaling of gradients.
    The report's patience of 7 epochs was switched off in its run (§4.2); here it counts, and
    ends a phase, not the training.
    """
    common = Phase(
        weight_decay=1e-5,
        schedule="plateau",
        plateau_patience=3,
        plateau_factor=0.2,
        gradient_clip=1.0,
        patience=7,
        precision="bfloat16",
    )
    first = {HEAD: 1e-4}
    late = {"cnn.last:3": 1e-6, "vit.last:4": 1e-6, "vit.norm": 1e-6, HEAD: 2e-5}
    whole_network = {"all": 5e-7, HEAD: 1e-5}
    return tuple(
        dataclasses.replace(
            common,
            name=f"phase-{number}",
            epochs=epochs,
            augmentation=f"r6-{strength}",
            learning_rates=rates,
        )
        for number, epochs, strength, rates in (
            (1, 7, "strong", first),
            (2, 10, "medium", late),
            (3, 13, "mild", whole_network),
        )
    )


PRESETS: dict[str, tuple[FinetuneRecipe, str]] = {
    "default": (FinetuneRecipe(), "every part at one rate, no augmentation"),
    # AN2DL report, A.4: EfficientNet-B7, whole image, class weights, label smoothing, TTA.
    # NOTE[DIFF] It prints no number but the scores ("standard SGD/Adam-based training"). AdamW
    # at 1e-4 with a cosine is the usual way to fine-tune an EfficientNet on a few hundred
    # images, smoothing 0.1 is that of the network's own paper; views are the eight of a square.
    "r5": (
        FinetuneRecipe(
            name="r5",
            phases=(
                Phase(
                    learning_rates={"all": 1e-4, HEAD: 1e-3},
                    epochs=30,
                    weight_decay=1e-2,
                    schedule="cosine",
                    gradient_clip=1.0,
                ),
            ),
            augmentation="r5",
            test_views=TEST_VIEWS,
            label_smoothing=0.1,
            class_weights="balanced",
        ),
        "AN2DL report, A.4: for efficientnet-b7; class weights, label smoothing, eight test views",
    ),
    # HistoVision report, §3.4 and §4.1; views of §4.3.1.
    "r6": (
        FinetuneRecipe(
            name="r6",
            phases=_r6_phases(),
            label_smoothing=0.2,
            class_weights="balanced",
            sampler="balanced",
            batch_size=32,
            monitor="auroc",
        ),
        "HistoVision report, section 3.4: for r6-hybrid; three phases, plateau on AUROC",
    ),
    # A-MIL, §III.D. NOTE[DIFF] The paper names neither optimiser nor number of epochs: Adam and
    # its defaults, as in the code of Ilse et al. 2018 that it builds on, for 100 epochs (20 of
    # Ilse et al. are for MNIST), of which the best counts.
    "r9": (
        FinetuneRecipe(
            name="r9",
            phases=(Phase(learning_rates={"all": 1e-3, HEAD: 1e-3}, epochs=100, optimiser="adam"),),
            augmentation="right-angles",
            batch_size=1,
            monitor="accuracy",
        ),
        "A-MIL, section III.D: for amil-cnn; one bag at a time, flips and right angles",
    ),
    # Lymphoma report, §2.1 and §2.2. NOTE[DIFF] It prints augmentation, layers and sizes, but no
    # rate, no optimiser, no number of epochs: Adam at 1e-4 for 30 epochs with batches of 32 is
    # what such notebooks do; the epoch with the best validation accuracy is kept.
    "r11": (
        FinetuneRecipe(
            name="r11",
            phases=(
                Phase(
                    learning_rates={"last:1": 1e-4, HEAD: 1e-4},
                    epochs=30,
                    optimiser="adam",
                ),
            ),
            augmentation="r11",
            batch_size=32,
            monitor="accuracy",
        ),
        "lymphoma report: for resnet50, densenet121, kimianet; last stage and classifier learn",
    ),
}
"""Every named recipe, with one line about it."""


def preset(name: str = "default", /, **overrides: Any) -> FinetuneRecipe:
    """Look a recipe up and change some of its settings.

    Parameters
    ----------
    name
        One of :data:`PRESETS`.
    overrides
        Settings by name, as :meth:`FinetuneRecipe.with_settings` takes them.

    Raises
    ------
    RecipeError
        If the name or a key is unknown, or a value is not allowed; lists what is.

    Examples
    --------
    >>> preset("default", epochs="5").phases[0].epochs
    5
    >>> preset("default", epoch=5)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    zoo.errors.RecipeError: recipe default: unknown setting 'epoch' (did you mean 'epochs'?); ...
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise RecipeError(f"no recipe is called {name!r}{hint}; known: {', '.join(PRESETS)}")
    return PRESETS[name][0].with_settings(**overrides)
