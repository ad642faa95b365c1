"""Is a row ever lost, doubled or wrong when builds are killed?

Real build processes, one or two at once on the same store, are killed with SIGKILL at random
moments, in part while a third one compacts; each is started again until the store is whole.
After every kill a reader must see every image at most once and with the very values of a build
that nobody killed; in the end, exactly once. One row would change our mind.

    python -m benchmarks.kill_storm --kills 200
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np

from benchmarks.measure import machine
from histostore.store import open_store
from histostore.store.gc import collect_garbage
from histostore.store.verify import verify

if TYPE_CHECKING:
    from numpy.typing import NDArray

VIEWS = ("identity", "rot90")
N_IMAGES = 48
FRAGMENT_BYTES = 4 * 4 * 275 * 4 * len(VIEWS)  # about four images: many commits to be killed in

# Processes are forked from one that has imported everything and holds one thread, so that kills
# hit the work, and not the start of an interpreter.
NURSERY = f"""
import os, sys, traceback
import numpy as np
import histostore.build.gather as gather
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.unit import encoder_of
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.store.compact import compact
gather.FRAGMENT_BYTES = {FRAGMENT_BYTES}
options = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1, batch_size=16),
    grid=PatchGrid(patch_size=32), tissue=TissueFilter(method="none"), views={VIEWS!r},
)
encoder_of(options.encoder).encode(np.zeros((8, 32, 32, 3), np.uint8))
assert len(os.listdir("/proc/self/task")) == 1
print("ready", flush=True)

def work(role, cohort, store):
    if role == "build":
        build(cohort, store, options)
    while role == "compact":
        for features in open_store(store, mode="a").values():
            compact(features, target_bytes=200_000)

for line in sys.stdin:
    order, *arguments = line.split()
    if order == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(int(arguments[0]), 0)[1]), flush=True)
        continue
    child = os.fork()
    if child == 0:
        try:
            work(order, *arguments)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
"""


class Nursery:
    """A process that forks builders and compactors on demand."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-c", NURSERY],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"},
        )
        assert self._answer() == "ready"
        return self

    def __exit__(self, *_: object) -> None:
        with self._process:
            self._process.stdin.close()

    def _answer(self) -> str:
        return self._process.stdout.readline().strip()

    def _ask(self, *words: object) -> int:
        self._process.stdin.write(" ".join(map(str, words)) + "\n")
        self._process.stdin.flush()
        return int(self._answer())

    def start(self, role: str, cohort: Path, store: Path) -> int:
        """Start a process; give its number."""
        return self._ask(role, cohort, store)

    def wait(self, number: int) -> int:
        """Wait until a process has ended; give its exit status, negative for a signal."""
        return self._ask("wait", number)


@dataclass(kw_only=True)
class Tally:
    """What happened."""

    kills: int = 0
    stores: int = 0
    ended: int = 0
    """Processes that were done before their kill came."""
    looks: int = 0
    images_at_kill: list[int] = field(default_factory=list)
    uncommitted: int = 0
    fragments: int = 0
    roles: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, object]:
        begun = [n for n in self.images_at_kill if 0 < n < N_IMAGES]
        return {
            "kills": self.kills,
            "kills_by_role": dict(self.roles),
            "processes_done_before_their_kill": self.ended,
            "stores_built_to_the_end": self.stores,
            "looks_of_a_reader": self.looks,
            "kills_with_a_store_partly_built": len(begun),
            "uncommitted_folders_left_by_kills": self.uncommitted,
            "fragments_committed": self.fragments,
            "rows_lost_doubled_or_wrong": 0,
        }


