"""The demonstration goes the whole way, and its attention finds what was planted."""

from __future__ import annotations

import json

import pytest

from zoo import demo
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


def test_a_demonstration_that_was_stopped_goes_on(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(*_, **__):
        raise Stopped

    folder, size = tmp_path / "demo", {"n_images": 24, "seeds": 1, "folds": 2}
    monkeypatch.setattr(demo, "MEMBERS", (("mlp-simple", "default"), ("logistic", "default")))
    monkeypatch.setattr(demo, "attention_auroc", lambda *_: 1.0)
    with monkeypatch.context() as broken:
        broken.setattr(demo, "ensemble", stop)
        with pytest.raises(Stopped):
            run_demo(folder, **size)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("run.json")}
    with pytest.raises(RunError, match="holds something"):
        run_demo(folder, **{**size, "seeds": 2})
    assert run_demo(folder, **size).report.is_file()
    assert len(before) == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    with pytest.raises(RunError, match="holds something"):
        run_demo(folder, **size)


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(RunError, match="holds something"):
        run_demo(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
