"""How fast do embeddings come back: a whole cohort into memory, and an epoch of random bags?

All sides start from nothing but a path, read the same values and end with the same arrays.
*Warm* files lie in the page cache; *cold* ones were dropped from it just before, so far as the
host lets them. Epochs read every bag once in random order: bag by bag, where a slice of what is
in memory or mapped is handed over as it is, and read when it is used; and in batches of 32 that
are laid end to end, where every side copies. Times are medians over turns taken alternately in one process: only their
ratio means anything on another machine.

What would change our mind: a ratio below ten against TRIDENT's layout, or below forty for an epoch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.layouts import (
    CASES,
    RIVALS,
    SMOKE,
    Case,
    Data,
    Trident,
    alternately,
    evict,
    installed,
    write_store,
)
from benchmarks.measure import Ratio
from histostore.store import open_store
from zoo.bags import Bags

if TYPE_CHECKING:
    from collections.abc import Callable

WHOLE_TARGET = 10.0
EPOCH_TARGET = 40.0
BATCH = 32


def run(*, smoke: bool) -> list[Ratio]:
    """Measure every case."""
    rows = []
    for case in SMOKE if smoke else CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows += _measure(case, Path(folder), turns=3 if smoke else 5)
    return rows


def _measure(case: Case, folder: Path, *, turns: int) -> list[Ratio]:
    data = Data(case)
    write_store(folder / "ours", data)
    rivals = {}
    for kind in RIVALS:
        if installed(kind):
            rivals[kind.name] = kind(folder / kind.__name__, data.ids)
            rivals[kind.name].write(data)

    def ours() -> np.ndarray:
        return open_store(str(folder / "ours")).feature_set().load().embedding

    calls = {"ours": ours, **{name: rival.all for name, rival in rivals.items()}}
    for name, call in calls.items():
        np.testing.assert_array_equal(call(), data.embedding, err_msg=name)
    places = {"ours": folder / "ours"}
    places |= {kind.name: folder / kind.__name__ for kind in RIVALS}
    warm = alternately(calls, turns)
    cold = alternately(calls, turns - 2, before=lambda name: evict(places[name]))
    results = []
    for state, seconds in (("warm", warm), ("cold", cold)):
        results += [_row(case, state, kind, seconds) for kind in RIVALS]
    return results + _epochs(case, folder, Trident(folder / "Trident", data.ids), turns)


def _row(case: Case, state: str, kind: type, seconds: dict[str, float]) -> Ratio:
    name = f"whole cohort into memory, {state}, {case.name}"
    theirs = seconds.get(kind.name)
    if theirs is None:
        skipped = f"{kind.name}: skipped, not installed (pip install pylance)"
        return Ratio(
            name=name, ours_s=seconds["ours"], theirs_s=0, ratio=0, target=None, baseline=skipped
        )
    return Ratio(
        name=name,
        ours_s=seconds["ours"],
        theirs_s=theirs,
        ratio=theirs / seconds["ours"],
        target=WHOLE_TARGET if (kind, state) == (Trident, "warm") else None,
        baseline=kind.name,
    )


def _epochs(case: Case, folder: Path, trident: Trident, turns: int) -> list[Ratio]:
    features = open_store(str(folder / "ours")).feature_set()
    memory = Bags.unlabelled(features, memory_limit=2**40)
    mapped = Bags.unlabelled(features, memory_limit=0, cache=folder / "cache")
    order = np.random.default_rng(1).permutation(case.n_images).tolist()
    batches = [order[at : at + BATCH] for at in range(0, len(order), BATCH)]

    def handed(bags: Bags) -> Callable[[], object]:
        return lambda: [bags[image].embedding for image in order]

    def gathered(bags: Bags) -> Callable[[], object]:
        return lambda: [bags[index].embedding for index in batches]

    def files() -> list[np.ndarray]:
        for image in order:
            bag = trident.bag(image)
        return [bag]

    def file_batches() -> list[np.ndarray]:
        for index in batches:
            rows = np.concatenate([trident.bag(image) for image in index])
        return [rows]

    results = []
    for how, ours, theirs in (
        ("bag by bag", handed, files),
        ("in batches laid end to end", gathered, file_batches),
    ):
        if theirs is file_batches and case.n_patches >= 1000:
            continue  # a batch of 32 slides is nobody's
        calls = {"memory": ours(memory), "mapped file": ours(mapped), "theirs": theirs}
        seconds = alternately(calls, turns)
        results += [
            Ratio(
                name=f"epoch of random bags {how}, from a {where}, {case.name}".replace(
                    "a memory", "memory"
                ),
                ours_s=seconds[where],
                theirs_s=seconds["theirs"],
                ratio=seconds["theirs"] / seconds[where],
                target=EPOCH_TARGET if how == "bag by bag" else None,
                baseline=Trident.name,
            )
            for where in ("memory", "mapped file")
        ]
    return results


if __name__ == "__main__":
    for row in run(smoke=True):
        print(
            f"{row.ratio:8.1f}  {row.ours_s:.5f} s  {row.theirs_s:.5f} s  {row.name}; {row.baseline}"
        )
