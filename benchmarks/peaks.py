"""The most memory that a process holds which does one thing: a build, or a straight loop.

``python -m benchmarks.peaks build|loop JSON`` does it and prints mebibytes. Linux's own count
(``VmHWM``) is read, of the process and of those it has started: what ``getrusage`` says of a new
process is at least what its parent held.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.orders import straight_loop
from histostore import Cohort
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["KINDS", "options_of", "peak_mib", "peaks_of"]

KINDS = ("build", "loop")
_STATUS = "/proc/self/status"


def options_of(*, patch: int, **encoder: Any) -> BuildOptions:
    """Ask for every patch of a plain grid."""
    return BuildOptions(
        encoder=EncoderOptions(**encoder),
        grid=PatchGrid(patch_size=patch),
        tissue=TissueFilter(method="none"),
    )


def peaks_of(cohort: Cohort, options: BuildOptions) -> dict[str, int | None]:
    """Do a build and a straight loop of the same images, each in a process of its own: MiB."""
    given = {
        "table": cohort.url,
        "n_images": len(cohort),
        "patch": options.grid.patch_size,
    }
    found: dict[str, int | None] = {}
    for kind in KINDS:
        words = [kind, json.dumps({**given, "encoder": asdict(options.encoder)})]
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.peaks", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parents[1],
        )
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return found


def peak_mib() -> int | None:
    """Most memory of this process and of those it started, so far; None where no /proc says."""
    if not Path(_STATUS).is_file():
        return None
    return round(sum(map(_peak_kib, ["self", *_children()])) / 1024)


def _children() -> Iterator[str]:
    for task in Path("/proc/self/task").iterdir():
        yield from (task / "children").read_text().split()


def _peak_kib(process: str) -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def _do(kind: str, *, table: str, n_images: int, patch: int, encoder: dict[str, Any]) -> None:
    options, cohort = options_of(patch=patch, **encoder), Cohort.read(table).limit(n_images)
    with tempfile.TemporaryDirectory() as folder:
        if kind == "build":
            build(cohort, f"{folder}/store", options)
        else:
            loaded = options.encoder.load()
            straight_loop(cohort.urls, loaded, patch, Path(folder))
        print(peak_mib())  # while a child of the encoder is there


if __name__ == "__main__":
    _do(sys.argv[1], **json.loads(sys.argv[2]))
