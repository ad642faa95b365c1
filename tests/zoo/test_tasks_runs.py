"""Runs of every task, from bags or the command line to their comparison."""

from __future__ import annotations

import numpy as np
import pytest

from tests.commands import BUILD, call, make_cohort
from tests.zoo.runs import make_run
from tests.zoo.tasks import LABELS, drawn
from zoo.bags import Bags
from zoo.comparison import compare
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.heads import load_head, spec
from zoo.jobs import _light
from zoo.metrics import evaluate, headline, higher_is_better, metric_names, metric_title
from zoo.recipes import recipe
from zoo.report import write_report
from zoo.run import Run

QUICK = recipe(epochs=40, lr=3e-3)
SHORT = recipe(epochs=2)
HEADS = [
    ("ordinal", None, "gated-mil"),
    ("ordinal", None, "logistic"),
    ("multi-label", None, "gated-mil"),
    ("multi-label", None, "logistic"),
    ("regression", "huber", "gated-mil"),
    ("regression", "squared", "lightgbm"),
    ("survival", "cox", "gated-mil"),
    ("survival", "hazards", "gated-mil"),
]
CHANCE = {"kappa": 0.0, "auroc": 0.5, "r2": 0.0, "c_index": 0.5}
WELL_ABOVE = {"kappa": 0.4, "auroc": 0.8, "r2": 0.4, "c_index": 0.62}
JUDGED = {
    "ordinal": "kappa",
    "multi-label": "auroc",
    "regression": "r2",
    "survival": "c_index",
}


def fitted(kind, loss, name, **options):
    settings = {"hidden": 16} if name == "gated-mil" else {}
    return spec(name, **settings).fit(
        drawn(kind, 160, 0, loss=loss, **options),
        recipe=QUICK if name == "gated-mil" else None,
        device="cpu",
        threads=1,
    )


@pytest.mark.parametrize(("kind", "loss", "name"), HEADS)
def test_what_can_be_learned_is_learned_and_kept(tmp_path, kind, loss, name):
    head, unseen = fitted(kind, loss, name), drawn(kind, 160, 1, loss=loss)
    values = head.predict(unseen)
    assert values.shape == (160, len(unseen.task.value_columns(unseen.classes)))
    metric = JUDGED[kind]
    assert evaluate(unseen.truth, values, unseen.task)[metric] > WELL_ABOVE[metric]
    path = tmp_path / f"head{head.suffix}"
    head.save(path)
    again = load_head(path)
    assert (again.task, again.classes) == (head.task, head.classes)
    assert np.array_equal(again.predict(unseen), values)


@pytest.mark.parametrize(
    ("kind", "loss", "name"),
    [
        ("multi-label", None, "logistic"),
        ("regression", None, "lightgbm"),
        ("survival", None, "gated-mil"),
    ],
)
def test_noise_is_not_learned(kind, loss, name):
    head = fitted(kind, loss, name, skill=0.0)
    unseen = drawn(kind, 160, 1, skill=0.0, loss=loss)
    metric = JUDGED[kind]
    assert evaluate(unseen.truth, head.predict(unseen), unseen.task)[metric] < CHANCE[metric] + 0.12


SMALL = {
    "acmil": {"hidden": 8, "attention": 4},
    "dtfd": {"hidden": 8, "attention": 4},
    "dsmil": {},
    "transmil": {"hidden": 16},
    "fusion": {"hidden": 8, "bottleneck": 4},
}


@pytest.mark.parametrize("kind", ["regression", "survival", "multi-label", "ordinal"])
@pytest.mark.parametrize("name", SMALL)
def test_every_network_has_the_outputs_of_its_task(kind, name):
    bags = drawn(kind, 20, 0)
    found = (
        spec(name, **SMALL[name])
        .fit(bags, recipe=recipe(epochs=1), device="cpu", threads=1)
        .predict(bags)
    )
    assert found.shape == (20, len(bags.task.value_columns(bags.classes)))
    assert np.isfinite(found).all()


def test_a_network_with_two_levels_of_learning_learns_a_number():
    bags = drawn("regression", 20, 0)
    placed = Bags.from_arrays(
        bags.embedding,
        bags.offset,
        truth=bags.truth,
        task=bags.task,
        coords=np.arange(2 * len(bags.embedding)).reshape(-1, 2),
    )
    head = spec("graph", hidden=8).fit(placed, recipe=recipe(epochs=1), device="cpu", threads=1)
    assert np.isfinite(head.predict(placed)).all()


def test_risks_of_cox_have_a_mean_of_zero_over_training_bags():
    bags = drawn("survival", 40, 0, loss="cox")
    head = spec("mlp-simple").fit(bags, recipe=SHORT, device="cpu", threads=1)
    assert head.predict(bags).mean() == pytest.approx(0, abs=1e-6)
    with pytest.raises(NotSupported, match="use predict"):
        head.predict_proba(bags)


