"""Images that failed in a build are left out and counted; images never built are an error."""

from __future__ import annotations

import pandas as pd
import pytest

from histostore.cohort import Cohort
from histostore.errors import NotFound
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of
from zoo.bags import Bags
from zoo.stored import usable


@pytest.fixture
def features(tmp_path):
    """A feature set of a, b (two views) and c (one view)."""
    found = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    found.commit(fragment_of(["a", "b"], augmentations=("identity", "rot90")), {})
    found.commit(fragment_of(["c"]), {})
    return found


def failing(features, *image_ids):
    failed = [{"image_id": image, "url": f"{image}.png", "reason": "empty"} for image in image_ids]
    features.record_build({"failed": failed})


def cohort(image_ids, labels):
    frame = pd.DataFrame({"image_id": image_ids, "path": [f"{i}.png" for i in image_ids]})
    return Cohort.from_frame(frame.assign(label=labels), url="cohort.csv", check_files=False)


def test_failed_images_are_left_out_and_counted(features):
    failing(features, "d")
    failing(features, "e", "a")  # a was embedded by a later build
    bags = Bags(features, cohort(list("aebdc"), ["x", "y", "y", "x", None]))
    assert bags.image_ids == ("a", "b")
    assert (bags.n_failed, bags.n_unlabelled) == (2, 1)
    assert bags[[0]].n_failed == 2


def test_a_failed_image_without_a_label_counts_once(features):
    failing(features, "d")
    bags = Bags(features, cohort(list("abd"), ["x", "y", None]))
    assert (bags.n_failed, bags.n_unlabelled) == (0, 1)


def test_an_image_that_was_never_built_is_an_error_that_says_what_to_do(features):
    failing(features, "d")
    with pytest.raises(
        NotFound, match=r"^1 image \(f\) not in feature set .*: run histostore build$"
    ):
        usable(features, list("adf"), "identity")


def test_an_image_that_lacks_the_view_is_not_built_either(features):
    with pytest.raises(NotFound, match=r"1 image \(c\) not in .* in view rot90: run histostore"):
        usable(features, list("abc"), "rot90")
    failing(features, "c")
    assert usable(features, list("abc"), "rot90").tolist() == [True, True, False]


def test_a_view_or_a_store_without_images_is_refused(features, tmp_path):
    with pytest.raises(NotFound, match="holds no view 'flip-h'; it holds identity, rot90"):
        usable(features, ["a"], "flip-h")
    empty = open_store(str(tmp_path / "new"), mode="a").create_feature_set(spec_of())
    with pytest.raises(NotFound, match="no image yet: run histostore build"):
        usable(empty, ["a"], "identity")


def test_nothing_left_is_refused(features):
    failing(features, "d", "e")
    with pytest.raises(NotFound, match=r"all of 2 images \(d, e\) failed in the build"):
        usable(features, list("de"), "identity")


def test_records_of_builds_are_read_only_where_an_image_is_missing(features, monkeypatch):
    monkeypatch.setattr(type(features), "builds", None)
    assert usable(features, list("abc"), "identity").all()
