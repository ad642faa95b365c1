"""How much memory does a build hold: of a whole slide, and of a small image?

Pyramids of JPEG tiles are written: an image of 2,000 px on a side, a small slide of 10,000, a whole
one of 100,000. Each is embedded in a process of its own, patch by patch of 256 px, 1,024 numbers each, by
an encoder that costs next to nothing and holds nothing: what is left is ours. Half a gigabyte of
disk and a quarter of an hour.

    python -m benchmarks.slide_memory --save benchmarks/results/slide_memory.json
    python -m benchmarks.slide_memory --edges 2000,20000

What would change our mind: peaks of the whole slide and of the small one that differ by more than
a fifth. The image is there to show what one batch takes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imagecodecs
import numpy as np
import tifffile

from benchmarks.measure import machine

if TYPE_CHECKING:
    from collections.abc import Iterator

TILE = 512
TARGET = 0.2
EDGES = (2_000, 10_000, 100_000)

CHILD = """
import json, sys
from dataclasses import dataclass
import numpy as np
from benchmarks.peaks import peak_mib
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.encoders.base import EncoderIdentity
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter

class Cheap:
    identity = EncoderIdentity(name="cheap")
    n_features, batch_size = 1024, 64

    def encode(self, patches):
        return np.repeat(patches.mean((1, 2, 3), dtype=np.float32)[:, None], 1024, axis=1)

@dataclass(frozen=True, kw_only=True, slots=True)
class Options(EncoderOptions):
    def load(self):
        return Cheap()

cohort, store, patch_size, tissue = json.loads(sys.argv[1])
report = build(cohort, store, BuildOptions(
    encoder=Options(name="cheap"), grid=PatchGrid(patch_size=patch_size),
    tissue=TissueFilter(**tissue), dtype="float16",
))
print(json.dumps([report.n_patches, peak_mib()]))
"""


def peak_of(cohort: Path, store: Path, *, patch_size: int = 256, **tissue: Any) -> tuple[int, int]:
    """Build in a process of its own; give patches embedded and the most it held, in MiB.

    Parameters
    ----------
    cohort, store
        Where they are.
    patch_size
        Edge of a patch in pixels.
    tissue
        Of the tissue filter.
    """
    arguments = json.dumps([str(cohort), str(store), patch_size, tissue])
    done = subprocess.run(
        [sys.executable, "-c", CHILD, arguments], check=True, capture_output=True, text=True
    )
    n_patches, peak = json.loads(done.stdout.splitlines()[-1])
    return n_patches, peak


def write_slide(path: Path, edge: int) -> None:
    """Write a pyramid of stained noise; a few tiles again and again, for it is long enough so."""
    rng = np.random.default_rng(0)
    noise = rng.normal((190, 110, 170), 20, (8, TILE, TILE, 3)).clip(0, 255).astype(np.uint8)
    encoded = [imagecodecs.jpeg_encode(tile, level=80) for tile in noise]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        for shrink in (1, 4, 16):
            side = -(-edge // shrink)
            n_tiles = (-(-side // TILE)) ** 2
            tiles: Iterator[bytes] = islice(cycle(encoded), n_tiles)
            file.write(
                tiles,
                shape=(side, side, 3),
                dtype=np.uint8,
                tile=(TILE, TILE),
                photometric="ycbcr",
                compression="jpeg",
                subfiletype=int(shrink > 1),
                resolution=(20_000 / shrink, 20_000 / shrink),
                resolutionunit="centimeter",
                metadata=None,
            )


def measure(folder: Path, edge: int) -> dict[str, float]:
    """Embed one slide in a process of its own."""
    folder.mkdir()
    write_slide(folder / "slide.tif", edge)
    (folder / "cohort.csv").write_text("image_id,path\nslide,slide.tif\n")
    began = time.perf_counter()
    n_patches, peak = peak_of(folder / "cohort.csv", folder / "s")
    seconds = time.perf_counter() - began
    return {"edge": edge, "n_patches": n_patches, "peak_mib": peak, "seconds": round(seconds, 1)}


def _edges(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--edges", type=_edges, default=EDGES, help="pixels on a side, by commas")
    parser.add_argument("--save", type=Path, help="write the JSON here, to be committed")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(Path(folder) / str(edge), edge) for edge in chosen.edges]
    more = rows[-1]["peak_mib"] / rows[-2]["peak_mib"] - 1
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "rows": rows,
        "more": more,
        "met": abs(more) <= TARGET,
    }
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if chosen.save is not None:
        chosen.save.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
