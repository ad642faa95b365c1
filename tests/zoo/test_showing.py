"""What a notebook shows of bags and runs."""

from __future__ import annotations

import pytest

from tests.histostore.test_showing import HOSTILE, Reader
from tests.zoo.runs import make_bags, make_run
from zoo.bags import Bags
from zoo.ensembles import ensemble


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("showing")
    return [make_run(folder / head, head=head) for head in ("logistic", "knn")]


def test_a_run_shows_its_head_and_every_metric_with_its_interval(runs):
    for run in runs:
        seen = Reader(run._repr_html_()).seen
        test = run.document["metrics"]["test"]
        assert run.document["head"]["name"] in seen
        assert f"{test['accuracy']['value']:.3f}" in seen
        low, high = test["accuracy"]["low"], test["accuracy"]["high"]
        assert f"{low:.3f} to {high:.3f}" in seen
        assert repr(run).startswith(f"<Run {run.name}: ")
        assert "\n" not in repr(run)


def test_an_ensemble_names_rule_and_members(runs, tmp_path):
    made = ensemble([run.path for run in runs], "rank", out=tmp_path / "both")
    seen = " ".join(Reader(made._repr_html_()).seen)
    assert "ensemble by rank" in seen
    assert all(run.name in seen for run in runs)
    assert repr(made).startswith("<Ensemble both: ensemble by rank, macro_f1 0.")


def test_bags_count_the_images_of_each_class():
    bags = make_bags(n=60)
    seen = Reader(bags._repr_html_()).seen
    assert {"class 0", "class 1"} <= set(seen)
    assert seen.count("30") == 2
    assert f"{int(bags.lengths.sum()):,}" in seen
    assert repr(bags[:0]).startswith("Bags(0 images, 0 patches")
    Reader(bags[:0]._repr_html_())


def test_names_of_classes_are_text_whatever_they_hold():
    bags = Bags.from_arrays([[1.0], [2.0]], [0, 1, 2], labels=[HOSTILE, "b"])
    read = Reader(bags._repr_html_())
    assert HOSTILE in read.seen
    assert "script" not in read.tags
