"""Files of networks: where a training stands after each epoch, and what it ends with.

Both are one safetensors file with JSON in its header, written under another name, forced to disk
and renamed: it is there whole or not at all. Nothing in it is executed.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.atomic import atomic
from zoo.errors import RunError
from zoo.finetune.networks import network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from zoo.finetune.networks import Network

__all__ = [
    "load_network",
    "read_tensors",
    "save_network",
    "write_tensors",
]

_FORMAT = 1


def write_tensors(
    path: str | os.PathLike[str],
    kind: str,
    document: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
) -> None:
    """Write tensors with a JSON document, at once or not at all.

    Parameters
    ----------
    path
        The file.
    kind
        What it is, which :func:`read_tensors` asks for.
    document
        JSON values; numbers are kept to the last bit, infinities included.
    tensors
        By name, on any device.

    Raises
    ------
    StorageError
        If it cannot be written.
    """
    from safetensors.torch import save_file

    told = {"format": _FORMAT, "kind": kind, **document}
    # Copies: tensors that share memory are refused.
    whole = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with atomic(Path(path), durable=True) as hidden:
        save_file(whole, hidden, metadata={"zoo": json.dumps(told)})


def read_tensors(
    path: str | os.PathLike[str], kind: str
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read what :func:`write_tensors` wrote.

    Raises
    ------
    RunError
        If the file is no such thing, is damaged, or was written by a newer format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(os.fspath(path), framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("zoo", ""))
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: not a {kind} that can be read: {error}") from error
    if not isinstance(told, dict) or told.get("kind") != kind:
        raise RunError(f"{path}: not a {kind} of this program")
    if not isinstance(told.get("format"), int) or told["format"] > _FORMAT:
        raise RunError(
            f"{path}: written in format {told.get('format')!r}, but this version reads {_FORMAT}: "
            "upgrade"
        )
    return told, tensors


def save_network(path: str | os.PathLike[str], net: Network, document: Mapping[str, Any]) -> None:
    """Write a trained network.

    Parameters
    ----------
    path
        The file.
    net
        What was trained; its name says how to build it.
    document
        More that is to be remembered of it.
    """
    told = {**document, "name": net.name, "px": net.px}
    write_tensors(path, "network", told, net.module.state_dict())


def load_network(path: str | os.PathLike[str]) -> tuple[Network, dict[str, Any]]:
    """Read a trained network, in evaluation mode.

    Returns
    -------
    network
        As it was saved.
    document
        What else was remembered: ``classes``, ``outputs``, …

    Raises
    ------
    RunError
        If the file is not a network of ours, or does not fit its name.
    """
    told, tensors = read_tensors(path, "network")
    try:
        net = network(told["name"], told["outputs"], seed=0, weights="none", px=told["px"])
        net.module.load_state_dict(tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        line = str(error).strip().splitlines()[0]
        raise RunError(f"{path}: weights do not fit the network's name: {line}") from error
    _eval_only(net.module)
    return net, told


def _eval_only(module: nn.Module) -> None:
    """Put a network where it only predicts."""
    module.eval().requires_grad_(requires_grad=False)
