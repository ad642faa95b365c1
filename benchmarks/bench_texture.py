"""How much faster is the texture encoder than the same measures by scikit-image?

Baseline: the reference of ``tests/histostore/test_texture.py``, which the tests hold the encoder
to; CPU time of one thread each, same patches, same process, best of several repetitions. Ratios
well below 10 would say that compiled kernels are not worth their code.

Run from the repository root::

    python benchmarks/bench_texture.py [--size 104] [--patches 24] [--threads 2]

One JSON document is printed: milliseconds per patch of both, ``ratio`` (reference ÷ encoder),
``families`` (milliseconds per patch of each step of the encoder), ``threads_speedup`` (of
elapsed time) and ``compile_s`` (first call in a fresh process: with an empty cache, and with a filled one).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from histostore.encoders import _texture_glcm as glcm
from histostore.encoders import _texture_lbp as lbp
from histostore.encoders import _texture_spectrum as spectrum
from histostore.encoders import texture
from histostore.encoders._texture_colour import CHANNELS, channels
from histostore.encoders._texture_moments import summaries

ROOT = Path(__file__).resolve().parents[1]

_FIRST_CALL = """
import time
start = time.perf_counter()
import numpy as np
from histostore.encoders.texture import load
encoder = load(threads=1)
imported = time.perf_counter()
encoder.encode(np.zeros((1, 104, 104, 3), np.uint8))
print(imported - start, time.perf_counter() - imported)
"""


def best(function, repeats, clock=time.process_time):
    """Give the shortest of several durations, in seconds of CPU unless told otherwise."""
    durations = []
    for _ in range(repeats):
        start = clock()
        function()
        durations.append(clock() - start)
    return min(durations)


def reference_module():
    """Load the tests' module, which holds the reference."""
    path = ROOT / "tests" / "histostore" / "test_texture.py"
    spec = importlib.util.spec_from_file_location("test_texture", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def families(patch, repeats=200):
    """Time each step on one patch, in milliseconds."""
    size = len(patch)
    planes = np.empty((len(CHANNELS), size * size))
    images = np.empty((2, size, size), np.uint8)
    channels(patch, planes, images[0])
    images[1] = images[0]
    corner, weight = lbp.sampling()
    patterns = np.empty(sum(lbp.N_PATTERNS))
    circles = np.array([points for points, _ in lbp.CIRCLES])
    distances = np.array(glcm.DISTANCES)
    steps = {
        "channels": lambda: channels(patch, planes, images[0]),
        "summaries": lambda: summaries(planes),
        "lbp": lambda: [lbp.histograms(i, corner, weight, circles, patterns) for i in images],
        "glcm": lambda: [glcm.properties(i, distances) for i in images],
        "power": lambda: spectrum.log_power(images),
    }
    return {name: round(1e3 * best(step, repeats), 4) for name, step in steps.items()}


def first_call():
    """Time import and first call of a fresh process, with an empty and a filled cache."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder, "PYTHONPATH": str(ROOT)}
        result = {}
        for name in ("empty_cache", "filled_cache"):
            output = subprocess.check_output(
                [sys.executable, "-c", _FIRST_CALL], env=environment, text=True
            )
            imported, called = map(float, output.split())
            result[name] = {"import_s": round(imported, 2), "first_call_s": round(called, 2)}
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=104, help="edge of a patch, px")
    parser.add_argument("--patches", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    reference = reference_module()
    batch = np.stack(
        [reference.noise(seed, options.size, smooth=1.0) for seed in range(options.patches)]
    )
    one, many = texture.load(threads=1), texture.load(threads=options.threads)
    one.encode(batch[:1])
    with threadpool_limits(1):
        fast = best(lambda: one.encode(batch), 10) / len(batch)
        slow = best(lambda: [reference.reference(patch) for patch in batch], 3) / len(batch)
    alone = best(lambda: one.encode(batch), 10, time.perf_counter)
    together = best(lambda: many.encode(batch), 10, time.perf_counter)
    document = {
        "patch_px": options.size,
        "encoder_ms": round(1e3 * fast, 3),
        "reference_ms": round(1e3 * slow, 2),
        "ratio": round(slow / fast, 1),
        "families_ms": families(batch[0]),
        "threads": options.threads,
        "threads_speedup": round(alone / together, 2),
        "compile_s": first_call(),
    }
    print(json.dumps(document, indent=2))


if __name__ == "__main__":
    main()
