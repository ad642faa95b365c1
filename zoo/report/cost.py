"""What runs took: time, numbers in a head, bytes on the disk."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

from zoo.report.sections import Cost

if TYPE_CHECKING:
    from pathlib import Path

    from zoo.run import Run

__all__ = ["cost", "n_parameters"]

_LONGEST_HEADER = 100_000_000


def cost(run: Run) -> Cost:
    """Say what a run took, as far as it is known."""
    paths = sorted(run.head_paths(whole=False).values())
    seconds = run.document.get("seconds")
    return Cost(
        seconds=float(seconds) if seconds else math.nan,
        n_fits=len(paths) or int(run.history.groupby(["fold", "seed"]).ngroups),
        parameters=n_parameters(paths[0]) if paths else None,
        bytes_of_heads=sum(path.stat().st_size for path in paths),
        peak_memory_bytes=_whole(run.document.get("peak_memory_bytes")),
        peak_device_memory_bytes=_whole(run.document.get("peak_device_memory_bytes")),
    )


def _whole(told: object) -> int | None:
    return int(told) if isinstance(told, int | float) else None


def n_parameters(path: Path) -> int | None:
    """Count the numbers in a head's file from its header, without reading them.

    Of a network these are its parameters and the statistics by which features are standardised.
    None where the file is not safetensors.
    """
    if path.suffix != ".safetensors":
        return None
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(length, _LONGEST_HEADER)))
        shapes = [told["shape"] for name, told in header.items() if name != "__metadata__"]
        return int(sum(math.prod(shape) for shape in shapes))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
