"""Encoders by name, and the one door through which they are loaded.

The table itself is data: :mod:`histostore.encoders.cards`. Nothing here imports torch: a
torch encoder brings it in when it is loaded.
"""

from __future__ import annotations

import difflib
import importlib
import re
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from histostore.encoders.cards import EncoderCard, read_cards
from histostore.encoders.fusion import fuse, members, weights_of
from histostore.encoders.weightless import available_cores
from histostore.errors import EncoderError, MissingExtra, OptionError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from histostore.encoders.base import Encoder

__all__ = [
    "ENCODERS",
    "EncoderCard",
    "available_cores",
    "card",
    "known_encoders",
    "load_encoder",
]

PRECISIONS = ("float32", "bfloat16", "float16")


ENCODERS: Mapping[str, EncoderCard] = MappingProxyType({row.name: row for row in read_cards()})
"""Every known encoder by name; the names that end in ``:NAME`` are open patterns."""


def known_encoders() -> tuple[EncoderCard, ...]:
    """List what there is, in the order of the table.

    Examples
    --------
    >>> [row.name for row in known_encoders()][:2]
    ['texture', 'squeezenet1_1']
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
    filled = [
        row.name.replace(":NAME", f":{model}")
        for row in ENCODERS.values()
        if row.architecture is not None or not row.is_pattern  # no model's name fills a run's
    ]
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
        ``texture``, ``squeezenet1_1``, ``timm:resnet18``, ``torchvision:resnet18``, …; or
        several of them, as ``texture+squeezenet1_1``, whose features then stand side by side.
    weights
        A weights file (safetensors, npz or a torch checkpoint), held to its SHA-256 where that
        is given as ``PATH#sha256=HEX``, one of the hub as
        ``hf-hub:OWNER/NAME[@REVISION][/FILE][#sha256=HEX]``, or the folder of a SavedModel;
        ``None`` downloads what the encoder was published with; ``random:SEED`` draws weights,
        for tests and benchmarks only. Of several encoders, ``NAME=PATH`` with commas between.
    device
        ``cpu``, ``cuda``, ``cuda:1``, …; ``auto`` takes a GPU where there is one.
    batch_size
        Patches at once; ``None`` takes the encoder's own.
    threads
        Threads of the CPU to use; ``None`` takes every core this process may use.
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
    cards = [card(each) for each in members(name)]
    _check_options(device=device, batch_size=batch_size, threads=threads, precision=precision)
    given = weights_of(cards, None if weights is None else str(weights))

    def load(row: EncoderCard) -> Encoder:
        return _load_one(
            row,
            weights=given[row.name],
            device=device,
            batch_size=batch_size,
            threads=available_cores() if threads is None else threads,
            precision=precision,
        )

    return load(cards[0]) if len(cards) == 1 else fuse(cards, load)


def _load_one(row: EncoderCard, *, weights: str | None, **options: object) -> Encoder:
    if row.needs_weights and weights is None:
        raise EncoderError(
            f"{row.name} has no weights to download: give the file with --weights "
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
    return cast("Encoder", load(weights=weights, **options, **extra))


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