COLUMNS = {
    "ordinal": (["target"], ["prob_low", "prob_mid", "prob_high"]),
    "multi-label": (["target"], [f"prob_{name}" for name in LABELS]),
    "regression": (["target"], ["pred_age"]),
    "survival": (["target_time", "target_event"], ["pred_risk"]),
}


@pytest.fixture(scope="module", params=COLUMNS)
def runs(request, tmp_path_factory):
    """Two runs of one task that differ in how long they were trained."""
    folder = tmp_path_factory.mktemp(request.param)
    bags = drawn(request.param, 60, 0)
    made = [
        make_run(
            folder / name, head="mlp-simple", bags=bags, recipe=recipe(epochs=n, lr=3e-3), seeds=s
        )
        for name, n, s in (("short", 1, 2), ("long", 25, 1))
    ]
    return bags, made


def test_a_run_tells_truth_predictions_and_metrics(runs):
    bags, (run, _) = runs
    kind = bags.task.kind
    truth, values = COLUMNS[kind]
    assert list(run.predictions) == [
        *("image_id", "patient_id", "fold", "seed", "role"),
        *truth,
        *values,
    ]
    judged = run.test_probabilities()
    place = [bags.image_ids.index(image) for image in judged.image_ids]
    assert np.array_equal(judged.y_true, bags.truth[place])
    for role in ("test", "validation"):
        assert tuple(run.document["metrics"][role]) == metric_names(bags.task)
    found = evaluate(judged.y_true, judged.prob, bags.task)[headline(bags.task)]
    assert run.document["metrics"]["test"][headline(bags.task)]["value"] == pytest.approx(found)
    told = run.history[f"validation_{headline(bags.task)}"]
    assert told.notna().all()
    sign = 1 if higher_is_better(headline(bags.task)) else -1
    gap = sign * (run.history[f"train_{headline(bags.task)}"] - told)
    assert np.allclose(run.history["overfit_gap"], gap)
    assert run.task == bags.task
    assert kind in run.to_text()


def test_runs_of_a_task_are_ranked_the_right_way_round(runs):
    bags, made = runs
    told = compare([run.path for run in made])
    assert [row.name for row in told.rows] == ["long", "short"]
    difference = told.rows[1].to_best.value
    assert difference < 0 if higher_is_better(headline(bags.task)) else difference > 0
    assert len(told.to_text().splitlines()) >= 3
    assert told.to_markdown().startswith("| run | head |")


def test_runs_of_a_task_are_averaged(runs, tmp_path):
    _, made = runs
    both = ensemble([run.path for run in made], out=tmp_path / "both")
    assert both.task == made[0].task
    first, second, mean = (run.test_probabilities().prob for run in (*made, both))
    assert np.allclose(mean, (first + second) / 2)
    assert compare([both.path, made[0].path]).rows


def test_other_tasks_are_reported_with_what_applies(runs, tmp_path):
    kind, made = runs[0].task.kind, runs[1]
    page = write_report([run.path for run in made], tmp_path / "report").read_text("utf-8")
    for words, kinds in {
        "Confusion matrix": {"ordinal"},
        "Classification report": {"ordinal", "multi-label"},
        "ROC and precision-recall": {"ordinal", "multi-label"},
        "Calibration": {"ordinal", "multi-label"},
        "Operating points": {"multi-label"},
        "Bland–Altman": {"regression"},
        "Kaplan–Meier": {"survival"},
    }.items():
        assert (words in page) == (kind in kinds), words
    assert "Infinity" not in page
    assert ">nan" not in page
    markdown = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert metric_title(headline(made[0].task)).lower() in markdown.lower()


def test_runs_of_two_tasks_are_not_put_into_one_report(runs, tmp_path):
    other = make_run(tmp_path / "other")
    with pytest.raises(RunError, match="differ in task"):
        write_report([runs[1][0].path, other.path], tmp_path / "report")


def test_a_damaged_table_is_refused(runs, tmp_path):
    _, (run, _) = runs
    damaged = run.predictions.copy()
    column = run.task.value_columns(run.classes)[0]
    damaged.loc[0, column] = np.nan
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "history.parquet"):
        (folder / name).write_bytes((run.path / name).read_bytes())
    damaged.to_parquet(folder / "predictions.parquet")
    with pytest.raises(RunError, match="holds rows that are not"):
        Run.load(folder)


