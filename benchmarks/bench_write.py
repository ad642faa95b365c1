"""How long does it take to write a cohort's embeddings, beside what people write today?

All sides begin with arrays in memory. Ours ends with everything flushed to the disk, checksummed
and committed, which no other layout does; so there are two rows each: against what the others do
(their bytes may still be in memory), and against the same with every file flushed.

What would change our mind: less than the pace of HDF5 in TRIDENT's layout.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from pathlib import Path

from benchmarks.layouts import CASES, RIVALS, SMOKE, Case, Data, alternately, missing, write_store
from benchmarks.measure import Ratio


def run(*, smoke: bool) -> list[Ratio]:
    """Measure every case."""
    tiny = Case(n_images=2, n_patches=2, n_features=4, dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        _measure(tiny, Path(folder), turns=1)  # else the first turn would pay for all imports
    rows = []
    for case in SMOKE if smoke else CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(case, Path(folder), turns=1 if smoke else 3)
    return rows


def _measure(case: Case, folder: Path, *, turns: int) -> list[Ratio]:
    data = Data(case)
    fresh = map(str, itertools.count())

    def write(kind: type, *, flushed: bool) -> None:
        target = folder / next(fresh)
        kind(target, data.ids).write(data)
        if flushed:
            _flush(target)

    calls = {"ours": lambda: write_store(folder / next(fresh), data)}
    for kind in RIVALS:
        if missing(kind) is None:
            for flushed in (False, True):
                calls[_label(kind, flushed)] = lambda k=kind, f=flushed: write(k, flushed=f)
    seconds = alternately(calls, turns)
    return [_row(case, kind, flushed, seconds) for kind in RIVALS for flushed in (False, True)]


def _label(kind: type, flushed: bool) -> str:
    return f"{kind.name}, {'flushed as ours is' if flushed else 'not flushed'}"


def _row(case: Case, kind: type, flushed: bool, seconds: dict[str, float]) -> Ratio:
    name, baseline = f"write a cohort, {case.name}", _label(kind, flushed)
    reason = missing(kind)
    if reason is not None:
        return Ratio.skipped(name, baseline=baseline, reason=reason)
    return Ratio(
        name=name,
        ours_s=seconds["ours"],
        theirs_s=seconds[baseline],
        ratio=seconds[baseline] / seconds["ours"],
        target=None,
        baseline=baseline,
    )


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line)
