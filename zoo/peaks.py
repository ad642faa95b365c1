"""How much memory a piece of work took at most, of this process and of the GPU.

The system keeps the largest resident size of a process since it began; a run among others of one
process would be told what the hungriest of them took. Linux lets a process begin that count anew
(``/proc/self/clear_refs``, proc(5)), and so it is exact and costs nothing while the work goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Peak", "largest", "measured"]

_BEGIN_ANEW = "5"


@dataclasses.dataclass(kw_only=True, slots=True)
class Peak:
    """Most memory at a time, in bytes; None where it cannot be told."""

    resident: int | None = None
    """Of the process: resident memory, with Python, libraries and embeddings in it."""
    device: int | None = None
    """Of the GPU: what PyTorch's allocator had handed out."""


@contextlib.contextmanager
def measured() -> Iterator[Peak]:
    """Measure what is done in the block; the numbers are there after it.

    Where the system does not let the count begin anew, nothing is told of the process.

    Examples
    --------
    >>> with measured() as peak:
    ...     block = bytearray(64_000_000)
    >>> peak.resident is None or peak.resident > 64_000_000
    True
    """
    peak = Peak()
    is_known = _begin_anew()
    _reset_device()
    try:
        yield peak
    finally:
        peak.resident = _high_water() if is_known else None
        peak.device = _device_high_water()


def largest(peaks: Sequence[Peak]) -> dict[str, int]:
    """Give the largest of several as entries of ``run.json``, each where it is known of all.

    Examples
    --------
    >>> largest([Peak(resident=5), Peak(resident=7)])
    {'peak_memory_bytes': 7}
    """
    told = {
        "peak_memory_bytes": [peak.resident for peak in peaks],
        "peak_device_memory_bytes": [peak.device for peak in peaks],
    }
    return {
        name: max(found)
        for name, sizes in told.items()
        if (found := [size for size in sizes if size is not None]) and len(found) == len(sizes)
    }


def _begin_anew() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text(_BEGIN_ANEW, encoding="ascii")
    except OSError:  # another system, or a kernel or container that does not allow it
        return False
    return True


def _high_water() -> int | None:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return None


def _reset_device() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _device_high_water() -> int | None:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())
