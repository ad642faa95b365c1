"""Encoders that a training left in a run: ``run:RUN``, or ``run:RUN#MEMBER``.

::

    RUN/encoders/<member>.json          what the network is: architecture, preprocessing, digest
    RUN/heads/<member>.safetensors      its weights, among those of the whole network

A member is one fold and seed, as ``0-1``. The description is data: architectures are looked up
by name, and nothing in either file is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.encoders.architectures import blueprint
from histostore.encoders.assembly import Backbone, SideBySide, layers_from
from histostore.encoders.base import EncoderIdentity
from histostore.encoders.blueprints import Blueprint, nothing_to_download
from histostore.encoders.cards import EncoderCard, read_cards
from histostore.encoders.torch import TorchEncoder, place_of
from histostore.encoders.weights import digest, load_strictly, read_state
from histostore.errors import Ambiguous, EncoderError, NotFound

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["FORMAT", "KIND", "body_of", "load", "members_of"]

FORMAT, KIND = 1, "histostore.encoder"
"""What a description begins with."""

_PREFIX = "run:"
_MEMBER = re.compile(r"\d+-\d+")
_SIZES = ("img_size", "image_size")


def load(
    *,
    card: EncoderCard,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int,
    precision: str = "float32",
) -> TorchEncoder:
    """Load the encoder that a training left in a run.

    Parameters
    ----------
    card
        Its name is ``run:RUN`` or ``run:RUN#MEMBER``.
    weights
        Where the run lies, if not where the name says.
    device, batch_size, threads, precision
        As :func:`histostore.encoders.torch.load` has them.

    Raises
    ------
    EncoderError
        If there is no run, or its files are damaged, were changed, or are of a newer format.
    NotFound
        If it holds no such member.
    Ambiguous
        If it holds several, and none is named.
    """
    place = place_of(device, precision)
    given, _, member = card.name.removeprefix(_PREFIX).partition("#")
    folder = Path(weights or given).expanduser()
    chosen = _choose(folder, member, card.name)
    path = folder / "encoders" / f"{chosen}.json"
    document = _read(path)
    plan = _plan(document, path)
    _fill(plan.module, document, folder / "heads" / f"{chosen}.safetensors", path)
    identity = EncoderIdentity(
        name=f"{_PREFIX}{document['network']}#{chosen}",
        weights=document["digest"],
        preprocessing={
            "input_px": plan.input_px,
            "channels": "RGB",
            "mean": list(plan.mean),
            "std": list(plan.std),
            "interpolation": f"{plan.interpolation}, antialiased",
            "parts": document["parts"],
        },
        precision=precision,
    )
    size = batch_size or (card.batch_size_cuda if place.type == "cuda" else card.batch_size)
    return TorchEncoder(plan, identity=identity, device=place, batch_size=size, threads=threads)


def members_of(folder: Path) -> tuple[str, ...]:
    """List the members of a run that are encoders, in the order of fold and seed."""
    found = [path.stem for path in (folder / "encoders").glob("*.json")]
    return tuple(
        sorted((m for m in found if _MEMBER.fullmatch(m)), key=lambda m: [*map(int, m.split("-"))])
    )


def _choose(folder: Path, member: str, name: str) -> str:
    members = members_of(folder)
    if not members:
        is_run = (folder / "run.json").is_file()
        why = (
            "its heads were trained on stored vectors, so it has no encoder of its own"
            if is_run
            else "give the directory that `zoo finetune -o` made, with --weights if it has moved"
        )
        what = f"{folder} is a run without encoders" if is_run else f"{folder} is no run"
        raise EncoderError(f"{name}: {what}: {why}")
    if member:
        if member not in members:
            raise NotFound(f"{name}: no member {member!r}; there are {', '.join(members)}")
        return member
    if len(members) > 1:
        raise Ambiguous(
            f"{folder} holds {len(members)} trained networks, one per fold and seed: choose one, "
            f"as {_PREFIX}{folder}#{members[0]}, out of {', '.join(members)}"
        )
    return members[0]


# -- the description ----------------------------------------------------------------------------

_KEYS: Mapping[str, type | tuple[type, ...]] = {
    "network": str,
    "prefix": str,
    "digest": str,
    "input_px": int,
    "mean": list,
    "std": list,
    "interpolation": str,
    "n_features": int,
    "parts": dict,
}


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise EncoderError(f"{path} cannot be read: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise EncoderError(f"{path} is no description of an encoder")
    version = document.get("format")
    if type(version) is not int or version > FORMAT:
        raise EncoderError(
            f"{path} has format {version!r}, this version reads up to {FORMAT}: upgrade histostore"
        )
    wrong = [key for key, kind in _KEYS.items() if not isinstance(document.get(key), kind)]
    if not wrong and not (document["parts"] and 0 < document["input_px"] <= 8192):
        wrong = ["parts" if not document["parts"] else "input_px"]
    if not wrong and document["interpolation"] not in {"bilinear", "bicubic"}:
        wrong = ["interpolation"]
    wrong += [key for key in ("mean", "std") if key not in wrong and not _triple(document[key])]
    if wrong:
        raise EncoderError(f"{path} is damaged: {', '.join(wrong)} is missing or makes no sense")
    return document


def _triple(values: Any) -> bool:
    """Tell three numbers, one per colour."""
    return (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in {int, float} for value in values)
    )


def _plan(document: Mapping[str, Any], path: Path) -> Blueprint:
    """Build the network without weights."""
    try:
        body = body_of(document["parts"], document["input_px"])
    except (EncoderError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EncoderError(f"{path} describes no network: {line}") from error
    nowhere = EncoderCard(name=str(document["network"]), summary="", licence="")
    return Blueprint(
        module=body,
        input_px=document["input_px"],
        mean=tuple(document["mean"]),
        std=tuple(document["std"]),
        interpolation=document["interpolation"],
        pooling="network",
        download=lambda: nothing_to_download(nowhere),
        translate=lambda state: state,
    )


def body_of(parts: Mapping[str, Any], px: int) -> nn.Module:
    """Build what stands under the prefix of a description.

    Parameters
    ----------
    parts
        Branch → description: ``architecture``, ``options``, ``pooling``, ``mean`` and ``std`` of
        a known architecture, or ``layers``. One branch has an empty name.
    px
        Side of the input.

    Raises
    ------
    EncoderError
        If a part is no such thing.
    """
    if list(parts) == [""]:
        part = parts[""]
        if isinstance(part, Mapping) and "layers" in part:
            return layers_from(part["layers"], device="meta")
        return Backbone(_part_plan(part, px))
    for branch in parts:
        if not re.fullmatch(r"[a-z][a-z0-9]{0,15}", branch):
            raise EncoderError(f"no branch is called {branch!r}")
    return SideBySide({branch: _part_plan(part, px) for branch, part in parts.items()})


def _part_plan(part: Any, px: int) -> Blueprint:
    if not isinstance(part, Mapping):
        raise EncoderError(f"a part is {type(part).__name__}, not a description")
    architecture, options = part.get("architecture"), part.get("options", {})
    source = str(architecture).partition(":")[0]
    if source not in {"timm", "torchvision", "histostore"} or not isinstance(options, Mapping):
        raise EncoderError(f"no architecture is {architecture!r}")
    # Only keywords that the table of encoders uses itself, and the size of the input.
    known = {key for row in read_cards() for key in row.options}.union(_SIZES)
    if odd := sorted(set(options) - known):
        raise EncoderError(f"{architecture} is not built with {', '.join(odd)}")
    if not _triple(part.get("mean")) or not _triple(part.get("std")):
        raise EncoderError(f"mean and std of {architecture} are not three numbers each")
    try:
        return blueprint(
            EncoderCard(
                name=str(architecture),
                summary="",
                licence="",
                architecture=str(architecture),
                options=dict(options),
                pooling=part.get("pooling"),
                mean=tuple(part["mean"]),
                std=tuple(part["std"]),
                input_px=px,
            )
        )
    except KeyError as error:
        raise EncoderError(f"no architecture is {architecture!r}") from error


# -- the weights --------------------------------------------------------------------------------


def _fill(body: nn.Module, document: Mapping[str, Any], file: Path, path: Path) -> None:
    """Give a network its weights, and hold them to the digest of the description."""
    everything = read_state(file)
    prefix = str(document["prefix"])
    state = {n.removeprefix(prefix): v for n, v in everything.items() if n.startswith(prefix)}
    part = document["parts"].get("")
    if isinstance(part, Mapping) and "names" in part:
        state = _numbered(state, part["names"], path)
        wanted = {name: tuple(value.shape) for name, value in body.state_dict().items()}
        if {name: tuple(value.shape) for name, value in state.items()} != wanted:
            raise EncoderError(f"{file} does not fit the layers of {path}")
        body.load_state_dict(state, assign=True)
    else:
        load_strictly(body, state, source=str(file), droppable=())
    if (found := digest(body)) != document["digest"]:
        raise EncoderError(
            f"{file} was changed after its training: its weights have digest {found[:15]}…, "
            f"{path.name} says {str(document['digest'])[:15]}…"
        )


def _numbered(state: Mapping[str, torch.Tensor], names: Any, path: Path) -> dict[str, torch.Tensor]:
    """Rename layers as they follow each other: ``stages.0.0.weight`` → ``0.weight``."""
    if not isinstance(names, list):
        raise EncoderError(f"{path} is damaged: names is no list")
    numbers = {str(name): number for number, name in enumerate(names)}
    renamed = {}
    for key, value in state.items():
        layer, _, kind = key.rpartition(".")
        if layer in numbers:
            renamed[f"{numbers[layer]}.{kind}"] = value
    return renamed
