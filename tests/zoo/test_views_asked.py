"""Which stored views are asked for: their names, what is refused, and where they are kept."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import zoo
from cli import zoo_group
from histostore.errors import NotFound, OptionError
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of
from tests.zoo.views import LENGTHS, VIEWS, cohort_of, fitted, two_bags
from zoo.cache import cache_entries
from zoo.manyviews import (
    R7,
    all_views,
    in_view,
    predict_views,
    view_names,
    with_views,
)
from zoo.report.reproduce import commands


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return two_bags(tmp_path_factory.mktemp("one"), LENGTHS["packed"])


def test_names_are_read(packed):
    features, here, _ = packed
    read = lambda told: view_names(told, features, here.image_ids)  # noqa: E731
    assert read("all") == VIEWS
    assert read("flip-h, identity") == ("flip-h", "identity")
    assert read("") == read(()) == ()
    with pytest.raises(NotFound, match=r"^24 images \(i00, i01, i02, …\) without view 'flip-v' in"):
        read("r7")
    assert R7 == ("identity", "flip-h", "flip-v", "rot180", "rot90", "rot270")
    with pytest.raises(NotFound, match="all of 24 have identity, rot90, flip-h: use these, or run"):
        read("d4")
    with pytest.raises(OptionError, match="unknown view 'rot91'"):
        read("rot91")
    for twice in ("rot90,rot90", ["rot90", "rot90"]):
        with pytest.raises(OptionError, match="named twice"):
            read(twice)


def test_an_image_that_lacks_a_view_is_named(tmp_path):
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a", "b"], augmentations=VIEWS[:2]), {})
    features.commit(fragment_of(["c"]), {})
    bags = zoo.Bags(features, cohort_of(tmp_path, ["a", "b", "c"]))
    message = r"1 image \(c\) without view 'rot90' in .*all of 3 have identity: use these, or run"
    with pytest.raises(NotFound, match=message):
        with_views(bags, features, train="identity,rot90")
    assert with_views(bags, features, test="all").table.test_views == ("identity",)


@pytest.mark.parametrize(
    ("counts", "seed", "problem"),
    [
        ((3, 2), 0, r"image 'b' has 2 patches, not 3, in view rot90 than in view identity"),
        ((3, 3), 1, r"image 'a' has patches at other places in view rot90 than in view identity"),
    ],
)
def test_views_of_other_patches_are_refused(tmp_path, counts, seed, problem):
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a", "b"], counts=(3, 3)), {})
    bags = zoo.Bags(features, cohort_of(tmp_path, ["a", "b"]))
    more = fragment_of(["a", "b"], counts=counts, augmentations=("rot90",), seed=seed)
    features.commit(more, {})
    with pytest.raises(OptionError, match=problem):
        with_views(bags, features, train="all")


def test_views_of_the_same_patches_may_lie_in_several_fragments(tmp_path):
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(fragment_of(["a", "b"], seed=0), {})
    features.commit(fragment_of(["a", "b"], augmentations=("rot90",), seed=0), {})
    bags = zoo.Bags(features, cohort_of(tmp_path, ["a", "b"]))
    many = with_views(bags, features, train="all")
    assert np.array_equal(many.coords, in_view(many, "rot90").coords)


def test_a_view_that_was_not_read_cannot_be_predicted(packed):
    features, here, _ = packed
    many = with_views(here, features, test="identity,rot90")
    head = fitted(here, "logistic")
    with pytest.raises(OptionError, match=r"'flip-h' was not read .* there are identity, rot90"):
        predict_views(head, many, ["flip-h"])


def test_views_share_the_memory_and_each_has_a_file_that_any_run_finds(packed, tmp_path):
    features, here, _ = packed
    size = here.embedding.nbytes
    many = with_views(here, features, train="all", memory_limit=size + size // 2, cache=tmp_path)
    assert [bags.folder is None for bags in all_views(many)] == [True, False, False]
    alone = with_views(here, features, train="rot90", memory_limit=size + size // 2)
    assert in_view(alone, "rot90").folder is None
    assert {entry.augmentation for entry in cache_entries(tmp_path)} == {"rot90", "flip-h"}
    other = with_views(here, features, test="rot90", memory_limit=0, cache=tmp_path)
    assert in_view(other, "rot90").folder == in_view(many, "rot90").folder
    assert len(cache_entries(tmp_path)) == 2


def test_the_command_line_takes_views_and_the_report_repeats_them(tmp_path):
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    ids = [f"i{k:02}" for k in range(12)]
    features.commit(fragment_of(ids, augmentations=VIEWS), {})
    cohort_of(tmp_path, ids)
    words = ["fit", str(tmp_path / "store"), str(tmp_path / "cohort.csv"), "--head", "logistic"]
    words += ["--folds", "2", "--workers", "1", "--json", "-o", str(tmp_path / "run")]
    told = ["--train-views", "all", "--test-views", "identity,flip-h"]
    done = CliRunner().invoke(zoo_group, [*words, *told])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["train_views"] == list(VIEWS)
    lines = commands([zoo.Run.load(tmp_path / "run")], "report")
    assert any("--augment identity,rot90,flip-h" in line for line in lines if "build" in line)
    (line,) = (line for line in lines if "zoo fit" in line)
    assert "--train-views identity,rot90,flip-h --test-views identity,flip-h" in line
    refused = CliRunner().invoke(zoo_group, [*words[:-1], str(tmp_path / "no"), *told[:1], "d4"])
    assert refused.exit_code != 0
