"""What all benchmarks share: how a ratio is measured, and what machine it was measured on."""

from __future__ import annotations

import os
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from histostore.provenance import versions

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One question's answer: the baseline's seconds over ours, or what the row says."""

    name: str
    ours_s: float | None
    theirs_s: float | None
    ratio: float | None
    """None, as the seconds are, where the question was not asked."""
    target: float | None
    """None where there is no promise, only a number."""
    baseline: str
    """What `theirs` is. What follows the first semicolon may differ from run to run."""
    not_run: str | None = None
    """Why the question was not asked."""

    @classmethod
    def skipped(cls, name: str, *, baseline: str, reason: str, target: float | None = None) -> Self:
        """Make the row of a question that was not asked here."""
        return cls(
            name=name,
            ours_s=None,
            theirs_s=None,
            ratio=None,
            target=target,
            baseline=baseline,
            not_run=reason,
        )

    @property
    def met(self) -> bool | None:
        """Whether the target was met; None where there is none, or nothing was measured."""
        return None if self.target is None or self.ratio is None else self.ratio >= self.target

    @property
    def line(self) -> str:
        """The row in one line of text."""
        if self.not_run is not None:
            return f"not run: {self.not_run}  {self.name}; {self.baseline}"
        return (
            f"{self.ratio:8.2f}  {self.ours_s:.4f} s  {self.theirs_s:.4f} s  "
            f"{self.name}; {self.baseline}"
        )

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True, kw_only=True)
class Count:
    """A number that no machine changes: it is as wanted, or something is wrong."""

    name: str
    seen: int
    wanted: int
    at_most: bool = False
    """Whether fewer than wanted will do."""
    note: str = ""

    @property
    def held(self) -> bool:
        """Whether it is as wanted."""
        return self.seen <= self.wanted if self.at_most else self.seen == self.wanted

    @property
    def line(self) -> str:
        """The count in one line of text."""
        sign = "≤" if self.at_most else "="
        return (
            f"{'held' if self.held else 'MISSED'}  {self.seen} ({sign} {self.wanted})  {self.name}"
        )

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "held": self.held}


@dataclass(frozen=True, kw_only=True)
class Quality:
    """How good one head is on a cohort whose truth is known."""

    head: str
    settings: str
    """What is set other than by default."""
    macro_f1: dict[str, float]
    """``value``, ``low`` and ``high``, out of fold, over patients; so the others."""
    accuracy: dict[str, float]
    auroc: dict[str, float]
    seed_sd: float | None
    """Spread of macro-F1 over seeds."""
    attention_auroc: float | None
    """How well attention finds the planted patches; None for heads without."""
    seconds: float
    """Of all fits, together."""
    not_run: str | None = None
    """Why the head was not fitted."""

    @property
    def line(self) -> str:
        """The row in one line of text."""
        if self.not_run is not None:
            return f"{self.head:<15} not run: {self.not_run}"
        found = "–" if self.attention_auroc is None else f"{self.attention_auroc:.3f}"
        return (
            f"{self.head:<15} macro-F1 {self.macro_f1['value']:.3f}  "
            f"AUROC {self.auroc['value']:.3f}  attention {found}  {self.seconds:.1f} s"
        )

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def best_of(function: Callable[[], object], repeats: int) -> float:
    """Median wall-clock seconds of `repeats` calls."""
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def medians(turns: int, *functions: Callable[[], object], unused: int = 0) -> list[float]:
    """Time functions in turn, so that a change of the machine's speed hits all: median seconds.

    Parameters
    ----------
    turns
        How often each is called and timed.
    functions
        What to time.
    unused
        So many turns come before, and do not count.
    """
    seconds = [[best_of(function, 1) for function in functions] for _ in range(unused + turns)]
    return [statistics.median(column) for column in zip(*seconds[unused:], strict=True)]


def machine() -> dict[str, object]:
    """Facts without which a number means nothing."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "versions": versions(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"
