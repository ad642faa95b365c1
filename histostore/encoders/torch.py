"""Torch networks as encoders."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from histostore.encoders.architectures import blueprint
from histostore.encoders.base import EncoderIdentity, check_patches
from histostore.encoders.hub import given
from histostore.encoders.lanes import Lanes
from histostore.encoders.pixels import affine, resize
from histostore.encoders.weights import digest, load_strictly
from histostore.errors import EncoderError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from histostore.encoders.blueprints import Blueprint
    from histostore.encoders.cards import EncoderCard

__all__ = ["TorchEncoder", "load", "place_of"]

_PROBE_PX = 64
_RANDOM = "random:"


class TorchEncoder:
    """A frozen torch network, patch to vector.

    Patches are resized whole, without a crop, by Pillow's antialiased filter
    (:mod:`histostore.encoders.pixels`), scaled and shifted, and run through the network in
    evaluation mode, without gradients, in channels-last order. Below float32 the forward
    pass runs under autocast and the vectors come back as float32; in float32 on a GPU,
    TF32 is off.

    Parameters
    ----------
    plan
        The network, its weights loaded, and its preprocessing.
    identity
        What decides its vectors.
    device
        Where it runs.
    batch_size
        Patches in one forward pass; on a CPU, in those that run side by side.
    threads
        Threads of a CPU.
    channels_last
        Whether images lie in memory with the channel last; the other order gives the same
        vectors to rounding, more slowly.

    Raises
    ------
    EncoderError
        If the network does not give one vector per patch.
    """

    def __init__(
        self,
        plan: Blueprint,
        *,
        identity: EncoderIdentity,
        device: torch.device,
        batch_size: int,
        threads: int,
        channels_last: bool = True,
    ) -> None:
        self._plan = plan
        self._identity = identity
        self._device = device
        self._batch_size = batch_size
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._module = plan.module.eval().requires_grad_(requires_grad=False).to(device)
        self._module = self._module.to(memory_format=self._format)  # type: ignore[call-overload]
        self._scale, self._shift = affine(plan.mean, plan.std, device)
        self._n_features = self._probe()
        on_cpu = device.type == "cpu"
        self._lanes = Lanes(threads, batch_size=batch_size) if on_cpu else None

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors."""
        return self._identity

    @property
    def n_features(self) -> int:
        """Width of its vectors."""
        return self._n_features

    @property
    def batch_size(self) -> int:
        """Patches of one forward pass on a CPU, of two on a GPU; more are taken in turns."""
        return self._batch_size if self._lanes is not None else 2 * self._batch_size

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors.

        Parameters
        ----------
        patches
            ``(patch, y, x, channel)``, uint8 RGB, any square size.

        Returns
        -------
        embedding
            ``(patch, feature)``, float32, finite.

        Raises
        ------
        EncoderError
            If the patches are not of this shape and type, or a vector is not finite.
        """
        _check(patches, self._plan.smallest_px)
        if len(patches) == 0:
            return np.zeros((0, self._n_features), np.float32)
        embedding: NDArray[np.float32] = torch.cat(list(self._vectors(patches))).cpu().numpy()
        if not np.isfinite(embedding).all():
            raise EncoderError(
                f"{self._identity.name} gave vectors that are not finite in "
                f"{self._identity.precision}; check the weights, or use precision float32"
            )
        return embedding

    def _vectors(self, patches: NDArray[np.uint8]) -> Iterator[Tensor]:
        for start in range(0, len(patches), self._batch_size):
            rows = np.require(patches[start : start + self._batch_size], requirements=["C", "W"])
            batch = torch.from_numpy(rows)
            if self._lanes is not None:
                yield self._lanes.map(self._forward, batch)
            else:
                # These calls return before the work is done, so that the next batch is copied
                # while this one computes; who takes the vectors waits for all of them.
                yield self._forward(batch.pin_memory().to(self._device, non_blocking=True))

    def _forward(self, batch: Tensor) -> Tensor:
        with torch.inference_mode(), self._arithmetic():
            return self._network(batch)

    def _network(self, batch: Tensor) -> Tensor:
        pixels = batch.permute(0, 3, 1, 2)  # (patch, channel, y, x), channels last in memory
        if self._plan.channels == "BGR":
            pixels = pixels.flip(1)
        if self._plan.input_px is not None:
            pixels = resize(pixels, self._plan.input_px, self._plan.interpolation)
        x = torch.addcmul(self._shift, pixels.to(torch.float32), self._scale)
        vectors = self._plan.forward(self._module, x.contiguous(memory_format=self._format))
        return vectors.to(torch.float32)  # (patch, feature)

    def _arithmetic(self) -> contextlib.AbstractContextManager[Any]:
        if self._identity.precision != "float32":
            dtype = getattr(torch, self._identity.precision)
            return torch.autocast(self._device.type, dtype=dtype)
        if self._device.type == "cuda":
            return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        return contextlib.nullcontext()

    def _probe(self) -> int:
        """Ask the network itself for the width of its vectors, with one grey patch."""
        side = self._plan.input_px or max(_PROBE_PX, self._plan.smallest_px)
        grey = torch.full((1, side, side, 3), 128, dtype=torch.uint8, device=self._device)
        shape = tuple(self._forward(grey).shape)
        if len(shape) != 2:
            raise EncoderError(
                f"{self._identity.name} gives {shape} for one patch, not one vector; "
                "it has no pooling of its own"
            )
        return shape[1]


def load(
    *,
    card: EncoderCard,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int,
    precision: str = "float32",
) -> TorchEncoder:
    """Load a torch encoder.

    Torch's number of threads in this process and its random state are left as they were.

    Parameters
    ----------
    card
        Which one; see :func:`histostore.encoders.catalog.card`.
    weights
        A weights file or one of the hub, as :func:`histostore.encoders.hub.given` has it;
        ``None`` downloads the published weights; ``random:SEED`` draws them
        from torch's initialisation, for tests and benchmarks only.
    device
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    batch_size
        Patches in one forward pass; ``None`` takes the card's.
    threads
        Threads of a CPU to use.
    precision
        ``float32``, ``bfloat16`` or ``float16``.

    Raises
    ------
    EncoderError
        If the device is absent, or the weights cannot be had or do not fit.
    """
    place = place_of(device, precision)
    seed = _seed(weights)
    with _forked_random_state(seed):
        plan = blueprint(card)
    if seed is None:
        state = plan.download() if weights is None else given(card, weights)
        source = f"{weights or 'the published file'} for {card.name}"
        load_strictly(plan.module, plan.translate(state), source=source, droppable=plan.droppable)
    identity = EncoderIdentity(
        name=card.name,
        weights=digest(plan.module) if seed is None else f"{_RANDOM}{seed}",
        preprocessing=_preprocessing(plan, card),
        precision=precision,
    )
    size = batch_size or (card.batch_size_cuda if place.type == "cuda" else card.batch_size)
    encoder = TorchEncoder(plan, identity=identity, device=place, batch_size=size, threads=threads)
    if card.n_features not in {None, encoder.n_features}:
        raise EncoderError(
            f"{card.name} gives {encoder.n_features} features; its card says {card.n_features}"
        )
    return encoder


def _preprocessing(plan: Blueprint, card: EncoderCard) -> dict[str, Any]:
    document: dict[str, Any] = {
        "input_px": plan.input_px,
        "channels": plan.channels,
        "mean": list(plan.mean),
        "std": list(plan.std),
        "pooling": plan.pooling,
    }
    if plan.input_px is not None:
        document["interpolation"] = f"{plan.interpolation}, antialiased"
    if card.options:
        document["options"] = dict(card.options)
    return document


def place_of(name: str, precision: str) -> torch.device:
    """Find a device by name, and see that it can compute in this precision.

    Raises
    ------
    EncoderError
        If it is absent.
    OptionError
        If it cannot.
    """
    place = _device(name)
    if precision == "float16" and place.type == "cpu":
        raise OptionError("float16 needs a GPU; on a CPU use float32 or bfloat16")
    return place


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    place = torch.device(name)
    n_present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if place.type == "cuda" and (place.index or 0) >= n_present:
        raise EncoderError(
            f"device {name} asked for, but torch sees {n_present} GPUs; use --device cpu"
        )
    return place


def _seed(weights: str | None) -> int | None:
    if weights is None or not weights.startswith(_RANDOM):
        return None
    text = weights.removeprefix(_RANDOM)
    if not text.isdecimal():
        raise OptionError(f"weights {weights!r}: the seed must be a whole number, as random:0")
    return int(text)


@contextlib.contextmanager
def _forked_random_state(seed: int | None) -> Iterator[None]:
    """Draw from a generator of one's own, as far as torch's global one allows it.

    Modules are built on the CPU, so its generator is the only one to be kept.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed or 0)
        yield


def _check(patches: NDArray[np.uint8], smallest_px: int) -> None:
    check_patches(patches)
    if patches.shape[1] < smallest_px:
        raise EncoderError(
            f"patches of {patches.shape[1]} px; this encoder needs {smallest_px} px at least"
        )
