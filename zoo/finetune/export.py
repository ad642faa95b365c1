"""What a training leaves for ``histostore build --encoder run:RUN``: a trained network as data.

The weights are those of ``RUN/heads``; beside them, ``RUN/encoders/<fold>-<seed>.json`` says
what the network in front of the classifier is, in words that :mod:`histostore.encoders.trained`
reads without this package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from histostore.atomic import atomic
from histostore.encoders.assembly import describe_layers
from histostore.encoders.trained import FORMAT, KIND
from histostore.encoders.weights import digest
from zoo.finetune.amil import AttentionNet, SmallCnn
from zoo.finetune.backbones import width_of

if TYPE_CHECKING:
    import os

    from zoo.finetune.backbones import Part
    from zoo.finetune.networks import Network

__all__ = ["describe_encoder", "write_encoder"]


def write_encoder(run: str | os.PathLike[str], member: str, net: Network) -> Path | None:
    """Describe the network of one fold and seed, so that it can encode patches.

    Parameters
    ----------
    run
        The run's directory, which holds ``heads/<member>.safetensors`` with the state of
        ``net.module``, or will.
    member
        ``<fold>-<seed>``.
    net
        Trained.

    Returns
    -------
    path
        Of the description; ``None`` where the network has no part that gives vectors alone.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    told = describe_encoder(net)
    if told is None:
        return None
    target = Path(run) / "encoders" / f"{member}.json"
    with atomic(target, durable=True) as hidden:
        hidden.write_text(json.dumps(told, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return target


def describe_encoder(net: Network) -> dict[str, Any] | None:
    """Describe a network without its classifier as JSON values; ``None`` where it is all one."""
    if net.parts:
        prefix = net.parts[0].path.partition(".")[0]
        body = net.module.get_submodule(prefix)
        branches = {part.path.partition(".")[2]: _part(part) for part in net.parts}
    else:
        layers = _layers(net.module)
        if not layers:
            return None
        prefix, body = "", nn.Sequential(*layers.values())
        branches = {"": {"layers": describe_layers([*layers.values()]), "names": [*layers]}}
    return {
        "format": FORMAT,
        "kind": KIND,
        "network": net.name,
        "prefix": f"{prefix}." if prefix else "",
        "digest": digest(body),
        "input_px": net.px,
        "mean": list(net.mean),
        "std": list(net.std),
        "interpolation": net.interpolation,
        "n_features": sum(part.width for part in net.parts) or width_of(body, net.px, net.name),
        "parts": branches,
    }


def _part(part: Part) -> dict[str, Any]:
    card, plan = part.card, part.plan
    return {
        "architecture": card.architecture,
        "options": dict(card.options),
        "pooling": card.pooling,
        "mean": list(plan.mean),
        "std": list(plan.std),
    }


def _layers(module: nn.Module) -> dict[str, nn.Module]:
    """List the layers that lead to a network's features: name in the network → layer."""
    if isinstance(module, AttentionNet):
        tops = {"extractor": module.extractor}
    elif isinstance(module, SmallCnn):
        tops = {"stages": module.stages, "dense": module.dense}
    else:
        return {}
    return {
        f"{top}.{name}" if name else top: layer
        for top, part in tops.items()
        for name, layer in part.named_modules()
        if not isinstance(layer, nn.Sequential)
    }
