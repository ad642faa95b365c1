"""Peak memory: of the work in the block alone, and of every run for itself."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import zoo
from tests.zoo.runs import make_bags
from zoo.fit import Execution
from zoo.peaks import Peak, largest, measured

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process took")
MB = 1_000_000


@linux
def test_the_peak_is_that_of_the_block_not_of_what_was_before():
    with measured() as hungry:
        np.ones(40 * MB)
    with measured() as modest:
        np.ones(5 * MB)
    assert hungry.resident > 320 * MB
    assert modest.resident < hungry.resident - 200 * MB


def test_the_largest_is_told_only_where_all_are_known():
    told = [Peak(resident=3, device=None), Peak(resident=9, device=4)]
    assert largest(told) == {"peak_memory_bytes": 9}
    assert largest([]) == {}


@linux
@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_says_what_its_fits_took(tmp_path, workers):
    execution = Execution(workers=workers)
    run = zoo.fit_run(make_bags(), zoo.spec("logistic"), out=tmp_path / "run", execution=execution)
    assert 20 * MB < run.document["peak_memory_bytes"] < 20_000 * MB
