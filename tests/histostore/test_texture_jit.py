"""Compiling the texture kernels: several processes at once, and a cache that is read-only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest

from histostore.jit import compiled

PROGRAM = """
import hashlib, numpy as np
from histostore.encoders.texture import load
batch = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)
print(hashlib.sha256(load(threads=2).encode(batch).tobytes()).hexdigest())
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROGRAM],
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, "NUMBA_CACHE_DIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_processes_that_start_at_once_share_one_fresh_cache(tmp_path):
    processes = [start(tmp_path) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert len({stdout for stdout, _ in outputs}) == 1
    assert list(tmp_path.rglob("*.nbi"))
    late = start(tmp_path)  # reads what the others left
    assert late.communicate(timeout=300)[0] == outputs[0][0]


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, caplog):
    njit = numba.njit

    def read_only(*, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", read_only)

    @compiled()
    def double(value):
        return 2 * value

    assert double(21) == 42
    assert "double will be compiled at each start" in caplog.text