def test_tasks_are_neither_compared_nor_combined_with_each_other(tmp_path):
    made = [
        make_run(
            tmp_path / name,
            head="mlp-simple",
            folds=2,
            bags=drawn(kind, 40, 0, loss=loss),
            recipe=SHORT,
        )
        for name, kind, loss in (
            ("age", "regression", None),
            ("cox", "survival", "cox"),
            ("steps", "survival", "hazards"),
        )
    ]
    with pytest.raises(RunError, match="differ in task: survival and regression"):
        compare([made[0].path, made[1].path])
    with pytest.raises(RunError, match="task: survival by hazards and survival by cox"):
        ensemble([made[1].path, made[2].path], out=tmp_path / "both")
    assert len(compare([made[1].path, made[2].path]).rows) == 2


def test_keeping_the_best_epoch_watches_the_metric_of_the_task(tmp_path):
    watched = recipe(epochs=6, keep="best", lr=0.05, schedule="plateau")
    bags = drawn("regression", 60, 0)
    head = spec("mlp-simple").fit(
        bags[:40], validation=bags[40:], recipe=watched, device="cpu", threads=1
    )
    best = min(row["validation_mae"] for row in head.history)
    found = evaluate(bags[40:].truth, head.predict(bags[40:]), bags.task)["mae"]
    assert found == pytest.approx(best, rel=1e-4)


def test_a_worker_process_gets_the_truth_too():
    bags = drawn("survival", 20, 0)
    there = Bags.from_arrays(bags.embedding, **_light(bags))
    assert (there.task, there.digest) == (bags.task, bags.digest)


def test_classifiers_leave_the_files_they_always_left(tmp_path):
    run = make_run(tmp_path / "run", folds=2)
    assert "task" not in run.document
    head = next(iter(run.load_heads().values()))
    assert "task" not in head.document()
    assert list(run.predictions)[-3:] == ["target", "prob_class 0", "prob_class 1"]


# The command line --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A store of 24 images, and a table with a target for every task."""
    folder = tmp_path_factory.mktemp("study")
    rng, n = np.random.default_rng(0), 24
    dealt = [rng.permutation(np.arange(n) % k) for k in (3, 3, 2, 2, 2)]
    table = make_cohort(
        folder,
        n=n,
        grade=dealt[0],
        stage=np.array(["low", "mid", "high"])[dealt[1]],
        er=dealt[2],
        pr=dealt[3],
        age=["", *rng.normal(60, 10, n - 1).round(1)],
        months=["", *rng.exponential(30, n - 1).round(1)],
        dead=dealt[4],
    )
    assert call("histostore", "build", table, folder / "store", *BUILD).code == 0
    return folder


def fit(folder, out, *options):
    words = ("zoo", "fit", folder / "store", folder / "cohort.csv", "-o", out, "--folds", 2)
    return call(*words, "--workers", 1, "--device", "cpu", *options)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--task", "ordinal", "--target", "grade", "--head", "logistic"), "level_mae"),
        (
            (
                *("--task", "ordinal", "--target", "stage", "--head", "logistic"),
                "--levels",
                "low,mid,high",
            ),
            "kappa",
        ),
        (("--task", "multi-label", "--target", "er,pr", "--head", "logistic"), "hamming"),
        (
            ("--task", "regression", "--target", "age", "--head", "lightgbm", "--set", "rounds=5"),
            "rmse",
        ),
        (
            (
                *("--task", "survival", "--target", "months,dead", "--head", "mlp-simple"),
                "--set",
                "epochs=2",
            ),
            "c_index",
        ),
        (
            (
                *("--task", "survival", "--target", "months,dead", "--head", "mlp-simple"),
                *("--set", "epochs=2", "--loss", "hazards", "--intervals", 3),
            ),
            "c_index_ipcw",
        ),
    ],
)
def test_each_task_is_fitted_from_the_command_line(study, tmp_path, options, line):
    done = fit(study, tmp_path / "run", *options)
    assert done.code == 0, done.err
    assert line in done.out
    assert options[1] in done.out.splitlines()[0]
    if "age" in options:
        assert "left out 1 image without 'age'" in done.err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ("--task", "regression", "--target", "age", "--head", "svm"),
            "cannot learn task regression",
        ),
        (("--task", "regression", "--target", "stage", "--head", "abmil"), "finite number, seen"),
        (
            ("--task", "survival", "--target", "months", "--head", "abmil"),
            "needs two target columns",
        ),
        (("--task", "survival", "--target", "age,grade", "--head", "abmil"), "an event, 0 or 1"),
        (
            ("--task", "ordinal", "--target", "stage", "--head", "abmil"),
            "give levels, the lowest first",
        ),
        (("--levels", "a,b", "--head", "logistic"), "levels are for task ordinal"),
        (("--loss", "cox", "--head", "logistic"), "task classification knows recipe"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(study, tmp_path, options, told):
    done = fit(study, tmp_path / "run", *options)
    assert done.code == 1
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()
