"""Ensembles: means of members over the same folds; anything else is refused by name."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from tests.zoo.runs import make_bags, make_run
from zoo.bags import Bags
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.recipes import recipe
from zoo.run import Run


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
        assert told == {"run": member.name, "path": str(member.path), "digest": written}
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
        ({"split_seed": 1}, "the folds of"),
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


def test_one_run_is_no_ensemble_and_rules_to_come_are_refused(members, tmp_path):
    path = members[0].path
    for paths in ([], [path], [path, path]):
        with pytest.raises(RunError, match="two or more different runs"):
            ensemble(paths, out=tmp_path / "out")
    with pytest.raises(NotSupported, match="rule 'stack' is not known: use one of mean"):
        ensemble([member.path for member in members], "stack", out=tmp_path / "out")


def test_an_ensemble_is_never_written_over_a_run(members):
    with pytest.raises(RunError, match="holds a finished run"):
        ensemble([member.path for member in members], out=members[0].path)
