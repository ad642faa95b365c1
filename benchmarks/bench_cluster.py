"""What do two Dask workers do that one cannot?

Baseline: one worker. Each worker has one thread to compute in and, in the row with a target,
one core of its own: a build also reads images and writes fragments beside the encoder, and a
single worker would otherwise help itself to the second core for that. The second row leaves
them free. Both clusters run all the time, with their encoders loaded, and build in turn.
The small run shows that it works: its units are too small for a promise.
What would change our mind: a ratio below 1.8 on two quiet cores.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measure import Ratio
from histostore import Cohort
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.synthetic import make_cohort

TARGET = 1.8
REPEATS = 3
OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=256),
    tissue=TissueFilter(method="none"),
)


def pin(cores: list[int]) -> None:
    """Keep every thread of this process, and those to come, on some cores."""
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def warm_up() -> None:
    """Load the encoder in a worker, and have it compile what it compiles."""
    import numpy as np

    from histostore.build.unit import encoder_of

    encoder_of(OPTIONS.encoder).encode(np.zeros((2, 256, 256, 3), np.uint8))


def start(n_workers: int, stack: ExitStack, *, pinned: bool) -> str:
    """Start a cluster whose workers are ready; give its address."""
    import distributed

    library: Any = distributed
    cluster = stack.enter_context(
        library.LocalCluster(
            n_workers=n_workers, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        )
    )
    client = stack.enter_context(library.Client(cluster))
    client.run(warm_up)
    if pinned:
        cores = sorted(os.sched_getaffinity(0))
        for at, address in enumerate(client.scheduler_info(n_workers=-1)["workers"]):
            client.run(pin, [cores[at % len(cores)]], workers=[address])
    return str(cluster.scheduler_address)


def question(
    cohort: Cohort, folder: str, *, pinned: bool, repeats: int, target: float | None
) -> Ratio:
    seconds: dict[int, list[float]] = {1: [], 2: []}
    with ExitStack() as stack:
        addresses = {n: start(n, stack, pinned=pinned) for n in seconds}
        for repeat in range(repeats):
            for n, address in addresses.items():
                began = time.perf_counter()
                build(cohort, f"{folder}/{pinned}-{repeat}-{n}", OPTIONS, scheduler=address)
                seconds[n].append(time.perf_counter() - began)
    one, two = (statistics.median(seconds[n]) for n in (1, 2))
    return Ratio(
        name=f"one Dask worker ÷ two, texture, {len(cohort)} images, "
        + ("a core each" if pinned else "cores shared"),
        ours_s=two,
        theirs_s=one,
        ratio=one / two,
        target=target if pinned else None,
        baseline="one worker with one thread",
    )


def unable() -> str | None:
    """Say why this cannot be measured here; None where it can."""
    if find_spec("distributed") is None:
        return "distributed is not installed (pip install 'histostore[cluster]')"
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot keep a process on one core"
    if len(os.sched_getaffinity(0)) < 2:
        return "there is one core only"
    return None


def run(*, smoke: bool) -> list[Ratio]:
    reason = unable()
    if reason is not None:
        return [
            Ratio.skipped(
                "one Dask worker ÷ two, texture, a core each",
                baseline="one worker with one thread",
                reason=reason,
                target=TARGET,
            )
        ]
    # 4 or 8 units, so that two workers get equal shares; in the small run of one patch an image.
    n_images, image_px = (256, 256) if smoke else (512, 512)
    with tempfile.TemporaryDirectory() as folder:
        table = make_cohort(Path(folder) / "images", n_images=n_images, image_px=image_px, seed=0)
        cohort = Cohort.read(str(table))
        pins = (True,) if smoke else (True, False)
        repeats = 1 if smoke else REPEATS
        return [
            question(
                cohort, folder, pinned=pinned, repeats=repeats, target=None if smoke else TARGET
            )
            for pinned in pins
        ]


if __name__ == "__main__":
    for row in run(smoke=True):
        print(row.line)
