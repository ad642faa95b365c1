"""Tuning: what a fold is tested on has no say, stopped searches go on, spaces are checked."""

from __future__ import annotations

import json
import sys

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.errors import MissingExtra, OptionError
from tests.commands import BUILD, call, make_cohort
from tests.zoo.runs import make_bags, make_run
from zoo.bags import Bags
from zoo.comparison import compare
from zoo.errors import RecipeError, RunError, SplitError
from zoo.fit import Execution, make_split
from zoo.heads import HEADS, spec
from zoo.recipes import Recipe, known_recipes, recipe
from zoo.run import Run
from zoo.tasks import Task
from zoo.tuning import Choice, Range, Search, Trial, default_space, read_space, tune
from zoo.tuning.search import best, propose

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


# ---------------------------------------------------------------------- proposals


SPACE = {
    "head.n": Range(low=1, high=9, whole=True),
    "recipe.lr": Range(low=1e-4, high=1e-2, log=True),
    "head.statistics": Choice(values=(("mean",), ("mean", "sd"), None)),
}
START = {"head.n": 3, "recipe.lr": 1e-3, "head.statistics": ("mean", "sd")}


def done(number, scores, state="complete", **settings):
    told = {"head.n": 2, "recipe.lr": 2e-4, "head.statistics": ["mean"], **settings}
    return Trial(fold=0, number=number, state=state, settings=told, scores=tuple(scores))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    scores=st.lists(st.floats(0, 1), max_size=14),
    maximise=st.booleans(),
)
def test_what_is_proposed_lies_in_the_space_and_depends_on_nothing_else(seed, scores, maximise):
    known = [done(k, [score], **{"head.n": 1 + k % 9}) for k, score in enumerate(scores)]
    found = [
        propose(known, SPACE, start=START, maximise=maximise, seed=seed).settings for _ in range(2)
    ]
    assert found[0] == found[1]
    assert all(value in SPACE[name] for name, value in found[0].items())
    assert known or found[0] == START


def test_a_trial_below_the_middle_of_those_before_it_is_hopeless():
    known = [done(k, [0.6 + k / 100, 0.7]) for k in range(6)]
    for maximise, hopeless, hopeful in ((True, 0.5, 0.8), (False, 0.8, 0.5)):
        for score, expected in ((hopeless, True), (hopeful, False)):
            proposal = propose(known, SPACE, start=START, maximise=maximise, seed=0)
            assert proposal.is_hopeless([score]) is expected


def test_pruned_trials_have_no_score_and_the_best_is_the_first_of_the_best():
    known = [done(0, [0.5]), done(1, [0.9], "pruned"), done(2, [0.6]), done(3, [0.6])]
    assert [trial.score for trial in known] == [0.5, None, 0.6, 0.6]
    assert best(known, "macro_f1").number == 2
    assert best(known, "log_loss").number == 0


# ---------------------------------------------------------------------- spaces


def test_spaces_are_read_as_on_the_command_line():
    head = spec("logistic")
    space = read_space(
        {"inverse_penalty": "0.1:10:log", "statistics": "mean,mean+sd"}, head, Recipe()
    )
    assert space == {
        "head.inverse_penalty": Range(low=0.1, high=10, log=True),
        "head.statistics": Choice(values=(("mean",), ("mean", "sd"))),
    }
    torch_head = spec("mlp-simple")
    space = read_space(
        {"head.hidden": "16:64", "gradient_clip": "none,1", "standardise": [True, False]},
        torch_head,
        Recipe(),
    )
    assert space == {
        "head.hidden": Range(low=16, high=64, whole=True),
        "recipe.gradient_clip": Choice(values=(None, 1.0)),
        "head.standardise": Choice(values=(True, False)),
    }


@pytest.mark.parametrize(
    ("head", "space", "said"),
    [
        ("mlp-simple", {"hiden": "1:2"}, "unknown setting 'hiden'"),
        ("mlp-simple", {"hidden": "8:4"}, "low below high"),
        ("mlp-simple", {"hidden": "8:64:lin"}, "low:high:log"),
        ("mlp-simple", {"hidden": "8"}, "two values or more"),
        ("mlp-simple", {"hidden": 8}, "two values or more"),
        ("mlp-simple", {"hidden": "8,wide"}, "cannot be wide"),
        ("mlp-simple", {"hidden": "8,8"}, "a value twice"),
        ("mlp-simple", {"hidden": "0:8"}, "cannot go over 0:8"),
        ("mlp-simple", {"hidden": "1.5:8"}, "cannot go over"),
        ("mlp-simple", {"dropout": "0:0.5:log"}, "start above 0"),
        ("mlp-simple", {"optimiser": "1:2"}, "is no number"),
        ("mlp-simple", {"lr": "1e-3,1e-2", "recipe.lr": "1e-3,1e-2"}, "given twice"),
        ("logistic", {"lr": "1e-4:1e-2"}, "no gradient steps"),
        ("logistic", {"statistics": "mean,median"}, "cannot be median"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(head, space, said):
    with pytest.raises(RecipeError, match=said):
        read_space(space, spec(head), Recipe())


def test_what_is_fixed_is_not_searched():
    head = spec("mlp-simple", hidden=48)
    assert "head.hidden" not in default_space(head, fixed=("hidden",))
    assert 48 in default_space(head)["head.hidden"].values
    with pytest.raises(RecipeError, match="fixed and searched"):
        read_space({"hidden": "8,16"}, head, Recipe(), fixed=("head.hidden",))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_space_that_holds_its_defaults(name):
    head = spec(name)
    space = default_space(head)
    assert read_space(space, head, Recipe()) == space
    for key, part in space.items():
        owner, _, field = key.partition(".")
        assert getattr(head if owner == "head" else Recipe(), field) in part, key


@pytest.mark.parametrize(
    "chosen", [made for made, _ in known_recipes()], ids=lambda made: made.name
)
def test_every_recipe_has_a_space_that_holds_its_values(chosen):
    space = default_space(spec("abmil"), chosen)
    for key, part in space.items():
        owner, _, field = key.partition(".")
        assert owner == "head" or getattr(chosen, field) in part, key
    assert ("recipe.r_drop" in space) == (chosen.r_drop > 0)
