"""A run's directory is filled by one process at a time, and by nobody once that was killed."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from histostore.errors import StorageError
from tests.commands import BUILD, begin, call, command, end, make_cohort
from zoo.claiming import begin as claim
from zoo.claiming import read_json
from zoo.errors import RunError

HOLD = """
import sys
from zoo.claiming import begin
with begin(sys.argv[1], {"head": "one"}):
    print("mine", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def held(folder):
    """Let another process claim a folder; give that process."""
    process = begin([sys.executable, "-c", HOLD, str(folder)], stdin=-1)
    assert process.stdout.readline() == "mine\n"
    try:
        yield process
    finally:
        end(process)


@pytest.mark.parametrize("plan", [{"head": "one"}, {"head": "other"}])
def test_what_another_process_fills_is_refused_until_that_ends_however_it_ends(tmp_path, plan):
    run = tmp_path / "run"
    with held(run) as process:
        message = f"{run} is being written by another process"
        with pytest.raises(RunError, match=message), claim(run, plan):
            pass
        process.kill()
        process.wait()
    with claim(run, plan) as unfinished:
        assert read_json(unfinished / "plan.json") == plan


def test_a_claim_that_failed_may_be_made_again_in_the_same_process(tmp_path):
    with pytest.raises(ZeroDivisionError), claim(tmp_path, {}):
        raise ZeroDivisionError
    with claim(tmp_path, {}):
        pass


def test_a_place_that_cannot_be_written_is_refused_with_the_reason(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match="Not a directory"),
        claim(tmp_path / "file" / "run", {}),
    ):
        pass
    with pytest.raises(RunError, match="other files"), claim(tmp_path / "file", {}):
        pass


def test_nothing_is_put_into_a_folder_of_other_files(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunError, match="other files"), claim(tmp_path, {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def children_of(process):
    return Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()


def is_alive(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def within(seconds, happened):
    """Wait for something; say whether it came."""
    deadline = time.monotonic() + seconds
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.05)
    return happened()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="processes are listed in /proc")
def test_workers_of_a_fit_that_was_killed_end_as_well(tmp_path):
    table = make_cohort(tmp_path)
    assert call("histostore", "build", table, tmp_path / "store", *BUILD).code == 0
    run = tmp_path / "run"
    words = ("fit", tmp_path / "store", table, "--head", "gated-mil", "--folds", 2, "--workers", 2)
    process = begin(command("zoo", *words, "--set", "epochs=100000", "-o", run))
    assert within(60, (run / "unfinished" / "embedding.npy").is_file)
    assert within(60, lambda: len(children_of(process)) >= 2)
    workers = children_of(process)
    process.kill()
    end(process)
    try:
        assert within(60, lambda: not any(map(is_alive, workers)))
    finally:
        for pid in filter(is_alive, workers):
            os.kill(int(pid), signal.SIGKILL)
