"""New images and the external test, for every task: runs, their ensembles, and the report."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from histostore.errors import OptionError
from histostore.store import open_store
from tests.commands import call
from tests.zoo.stores import TARGETS, make_world
from zoo.bags import Bags
from zoo.blending.ranks import rank_among
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.membership import pool_of
from zoo.metrics import evaluate, headline, higher_is_better, metric_title
from zoo.panel import open_panel
from zoo.prediction import predict
from zoo.recipes import recipe
from zoo.report import collect, write_report
from zoo.tasks import Task

KINDS = ["ordinal", "multi-label", "regression", "survival"]
COLUMNS = {
    "ordinal": ["prediction", "prob_0", "prob_1", "prob_2"],
    "multi-label": ["prediction", "prob_er", "prob_pr"],
    "regression": ["pred_age"],
    "survival": ["pred_risk"],
}


def task_of(kind):
    return Task.of(kind, TARGETS[kind])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def home(folder):
    return make_world(folder / "home", 28)


@pytest.fixture(scope="module")
def abroad(folder):
    return make_world(folder / "abroad", 14, prefix="o", seed=7)


@pytest.fixture(scope="module")
def members(folder, home):
    """Give two runs of a task that differ in how long they were trained; fitted once."""
    fitted = {}

    def fit(kind):
        if kind not in fitted:
            fitted[kind] = [
                home.fit(
                    folder / kind / name,
                    "mlp-simple",
                    task=task_of(kind),
                    folds=2,
                    recipe=recipe(epochs=epochs, lr=1e-2, batch_size=16),
                )
                for name, epochs in (("short", 2), ("long", 20))
            ]
        return fitted[kind]

    return fit


def by_member(members, store):
    """Average each member's heads by hand, ``(member, image, column)``."""
    bags = Bags.unlabelled(open_store(store).feature_set())
    return np.array(
        [
            np.mean([head.predict(bags) for head in member.load_heads().values()], axis=0)
            for member in members
        ]
    )


def values(prediction):
    return prediction.frame.filter(regex="^(prob|pred)_").to_numpy()


# Runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_any_task_predicts_and_is_judged_by_its_own_metrics(members, abroad, kind):
    run = members(kind)[1]
    made = predict(run, abroad.store, abroad.table)
    (wanted,) = by_member([run], abroad.store)
    np.testing.assert_allclose(values(made), wanted)
    assert list(made.frame) == ["image_id", *COLUMNS[kind], "spread"]
    truth = abroad.bags(task=task_of(kind)).truth
    found = evaluate(truth, wanted, run.task)
    for name, told in made.test.metrics.items():
        assert told["value"] == pytest.approx(found[name], nan_ok=True)
        sign = 1 if higher_is_better(name) else -1
        own = run.document["metrics"]["test"][name]["value"]
        assert told["drop"] == pytest.approx(sign * (own - told["value"]))
    assert metric_title(headline(run.task)) in made.to_text()
    assert made.to_json()["task"] == kind


def test_spread_is_that_of_what_is_predicted(members, abroad):
    bags = Bags.unlabelled(open_store(abroad.store).feature_set())
    for kind in KINDS:
        run = members(kind)[1]
        every = np.array([head.predict(bags) for head in run.load_heads().values()])
        sd = every.std(axis=0, ddof=1)
        if kind == "ordinal":
            sd = np.take_along_axis(sd, every.mean(axis=0).argmax(axis=1)[:, None], axis=1)
        np.testing.assert_allclose(predict(run, abroad.store).frame["spread"], sd.max(axis=1))


def test_labels_are_told_from_one_half(members, abroad):
    frame = predict(members("multi-label")[1], abroad.store).frame
    for _, row in frame.iterrows():
        told = [name for name in ("er", "pr") if row[f"prob_{name}"] >= 0.5]
        assert row["prediction"] == ";".join(told)


# Ensembles ---------------------------------------------------------------------------------


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def logit(p):
    return np.log(p) - np.log1p(-p)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["mean", "rank", "weighted", "greedy", "stack"])
def test_an_ensemble_of_any_task_predicts_as_its_rule_says(members, abroad, tmp_path, kind, rule):
    if (kind, rule) == ("survival", "stack"):
        return
    made = ensemble([run.path for run in members(kind)], rule, out=tmp_path / "both")
    found = values(predict(made, abroad.store))
    each = by_member(members(kind), abroad.store)
    told = made.document.get("learned", {})
    learned = {name: np.array(values["all"]) for name, values in told.items()}
    if rule == "mean":
        wanted = each.mean(axis=0)
    elif rule == "rank":
        known = np.array([run.test_probabilities().prob for run in members(kind)])
        wanted = rank_among(each, known, kind)
    elif kind == "regression" and rule == "stack":
        moved = each - learned["shift"][:, None, None]
        wanted = learned["intercept"] + np.tensordot(learned["weights"], moved, axes=1)
    elif kind == "survival":
        moved = (each - learned["shift"][:, None, None]) / learned["scale"][:, None, None]
        wanted = np.tensordot(learned["weights"], moved, axes=1)
    elif kind == "multi-label" and rule == "stack":
        odds = logit(np.clip(each, 1e-3, 1 - 1e-3))
        wanted = sigmoid(np.tensordot(learned["weights"], odds, axes=1))
    elif rule == "stack":
        powers = np.prod(np.maximum(each, 1e-3) ** learned["weights"][:, None, None], axis=0)
        wanted = powers / powers.sum(axis=1, keepdims=True)
    else:
        wanted = np.tensordot(learned["weights"], each, axes=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)


