"""Ensembles: members over the same folds, by every rule; what differs is refused by name."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from tests.zoo.runs import make_bags, make_run
from tests.zoo.tasks import drawn
from zoo.bags import Bags
from zoo.blending import LEARNED, RULES
from zoo.ensembles import ensemble, learned_text
from zoo.errors import NotSupported, RunError
from zoo.fit import fit_run, make_split
from zoo.heads import spec
from zoo.membership import runs_of
from zoo.recipes import recipe
from zoo.report import reproduce
from zoo.run import Run
from zoo.split import Split

KEYS = ["image_id", "patient_id", "fold", "seed", "role", "target"]


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    folder = tmp_path_factory.mktemp("members")
    return [
        make_run(folder / "logistic"),
        make_run(folder / "mlp", head="mlp-simple", seeds=2, recipe=recipe(epochs=2)),
    ]


@pytest.fixture(scope="module")
def combined(members, tmp_path_factory):
    out = tmp_path_factory.mktemp("ensembles") / "both"
    return ensemble([member.path for member in members], out=out)


def test_an_ensemble_is_the_mean_of_its_members(members, combined):
    mean = np.mean([member.test_probabilities().prob for member in members], axis=0)
    assert combined.test_probabilities().prob == pytest.approx(mean, abs=1e-12)
    for column in range(3):
        assert (
            combined.test_probabilities()[column].tolist()
            == members[0].test_probabilities()[column].tolist()
        )


def test_an_ensemble_is_a_run_directory_without_heads(members, combined):
    again = Run.load(combined.path)
    assert again.is_ensemble
    assert again.name == "both"
    assert len(again.history) == 0
    assert list(again.history.columns) == list(members[0].history.columns)
    assert list(again.predictions.columns) == list(members[0].predictions.columns)
    assert set(again.predictions["seed"]) == {0}
    assert set(again.predictions["role"]) == {"validation", "test"}
    assert again.document["split"] == members[0].document["split"]
    for told, member in zip(again.document["members"], members, strict=True):
        written = hashlib.sha256((member.path / "run.json").read_bytes()).hexdigest()
        path = os.path.relpath(member.path, combined.path)
        assert told == {"run": member.name, "path": path, "digest": written}
    assert combined.member_paths() == tuple(member.path for member in members)
    with pytest.raises(RunError, match="use its members"):
        again.load_heads()


def test_the_order_of_the_members_plays_no_part(members, combined, tmp_path):
    back = ensemble([member.path for member in members[::-1]], out=tmp_path / "back")
    assert back.test_probabilities().prob == pytest.approx(
        combined.test_probabilities().prob, abs=1e-12
    )


def test_an_ensemble_may_be_a_member(members, combined, tmp_path):
    outer = ensemble([combined.path, members[0].path], out=tmp_path / "outer")
    assert outer.is_ensemble


def renamed(labels=None, patients=None):
    bags = make_bags()
    names = np.array(bags.classes)[bags.labels]
    return Bags.from_arrays(
        bags.embedding,
        bags.offset,
        labels=names if labels is None else labels(names),
        image_ids=bags.image_ids,
        patient_ids=bags.patient_ids if patients is None else patients(bags.patient_ids),
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bags": make_bags()[:50]}, r"10 images \(image 50, image 51, image 52, …\) that only"),
        (
            {"split_seed": 1},
            r"the folds of \d+ images \(.*\): image \d+ is \w+ of fold \d.* here and .* there; image",
        ),
        ({"bags": renamed(labels=np.char.upper)}, "classes CLASS 0, CLASS 1"),
        ({"bags": renamed(labels=lambda names: names[::-1])}, "the (folds|target) of"),
        ({"bags": renamed(patients=lambda names: [f"{n}!" for n in names])}, "(folds|patient_id)"),
    ],
)
def test_runs_that_do_not_match_are_refused_by_name(members, tmp_path, options, message):
    other = make_run(tmp_path / "other", **options)
    with pytest.raises(RunError, match=f"cannot be combined, they differ in .*{message}"):
        ensemble([members[0].path, other.path], out=tmp_path / "both")
    assert not (tmp_path / "both").exists()


def test_one_run_is_no_ensemble_and_unknown_rules_are_refused(members, tmp_path):
    path = members[0].path
    for paths in ([], [path], [path, path]):
        with pytest.raises(RunError, match="two or more different runs"):
            ensemble(paths, out=tmp_path / "out")
    with pytest.raises(NotSupported, match="rule 'median' is not known: use one of mean"):
        ensemble([member.path for member in members], "median", out=tmp_path / "out")
    with pytest.raises(NotSupported, match="calibration 'platt' is not known: use one of none"):
        ensemble([m.path for m in members], out=tmp_path / "out", calibrate="platt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("calibrate", ["none", "temperature"])
@pytest.mark.parametrize("rule", RULES)
def test_a_run_says_what_every_rule_learned(members, combined, tmp_path, rule, calibrate):
    paths = [member.path for member in members]
    made = Run.load(ensemble(paths, rule, out=tmp_path / "out", calibrate=calibrate).path)
    assert made.document["rule"] == rule
    again = reproduce._ensemble(made)
    assert f"--rule {rule}" in again
    assert (f"--calibrate {calibrate}" in again) == (calibrate != "none")
    assert made.predictions[KEYS].equals(combined.predictions[KEYS])
    learned, text = made.document.get("learned", {}), learned_text(made.document)
    wanted = ({"weights"} if rule in LEARNED else set()) | {calibrate} - {"none"}
    assert set(learned) == wanted
    assert bool(text) == bool(wanted)
    for what, told in learned.items():
        assert list(told["folds"]) == ["0", "1", "2"]
        assert told["mean"] == pytest.approx(np.mean(list(told["folds"].values()), axis=0))
        assert np.shape(told["mean"]) == ((2,) if what == "weights" else ())
        assert [line.split()[0] for line in text.splitlines()] == ["fold", "0", "1", "2", "mean"]
        assert ("logistic" if what == "weights" else "temperature") in text.splitlines()[0]


def test_weights_are_learned_within_a_repeat_and_many_folds_are_summed_up(tmp_path):
    bags = make_bags()
    split = Split.k_fold(bags.labels, bags.patient_ids, 3, repeats=4, image_ids=bags.image_ids)
    runs = [
        fit_run(
            bags, spec("logistic", inverse_penalty=value), out=tmp_path / str(value), split=split
        )
        for value in (0.01, 10.0)
    ]
    made = ensemble([run.path for run in runs], "weighted", out=tmp_path / "out")
    told = learned_text(made.document).splitlines()
    assert [line.split()[0] for line in told] == ["fold", "least", "most", "mean"]
    # The first repeat alone has the same members' rows, so the same weights.
    frame = made.predictions
    for run in runs:
        own = run.predictions[run.predictions["fold"] < 3]
        own.to_parquet(run.path / "predictions.parquet")
    first = ensemble([run.path for run in runs], "weighted", out=tmp_path / "first")
    wanted = made.document["learned"]["weights"]["folds"]
    assert first.document["learned"]["weights"]["folds"] == {k: wanted[k] for k in ("0", "1", "2")}
    assert first.predictions.equals(frame[frame["fold"] < 3].reset_index(drop=True))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Give a function that fits two heads to bags of a kind of task."""

    def fit(kind, loss=None):
        folder = tmp_path_factory.mktemp(kind)
        bags = drawn(kind, 48, 0, loss=loss)
        quick = {"recipe": recipe(epochs=2)}
        heads = [
            (spec("logistic", inverse_penalty=value), {})
            if kind in ("ordinal", "multi-label")
            else (spec("mlp-simple", hidden=int(100 * value)), quick)
            for value in (0.1, 1.0)
        ]
        split = make_split(bags, folds=3)
        return [
            fit_run(bags, head, out=folder / str(number), split=split, **options).path
            for number, (head, options) in enumerate(heads)
        ]

    return fit


