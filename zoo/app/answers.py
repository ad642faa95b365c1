"""What a run says of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.images.patches import NO_TISSUE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from zoo.app.twins import Twin
    from zoo.explaining.importance import Weighed

__all__ = ["AGREEMENT", "Answer", "Opinion"]

AGREEMENT = 2 / 3
"""Share of the heads, by their say, that must favour the class that is named."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Opinion:
    """What one head says of the image."""

    run_name: str
    fold: int
    seed: int
    weight: float
    """Share in the average; over the heads that were asked they sum to 1."""
    prob: NDArray[np.float64]
    """``(class,)``."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What a run says of one image."""

    name: str
    """What the file was called."""
    classes: tuple[str, ...]
    opinions: tuple[Opinion, ...]
    """Of the heads that were asked."""
    n_heads: int
    """Heads there are."""
    prob: NDArray[np.float64]
    """``(class,)``, mean over heads."""
    sd: NDArray[np.float64]
    """``(class,)``, standard deviation over heads; NaN of one head."""
    threshold: float | None
    """Confidence below which no class is named."""
    twin: Twin | None
    """The training image that this is, if it is one."""
    width_px: int
    height_px: int
    mpp: float | None
    """Micrometres per level-0 pixel."""
    n_patches: dict[str, tuple[int, int]]
    """Feature set to patches that were used, and places on the image."""
    flags: tuple[str, ...]
    """What is to be said of the choice of patches, as a build flags it."""
    coords: NDArray[np.int32]
    """``(patch, 2)``, x and y, level-0 pixels: the patches that are shown."""
    edge_px: int
    """Edge of a patch in level-0 pixels."""
    weighed: Weighed | None
    """Their weights; None where no head can tell."""
    unweighed: str
    """Why there is none."""
    novel_to: int
    """Images of the training, each of which is more like the others than this one is; 0 where it
    is like them, or they cannot be compared."""
    notes: tuple[str, ...]
    """What is worth knowing, one line each."""

    @property
    def likeliest(self) -> str:
        """The class with the highest mean probability."""
        return self.classes[int(self.prob.argmax())]

    @property
    def confidence(self) -> float:
        """Its mean probability."""
        return float(self.prob.max())

    @property
    def agreement(self) -> float:
        """Share of heads, by their say, that favour it."""
        favour = [one.weight for one in self.opinions if one.prob.argmax() == self.prob.argmax()]
        return math.fsum(favour)

    @property
    def doubts(self) -> tuple[str, ...]:
        """Why no class should be named; empty where one may be."""
        found = []
        if self.threshold is not None and self.confidence < self.threshold:
            found.append(f"a class is named only from a confidence of {self.threshold:.2f} on")
        if self.agreement < AGREEMENT:
            found.append(f"only {100 * self.agreement:.0f} % of the heads favour it")
        if NO_TISSUE in self.flags:
            found.append("no tissue was found in the image")
        if self.novel_to:
            found.append(
                f"the image is unlike those of the training: farther out than any of the "
                f"{self.novel_to} that were compared"
            )
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """Give all but the patches as JSON values."""
        sd = zip(self.classes, self.sd.tolist(), strict=True)
        return {
            "image": self.name,
            "prediction": None if self.doubts else self.likeliest,
            "likeliest": self.likeliest,
            "prob": dict(zip(self.classes, self.prob.tolist(), strict=True)),
            "prob_sd": {name: None if np.isnan(value) else value for name, value in sd},
            "doubts": list(self.doubts),
            "agreement": self.agreement,
            "threshold": self.threshold,
            "n_heads": len(self.opinions),
            "training_image": self.twin.image_id if self.twin else None,
            "width_px": self.width_px,
            "height_px": self.height_px,
            "mpp": self.mpp,
            "n_patches": {name: used for name, (used, _) in self.n_patches.items()},
            "novel_to": self.novel_to,
            "notes": list(self.notes),
        }