INNER = {
    "ordinal": ("stack", "temperature"),
    "multi-label": ("rank", "temperature"),
    "regression": ("stack", "none"),
    "survival": ("weighted", "none"),
}
"""What a member of an ensemble was made by: rules that are no averages of its own members."""


@pytest.mark.parametrize("rule", ["mean", "rank", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_ensemble_may_be_part_of_another(members, home, abroad, tmp_path, kind, rule):
    runs = members(kind)
    inner_rule, calibrate = INNER[kind]
    inner = ensemble(
        [run.path for run in runs], inner_rule, out=tmp_path / "inner", calibrate=calibrate
    )
    other = runs[0]
    if (kind, rule) == ("survival", "mean"):  # of raw and of standardised risks there is no mean
        with pytest.raises(RunError, match=r"survival by cox, standardised and survival by cox:"):
            ensemble([other.path, inner.path], rule, out=tmp_path / "refused")
        other = ensemble([run.path for run in runs], "greedy", out=tmp_path / "other")
    outer = ensemble([other.path, inner.path], rule, out=tmp_path / "outer")
    made = predict(outer, abroad.store, abroad.table)
    each = np.array([values(predict(part, abroad.store)) for part in (other, inner)])
    np.testing.assert_allclose(values(made), pool_of(outer)(each), rtol=1e-6, atol=1e-9)
    assert np.isfinite(made.frame["spread"]).all()


def test_heads_are_not_averaged_where_a_member_is_calibrated(members, abroad, tmp_path):
    paths = [run.path for run in members("ordinal")]
    inner = ensemble(paths, out=tmp_path / "inner", calibrate="temperature")
    outer = ensemble([paths[0], inner.path], out=tmp_path / "outer")
    with pytest.raises(NotSupported, match=r"inner is calibrated, and part of .*outer, .* alone"):
        open_panel(outer, open_store(abroad.store), kinds=("ordinal",))


def test_members_of_members_without_a_say_need_not_be_in_the_store(members, abroad, tmp_path):
    paths = [run.path for run in members("survival")]
    inner = ensemble(paths, "weighted", out=tmp_path / "inner")
    outer = ensemble([paths[0], inner.path], "greedy", out=tmp_path / "outer")
    outer.document["learned"]["weights"]["all"] = [0.0, 1.0]
    found = predict(outer, abroad.store)
    alone = predict(inner, abroad.store)
    shift, scale = (outer.document["learned"][name]["all"][1] for name in ("shift", "scale"))
    np.testing.assert_allclose(values(found), (values(alone) - shift) / scale)
    np.testing.assert_allclose(found.frame["spread"], alone.frame["spread"] / scale)
    assert found.n_heads == alone.n_heads == 4


def test_labels_are_cooled_one_by_one(members, abroad, tmp_path):
    paths = [run.path for run in members("multi-label")]
    made = ensemble(paths, out=tmp_path / "both", calibrate="temperature")
    temperature = made.document["learned"]["temperature"]["all"]
    assert temperature != 1.0
    mean = by_member(members("multi-label"), abroad.store).mean(axis=0)
    found = values(predict(made, abroad.store))
    np.testing.assert_allclose(found, sigmoid(logit(mean) / temperature), rtol=1e-6)


def test_risks_of_two_losses_are_weighed_but_not_averaged(members, home, abroad, tmp_path):
    steps = home.fit(
        tmp_path / "steps",
        "mlp-simple",
        task=Task.of("survival", "months,dead", loss="hazards"),
        folds=2,
        recipe=recipe(epochs=2),
    )
    paths = [members("survival")[1].path, steps.path]
    with pytest.raises(RunError, match="survival by hazards and survival by cox"):
        ensemble(paths, out=tmp_path / "mean")
    made = ensemble(paths, "weighted", out=tmp_path / "weighted")
    assert np.isfinite(values(predict(made, abroad.store))).all()


def test_slopes_that_are_all_zero_predict_the_mean_of_the_training(members, abroad, tmp_path):
    made = ensemble([run.path for run in members("regression")], "stack", out=tmp_path / "both")
    made.document["learned"]["weights"]["all"] = [0.0, 0.0]
    found = values(predict(made, abroad.store))
    np.testing.assert_allclose(found, made.document["learned"]["intercept"]["all"])


# The external test in a report -------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_report_tells_the_drop_in_the_metrics_of_the_task(members, abroad, tmp_path, kind):
    runs = members(kind)
    made = predict(runs[1], abroad.store, abroad.table)
    for name in ("t.csv", "t.parquet"):
        made.write(tmp_path / name)
        (one,) = collect([run.path for run in runs], external=[tmp_path / name]).external
        assert (one.judged.n_images, one.judged.n_patients) == (14, 7)
        told = {shift.metric: shift for shift in one.shifts}
        first = made.test.metrics[headline(runs[1].task)]
        assert told[headline(runs[1].task)].drop.value == first["drop"]
        assert (one.judged.scatter is not None) == (kind == "regression")
    page = write_report(
        [run.path for run in runs], tmp_path / "report", external=[tmp_path / "t.csv"]
    ).read_text("utf-8")
    assert "External test" in page
    assert "14 labelled images of 7 patients" in " ".join(page.split())
    # Errors in years and shares have no common axis.
    assert ("Upper line of each pair" in page) == (kind != "regression")
    for word in ("Infinity", ">nan", ">None"):
        assert word not in page


@pytest.mark.parametrize("damage", ["values", "truth", "rows"])
def test_damaged_numbers_are_refused_in_one_line(members, abroad, tmp_path, damage):
    run = members("survival")[0]
    predict(run, abroad.store, abroad.table).write(tmp_path / "t.csv")
    table = pd.read_csv(tmp_path / "t.csv")
    document = json.loads((tmp_path / "t.csv.json").read_text())
    if damage == "values":
        table.loc[3, "pred_risk"] = np.inf
    elif damage == "rows":
        table = pd.concat([table, table.iloc[:1]])
    else:
        document["test"]["truth"]["target_event"][2] = 0.5
    table.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "t.csv.json").write_text(json.dumps(document))
    with pytest.raises(RunError, match=r"does not fit .* predict again"):
        collect([run.path], external=[tmp_path / "t.csv"])


# Bad input ---------------------------------------------------------------------------------


def changed(world, path, **columns):
    """Write a cohort with other columns, or without those that are None."""
    table = pd.read_csv(world.table, dtype=str)
    table["path"] = [f"{world.table.parent}/{name}" for name in table["path"]]
    for name, cells in columns.items():
        table = table.drop(columns=name) if cells is None else table.assign(**{name: cells})
    table.to_csv(path, index=False)
    return path


@pytest.mark.parametrize(
    ("kind", "columns", "options", "told"),
    [
        ("ordinal", {"grade": "7"}, {}, r"grade holds 7, but .* knows 0, 1, 2: give --label-map"),
        ("multi-label", {"pr": None}, {}, "has no column 'pr'; its columns are"),
        ("multi-label", {"er": "yes"}, {}, r"er must hold 0 or 1, seen 'yes' \(14 cells\)"),
        ("multi-label", {}, {"target": "er,pr,dead"}, "target names 3 columns, but .* learned 2"),
        ("regression", {"age": "old"}, {}, "age must hold a finite number, seen 'old'"),
        ("regression", {}, {"label_map": "a=b"}, "a label map is for classes and levels"),
        ("survival", {"dead": None}, {}, "has no column 'dead'"),
        ("survival", {}, {"target": "months"}, "needs two target columns"),
    ],
)
def test_what_another_cohort_may_not_hold(members, abroad, tmp_path, kind, columns, options, told):
    table = changed(abroad, tmp_path / "c.csv", **columns)
    with pytest.raises(OptionError, match=told) as caught:
        predict(members(kind)[0], abroad.store, table, **options)
    assert "\n" not in str(caught.value)


def test_columns_may_have_other_names_abroad(members, abroad, tmp_path):
    run = members("survival")[1]
    plain = predict(run, abroad.store, abroad.table)
    cells = pd.read_csv(abroad.table, dtype=str)
    renamed = {"weeks": cells["months"], "event": cells["dead"], "months": None, "dead": None}
    table = changed(abroad, tmp_path / "c.csv", **renamed)
    assert predict(run, abroad.store, table).test is None
    made = predict(run, abroad.store, table, target="weeks,event")
    assert made.test.metrics == plain.test.metrics


def test_a_cohort_that_cannot_be_judged_is_predicted_and_says_so(members, abroad, tmp_path):
    for kind, columns in (("regression", {"age": ""}), ("survival", {"dead": "0"})):
        run = members(kind)[0]
        made = predict(run, abroad.store, changed(abroad, tmp_path / f"{kind}.csv", **columns))
        assert len(made.frame) == 14
        if kind == "regression":
            assert made.test is None
            assert "nothing is judged" in made.notes[0]
        else:  # without an event there is no C-index
            assert made.test.metrics["c_index"]["value"] is None
            assert json.loads(json.dumps(made.to_json(), allow_nan=False))
            assert "C-index" in made.to_text()


def test_the_command_predicts_and_judges_survival(members, abroad, tmp_path):
    out = tmp_path / "risks.csv"
    run = members("survival")[1].path
    done = call("zoo", "predict", run, abroad.store, abroad.table, "-o", out, "--json")
    assert done.code == 0, done.err
    assert done.json == json.loads((tmp_path / "risks.csv.json").read_text())
    assert set(done.json["test"]["truth"]) == {
        *("image_id", "patient_id", "target_time", "target_event"),
    }
    assert list(pd.read_csv(out)) == ["image_id", "pred_risk", "spread"]
