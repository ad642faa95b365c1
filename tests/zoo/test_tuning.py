"""Tuning: what a fold is tested on has no say, and stopped searches go on."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest

from histostore.errors import MissingExtra, OptionError
from tests.commands import BUILD, call, make_cohort
from tests.zoo.runs import make_bags, make_run
from zoo.bags import Bags
from zoo.comparison import compare
from zoo.errors import RecipeError, RunError, SplitError
from zoo.fit import Execution, make_split
from zoo.heads import spec
from zoo.recipes import recipe
from zoo.run import Run
from zoo.tasks import Task
from zoo.tuning import Search, tune

pytest.importorskip("optuna", reason="needs the extra tune")

QUICK = {"inverse_penalty": "1e-3:1:log", "statistics": "mean,mean+sd"}


def tuned(out, bags=None, *, head="logistic", split=None, folds=2, search=None, **options):
    """Tune a quick head."""
    bags = make_bags() if bags is None else bags
    split = make_split(bags, folds=folds) if split is None else split
    search = Search(space=QUICK, trials=3, inner_folds=2) if search is None else search
    return tune(bags, spec(head), out=out, split=split, search=search, **options)


def trials(run):
    return pd.read_parquet(run.path / "trials.parquet")


# ---------------------------------------------------------------------- honesty


def test_on_noise_the_inner_score_is_too_good_and_the_outer_is_chance(tmp_path):
    inner, outer = [], []
    for seed in range(2):
        bags = make_bags(0.0, n=80, seed=seed, n_features=3)
        search = Search(
            space={
                "n_neighbours": "1:15",
                "metric": "cosine,euclidean",
                "statistics": "mean,max,min",
            },
            trials=15,
            inner_folds=2,
            metric="accuracy",
        )
        run = tuned(tmp_path / str(seed), bags, head="knn", search=search)
        inner += [fold["score"] for fold in run.document["tuning"]["chosen"]]
        outer.append(run.document["metrics"]["test"]["accuracy"]["value"])
    # The standard error of 160 images is 0.04; the best of 20 trials lies above by selection.
    assert abs(np.mean(outer) - 0.5) < 0.09
    assert np.mean(inner) > 0.6


def test_what_a_fold_is_tested_and_validated_on_changes_nothing_of_its_search(tmp_path):
    bags = make_bags(0.5)
    split = make_split(bags, folds=2)
    fold = split.folds[0]
    hidden = np.concatenate([fold.test, fold.validation])
    labels = np.array(bags.classes)[bags.labels]
    labels[hidden] = labels[hidden][::-1]
    rows = bags.embedding.copy()
    for bag in hidden:
        rows[bags.offset[bag] : bags.offset[bag + 1]] = 1e3 * bag
    others = Bags.from_arrays(
        rows,
        bags.offset,
        labels=list(labels),
        image_ids=bags.image_ids,
        patient_ids=bags.patient_ids,
    )
    first, second = (
        tuned(tmp_path / name, told, split=split) for name, told in (("a", bags), ("b", others))
    )
    for run in (first, second):
        assert len(trials(run)) == 6
    columns = ["number", "state", "params", "score"]
    mine = [trials(run).query("fold == 0")[columns] for run in (first, second)]
    pd.testing.assert_frame_equal(*mine)
    assert first.document["tuning"]["chosen"][0] == second.document["tuning"]["chosen"][0]
    fitted = [run.load_heads()[0, 0].coefficients for run in (first, second)]
    assert np.array_equal(*fitted)


def test_a_tuned_run_is_a_run_and_says_what_was_chosen(tmp_path):
    run = tuned(tmp_path / "tuned", folds=3, seeds=2)
    assert sorted(path.name for path in run.path.iterdir()) == [
        "heads",
        "history.parquet",
        "predictions.parquet",
        "run.json",
        "trials.parquet",
    ]
    tested = run.predictions.query("role == 'test'").groupby(["image_id", "seed"]).size()
    assert (tested == 1).all()
    assert len(tested) == 2 * 60
    told = Run.load(run.path).document["tuning"]
    assert [told[key] for key in ("trials", "inner_folds", "metric")] == [3, 2, "macro_f1"]
    assert [chosen["fold"] for chosen in told["chosen"]] == [0, 1, 2]
    assert set(told["space"]) == {"head.inverse_penalty", "head.statistics"}
    frame = trials(run)
    assert len(frame) == 9
    for chosen in told["chosen"]:
        of_fold = frame[frame["fold"] == chosen["fold"]]
        assert chosen["score"] == of_fold["score"].max()
        row = of_fold[of_fold["number"] == chosen["number"]].iloc[0]
        assert (
            json.loads(row["params"])["head.statistics"].split("+")
            == (chosen["settings"]["head.statistics"])
        )
        for seed in (0, 1):
            head = run.load_heads()[chosen["fold"], seed]
            assert list(head.spec.statistics) == chosen["settings"]["head.statistics"]
            assert head.spec.inverse_penalty == chosen["settings"]["head.inverse_penalty"]
    plain = make_run(tmp_path / "plain", folds=3)
    assert len(compare([run.path, plain.path]).rows) == 2


def test_the_first_trial_is_what_would_be_fitted_without_a_search(tmp_path):
    run = tuned(tmp_path / "run")
    first = [json.loads(text) for text in trials(run).query("number == 0")["params"]]
    assert first == [{"head.inverse_penalty": 1.0, "head.statistics": "mean+sd"}] * 2


# ---------------------------------------------------------------------- budget, and going on


def test_a_search_that_was_stopped_goes_on_as_if_it_had_not_been(tmp_path):
    class Stopped(Exception):
        pass

    told = []

    def stop(done, total, message):
        told.append((done, total, message))
        if len(told) == 6:  # in the second fold's search
            raise Stopped

    search = Search(space=QUICK, trials=4, inner_folds=2)
    with pytest.raises(Stopped):
        tuned(tmp_path / "run", search=search, execution=Execution(progress=stop))
    assert [seen[:2] for seen in told] == [(n, 10) for n in range(1, 7)]
    assert told[5][2].startswith("fold 1, trial 0: macro_f1")
    with pytest.raises(RunError, match="another tuning"):
        tuned(tmp_path / "run")
    kept = sorted(path.name for path in (tmp_path / "run/unfinished/trials").iterdir())
    assert kept == ["0-0.json", "0-1.json", "0-2.json", "0-3.json", "1-0.json"]
    told.clear()
    told.extend([None] * 10)
    resumed = tuned(tmp_path / "run", search=search, execution=Execution(progress=stop))
    assert told[-1][:2] == (10, 10)
    whole = tuned(tmp_path / "whole", search=search)
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)
    columns = ["fold", "number", "state", "params", "score"]
    pd.testing.assert_frame_equal(trials(resumed)[columns], trials(whole)[columns])
    assert resumed.document["tuning"] == whole.document["tuning"]


def test_another_seed_tries_other_settings(tmp_path):
    found = [
        trials(
            tuned(
                tmp_path / str(seed), search=Search(space=QUICK, trials=2, inner_folds=2, seed=seed)
            )
        )
        for seed in (0, 1)
    ]
    assert found[0]["params"].tolist() != found[1]["params"].tolist()


def test_time_that_is_up_leaves_one_trial_per_fold(tmp_path):
    run = tuned(tmp_path / "run", search=Search(space=QUICK, trials=50, timeout=1e-6))
    assert trials(run)[["fold", "number"]].to_numpy().tolist() == [[0, 0], [1, 0]]


def test_settings_that_do_not_go_together_are_told_and_never_chosen(tmp_path):
    search = Search(space={"keep": "last,best", "swa_start": "none,0.5"}, trials=5, inner_folds=2)
    run = tuned(tmp_path / "run", head="mlp-simple", search=search, recipe=recipe(epochs=1))
    failed = trials(run).query("state == 'failed'")
    assert len(failed) > 0
    assert failed["reason"].str.contains("keep must be last").all()
    assert failed["score"].isna().all()
    for chosen in run.document["tuning"]["chosen"]:
        assert chosen["settings"] != {"recipe.keep": "best", "recipe.swa_start": 0.5}


def test_a_search_in_which_nothing_goes_through_says_why(tmp_path):
    search = Search(space={"max_iter": "1,2"}, trials=2, inner_folds=2)
    fixed = spec("logistic", inverse_penalty=1e6, max_iter=1)
    bags = make_bags(0.3)
    with pytest.raises(RecipeError, match=r"none of 2 trials .* did not converge"):
        tune(bags, fixed, out=tmp_path / "run", split=make_split(bags, folds=2), search=search)


def test_too_few_images_for_inner_folds_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(SplitError, match=r"fold 0: its \d+ training images make no 30 inner folds"):
        tuned(tmp_path / "run", search=Search(space=QUICK, inner_folds=30))
    assert not (tmp_path / "run").exists()


def test_without_optuna_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"histostore\[tune\]"):
        tuned(tmp_path / "run")


def test_a_damaged_trial_is_named(tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(tmp_path / "run", execution=Execution(progress=stop))
    (tmp_path / "run/unfinished/trials/0-0.json").write_text('{"fold": 0}')
    with pytest.raises(RunError, match=r"0-0\.json is no trial of ours"):
        tuned(tmp_path / "run")


@pytest.mark.parametrize(
    "wrong",
    [{"trials": 0}, {"inner_folds": 1}, {"seed": -1}, {"timeout": 0}, {"timeout": float("nan")}],
)
def test_a_budget_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(OptionError):
        Search(**wrong)


def test_a_metric_of_another_task_is_refused(tmp_path):
    with pytest.raises(OptionError, match="choose one of macro_f1"):
        tuned(tmp_path / "run", search=Search(space=QUICK, metric="c_index"))


def test_numbers_are_tuned_by_their_own_metric_downwards(tmp_path):
    bags = make_bags(n=24)
    truth = np.linspace(30, 80, 24)[:, None]
    ages = Bags.from_arrays(
        bags.embedding, bags.offset, task=Task.of("regression", "age"), truth=truth
    )
    search = Search(space={"lr": "1e-4,1e-1"}, trials=2, inner_folds=2)
    short = recipe(epochs=2)
    run = tuned(tmp_path / "run", ages, head="mlp-simple", search=search, recipe=short)
    assert run.document["tuning"]["metric"] == "mae"
    for chosen in run.document["tuning"]["chosen"]:
        assert chosen["score"] == trials(run).query(f"fold == {chosen['fold']}")["score"].min()


# ---------------------------------------------------------------------- the command


def test_the_command_searches_what_it_is_told_and_prints_the_run(tmp_path):
    table = make_cohort(tmp_path, n=24)
    assert call("histostore", "build", table, tmp_path / "store", *BUILD).code == 0
    told = ("--folds", "2", "--inner-folds", "2", "--trials", "2", "--workers", "1")
    words = ("zoo", "tune", tmp_path / "store", table, "--head", "logistic", *told)
    space = ("--space", "inverse_penalty=0.1:1", "--set", "statistics=mean", "--json")
    done = call(*words, *space, "-o", tmp_path / "run")
    assert done.code == 0
    assert done.json["tuning"]["space"] == {"head.inverse_penalty": "0.1:1"}
    assert done.json["head"]["settings"]["statistics"] == ["mean"]
    for wrong, said in (
        (("--space", "hiden=1:2"), "unknown setting 'hiden'"),
        (("--set", "inverse_penalty=2", "--space", "inverse_penalty=1:3"), "fixed and searched"),
        (("--metric", "mae"), "choose one of macro_f1"),
    ):
        refused = call(*words, *wrong, "-o", tmp_path / "other")
        assert refused.code == 1
        assert said in refused.err
    assert not (tmp_path / "other").exists()
