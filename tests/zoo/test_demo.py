"""The demonstration goes the whole way, and its attention finds what was planted."""

from __future__ import annotations

import json

import pytest

from zoo.demo import run_demo
from zoo.errors import RunError
from zoo.run import Run


@pytest.mark.slow
def test_the_demonstration_goes_the_whole_way(tmp_path):
    said = []
    done = run_demo(tmp_path / "demo", say=said.append, seeds=1)
    assert done.report.is_file()
    assert json.loads((done.report.parent / "report.json").read_text())["format"] == 2
    assert Run.load(tmp_path / "demo" / "runs" / "ensemble").is_ensemble
    assert done.attention_auroc >= 0.95
    assert str(done.report) in done.to_text()
    assert said


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="holds something"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
