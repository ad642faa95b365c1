"""What a run looked at: weights of patches, as numbers, as a picture, and for QuPath."""

from __future__ import annotations

import dataclasses
import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histostore.cohort import Cohort
from histostore.errors import ImageError, NotFound, OptionError
from histostore.store import open_store
from histostore.synthetic import load_truth, make_cohort
from histostore.testing import fragment_of
from tests.commands import call, write_table
from tests.zoo.stores import COLUMNS, EDGE, ROWS, make_world
from zoo.bags import Bags
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.explaining import explain, importance
from zoo.explaining.colours import Scale, choose_scale
from zoo.explaining.importance import Voice, left_out_of, weigh
from zoo.explaining.maps import value_map
from zoo.explaining.patches import read_patch, standing_out
from zoo.heads import spec
from zoo.recipes import recipe

QUICK = recipe("default", epochs=30, batch_size=4, lr=0.003)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("explaining")


@pytest.fixture(scope="module")
def world(folder):
    return make_world(folder / "world", views=("identity", "rot90"))


@pytest.fixture(scope="module")
def mil(folder, world):
    """A run whose heads have attention."""
    return world.fit(folder / "mil", "gated-mil", folds=2, seeds=2, recipe=QUICK)


@pytest.fixture(scope="module")
def logistic(folder, world):
    """A run whose heads have none."""
    return world.fit(folder / "logistic", folds=2)


@pytest.fixture(scope="module")
def told(mil, world):
    return explain(mil.path, world.store, "i3")


# Numbers -----------------------------------------------------------------------------------


def test_attention_is_the_mean_over_heads_times_the_number_of_patches(told, mil, world):
    bags = Bags.unlabelled(open_store(world.store).feature_set(), ["i3"])
    every = np.array([head.attention(bags)[0] for head in mil.load_heads().values()]) * 24
    np.testing.assert_allclose(told.value, every.mean(axis=0))
    np.testing.assert_allclose(told.sd, every.std(axis=0, ddof=1))
    assert told.value.mean() == pytest.approx(1)
    ranks = pd.DataFrame(every.T).corr("spearman").to_numpy()
    assert told.agreement == pytest.approx(ranks[np.triu_indices(4, 1)].mean())
    assert (told.method, told.n_heads, told.n_weighing) == ("attention", 4, 4)


def test_attention_lies_where_the_class_was_planted(told, world):
    assert int(told.value.argmax()) == world.planted["i3"]
    assert told.prediction == told.target == "malignant"
    assert told.prob.sum() == pytest.approx(1)


def test_heads_that_know_the_image_are_counted_and_can_be_left_out(mil, world, told):
    rows = mil.predictions[mil.predictions["image_id"] == "i3"]
    tested = rows.loc[rows["role"] == "test", ["fold", "seed"]]
    assert told.n_trained == 4 - len(tested) > 0
    unseen = explain(mil, world.store, "i3", unseen=True)
    assert (unseen.n_heads, unseen.n_trained) == (len(tested), 0)
    bags = Bags.unlabelled(open_store(world.store).feature_set(), ["i3"])
    heads = mil.load_heads()
    every = [heads[fold, seed].predict_proba(bags)[0] for fold, seed in tested.to_numpy()]
    np.testing.assert_allclose(unseen.prob, np.mean(every, axis=0))


@pytest.mark.parametrize("change", ["moved", "moved and appended to", "named otherwise"])
def test_heads_that_know_the_image_are_left_out_wherever_the_store_lies(
    mil, world, tmp_path, monkeypatch, change
):
    store = Path(world.store)
    if change == "named otherwise":
        monkeypatch.chdir(store.parent)
        moved = Path(store.name)
    else:
        moved = Path(shutil.copytree(store, tmp_path / "elsewhere"))
    if change == "moved and appended to":
        features = open_store(moved, mode="a").feature_set()
        features.commit(fragment_of(["new"], n_features=features.spec.n_features), {})
    rows = mil.predictions[mil.predictions["image_id"] == "i3"]
    n_tested = int((rows["role"] == "test").sum())
    unseen = explain(mil, moved, "i3", unseen=True)
    assert (unseen.n_heads, unseen.n_trained) == (n_tested, 0)


