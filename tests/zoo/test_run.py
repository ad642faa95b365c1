"""Run directories: what is not ours, not whole or too new is refused in one line."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from tests.zoo.runs import make_run
from zoo.errors import RunError
from zoo.predictions import average, measure, predictions_frame
from zoo.run import Run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", seeds=2)


def change(run, **fields):
    document = json.loads((run.path / "run.json").read_text())
    (run.path / "run.json").write_text(json.dumps(document | fields))


def test_what_was_written_is_what_is_read(run):
    again = Run.load(run.path)
    assert again.document == run.document
    pd.testing.assert_frame_equal(again.predictions, run.predictions)
    assert again.name == "run"
    assert not again.is_ensemble


def test_probabilities_are_averaged_over_seeds_in_the_order_of_images(run):
    found = run.test_probabilities()
    assert found.image_ids.tolist() == sorted(found.image_ids.tolist())
    frame = run.predictions
    rows = frame[(frame["role"] == "test") & (frame["image_id"] == found.image_ids[7])]
    assert len(rows) == 2
    assert found.prob[7] == pytest.approx(rows.filter(like="prob_").to_numpy().mean(axis=0))
    assert run.classes[found.y_true[7]] == rows["target"].iloc[0]
    one = run.probabilities("test", seed=1)
    assert one.prob[7] == pytest.approx(rows[rows["seed"] == 1].filter(like="prob_").to_numpy()[0])


def test_metrics_tell_the_average_and_each_seed():
    prob = {0: [[0.9, 0.1], [0.6, 0.4]], 1: [[0.8, 0.2], [0.1, 0.9]]}
    frame = pd.concat(
        predictions_frame(
            image_ids=["i", "j"],
            patient_ids=["p", "q"],
            fold=0,
            seed=seed,
            role="test",
            target=["a", "b"],
            prob=np.array(values),
            classes=("a", "b"),
        )
        for seed, values in prob.items()
    )
    accuracy = measure(frame, ("a", "b"))["test"]["accuracy"]
    assert accuracy["value"] == 1.0
    assert accuracy["seeds"] == [0.5, 1.0]
    assert accuracy["seed_mean"] == 0.75
    assert accuracy["seed_sd"] == pytest.approx(0.3535533905932738)
    alone = measure(frame[frame["seed"] == 0], ("a", "b"))["test"]["accuracy"]
    assert alone["seed_sd"] is None
    assert average(frame, ("a", "b")).prob[1] == pytest.approx([0.35, 0.65])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"format": 2}, "format 2, this version reads up to 1: upgrade"),
        ({"format": None}, "not written by zoo"),
        ({"kind": "cat"}, "not written by zoo"),
        ({"classes": []}, "classes must be a list"),
        ({"classes": ["a", "b"]}, "predictions.parquet lacks prob_a, prob_b"),
        ({"name": 7}, "has no name"),
        ({"seeds": None}, "has no seeds"),
        ({"metrics": {}}, "has no test metrics"),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(run, fields, message):
    change(run, **fields)
    with pytest.raises(RunError, match=message):
        Run.load(run.path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("role", "exam", "role 'exam'"),
        ("role", "train", "no test row"),
        ("target", "class 9", "target 'class 9'"),
        ("prob_class 0", 2.0, "not probabilities"),
        ("prob_class 0", "much", "not probabilities"),
        ("prob_class 0", float("nan"), "not probabilities"),
    ],
)
def test_predictions_that_make_no_sense_are_refused(run, column, value, message):
    frame = run.predictions.drop(columns=column)
    frame[column] = value
    frame.to_parquet(run.path / "predictions.parquet")
    with pytest.raises(RunError, match=message):
        Run.load(run.path)


def test_a_missing_or_damaged_file_is_named(run):
    content = (run.path / "predictions.parquet").read_bytes()
    (run.path / "predictions.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(RunError, match=r"predictions\.parquet cannot be read"):
        Run.load(run.path)
    (run.path / "predictions.parquet").unlink()
    with pytest.raises(RunError, match=r"it has no predictions\.parquet"):
        Run.load(run.path)
    (run.path / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json cannot be read"):
        Run.load(run.path)
    (run.path / "run.json").write_text("[]")
    with pytest.raises(RunError, match="no JSON object"):
        Run.load(run.path)


def test_history_without_its_columns_is_refused(run):
    run.history.drop(columns="overfit_gap").to_parquet(run.path / "history.parquet")
    with pytest.raises(RunError, match=r"history\.parquet lacks overfit_gap"):
        Run.load(run.path)


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not a run: it has no run\.json"):
        Run.load(tmp_path)
    with pytest.raises(RunError, match="is not a run"):
        Run.load(tmp_path / "nowhere")


def test_a_run_without_heads_says_so(run):
    for path in run.head_paths().values():
        path.unlink()
    with pytest.raises(RunError, match="holds no heads: fit it again"):
        run.load_heads()


def test_a_run_that_lacks_some_of_its_heads_is_refused_and_not_half_asked(run):
    run.head_paths()[1, 0].unlink()
    with pytest.raises(RunError, match=r"1-0 \(fold-seed\) is missing"):
        run.load_heads()
    with pytest.raises(RunError, match="copy it again"):
        run.head_paths()
