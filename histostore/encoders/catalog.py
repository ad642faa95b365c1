"""The table of encoders, and the one door through which they are loaded.

An encoder is a row of data. A new one that is an architecture of timm or torchvision with
weights of its own (a pathology foundation model, say) is a new row, not new code. Nothing
here imports torch: a torch encoder brings it in when it is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import os
import re
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from histostore.errors import EncoderError, MissingExtra, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from histostore.encoders.base import Encoder

__all__ = ["ENCODERS", "EncoderCard", "card", "known_encoders", "load_encoder"]

PRECISIONS = ("float32", "bfloat16", "float16")
_TORCH = "histostore.encoders.torch:load"


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCard:
    """What is known of an encoder before it is loaded.

    ``None`` in ``input_px``, ``mean``, ``std`` or ``interpolation`` means that the
    architecture's own configuration decides.
    """

    name: str
    """As given to ``--encoder``; a name that ends in ``:NAME`` is an open pattern."""

    loader: str
    """``module:function``, called with the keywords of :func:`load_encoder`."""

    summary: str
    """One line for ``histostore encoders``."""

    licence: str
    """Terms of the weights, or of the code where there are no weights."""

    n_features: int | None = None
    """Width of its vectors; ``None`` where the architecture decides."""

    input_px: int | None = None
    """Side of the square input it resizes patches to, px."""

    mpp: float | None = None
    """Resolution it was trained at, micrometres per pixel; ``None`` where unknown."""

    needs_weights: bool = False
    """Whether ``--weights`` must be given, as there is nothing to download."""

    architecture: str | None = None
    """``timm:NAME``, ``torchvision:NAME`` or ``histostore:NAME``; ``None`` if not a torch module.
    Where it is set, the loader is handed this card as well, by the keyword ``card``."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords for the architecture, JSON values, as ``{"init_values": 1e-5}``."""

    hub: str | None = None
    """Hugging Face repository of the weights, instead of the architecture's own."""

    mean: tuple[float, float, float] | None = None
    """Mean per channel, of pixels scaled to 0..1."""

    std: tuple[float, float, float] | None = None
    """Standard deviation per channel, of pixels scaled to 0..1."""

    interpolation: str | None = None
    """``bilinear`` or ``bicubic``, both antialiased."""

    gated: bool = False
    """Whether the weights are handed out on request only."""

    precision: str = "float32"
    """Arithmetic that its authors used, for information; the caller's choice is what counts."""

    batch_size: int = 32
    """Patches at once on a CPU."""

    batch_size_cuda: int = 256
    """Patches at once on a GPU."""

    @property
    def is_pattern(self) -> bool:
        """Whether this card stands for a whole family of names."""
        return self.name.endswith(":NAME")


_CARDS = (
    EncoderCard(
        name="texture",
        loader="histostore.encoders.texture:load",
        summary="colour and texture statistics; no weights, no torch, any machine",
        licence="Apache-2.0",
        n_features=275,
    ),
    EncoderCard(
        name="squeezenet1_1",
        loader=_TORCH,
        architecture="histostore:squeezenet1_1",
        summary="SqueezeNet 1.1, ImageNet, average of the last feature map; small, needs --weights",
        licence="MIT (weights of DeepCognition/keras-squeezenet)",
        n_features=512,
        needs_weights=True,
    ),
    EncoderCard(
        name="timm:NAME",
        loader=_TORCH,
        architecture="timm:NAME",
        summary="any model of timm, pooled, without its classifier",
        licence="that of the weights",
    ),
    EncoderCard(
        name="torchvision:NAME",
        loader=_TORCH,
        architecture="torchvision:NAME",
        summary="any classification model of torchvision, pooled, without its classifier",
        licence="that of the weights",
    ),
)

ENCODERS: Mapping[str, EncoderCard] = MappingProxyType({row.name: row for row in _CARDS})
"""Every known encoder by name; the names that end in ``:NAME`` are open patterns."""