def test_leaving_out_a_patch_is_what_it_says(logistic, world, monkeypatch):
    bags = Bags.unlabelled(open_store(world.store).feature_set(), ["i3"])
    head = next(iter(logistic.load_heads().values()))
    whole = np.log(head.predict_proba(bags)[0, 1] / head.predict_proba(bags)[0, 0])
    expected = []
    for patch in range(24):
        rows = np.delete(bags.embedding, patch, axis=0)
        p = head.predict_proba(Bags.from_arrays(rows, [0, 23]))[0]
        expected.append(whole - np.log(p[1] / p[0]))
    np.testing.assert_allclose(left_out_of(head, bags, 1), expected, atol=1e-6)
    monkeypatch.setattr(importance, "_BATCH_BYTES", 5 * 23 * 16)  # five bags at once
    np.testing.assert_allclose(left_out_of(head, bags, 1), expected, atol=1e-6)


def test_heads_without_attention_leave_patches_out_and_say_so(logistic, world):
    told = explain(logistic, world.store, "i3")
    assert told.method == "leave-one-out"
    assert int(told.value.argmax()) == world.planted["i3"]
    assert "leaving one out" in told.to_text()


def test_too_many_patches_or_a_single_one_cannot_be_left_out(logistic, world, monkeypatch):
    monkeypatch.setattr(importance, "MOST_LEFT_OUT", 23)
    with pytest.raises(NotSupported, match="up to 23 patches, this one has 24"):
        explain(logistic, world.store, "i3")
    head = next(iter(logistic.load_heads().values()))
    alone = Voice(head=head, weight=1.0, views=(Bags.from_arrays([[1.0] * 4], [0, 1]),), edge_px=16)
    with pytest.raises(NotSupported, match="takes two or more, this image has 1"):
        weigh([alone], 0)


def test_of_an_ensemble_the_members_with_attention_weigh_and_all_predict(
    mil, logistic, world, folder, told
):
    both = ensemble([mil.path, logistic.path], out=folder / "both")
    together = explain(both, world.store, "i3")
    np.testing.assert_allclose(together.value, told.value)
    assert (together.n_heads, together.n_weighing) == (6, 4)
    alone = explain(logistic, world.store, "i3").prob
    np.testing.assert_allclose(together.prob, (alone + told.prob) / 2)


def test_the_map_finds_what_was_planted_in_synthetic_images(tmp_path):
    """Vectors tell the class in planted patches alone; the map is held against the truth."""
    table = make_cohort(tmp_path, n_images=12, image_px=160, patch_px=32, planted_share=0.1, seed=3)
    truth, cohort = load_truth(tmp_path), Cohort.read(str(table))
    rng = np.random.default_rng(0)
    labels = cohort.table.set_index("image_id")["label"]
    counts = truth.groupby("image_id", sort=False).size()
    first = labels[truth["image_id"]].to_numpy() == labels.iloc[0]
    vectors = rng.normal(0, 0.5, (len(truth), 6))
    vectors[:, 0] += truth["planted"].to_numpy() * first * 6
    vectors[:, 1] += truth["planted"].to_numpy() * ~first * 6
    bags = Bags.from_arrays(
        vectors,
        np.concatenate([[0], np.cumsum(counts)]),
        labels=list(labels[counts.index]),
        coords=truth[["x", "y"]].to_numpy(),
    )
    assert list(counts.index) == list(cohort.image_ids)
    head = spec("gated-mil").fit(bags, recipe=QUICK)
    areas = []
    for k, image_id in enumerate(counts.index):
        voice = Voice(head=head, weight=1.0, views=(bags[[k]],), edge_px=32)
        found = weigh([voice], int(bags.labels[k]))
        areas.append(importance.map_auroc(found.coords, found.value, image_id, truth))
    assert np.mean(areas) >= 0.9
    with pytest.raises(RunError, match="0 planted"):
        importance.map_auroc(found.coords, found.value, "image-none", truth)


# Pictures ----------------------------------------------------------------------------------


