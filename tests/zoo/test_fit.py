"""Fitting: every image once, nothing learnt from the test part, resumable, reproducible."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from histostore.cohort import Cohort
from histostore.errors import NotFound, OptionError
from tests.zoo.runs import make_bags, make_run
from zoo.errors import RecipeError, RunError, SplitError
from zoo.fit import Execution, fit_run, make_split
from zoo.heads import spec
from zoo.metrics import METRICS
from zoo.recipes import recipe
from zoo.run import Run

SHORT = recipe(epochs=2)


def test_every_image_is_tested_once_per_seed_and_all_roles_are_recorded(tmp_path):
    bags = make_bags()
    run = make_run(tmp_path / "run", bags=bags, head="mlp-simple", seeds=2, recipe=SHORT)
    frame = run.predictions
    tested = frame[frame["role"] == "test"].groupby(["image_id", "seed"]).size()
    assert len(tested) == 2 * len(bags)
    assert (tested == 1).all()
    per_fold = frame.groupby(["fold", "seed", "image_id"]).size()
    assert len(per_fold) == 3 * 2 * len(bags)
    assert (per_fold == 1).all()
    sides = frame.groupby(["fold", "patient_id"])["role"].nunique()
    assert (sides == 1).all()
    truth = dict(zip(bags.image_ids, np.array(bags.classes)[bags.labels], strict=True))
    assert frame["target"].tolist() == [truth[image] for image in frame["image_id"]]
    assert run.history.groupby(["fold", "seed"])["epoch"].apply(list).tolist() == [[1, 2]] * 6


def test_the_document_says_what_was_done(tmp_path):
    run = make_run(tmp_path / "run", seeds=[3, 5], name="my run")
    told = run.document
    assert (told["format"], told["kind"], told["name"]) == (1, "run", "my run")
    assert told["head"]["name"] == "logistic"
    assert told["recipe"]["name"] == "default"
    assert told["classes"] == ["class 0", "class 1"]
    assert told["seeds"] == [3, 5]
    assert told["split"]["n_folds"] == 3
    assert told["split"]["validation_share"] == 0.125
    assert told["cohort"]["n_images"] == 60
    assert {"python", "numpy", "scikit-learn"} <= set(told["versions"])
    for role in ("test", "validation"):
        assert tuple(told["metrics"][role]) == METRICS
        f1 = told["metrics"][role]["macro_f1"]
        assert f1["low"] <= f1["value"] <= f1["high"]
        assert len(f1["seeds"]) == 2
    assert json.loads((run.path / "run.json").read_text()) == told
    assert sorted(path.name for path in run.path.iterdir()) == [
        "heads",
        "history.parquet",
        "predictions.parquet",
        "run.json",
    ]


def test_what_is_well_separated_is_learnt(tmp_path):
    test = make_run(tmp_path / "run", skill=2.0).document["metrics"]["test"]
    assert test["macro_f1"]["value"] > 0.95
    assert test["auroc"]["value"] > 0.99


def test_noise_is_not(tmp_path):
    found = []
    for seed in range(10):
        bags = make_bags(0.0, n=200, seed=seed)
        run = make_run(tmp_path / str(seed), bags=bags)
        found.append(run.document["metrics"]["test"]["auroc"])
    # One AUROC of 200 images has a standard error of 0.04, the mean of ten one of 0.013.
    assert abs(np.mean([auroc["value"] for auroc in found]) - 0.5) < 0.05
    assert sum(auroc["low"] < 0.5 < auroc["high"] for auroc in found) >= 7


def test_saved_heads_give_the_predictions_of_the_table(tmp_path):
    bags = make_bags()
    run = make_run(tmp_path / "run", bags=bags)
    heads = run.load_heads()
    assert sorted(heads) == [(0, 0), (1, 0), (2, 0)]
    for (fold, _), head in heads.items():
        frame = run.predictions
        rows = frame[(frame["fold"] == fold) & (frame["role"] == "test")]
        chosen = [bags.image_ids.index(image) for image in rows["image_id"]]
        recorded = rows[["prob_class 0", "prob_class 1"]].to_numpy()
        assert np.allclose(head.predict_proba(bags[chosen]), recorded, atol=1e-6)


def test_the_same_plan_gives_the_same_numbers(tmp_path):
    runs = [make_run(tmp_path / n, head="mlp-simple", recipe=SHORT) for n in ("a", "b")]
    pd.testing.assert_frame_equal(runs[0].predictions, runs[1].predictions)
    pd.testing.assert_frame_equal(runs[0].history, runs[1].history)
    assert runs[0].document["metrics"] == runs[1].document["metrics"]


@pytest.mark.slow
def test_processes_do_not_change_the_numbers(tmp_path):
    alone = make_run(tmp_path / "a", head="mlp-simple", recipe=SHORT)
    told = []
    execution = Execution(workers=2, progress=lambda *seen: told.append(seen))
    side_by_side = make_run(tmp_path / "b", head="mlp-simple", recipe=SHORT, execution=execution)
    pd.testing.assert_frame_equal(alone.predictions, side_by_side.predictions, atol=1e-6)
    assert [seen[:2] for seen in told] == [(1, 3), (2, 3), (3, 3)]


def test_a_run_that_was_stopped_goes_on_where_it_was(tmp_path):
    class Stopped(Exception):
        pass

    def stop(done, total, message):
        assert total == 3
        assert "fold" in message
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        make_run(tmp_path / "run", execution=Execution(progress=stop))
    with pytest.raises(RunError, match="stopped before its end"):
        Run.load(tmp_path / "run")
    told = []
    resumed = make_run(
        tmp_path / "run", execution=Execution(progress=lambda *seen: told.append(seen))
    )
    assert [seen[:2] for seen in told] == [(2, 3), (3, 3)]
    whole = make_run(tmp_path / "whole")
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)
    pd.testing.assert_frame_equal(resumed.history, whole.history)


def test_a_stopped_run_is_not_gone_on_with_for_another_plan(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "run", execution=Execution(progress=stop))
    with pytest.raises(RunError, match="unfinished run with another seeds"):
        make_run(tmp_path / "run", seeds=2)
    with pytest.raises(RunError, match="unfinished run with another embedding"):
        make_run(tmp_path / "run", skill=0.5)


def test_nothing_is_ever_written_over(tmp_path):
    make_run(tmp_path / "run")
    with pytest.raises(RunError, match="holds a finished run"):
        make_run(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(RunError, match="holds other files"):
        make_run(tmp_path / "other")
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "empty")


def test_a_recipe_that_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(RecipeError):
        make_run(tmp_path / "run", recipe=recipe("r-drop"))
    assert not (tmp_path / "run").exists()


def test_a_split_over_other_images_is_refused(tmp_path):
    bags = make_bags()
    with pytest.raises(SplitError, match="40 other images than these 60 bags"):
        fit_run(bags, spec("logistic"), out=tmp_path / "run", split=make_split(bags[:40]))


@pytest.mark.parametrize("seeds", [0, [], [1, 1], [-1]])
def test_seeds_that_make_no_sense_are_refused(tmp_path, seeds):
    with pytest.raises(OptionError, match="seeds is"):
        make_run(tmp_path / "run", seeds=seeds)


def test_no_worker_is_too_few():
    with pytest.raises(OptionError, match="workers is 0"):
        dataclasses.replace(Execution(), workers=0)


def test_the_options_of_the_command_line_make_the_split():
    bags = make_bags()
    assert len(make_split(bags, folds="4", repeats=2)) == 8
    alone = make_split(bags, folds="leave-one-patient-out")
    assert len(alone) == len(set(bags.patient_ids))
    frame = pd.DataFrame({"image_id": bags.image_ids, "path": "x.png"})
    names = np.array(bags.patient_ids)
    frame["part"] = np.where(np.isin(names, np.unique(names)[:8]), "test", "train")
    cohort = Cohort.from_frame(frame, check_files=False)
    (fold,) = make_split(bags, cohort, split_column="part")
    assert set(names[fold.test]) == set(np.unique(names)[:8])
    with pytest.raises(NotFound):
        make_split(bags, cohort, split_column="other")
    for wrong in ({"folds": "five"}, {"folds": "leave-one-patient-out", "repeats": 2}):
        with pytest.raises(OptionError):
            make_split(bags, **wrong)
    with pytest.raises(OptionError):
        make_split(bags, split_column="part")
    for fold in make_split(bags, folds=3, validation_share=0):
        assert len(fold.validation) == 0
        assert len(fold.train) + len(fold.test) == len(bags)
    with pytest.raises(SplitError, match="below 1"):
        make_split(bags, validation_share=1)


def test_whoever_may_read_a_run_may_read_its_heads(tmp_path):
    run = make_run(tmp_path / "run")
    files = [tmp_path / "run" / "run.json", *run.head_paths().values()]
    assert len({path.stat().st_mode for path in files}) == 1


@pytest.mark.parametrize("n_bytes", [0, 200])
def test_a_damaged_result_of_an_unfinished_run_is_named(tmp_path, n_bytes):
    def stop(done, *_):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_run(tmp_path / "run", execution=Execution(progress=stop))
    path = tmp_path / "run" / "unfinished" / "0-0.npz"
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(RunError, match=r"0-0\.npz is damaged: delete it"):
        make_run(tmp_path / "run")
    path.unlink()
    make_run(tmp_path / "run")
