"""Files of heads: arrays as safetensors, all else as JSON; nothing in them is executed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.errors import StorageError
from zoo.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["check_arrays", "class_codes", "read_arrays", "read_json", "write_arrays", "write_json"]

_FORMAT = 1
_KIND = "zoo.head"


def write_arrays(
    path: str | os.PathLike[str], document: dict[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> None:
    """Write arrays with a JSON document beside them, at once or not at all."""
    from safetensors.numpy import save

    whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    _write(path, save(whole, metadata={"zoo": json.dumps(_stamped(document), sort_keys=True)}))


def write_json(path: str | os.PathLike[str], document: dict[str, Any]) -> None:
    """Write a JSON document, at once or not at all."""
    _write(path, json.dumps(_stamped(document), sort_keys=True, indent=1).encode())


def _stamped(document: dict[str, Any]) -> dict[str, Any]:
    return {"format": _FORMAT, "kind": _KIND, **document}


def _write(path: str | os.PathLike[str], content: bytes) -> None:
    target = Path(path)
    if not target.parent.is_dir():
        raise StorageError(f"{target}: cannot write there: no such folder")
    with atomic(target, durable=True) as hidden:
        hidden.write_bytes(content)


def read_arrays(
    path: str | os.PathLike[str],
) -> tuple[dict[str, Any], dict[str, NDArray[np.float32]]]:
    """Read what :func:`write_arrays` wrote.

    Raises
    ------
    RunError
        If the file is not a head of ours, is damaged, or was written by a newer format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        # The context manager of safetensors 0.4 leaves its memory map open; reading all
        # tensors inside it copies them, so nothing here depends on the file afterwards.
        with safe_open(os.fspath(path), framework="numpy") as file:
            text = (file.metadata() or {}).get("zoo", "")
            document = _document(path, text)
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path}: not a head that can be read: {error}") from error
    for name, array in arrays.items():
        if array.dtype.kind != "f" or not np.isfinite(array).all():
            raise RunError(f"{path}: array {name!r} holds what no head learns: file is damaged")
    return document, arrays


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read what :func:`write_json` wrote.

    Raises
    ------
    RunError
        If the file is not a head of ours, is damaged, or was written by a newer format.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: not a head that can be read: {error}") from error
    return _document(path, text)


def _document(path: str | os.PathLike[str], text: str) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("kind") != _KIND:
        raise RunError(f"{path}: not a head of this program")
    version = document.get("format")
    if not isinstance(version, int) or version > _FORMAT:
        raise RunError(
            f"{path}: written in format {version!r}, but this version reads {_FORMAT}: upgrade"
        )
    return document


def check_arrays(
    path: str | os.PathLike[str],
    arrays: Mapping[str, NDArray[Any]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Raise :class:`~zoo.errors.RunError` unless ``arrays`` have exactly these names and shapes."""
    found = {name: array.shape for name, array in arrays.items()}
    if found != dict(shapes):
        differing = sorted(
            name for name in {*found, *shapes} if found.get(name) != shapes.get(name)
        )
        raise RunError(f"{path}: arrays do not fit the head's settings: {', '.join(differing[:3])}")


def class_codes(
    path: str | os.PathLike[str], found: NDArray[Any] | None, n_classes: int
) -> NDArray[np.int64]:
    """Read which classes a head was fitted to, ``(class,)``, two at least and rising.

    Raises
    ------
    RunError
        If they are missing or are no such list.
    """
    codes = np.empty(0) if found is None else found
    whole = codes.ndim == 1 and len(codes) >= 2 and (codes == np.floor(codes)).all()
    if not whole or codes.min() < 0 or codes.max() >= n_classes or (np.diff(codes) <= 0).any():
        raise RunError(f"{path}: 'present' must list some of {n_classes} classes: file is damaged")
    return codes.astype(np.int64)