def test_the_picture_shows_the_map_in_its_colours(told, tmp_path):
    told.write(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    assert pixels.shape[1] > 2 * 640
    yellow = (pixels[..., 0] > 180) & (pixels[..., 1] > 170) & (pixels[..., 2] < 120)
    right = np.argwhere(yellow[:, 680:1300])  # the map's half
    place = divmod(int(told.value.argmax()), COLUMNS)
    tall = 640 // COLUMNS  # a patch on the picture
    top, left = 24 + 40 + 42 + place[0] * tall, 24 + 640 + 24 + place[1] * tall
    y, x = np.median(right, axis=0) + np.array([0, 680])
    assert top < y < top + tall
    assert left < x < left + tall


def test_a_picture_of_importance_is_drawn_too(logistic, world, tmp_path):
    explain(logistic, world.store, "i2").write(tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.width > 1280


def test_a_tall_image_with_many_classes_and_a_scale_is_drawn(told, tmp_path):
    path = tmp_path / "tall.png"
    Image.new("RGB", (COLUMNS * EDGE, 40 * EDGE), (230, 190, 210)).save(path)
    k = 7
    tall = dataclasses.replace(
        told,
        image_id="Ünïcode/" + "long name " * 30,
        url=str(path),
        height_px=40 * EDGE,
        mpp=0.5,
        classes=tuple(f"class {c}" for c in range(k)),
        prob=np.full(k, 1 / k),
        prob_sd=np.full(k, np.nan),
        sd=np.full(24, np.nan),
        agreement=None,
    )
    tall.write(tmp_path / "map.png", tmp_path / "map.geojson")
    assert all("sd over heads" not in f for f in features(tmp_path / "map.geojson"))


@given(st.lists(st.floats(-50, 50, allow_subnormal=False), min_size=1, max_size=9), st.booleans())
def test_a_scale_holds_its_values_and_has_round_ticks(values, diverging):
    values = np.array(values) if diverging else np.abs(values)
    scale = choose_scale(values, diverging=diverging)
    assert scale.low <= values.min()
    assert values.max() <= scale.high
    ticks = scale.ticks()
    assert 4 <= len(ticks) <= 10
    assert scale.low <= ticks[0] + 1e-9
    assert ticks[-1] <= scale.high + 1e-6 * abs(scale.high)
    assert scale.low < 0 or ticks[0] == 0


def test_colours_grow_evenly_lighter():
    scale = Scale(low=0.0, high=1.0, diverging=False)
    grey = scale.colours(np.linspace(0, 1, 50)) @ (0.2126, 0.7152, 0.0722)
    assert all(b > a for a, b in pairwise(grey))


def test_where_patches_overlap_their_mean_is_shown():
    shown = value_map(np.array([[0, 0, 4, 2], [2, 0, 6, 2], [7, 1, 7, 1]]), np.arange(3.0), 8, 2)
    assert shown[0, :6].tolist() == [0, 0, 0.5, 0.5, 1, 1]
    assert np.isnan(shown[0, 6:]).all()
    assert shown[1, 7] == 2  # smaller than a pixel, yet there


@given(st.lists(st.floats(0, 9), min_size=1, max_size=40))
def test_no_patch_stands_out_both_ways(values):
    values = np.array(values)
    top, bottom = standing_out(values)
    assert not set(top) & set(bottom)
    assert len(top) >= 1
    if len(bottom):
        assert values[top].min() >= values[bottom].max()


def test_a_patch_over_the_border_is_white_beyond_it():
    from histostore.images.memory import MemoryReader

    reader = MemoryReader(np.full((20, 20, 3), 90, np.uint8), mpp=None)
    tile = np.asarray(read_patch(reader, np.array([10, 0, 20, 16]), 16, 32))
    assert (tile[:, :20] == 90).all()
    assert (tile[:, 20:] == 255).all()


# Files -------------------------------------------------------------------------------------


def features(path):
    return json.loads(path.read_text())["features"]


def test_polygons_lie_on_level_0_and_carry_what_qupath_reads(told, tmp_path):
    told.write(tmp_path / "a.geojson", tmp_path / "b.geojson")
    found = features(tmp_path / "a.geojson")
    assert found == features(tmp_path / "b.geojson")
    assert len({each["id"] for each in found}) == len(found) == 24
    for k, each in enumerate(found):
        y, x = (EDGE * place for place in divmod(k, COLUMNS))
        (ring,) = each["geometry"]["coordinates"]
        assert ring[0] == ring[-1] == [x, y]
        assert ring[2] == [x + EDGE, y + EDGE]
        properties = each["properties"]
        assert properties["objectType"] == "tile"
        measured = properties["measurements"]
        assert measured["attention x patches"] == told.value[k]
        assert properties["classification"]["name"] == (
            "attended" if told.value[k] > 1 else "unattended"
        )
        assert len(properties["color"]) == 3
    heaviest = found[int(told.value.argmax())]["properties"]
    assert (heaviest["name"], heaviest["color"]) == ("patch 1", [253, 231, 37])


def test_polygons_end_at_the_border_of_the_image(told, tmp_path):
    cut = dataclasses.replace(told, width_px=COLUMNS * EDGE - 5, height_px=ROWS * EDGE - 3)
    cut.write(tmp_path / "a.geojson")
    rings = np.array([f["geometry"]["coordinates"][0] for f in features(tmp_path / "a.geojson")])
    assert rings.max(axis=(0, 1)).tolist() == [COLUMNS * EDGE - 5, ROWS * EDGE - 3]


def test_the_table_is_sorted_and_sums_to_1(told, tmp_path):
    told.write(tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv")
    assert table["rank"].tolist() == list(range(1, 25))
    assert table["attention"].is_monotonic_decreasing
    assert table["attention"].sum() == pytest.approx(1, abs=1e-4)
    assert set(table["edge_px"]) == {EDGE}


# What goes wrong ---------------------------------------------------------------------------


def test_an_unknown_image_is_told_with_what_is_near(mil, world, tmp_path):
    with pytest.raises(NotFound, match="holds no image 'i33'; nearest: "):
        explain(mil, world.store, "i33")
    table = write_table(tmp_path / "c.csv", [{"image_id": "i30", "path": "x.png"}])
    with pytest.raises(NotFound, match="has no image 'i3'; nearest: 'i30'"):
        explain(mil, world.store, "i3", cohort=table)


def test_an_image_that_moved_is_found_through_its_cohort(mil, folder, tmp_path):
    moved = make_world(tmp_path / "old", 4, prefix="m")
    (tmp_path / "old" / "images").rename(tmp_path / "old" / "pictures")
    with pytest.raises(ImageError, match="if it has moved, give its cohort"):
        explain(mil, moved.store, "m1")
    rows = [{"image_id": "m1", "path": "pictures/1.png", "label": "benign", "mpp": "0.5"}]
    told = explain(mil, moved.store, "m1", cohort=write_table(tmp_path / "old" / "c.csv", rows))
    assert (told.target, told.mpp, told.n_trained) == ("benign", 0.5, 0)


def test_another_image_at_the_same_place_is_refused(mil, tmp_path):
    world = make_world(tmp_path / "w", 4, prefix="m")
    Image.new("RGB", (40, 40)).save(tmp_path / "w" / "images" / "1.png")
    with pytest.raises(ImageError, match="of its 24 stored patches lie outside"):
        explain(mil, world.store, "m1")


def test_all_heads_may_have_seen_an_image(mil, world):
    rows = mil.predictions.assign(role="train")
    with pytest.raises(RunError, match=r"all heads of .* have seen i3"):
        explain(dataclasses.replace(mil, predictions=rows), world.store, "i3", unseen=True)


def test_an_unknown_kind_of_file_is_refused(told):
    with pytest.raises(OptionError, match=r"\.png, \.geojson, \.csv"):
        told.write("map.tiff")


# The command -------------------------------------------------------------------------------


def test_the_command_writes_all_that_it_is_asked_for(mil, world, tmp_path):
    names = ("map.png", "map.geojson", "map.csv")
    outputs = [word for name in names for word in ("-o", tmp_path / name)]
    words = ("zoo", "explain", mil.path, world.store, "--image", "i3")
    done = call(*words, "--cohort", world.table, *outputs, "--json")
    assert done.code == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert done.json["prediction"] == done.json["target"] == "malignant"
    refused = call(*words, "-o", tmp_path / "x.jpg")
    assert refused.code == 1
    assert "ends in .png" in refused.err