def make_cohort(folder: Path) -> Path:
    from PIL import Image

    lines = ["image_id,path"]
    for number in range(N_IMAGES):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        lines.append(f"image-{number:02},{number}.png")
    (folder / "cohort.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "cohort.csv"


Rows = dict[tuple[str, str], tuple["NDArray[np.float32]", "NDArray[np.int32]"]]


def rows_of(store: Path) -> Rows:
    """What a reader gets; fails if an image is there twice."""
    found: Rows = {}
    if not (store / "zarr.json").exists():
        return found
    for features in open_store(str(store)).values():
        for view in features.augmentations:
            loaded = features.load(augmentation=view)
            assert len(set(loaded.image_ids)) == len(loaded.image_ids), "an image is doubled"
            for at, image_id in enumerate(loaded.image_ids):
                rows = slice(*loaded.offset[at : at + 2])
                found[image_id, view] = loaded.embedding[rows], loaded.coords[rows]
    return found


def check(store: Path, expected: Rows, *, whole: bool = False) -> int:
    """Hold a store against an uninterrupted build; give the number of images in it."""
    found = rows_of(store)
    assert found.keys() <= expected.keys(), "an image that nobody embedded"
    if whole:
        assert found.keys() == expected.keys(), "an image is lost"
    for key, arrays in found.items():
        for mine, right in zip(arrays, expected[key], strict=True):
            np.testing.assert_array_equal(mine, right, err_msg=str(key))
    return len({image_id for image_id, _ in found})


def storm(kills: int, *, seed: int = 0, folder: Path) -> Tally:
    """Kill builds until enough were killed and the last store is whole."""
    chance, tally = random.Random(seed), Tally()
    cohort = make_cohort(folder)
    with Nursery() as nursery:
        began = time.monotonic()
        assert nursery.wait(nursery.start("build", cohort, folder / "whole")) == 0
        longest = time.monotonic() - began
        expected = rows_of(folder / "whole")
        assert len(expected) == N_IMAGES * len(VIEWS)
        while tally.kills < kills:
            store = folder / f"store-{tally.stores}"
            build_until_whole(nursery, cohort, store, expected, longest, chance, tally)
            shutil.rmtree(store)
    return tally


def build_until_whole(
    nursery: Nursery,
    cohort: Path,
    store: Path,
    expected: Rows,
    longest: float,
    chance: random.Random,
    tally: Tally,
) -> None:
    before: set[tuple[str, str]] = set()
    life = longest
    while len(before) < len(expected):
        roles = ["build"] * chance.choice([1, 2])
        if (store / "zarr.json").exists() and chance.random() < 0.3:
            roles.append("compact")
        running = [(nursery.start(role, cohort, store), role) for role in roles]
        deadlines = sorted(time.monotonic() + chance.uniform(0, life) for _ in running)
        for (number, role), moment in zip(running, deadlines, strict=True):
            killed = kill_at(nursery, number, role, moment, tally)
            # The machine is as fast as its other users let it be: hit the work, not the end.
            life *= 1.03 if killed else 0.6
            tally.images_at_kill.append(check(store, expected))
            tally.looks += 1
        now = set(rows_of(store))
        assert before <= now, "what was committed is gone"
        before = now
    check(store, expected, whole=True)
    finish(store, expected, tally)


def kill_at(nursery: Nursery, number: int, role: str, moment: float, tally: Tally) -> bool:
    """Kill a process at a moment; say whether it was still at work then."""
    while time.monotonic() < moment and not has_ended(number):
        time.sleep(0.002)
    os.kill(number, signal.SIGKILL)  # not reaped yet, so the number is still its own
    status = nursery.wait(number)
    if status == -signal.SIGKILL:
        tally.kills += 1
        tally.roles[role] += 1
    else:
        assert status == 0, f"{role} ended with status {status}"
        tally.ended += 1
    return status == -signal.SIGKILL


def has_ended(number: int) -> bool:
    """Whether a process that nobody has waited for yet is over."""
    return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def finish(store: Path, expected: Rows, tally: Tally) -> None:
    """Verify a store that is whole, clear what the dead left, and look again."""
    report = verify(str(store))
    assert report.ok, report.problems
    tally.stores += 1
    tally.uncommitted += len(report.uncommitted)
    tally.fragments += report.n_fragments + report.n_replaced
    collect_garbage(str(store), min_age_s=0)
    assert check(store, expected, whole=True) == N_IMAGES
    assert verify(str(store)).uncommitted == ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/out"))
    arguments = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        tally = storm(arguments.kills, seed=arguments.seed, folder=Path(folder))
    document = {
        "machine": machine(),
        "took_s": round(time.monotonic() - began, 1),
        **tally.to_json(),
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "kill_storm.json").write_text(json.dumps(document, indent=2) + "\n")
    print(json.dumps({key: document[key] for key in document if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
