"""What is trained, and on what machine: values, inert until a run begins."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from histostore.errors import OptionError
from zoo.finetune.networks import network
from zoo.finetune.pixels import PixelPlan
from zoo.training.threads import available

if TYPE_CHECKING:
    from zoo.finetune.networks import Network

__all__ = ["PATCHES", "FinetuneSpec", "Machine"]

PATCHES = 400
"""Most patches of an image that a bag network sees, where nobody says otherwise."""

_LOADERS = 8
"""Most loader processes beside a GPU, where nobody says otherwise."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSpec:
    """A network and what it sees of an image; inert until it is trained."""

    model: str
    """Name of a network; see :func:`zoo.finetune.networks.network`."""
    weights: str | None = None
    """Where its weights come from; see there."""
    px: int | None = None
    """Side of its input; the network's own where left out."""
    patches: int | None = None
    """Of networks that see bags: at most so many patches of an image, 400 where left out."""
    mpp: float | None = None
    """Of networks that see bags: µm per pixel of the patches."""

    def network(self, outputs: int, seed: int) -> Network:
        """Make the network."""
        return network(self.model, outputs, seed=seed, weights=self.weights, px=self.px)

    def plan(self, net: Network) -> PixelPlan:
        """Say what of an image the network sees.

        Raises
        ------
        OptionError
            If patches or their scale are asked for, and the network sees whole images.
        """
        if not net.bag:
            if self.patches is not None or self.mpp is not None:
                raise OptionError(
                    f"{net.name} sees whole images: patches and mpp are for networks that see "
                    "bags, as amil-cnn"
                )
            return PixelPlan(px=net.px, interpolation=net.interpolation)
        return PixelPlan(px=net.px, patches=self.patches or PATCHES, mpp=self.mpp)

    def to_json(self) -> dict[str, Any]:
        """Give the network as a run records it, as heads are."""
        settings = {key: getattr(self, key) for key in ("weights", "px", "patches", "mpp")}
        told = {key: value for key, value in settings.items() if value is not None}
        return {"name": self.model, "settings": told}


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where to compute; decides the time it takes."""

    device: str = "auto"
    """``auto``, ``cpu`` or ``cuda``."""
    workers: int | None = None
    """Processes that read images ahead. Where left out, none beside a CPU, which has enough to do,
    and up to eight beside a GPU. A calling script must be guarded by
    ``if __name__ == "__main__"``, for each process imports it."""
    threads: int | None = None
    """Threads of a CPU; all cores where left out."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 0:
            raise OptionError(f"workers is {self.workers}: give 0 or more")

    def torch_device(self) -> torch.device:
        """Choose the device.

        Raises
        ------
        OptionError
            If there is no such device.
        """
        if self.device not in {"auto", "cpu", "cuda"}:
            raise OptionError(f"device is {self.device!r}, but must be auto, cpu or cuda")
        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise OptionError("device cuda was asked for, but torch sees no GPU: use auto or cpu")
        use = there and self.device != "cpu"
        return torch.device("cuda", torch.cuda.current_device()) if use else torch.device("cpu")

    def loaders(self, device: torch.device) -> int:
        """Count the loader processes."""
        if self.workers is not None:
            return self.workers
        return 0 if device.type == "cpu" else min(_LOADERS, max(1, available() - 1))
