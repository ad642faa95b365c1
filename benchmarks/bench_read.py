"""How fast do embeddings come back: a whole cohort into memory, and an epoch of random bags?

All sides start from nothing but a path and end with the same values. *Warm* files lie in the page
cache; *cold* ones were dropped from it just before, so far as the host lets them.

An epoch reads every bag once in random order and adds up all its numbers, so that no side gets
away with handing over an address. Ours comes

- from memory, or from a mapped local file, as every epoch of a training but the first does;
- from the store, loaded first: opening and loading count;
- from the mapped file, opened first: its checksums are verified, which counts.

In batches of 32 that are laid end to end, every side copies. Times are medians over turns taken
alternately in one process: only their ratio means anything on another machine.

What would change our mind: a ratio below ten against TRIDENT's layout, or below forty for an epoch.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.layouts import (
    CANNOT_EVICT,
    CASES,
    RIVALS,
    SMOKE,
    Case,
    Data,
    Trident,
    alternately,
    evict,
    missing,
    write_store,
)
from benchmarks.measure import Ratio
from histostore.store import open_store
from zoo.bags import Bags

WHOLE_TARGET = 10.0
EPOCH_TARGET = 40.0
BATCH = 32
MOST_BATCHED = 1000  # patches a bag; 32 larger ones at once is nobody's batch
ALL_MEMORY = 2**40

Calls = dict[str, Callable[[], object]]


def run(*, smoke: bool) -> list[Ratio]:
    """Measure every case."""
    rows = []
    for case in SMOKE if smoke else CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows += Bench.prepared(case, Path(folder), turns=3 if smoke else 5).measured()
    return rows


@dataclass(frozen=True, kw_only=True)
class Bench:
    """One cohort, written in every layout."""

    case: Case
    data: Data
    folder: Path
    rivals: dict[type, object]
    order: list[int]
    turns: int

    @classmethod
    def prepared(cls, case: Case, folder: Path, *, turns: int) -> Bench:
        data = Data(case)
        write_store(folder / "ours", data)
        rivals = {
            kind: kind(folder / kind.__name__, data.ids) for kind in RIVALS if missing(kind) is None
        }
        for rival in rivals.values():
            rival.write(data)
        order = np.random.default_rng(1).permutation(case.n_images).tolist()
        return cls(case=case, data=data, folder=folder, rivals=rivals, order=order, turns=turns)

    def measured(self) -> list[Ratio]:
        rows = [*self.whole(), *self.warm_epochs()]
        gc.collect()  # pages of a file that is still mapped cannot be dropped
        rows += self.cold_epochs()
        if self.case.n_patches < MOST_BATCHED:
            rows += self.batches()
        return rows

    def alternately(self, calls: Calls, *, cold: bool) -> dict[str, float]:
        """Median seconds of each call; nothing where it cannot be had."""
        if not cold:
            return alternately(calls, self.turns)
        if CANNOT_EVICT is not None:
            return {}
        return alternately(calls, self.turns - 2, before=lambda _: evict(self.folder))

    def features(self):
        return open_store(str(self.folder / "ours")).feature_set()

    def bags(self, *, mapped: bool) -> Bags:
        return Bags.unlabelled(
            self.features(),
            memory_limit=0 if mapped else ALL_MEMORY,
            cache=self.folder / "cache",
        )

    def epoch(self, bag: Callable[[int], np.ndarray]) -> float:
        """Touch every number of every bag."""
        return sum(float(bag(image).sum(dtype=np.float32)) for image in self.order)

    def epoch_of(self, bags: Bags) -> float:
        return self.epoch(lambda image: bags[image].embedding)

    def whole(self) -> list[Ratio]:
        calls: Calls = {"whole cohort into memory": lambda: self.features().load().embedding}
        calls |= {kind.name: rival.all for kind, rival in self.rivals.items()}
        for name, call in calls.items():
            np.testing.assert_array_equal(call(), self.data.embedding, err_msg=name)
        rows = []
        for state in ("warm", "cold"):
            seconds = self.alternately(calls, cold=state == "cold")
            target = WHOLE_TARGET if state == "warm" else None
            rows += [self.row(next(iter(calls)), state, kind, seconds, target) for kind in RIVALS]
        return rows

    def warm_epochs(self) -> list[Ratio]:
        memory, mapped = self.bags(mapped=False), self.bags(mapped=True)
        ours: Calls = {
            "epoch of random bags from memory": lambda: self.epoch_of(memory),
            "epoch of random bags from a mapped file": lambda: self.epoch_of(mapped),
            "epoch of random bags from the store, loaded first": lambda: self.epoch_of(
                self.bags(mapped=False)
            ),
        }
        return self.epochs(ours, "warm", targets=2)

    def cold_epochs(self) -> list[Ratio]:
        ours: Calls = {
            "epoch of random bags from the store, loaded first": lambda: self.epoch_of(
                self.bags(mapped=False)
            ),
            "epoch of random bags from a mapped file, opened first": lambda: self.epoch_of(
                self.bags(mapped=True)
            ),
        }
        return self.epochs(ours, "cold", targets=0)

    def epochs(self, ours: Calls, state: str, *, targets: int) -> list[Ratio]:
        """Measure our ways against TRIDENT's, and the first of them against the others too."""
        theirs: Calls = {
            kind.name: lambda rival=rival: self.epoch(rival.bag)
            for kind, rival in self.rivals.items()
        }
        calls = ours | theirs
        expected = float(self.data.embedding.sum(dtype=np.float64))
        for name, call in calls.items():
            off = abs(call() - expected)
            assert off < 1e-3 * self.data.embedding.size**0.5 + 1, f"{name} is off by {off}"
        seconds = self.alternately(calls, cold=state == "cold")
        return [
            self.row(name, state, kind, seconds, EPOCH_TARGET if at < targets else None)
            for at, name in enumerate(ours)
            for kind in (RIVALS if at == 0 else (Trident,))
        ]

    def batches(self) -> list[Ratio]:
        memory, mapped = self.bags(mapped=False), self.bags(mapped=True)
        trident = self.rivals[Trident]
        parts = [self.order[at : at + BATCH] for at in range(0, len(self.order), BATCH)]
        name = "epoch of batches laid end to end from"
        calls: Calls = {
            f"{name} memory": lambda: [memory[part].embedding for part in parts],
            f"{name} a mapped file": lambda: [mapped[part].embedding for part in parts],
            Trident.name: lambda: [
                np.concatenate([trident.bag(image) for image in part]) for part in parts
            ],
        }
        seconds = self.alternately(calls, cold=False)
        return [
            self.row(ours, "warm", Trident, seconds, None) for ours in calls if ours != Trident.name
        ]

    def row(
        self, name: str, state: str, kind: type, seconds: dict[str, float], target: float | None
    ) -> Ratio:
        full_name = f"{name}, {state}, {self.case.name}"
        if kind is not Trident:
            target = None
        reason = missing(kind) or (CANNOT_EVICT if state == "cold" else None)
        if reason is not None:
            return Ratio.skipped(full_name, baseline=kind.name, reason=reason, target=target)
        return Ratio(
            name=full_name,
            ours_s=seconds[name],
            theirs_s=seconds[kind.name],
            ratio=seconds[kind.name] / seconds[name],
            target=target,
            baseline=kind.name,
        )


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line)
