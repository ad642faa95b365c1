"""Import torchvision, and timm which needs it, beside a torch without CUDA.

A torchvision built for CUDA cannot load its compiled part beside a CPU-only torch, and its
Python part then fails at import, as it registers meta kernels for operators nobody has
declared (``operator torchvision::nms does not exist``). Declaring the two operators first is
enough: classification models do not use them. Nothing is declared where the compiled part
loads, because it declares them itself and would trip over a second declaration.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch

from histostore.errors import MissingExtra

__all__ = ["declare_missing_operators", "import_guarded"]

_SCHEMA = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


def import_guarded(library: str) -> Any:
    """Import ``torchvision`` or ``timm``, or a module of theirs.

    Raises
    ------
    MissingExtra
        If it is not installed; the message gives the pip command.
    """
    declare_missing_operators()
    try:
        return importlib.import_module(library)
    except ModuleNotFoundError as error:
        package = (error.name or library).partition(".")[0]
        raise MissingExtra.named(package, extra="torch") from error


def declare_missing_operators() -> None:
    """Declare ``torchvision::nms`` and ``qnms`` where torchvision's compiled part cannot load.

    Does nothing after the first call, beside a CUDA torch, and once torchvision is imported.
    """
    if torch.version.cuda is not None or "torchvision" in sys.modules or _compiled_part_loads():
        return
    for operator in ("nms", "qnms"):
        # RuntimeError: somebody, most likely we, has declared it already.
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{operator}", _SCHEMA)


def _compiled_part_loads() -> bool:
    """Try the compiled part as torchvision will; loading it twice is harmless."""
    spec = importlib.util.find_spec("torchvision")
    folders = () if spec is None else spec.submodule_search_locations or ()
    libraries = [path for folder in folders for path in Path(folder).glob("_C*.*")]
    for library in libraries:
        try:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
        except OSError:
            return False
    return bool(libraries)