def known_encoders() -> tuple[EncoderCard, ...]:
    """List what there is, in the order of the table.

    Examples
    --------
    >>> [row.name for row in known_encoders()]
    ['texture', 'squeezenet1_1', 'timm:NAME', 'torchvision:NAME']
    """
    return tuple(ENCODERS.values())


def card(name: str) -> EncoderCard:
    """Find the card of one encoder.

    Parameters
    ----------
    name
        A name of the table, or one that fits a pattern, as ``timm:resnet18``.

    Returns
    -------
    card
        With ``name`` and ``architecture`` filled in, where a pattern matched.

    Raises
    ------
    EncoderError
        If there is no such encoder; the message lists the known ones and the nearest.

    Examples
    --------
    >>> card("timm:resnet18").architecture
    'timm:resnet18'
    """
    row = ENCODERS.get(name)
    if row is not None and not row.is_pattern:
        return row
    family, colon, rest = name.partition(":")
    pattern = ENCODERS.get(f"{family}:NAME")
    if pattern is not None and colon and rest not in {"", "NAME"}:
        return replace(pattern, name=name, architecture=name)
    raise EncoderError(
        f"unknown encoder {name!r}{_suggestion(name)}; known: {', '.join(sorted(ENCODERS))}"
    )


def _suggestion(name: str) -> str:
    """Name the nearest encoder; a bare architecture is near to a pattern filled with it."""
    model = name.partition(":")[2] or name
    filled = [row.replace(":NAME", f":{model}") for row in ENCODERS]
    nearest = difflib.get_close_matches(name, filled, n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def load_encoder(
    name: str,
    *,
    weights: str | Path | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "float32",
) -> Encoder:
    """Load one encoder, ready to encode.

    Parameters
    ----------
    name
        ``texture``, ``squeezenet1_1``, ``timm:resnet18``, ``torchvision:resnet18``, …
    weights
        A weights file (safetensors, npz or a torch checkpoint); ``None`` downloads what the
        encoder was published with; ``random:SEED`` draws weights, for tests and benchmarks
        only.
    device
        ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` takes a GPU where there is one.
    batch_size
        Patches at once; ``None`` takes the encoder's own.
    threads
        Threads of one forward pass on the CPU; ``None`` takes every core this process may
        use. Torch keeps one number of threads per process: the encoder loaded last sets it.
    precision
        ``float32``, ``bfloat16`` or ``float16`` (GPU only).

    Returns
    -------
    encoder
        Frozen; its identity names the weights, the preprocessing and the precision.

    Raises
    ------
    EncoderError
        If the encoder is unknown, its weights do not fit or cannot be had, or the device is
        absent.
    OptionError
        If an option makes no sense.
    MissingExtra
        If a library that it needs is not installed.
    """
    row = card(name)
    _check_options(device=device, batch_size=batch_size, threads=threads, precision=precision)
    if row.needs_weights and weights is None:
        raise EncoderError(
            f"{name} has no weights to download: give the file with --weights "
            "(or --weights random:0, for tests and benchmarks only)"
        )
    module, _, function = row.loader.partition(":")
    try:
        load = getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingExtra.named("torch", extra="torch") from error
    extra = {} if row.architecture is None else {"card": row}
    encoder = load(
        weights=None if weights is None else str(weights),
        device=device,
        batch_size=batch_size,
        threads=available_cores() if threads is None else threads,
        precision=precision,
        **extra,
    )
    return cast("Encoder", encoder)


def available_cores() -> int:
    """Count the cores this process may run on, at least one."""
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1  # macOS and Windows have no affinity to ask for


def _check_options(
    *, device: str, batch_size: int | None, threads: int | None, precision: str
) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise OptionError(f"unknown device {device!r}; use auto, cpu, cuda or cuda:N")
    if precision not in PRECISIONS:
        raise OptionError(f"unknown precision {precision!r}; use one of {', '.join(PRECISIONS)}")
    for option, value in (("batch size", batch_size), ("threads", threads)):
        if value is not None and value < 1:
            raise OptionError(f"{option} is {value}; it must be at least 1")
