"""Weights files: read without executing anything, checked against the module, digested.

Three containers are read, told apart by content and not by name: safetensors, npz, and torch
checkpoints. A torch checkpoint is a pickle; torch's restricted unpickler builds tensors and
plain containers from it and refuses everything else, so nothing in a file is ever run.

The digest is taken over the tensors that the module ends up with, not over the file. The
same weights therefore have one identity in any container, with or without a classifier, and
whether they came from a file or from a hub.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # the exception alone; nothing is unpickled here
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from histostore.errors import EncoderError, MissingExtra

if TYPE_CHECKING:
    from torch import nn

__all__ = ["digest", "load_strictly", "read_state"]

State = dict[str, Tensor]

_SHOWN = 3
_WRAPPERS = ("state_dict", "model", "teacher")
_PARALLEL = "module."
_COUNTER = "num_batches_tracked"  # batch norm's step counter: decides nothing at inference
# All that the three readers were seen to raise on damaged bytes: they were made for sound ones.
_DAMAGE = (
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
_REFUSED = "refused; nothing in it was executed"
_SHA256 = "#sha256="


def read_state(path: str | Path) -> State:
    """Read the tensors of a weights file.

    ``state_dict``, ``model`` and ``teacher`` wrappers are opened and the prefix ``module.`` of parallel
    training is taken off.

    Parameters
    ----------
    path
        A local safetensors, npz or torch checkpoint file; ``PATH#sha256=HEX`` asks that the
        file have this SHA-256, as ``sha256sum`` prints it, before anything is read from it.

    Returns
    -------
    state
        Name to tensor, on the CPU.

    Raises
    ------
    EncoderError
        If there is no such file, or it has another digest, or is none of the three, damaged,
        or holds anything but tensors. Nothing in it is executed in any case.
    """
    name, _, wanted = str(path).partition(_SHA256)
    file = Path(name).expanduser()
    if not file.is_file():
        raise EncoderError(f"no weights file at {file}; give --weights an existing file")
    if _SHA256 in str(path):
        _check_digest(file, wanted)
    try:
        container = _container(file)
    except _DAMAGE as error:
        raise _damaged(file, "zip archive", error) from error
    if container is None:
        raise EncoderError(
            f"{file} is no weights file (safetensors, npz or torch checkpoint), "
            f"or is cut short: {_REFUSED}"
        )
    return _tensors(_unwrap(_READERS[container](file)), file)


def load_strictly(
    module: nn.Module, state: State, *, source: str, droppable: tuple[str, ...]
) -> None:
    """Load a state that must fit, but for a classifier the module no longer has.

    Parameters
    ----------
    module
        Takes the values, cast to its own dtypes.
    state
        As :func:`read_state` gives it.
    source
        What the state was read from, for the message.
    droppable
        Prefixes of names that may be left over, as ``("fc.",)``.

    Raises
    ------
    EncoderError
        If anything is missing, left over or of another shape; up to three of each are named.
    """
    wanted = module.state_dict()
    reshaped = {
        name: f"{name} is {tuple(state[name].shape)}, not {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & state.keys())
        if state[name].shape != wanted[name].shape
    }
    fitting = {name: value for name, value in state.items() if name not in reshaped}
    # The module, not a comparison of names, says what is missing: some rename old parameters.
    try:
        outcome = module.load_state_dict(fitting, strict=False)
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise EncoderError(f"{source} does not fit: {reason}") from error
    missing = [
        name
        for name in outcome.missing_keys
        if name not in reshaped and not name.endswith(_COUNTER)
    ]
    extra = [
        name
        for name in outcome.unexpected_keys
        if not name.startswith(droppable) and not name.endswith(_COUNTER)
    ]
    findings = [
        ("missing", missing),
        ("unexpected", extra),
        ("of another shape", [*reshaped.values()]),
    ]
    told = [f"{len(names)} {what} ({_some(names)})" for what, names in findings if names]
    if told:
        raise EncoderError(
            f"{source} does not fit: {'; '.join(told)}. Give the weights of this architecture"
        )


def digest(module: nn.Module) -> str:
    """Digest what a module's vectors depend on.

    Per tensor, in the order of their names: a line of JSON with name, dtype and shape, then
    the values as little-endian bytes. Step counters of batch normalisation are left out.

    Returns
    -------
    digest
        ``sha256:`` and 64 hex digits.

    Examples
    --------
    >>> from torch import nn
    >>> digest(nn.ReLU())[:19]
    'sha256:e3b0c44298fc'
    """
    sha = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if name.endswith(_COUNTER):
            continue
        header = [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        sha.update(json.dumps(header, separators=(",", ":")).encode() + b"\n")
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        sha.update(flat.view(torch.uint8).numpy())
    return f"sha256:{sha.hexdigest()}"


def _check_digest(file: Path, wanted: str) -> None:
    """Hold a file to the digest that was asked for."""
    if not re.fullmatch(r"[0-9a-fA-F]{64}", wanted):
        raise EncoderError(f"sha256 {wanted!r} is no digest; give 64 hex digits after {_SHA256!r}")
    with file.open("rb") as stream:
        seen = hashlib.file_digest(stream, "sha256").hexdigest()
    if seen != wanted.lower():
        raise EncoderError(
            f"{file} has SHA-256 {seen}, not {wanted.lower()} as asked for; download it again, "
            "or take the digest from a source you trust"
        )


def _container(file: Path) -> str | None:
    """Tell the container by its content."""
    with file.open("rb") as stream:
        start = stream.read(9)
    if start[:4] == b"PK\x03\x04" and zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
        if any(name.endswith(".npy") for name in names):
            return "npz file"
        if any(name.endswith("data.pkl") for name in names):
            return "torch checkpoint"
    if start[8:] == b"{":  # eight bytes of header length, then the header, a JSON object
        return "safetensors file"
    if start[:1] == b"\x80":  # a pickle's protocol byte: checkpoints from before torch 1.6
        return "torch checkpoint"
    return None


def _read_safetensors(file: Path) -> Any:
    try:
        import safetensors.torch
    except ModuleNotFoundError as error:
        raise MissingExtra.named("safetensors", extra="torch") from error
    try:
        return safetensors.torch.load_file(file)
    except (safetensors.SafetensorError, *_DAMAGE) as error:
        raise _damaged(file, "safetensors file", error) from error


def _read_npz(file: Path) -> Any:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}
    except _DAMAGE as error:
        raise _damaged(file, "npz file", error) from error


def _read_checkpoint(file: Path) -> Any:
    # From a stream, as torch goes by the suffix of a name.
    try:
        with file.open("rb") as stream, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(stream, map_location="cpu", weights_only=True)  # noqa: TID251 - the one place
    except UnpicklingError as error:
        raise EncoderError(
            f"{file} is a pickle that holds more than tensors, or is damaged: {_REFUSED}. "
            "Save the state dict alone, best as safetensors"
        ) from error
    except _DAMAGE as error:
        raise _damaged(file, "torch checkpoint", error) from error


_READERS = {
    "npz file": _read_npz,
    "safetensors file": _read_safetensors,
    "torch checkpoint": _read_checkpoint,
}


def _damaged(file: Path, kind: str, error: Exception) -> EncoderError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return EncoderError(f"{file} is no sound {kind} ({reason}): {_REFUSED}")


def _unwrap(loaded: Any) -> Any:
    for wrapper in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            return _unwrap(loaded[wrapper])
    return loaded


def _tensors(loaded: Any, file: Path) -> State:
    if not isinstance(loaded, Mapping) or not loaded:
        raise EncoderError(f"{file} holds a {type(loaded).__name__}, not named tensors: {_REFUSED}")
    odd = [f"{name}: {type(v).__name__}" for name, v in loaded.items() if not isinstance(v, Tensor)]
    if odd:
        raise EncoderError(f"{file} holds more than named tensors ({_some(odd)}): {_REFUSED}")
    parallel = all(str(name).startswith(_PARALLEL) for name in loaded)
    return {str(name).removeprefix(_PARALLEL if parallel else ""): v for name, v in loaded.items()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
