"""A short storm of kills; ``benchmarks/kill_storm.py`` is the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.kill_storm import storm


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
def test_no_row_is_lost_doubled_or_wrong_when_builds_are_killed(tmp_path):
    tally = storm(10, seed=1, folder=tmp_path)
    assert tally.kills >= 10
    assert tally.stores >= 1
    assert tally.looks >= tally.kills
