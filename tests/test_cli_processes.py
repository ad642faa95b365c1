"""The commands as processes: interrupted, cut off, on a terminal and without one."""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from histostore import progress
from tests.commands import BUILD, begin, call, end, make_cohort, start


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A cohort of sixteen images, and its store."""
    folder = tmp_path_factory.mktemp("study")
    make_cohort(folder, n=16)
    assert call("histostore", "build", folder / "cohort.csv", folder / "store", *BUILD).code == 0
    return folder


KEPT = "Interrupted: what was finished is kept; run the same again."


def check_interrupted(words, told):
    """Every image that a build has told of is in the store, and the rest can follow."""
    told = max(map(int, re.findall(r"(\d+)/80", told)))
    rows = call("histostore", "ls", words[2], "--json").json
    assert 3 <= told <= len(rows) < 80
    again = call("histostore", *words, "--limit", len(rows) + 2, "--json").json
    assert again["n_done"] + again["n_embedded"] == len(rows) + 2


def test_ctrl_c_on_a_terminal_ends_with_130_and_keeps_what_the_bar_has_told_of(tmp_path):
    pty = pytest.importorskip("pty", reason="this system has no terminals to try")
    words = ("build", make_cohort(tmp_path, n=80), tmp_path / "store", *BUILD, "--stride", 4)
    terminal, side = pty.openpty()
    process = start("histostore", *words, stderr=side)
    os.close(side)
    drawn = ""
    with suppress(OSError):  # which is how a terminal ends
        while part := os.read(terminal, 10_000).decode(errors="replace"):
            if re.search(r"[3-9]/80", part) and not re.search(r"[3-9]/80", drawn):
                process.send_signal(signal.SIGINT)
            drawn += part
    os.close(terminal)
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (130, "")
    assert "embedding images" in drawn
    assert KEPT in drawn
    assert "Traceback" not in drawn
    check_interrupted(words, drawn)


def test_a_batch_system_that_ends_a_build_loses_nothing_that_was_told_of(tmp_path):
    words = ("build", make_cohort(tmp_path, n=80), tmp_path / "store", *BUILD, "--stride", 4)
    given = [str(word) for word in words]
    code = (
        "import cli, sys\n"
        "from histostore import progress\n"
        "progress.SECONDS_BETWEEN_LINES = 0\n"
        f"sys.argv[1:] = {given}\n"
        "cli.histostore_main()"
    )
    process = begin([sys.executable, "-c", code])
    told = "".join(process.stderr.readline() for _ in range(5))
    process.send_signal(signal.SIGTERM)
    done = end(process)
    assert (done.code, done.out) == (130, "")
    assert done.err.endswith(f"{KEPT}\n")
    assert "Traceback" not in done.err
    check_interrupted(words, told + done.err)


def test_a_reader_that_has_seen_enough_is_no_error(study):
    for words in (("histostore", "ls", study / "store"), ("zoo", "heads"), ("histostore", "-h")):
        process = start(*words)
        process.stdout.close()  # before anything is written
        with process:
            assert process.stderr.read() == ""
        assert process.returncode in {0, 1}


def test_output_that_cannot_be_written_is_one_line(study):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with full.open("w") as stdout:
        done = end(start("histostore", "ls", study / "store", stdout=stdout))
    assert (done.code, done.err) == (1, "Error: No space left on device\n")


def test_a_terminal_of_another_encoding_is_no_error():
    done = end(start("zoo", "recipes", env={**os.environ, "PYTHONIOENCODING": "latin-1"}))
    assert (done.code, done.err) == (0, "")
    assert "\\u03b3 = 2" in done.out


def test_progress_is_told_on_standard_error_where_there_is_no_terminal(
    study, monkeypatch, tmp_path
):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    given = (study / "store", study / "cohort.csv", "--head", "logistic", "-o", tmp_path / "run")
    done = call("zoo", "fit", *given, "--folds", 2, "--validation-share", 0.25, "--json")
    assert done.json["kind"] == "run"
    assert "fitting 1/2, fold 0, seed 0: validation macro-F1" in done.err