@pytest.mark.parametrize(
    ("kind", "options", "told"),
    [
        ("regression", {"calibrate": "temperature"}, "task regression has none: leave it out"),
        ("survival", {"rule": "stack"}, "just as rule weighted does, .*: use rule weighted"),
    ],
)
def test_what_has_no_meaning_for_the_task_is_refused(fitted, tmp_path, kind, options, told):
    with pytest.raises(NotSupported, match=told):
        ensemble(fitted(kind), out=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_levels_are_combined_by_every_rule_as_classes_are(fitted, tmp_path):
    paths = fitted("ordinal")
    for rule in RULES:
        made = ensemble(paths, rule, out=tmp_path / rule, calibrate="temperature")
        columns = list(made.task.value_columns(made.classes))
        sums = made.predictions[columns].to_numpy().sum(axis=1)
        np.testing.assert_allclose(sums, 1, atol=1e-9)
        assert "level_mae" in made.document["metrics"]["test"]
        assert made.document["learned"]["temperature"]["folds"].keys() == {"0", "1", "2"}


@pytest.mark.parametrize("kind", ["multi-label", "regression", "survival"])
def test_every_task_learns_in_nested_folds_and_says_what(fitted, tmp_path, kind):
    paths = fitted(kind)
    plain = Run.load(paths[0]).predictions
    for rule in ("rank", *LEARNED[: 2 + (kind != "survival")]):
        calibrate = "temperature" if kind == "multi-label" else "none"
        made = Run.load(ensemble(paths, rule, out=tmp_path / rule, calibrate=calibrate).path)
        assert list(made.predictions) == list(plain)
        learned = made.document.get("learned", {})
        wanted = {"weights"} if rule in LEARNED else set()
        wanted |= {"shift", "scale"} if wanted and kind == "survival" else set()
        wanted |= {"shift", "intercept"} if (kind, rule) == ("regression", "stack") else set()
        wanted |= {"temperature"} if kind == "multi-label" else set()
        assert set(learned) == wanted
        for told in learned.values():
            assert list(told["folds"]) == ["0", "1", "2"]
            assert np.shape(told["all"]) == np.shape(told["mean"])
        if (kind, rule) == ("regression", "weighted"):
            for fold, weights in learned["weights"]["folds"].items():
                rows = f"fold == {fold} and role == 'test'"
                each = [
                    Run.load(path).predictions.query(rows).sort_values("image_id")["pred_age"]
                    for path in paths
                ]
                told = made.predictions.query(rows).sort_values("image_id")["pred_age"]
                assert told.to_numpy() == pytest.approx(np.average(each, axis=0, weights=weights))


def test_numbers_learned_by_two_losses_are_combined(fitted, tmp_path):
    paths = [fitted("regression")[0], fitted("regression", "squared")[1]]
    assert ensemble(paths, out=tmp_path / "both").task.kind == "regression"


def test_an_ensemble_and_its_members_may_move_together(members, tmp_path, monkeypatch):
    there = tmp_path / "there"
    for member in members:
        shutil.copytree(member.path, there / "runs" / member.name)
    monkeypatch.chdir(there)
    made = ensemble(["runs/logistic", "runs/mlp"], "weighted", out="ensembles/both")
    told = [member["path"] for member in made.document["members"]]
    assert told == ["../../runs/logistic", "../../runs/mlp"]
    outer = ensemble(["ensembles/both", "runs/mlp"], out="outer")
    wanted = [path.resolve() for path in made.member_paths()]
    monkeypatch.chdir(tmp_path)
    there.rename(tmp_path / "elsewhere")
    moved = Run.load(tmp_path / "elsewhere" / "ensembles" / "both")
    found = moved.member_paths()
    assert [path.name for path in found] == [path.name for path in wanted]
    heads = [run.name for run, _ in runs_of(moved)]
    assert heads == ["logistic", "mlp"]
    again = Run.load(tmp_path / "elsewhere" / outer.path)
    assert [run.name for run, _ in runs_of(again)] == ["logistic", "mlp", "mlp"]
    assert reproduce._ensemble(moved).split()[2] == str(
        tmp_path / "elsewhere" / "runs" / "logistic"
    )
    changed = (found[0] / "run.json").read_text() + "\n"
    (found[0] / "run.json").write_text(changed)
    with pytest.raises(RunError, match="logistic was changed since"):
        list(runs_of(moved))
    shutil.rmtree(found[0])
    with pytest.raises(RunError, match="which is not there: move it and its members together"):
        list(runs_of(moved))


@pytest.mark.parametrize("absolute", [True, False])
def test_ensembles_that_named_members_from_where_they_were_made_still_open(
    members, combined, tmp_path, monkeypatch, absolute
):
    for member in members:
        shutil.copytree(member.path, tmp_path / "runs" / member.name)
    old = tmp_path / "ensembles" / "old"
    shutil.copytree(combined.path, old)
    document = json.loads((old / "run.json").read_text())
    for told in document["members"]:
        place = tmp_path / "runs" / told["run"] if absolute else f"runs/{told['run']}"
        told["path"] = str(place)
    (old / "run.json").write_text(json.dumps(document))
    monkeypatch.chdir(tmp_path)
    assert [run.name for run, _ in runs_of(Run.load(old))] == ["logistic", "mlp"]
    if not absolute:  # another run of that name, nearer, is not taken for the member
        shutil.copytree(members[1].path, old / "runs" / "logistic")
        assert [run.name for run, _ in runs_of(Run.load(old))] == ["logistic", "mlp"]


def test_an_ensemble_is_never_written_over_a_run(members):
    with pytest.raises(RunError, match="holds a finished run"):
        ensemble([member.path for member in members], out=members[0].path)
