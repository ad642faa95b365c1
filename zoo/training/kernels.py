"""Kernels that take rows in any number without being compiled for it."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ready_kernels"]


@contextlib.contextmanager
def ready_kernels(precision: str = "float32") -> Iterator[None]:
    """Leave oneDNN out while it has nothing to give.

    For some operations (GELU) torch has oneDNN compile a kernel for every shape, and keeps the
    last thousand. Packed batches have another number of rows each time: that cost a quarter of
    the time of a GELU and, over a run, a gigabyte. torch's own kernels take any shape. Products
    in bfloat16 are oneDNN's, so with that precision it stays.

    Parameters
    ----------
    precision
        Of matrix products.
    """
    torch = sys.modules.get("torch")
    if torch is None or precision != "float32":
        yield
        return
    # Only what is named is set; the other flags cannot be set without a warning.
    before, *_ = torch.backends.mkldnn.set_flags(_enabled=False, _fp32_precision=None)
    try:
        yield
    finally:
        torch.backends.mkldnn.set_flags(_enabled=before, _fp32_precision=None)
