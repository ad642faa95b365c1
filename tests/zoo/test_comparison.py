"""Comparisons: sorted, paired with the best, refused where images differ."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from histostore.errors import OptionError
from tests.zoo.runs import make_bags, make_run
from zoo.comparison import compare, feature_sets
from zoo.errors import RunError
from zoo.run import Run
from zoo.statistics import paired_bootstrap


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    skills = {"good": 0.6, "noise": 0.0, "fair": 0.3}
    return {name: make_run(folder / name, skill=skill) for name, skill in skills.items()}


@pytest.fixture(scope="module")
def comparison(runs):
    return compare([run.path for run in runs.values()])


def test_the_best_macro_f1_comes_first(comparison):
    assert [row.name for row in comparison.rows] == ["good", "fair", "noise"]
    assert comparison.rows[0].to_best is None
    assert [row.n_images for row in comparison.rows] == [60] * 3


def test_differences_are_those_of_the_paired_bootstrap(runs, comparison):
    best, noise = (runs[name].test_probabilities() for name in ("good", "noise"))
    expected = paired_bootstrap(best.y_true, noise.prob, best.prob, best.patient_ids)
    assert comparison.rows[2].to_best == expected["macro_f1"]
    assert comparison.rows[2].to_best.high < 0
    assert comparison.rows[2].to_best.p < 0.05


def test_the_order_of_the_runs_plays_no_part(runs, comparison):
    assert compare([run.path for run in list(runs.values())[::-1]]) == comparison


def test_a_run_named_twice_counts_once(runs, comparison):
    paths = [run.path for run in runs.values()]
    assert compare([*paths, paths[0].parent / "." / paths[0].name]) == comparison


def test_tables_hold_every_run_and_the_warnings(comparison):
    document = json.loads(json.dumps(comparison.to_json(), allow_nan=False))
    assert [row["name"] for row in document["runs"]] == ["good", "fair", "noise"]
    assert document["runs"][1]["to_best"]["p"] == comparison.rows[1].to_best.p
    assert document["warnings"] == [
        "good, fair, noise: one seed only, the spread over seeds is not known"
    ]
    text, table = comparison.to_text().splitlines(), comparison.to_markdown().splitlines()
    assert [line.split()[0] for line in text] == ["run", "good", "fair", "noise", "!"]
    assert table[2].startswith("| good | logistic |")
    assert "p=" in text[3]
    assert "best" in text[1]


def test_another_split_is_warned_of(runs, tmp_path):
    other = make_run(tmp_path / "other", skill=0.3, split_seed=1, seeds=2)
    found = compare([runs["good"].path, other.path])
    assert any("other: another split than good" in warning for warning in found.warnings)


def test_runs_on_other_images_are_refused_by_name(runs, tmp_path):
    other = make_run(tmp_path / "other", bags=make_bags(0.3)[:58])
    with pytest.raises(RunError, match=r"2 images \(image 58, image 59\) that only one"):
        compare([runs["good"].path, other.path])
    three = make_run(tmp_path / "three", bags=make_bags(0.3, k=3))
    with pytest.raises(RunError, match="differ in classes"):
        compare([runs["good"].path, three.path])


def placed(run, path, feature_set, **changes):
    """Give a run with another feature set."""
    shutil.copytree(run.path, path)
    document = json.loads((path / "run.json").read_text())
    document |= {"store": {"feature_set": feature_set}, "name": path.name, **changes}
    (path / "run.json").write_text(json.dumps(document))
    return path


def test_runs_stand_with_their_feature_set(runs, tmp_path):
    paths = [
        placed(runs["good"], tmp_path / "a", "texture-1"),
        placed(runs["fair"], tmp_path / "b", "uni-2"),
        placed(runs["noise"], tmp_path / "c", "texture-1"),
    ]
    members = [{"run": path.name, "path": str(path), "digest": ""} for path in paths[:2]]
    both = placed(runs["good"], tmp_path / "both", "texture-1", kind="ensemble", members=members)
    found = compare([*paths, both])
    assert {name: [row.name for row in rows] for name, rows in found.groups.items()} == {
        "texture-1": ["a", "c"],
        "several feature sets": ["both"],
        "uni-2": ["b"],
    }
    lines = found.to_text().splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(("!", "mean"))] == [
        "run", "texture-1:", "a", "c", "several", "both", "uni-2:", "b",
    ]  # fmt: skip
    assert found.to_markdown().count("| --- |") == 3
    assert feature_sets(Run.load(both)) == ("texture-1", "uni-2")


def test_another_metric_may_decide(runs):
    paths = [run.path for run in runs.values()]
    found = compare(paths, metric="brier")
    assert [row.name for row in found.rows] == ["good", "fair", "noise"]
    best, noise = (runs[name].test_probabilities() for name in ("good", "noise"))
    told = paired_bootstrap(best.y_true, noise.prob, best.prob, best.patient_ids)["brier"]
    assert found.rows[2].to_best == told
    assert told.value > 0
    header = re.split(r"  +", found.to_text().splitlines()[0])
    assert header[2] == "Brier score"
    assert found.to_json()["metric"] == "brier"
    with pytest.raises(OptionError, match="use one of macro_f1, accuracy"):
        compare(paths, metric="f1")


def test_nothing_to_compare_is_refused():
    with pytest.raises(RunError, match="name at least one run"):
        compare([])
