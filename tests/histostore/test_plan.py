"""Planning is subtraction: what is wanted, less what is committed."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from histostore.build.plan import plan_build
from histostore.files import Source
from histostore.views import VIEWS

IDS = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)


def by_view(pairs):
    return {view: {image for image, other in pairs if other == view} for _, view in pairs}


@given(IDS, st.sets(st.sampled_from(VIEWS), min_size=1), st.integers(1, 7), st.data())
def test_the_plan_holds_each_missing_pair_once_and_no_other(ids, views, unit_images, data):
    views = tuple(sorted(views))
    pairs = [(image_id, view) for image_id in ids for view in views]
    committed = set(data.draw(st.lists(st.sampled_from(pairs)))) if pairs else set()
    plan = plan_build(ids, by_view(committed), views, unit_images=unit_images)
    planned = [(ids[row], view) for unit in plan.units for row in unit.rows for view in unit.views]
    assert len(planned) == len(set(planned))
    assert set(planned) == set(pairs) - committed
    assert all(1 <= len(unit.rows) <= unit_images for unit in plan.units)
    assert plan.n_done + plan.n_todo == plan.n_images == len(ids)


@given(IDS)
def test_nothing_is_planned_where_all_is_committed(ids):
    plan = plan_build(ids, {"identity": set(ids)}, ("identity",))
    assert plan.units == ()
    assert plan.n_done == len(ids)


def test_a_changed_source_is_reported_and_a_moved_one_is_not():
    then = {name: {"url": f"/old/{name}", "size": 1, "version": "1"} for name in "abc"}
    now = {
        "a": Source(url="/new/a", size=1, version="1"),
        "b": Source(url="/old/b", size=2, version="1"),
        "c": Source(url="/old/c", size=1, version="2"),
    }
    done = {"identity": set("abc")}
    plan = plan_build(["a", "b", "c"], done, ("identity",), sources=now, recorded=then)
    assert plan.changed == ("b", "c")
    assert plan.units == ()


@given(*[st.one_of(st.none(), st.tuples(st.integers(0, 2), st.sampled_from("12")))] * 2)
def test_another_version_of_the_file_that_places_patches_is_a_change(then, now):
    def source(version):
        image = Source(url="a.png", size=1, version="1")
        if version is None:
            return image
        return image.placed_by(Source(url="a.csv", size=version[0], version=version[1]))

    document = json.loads(json.dumps(source(then).to_json()))
    assert Source.from_json(document) == source(then)
    assert source(now).differs(document) == (now != then)


def test_a_view_of_changed_pixels_is_planned_only_where_the_others_are_renewed():
    then = {name: {"url": name, "size": 1, "version": "1"} for name in "ab"}
    now = {name: Source(url=name, size=1, version=str("abc".index(name))) for name in "abc"}
    done = {"identity": {"a", "b"}, "rot90": set()}
    words = {"sources": now, "recorded": then}
    plan = plan_build(["a", "b", "c"], done, ("identity", "rot90"), **words)
    assert (plan.changed, plan.stuck) == (("a",), (0,))
    assert [(unit.rows, unit.views) for unit in plan.units] == [
        ((1,), ("rot90",)),
        ((2,), ("identity", "rot90")),
    ]
    assert (plan.n_todo, plan.n_done) == (2, 0)
    plan = plan_build(["a", "b", "c"], done, ("identity", "rot90"), renewed=True, **words)
    assert (plan.stuck, plan.n_todo) == ((), 3)


@given(*[st.one_of(st.none(), st.sampled_from([0.25, 0.5, 1 / 3]))] * 2)
def test_another_scale_is_a_change_unless_the_store_does_not_say(then, now):
    source = Source(url="a.svs", size=1, version="1")
    document = json.loads(json.dumps(source.scaled_by(then).to_json()))
    assert Source.from_json(document).mpp == then
    assert source.scaled_by(now).differs(document) == (now != then)
    assert not source.scaled_by(now).differs(source.to_json())
