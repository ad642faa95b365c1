"""The application without a browser: the same numbers as a build gives, and honest words."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from histostore.build import build
from histostore.errors import EncoderError, ImageError, NotFound, OptionError, StorageError
from histostore.store import open_store
from tests.commands import call, picture
from tests.zoo.apps import NATIVE, SCALED, WEIGHTS, make_app_world
from tests.zoo.runs import make_run
from zoo.app import Predictor, Server
from zoo.app.answers import Opinion
from zoo.app.drawing import MOST_TILES, illustrate
from zoo.app.novelty import KnownImages
from zoo.app.page import analyse
from zoo.app.reliability import ACCURACY, LEAST_IMAGES, Reliability, choose_confidence
from zoo.app.rendering import answer_html, card_html, message_html
from zoo.ensembles import ensemble
from zoo.errors import NotSupported, RunError
from zoo.explaining import explain
from zoo.prediction import predict
from zoo.run import Run
from zoo.tasks import Task

TOLERANCE = 1e-4  # half precision in the store; batches differ


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_app_world(tmp_path_factory.mktemp("app"))


@pytest.fixture(scope="module")
def mil(world):
    return Predictor.open(world.runs / "mil", weights=WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def both(world):
    return Predictor.open(world.runs / "both", weights=WEIGHTS, device="cpu")


@pytest.fixture(scope="module")
def fresh_store(world, tmp_path_factory):
    """The images left over, built as the training was."""
    store = str(tmp_path_factory.mktemp("fresh") / "store")
    trained = open_store(world.store)
    (stain,) = (f.spec.stain for f in trained.values() if f.spec.grid.mpp is None)
    build(world.fresh, store, replace(NATIVE, stain=stain))
    build(world.fresh, store, SCALED)
    return store


@pytest.fixture
def uploaded(world, tmp_path):
    """A copy of an image that no run has seen."""
    return Path(shutil.copy(world.fresh.urls[0], tmp_path / "upload.png"))


# The same numbers --------------------------------------------------------------------------


def test_an_upload_gets_the_numbers_that_build_and_predict_give(world, both, fresh_store):
    frame = predict(world.runs / "both", fresh_store).frame.set_index("image_id")
    for image_id, url in zip(world.fresh.image_ids, world.fresh.urls, strict=True):
        answer = both.predict(url, mpp=0.5)
        wanted = frame.loc[image_id, [f"prob_{name}" for name in answer.classes]]
        np.testing.assert_allclose(answer.prob, wanted.to_numpy(float), atol=TOLERANCE)
        assert answer.likeliest == frame.loc[image_id, "prediction"]
        spread = answer.sd[answer.prob.argmax()]
        assert spread == pytest.approx(frame.loc[image_id, "spread"], abs=TOLERANCE)
        assert answer.twin is None


def test_rules_that_are_no_averages_are_applied_too(world, fresh_store, tmp_path):
    members = [world.runs / "mil", world.runs / "scaled"]
    stacked = ensemble(members, rule="stack", out=tmp_path / "stack")
    asked = Predictor.open(stacked, weights=WEIGHTS, device="cpu")
    frame = predict(stacked, fresh_store).frame.set_index("image_id")
    answer = asked.predict(world.fresh.urls[0], mpp=0.5)
    wanted = frame.loc[world.fresh.image_ids[0], [f"prob_{name}" for name in answer.classes]]
    np.testing.assert_allclose(answer.prob, wanted.to_numpy(float), atol=TOLERANCE)


def test_its_patches_weigh_what_explain_says(world, both, fresh_store):
    image_id, url = world.fresh.image_ids[0], world.fresh.urls[0]
    told = explain(world.runs / "both", fresh_store, image_id, cohort=world.fresh)
    answer = both.predict(url, mpp=0.5)
    np.testing.assert_array_equal(answer.coords, told.coords)
    np.testing.assert_allclose(answer.weighed.value, told.value, atol=1e-3)
    assert (answer.weighed.method, answer.edge_px) == (told.method, told.edge_px)


def test_members_may_have_learned_from_other_feature_sets(world, both):
    assert len(both.using) == 2
    assert {using.views for using in both.using} == {("identity",), ("rot90",)}
    assert both.needs_mpp
    answer = both.predict(world.fresh.urls[0], mpp=0.5)
    assert len(answer.opinions) == answer.n_heads == 6
    assert math.fsum(one.weight for one in answer.opinions) == pytest.approx(1)
    assert sorted(used[1] for used in answer.n_patches.values()) == [4, 16]


# Images of the training --------------------------------------------------------------------


def test_an_image_of_the_training_is_recognised_whatever_its_name(world, mil, tmp_path):
    cohort = world.cohort
    copy = shutil.copy(cohort.urls[3], tmp_path / "another name.png")
    answer = mil.predict(copy)
    assert answer.twin.image_id == cohort.image_ids[3]
    told = explain(world.runs / "mil", world.store, cohort.image_ids[3], unseen=True)
    assert len(answer.opinions) == told.n_heads < answer.n_heads
    np.testing.assert_allclose(answer.prob, told.prob, atol=TOLERANCE)
    html = answer_html(answer, illustrate(answer, copy), mil)
    assert f"This is {cohort.image_ids[3]}, an image of the training." in html
    assert "Only the 2 heads of 4 that had not seen it answered." in html


def test_another_image_of_the_same_size_is_not_mistaken_for_one_of_the_training(
    world, mil, tmp_path
):
    known = Path(world.cohort.urls[3])
    pixels = np.asarray(Image.open(world.fresh.urls[0]).convert("RGB"))
    other = tmp_path / "other.png"
    Image.fromarray(pixels // 8 * 8).save(other)  # smaller, then as long as the other
    other.write_bytes(other.read_bytes() + b"\0" * (known.stat().st_size - other.stat().st_size))
    assert other.stat().st_size == known.stat().st_size
    assert mil.predict(other).twin is None


def test_without_its_store_a_run_answers_and_says_what_it_cannot_tell(world, uploaded, tmp_path):
    run = Run.load(world.runs / "mil")
    lost = {**run.document["store"], "url": str(tmp_path / "gone")}
    moved = dataclasses.replace(run, document={**run.document, "store": lost})
    answer = (asked := Predictor.open(moved, weights=WEIGHTS, device="cpu")).predict(uploaded)
    assert "its images are not recognised" in asked.notes[0]
    assert answer.twin is None
    assert answer.novel_to == 0
    here = Predictor.open(moved, store=world.store, weights=WEIGHTS, device="cpu")
    assert here.notes == ()
    with pytest.raises(NotFound):
        Predictor.open(moved, store=str(tmp_path / "gone"), weights=WEIGHTS, device="cpu")


# What cannot be answered ---------------------------------------------------------------------


def test_another_encoder_than_that_of_the_training_is_refused(world):
    with pytest.raises(EncoderError, match=r"not that of the training: weights .* --weights sq"):
        Predictor.open(world.runs / "mil", weights="random:1", device="cpu")
    with pytest.raises(EncoderError, match="no weights file at nowhere"):
        Predictor.open(world.runs / "mil", weights="nowhere", device="cpu")


def test_runs_of_which_the_preprocessing_is_not_known_are_refused(world, tmp_path):
    with pytest.raises(RunError, match="not fitted to a store"):
        Predictor.open(make_run(tmp_path / "arrays"))
    run = Run.load(world.runs / "mil")
    store = run.document["store"]
    told = {**store, "spec": {**store["spec"], "stain": "vahadane"}}
    with pytest.raises(NotSupported, match="by vahadane to a target that was not recorded"):
        Predictor.open(dataclasses.replace(run, document={**run.document, "store": told}))


def test_runs_of_other_tasks_or_on_pixels_are_refused_in_one_line(world):
    run = Run.load(world.runs / "mil")
    pixels = dataclasses.replace(run, document={**run.document, "trained_on": {}})
    with pytest.raises(NotSupported, match="was trained on pixels"):
        Predictor.open(pixels)
    task = Task.of("regression", "age").to_json()
    with pytest.raises(NotSupported, match="learned task regression"):
        Predictor.open(dataclasses.replace(run, document={**run.document, "task": task}))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "empty"),
        ("cut.png", None, "cut.png"),
        ("text.png", b"no picture at all", "no PNG"),
        ("text.svs", b"no picture at all", "no TIFF"),
        ("notes.txt", b"no picture at all", "notes.txt"),
    ],
)
def test_a_broken_upload_is_a_message_and_is_deleted(mil, uploaded, name, content, reason):
    whole = uploaded.read_bytes()
    file = uploaded.with_name(name)
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    html, is_kept = analyse(mil, str(file))
    assert 'role="alert"' in html
    assert "cannot be analysed" in html
    assert reason in html
    assert str(file.parent) not in html
    assert not is_kept
    assert not file.exists()


def test_a_missing_scale_is_asked_for_and_the_upload_is_kept_until_it_is_given(both, uploaded):
    html, is_kept = analyse(both, str(uploaded))
    assert "give micrometres per pixel" in html
    assert is_kept
    for wrong in ("half", "-1", "0", "inf", "nan"):
        html, is_kept = analyse(both, str(uploaded), wrong)
        assert "is no number of micrometres per pixel" in html
        assert is_kept
    html, is_kept = analyse(both, str(uploaded), "0,5")
    assert "What the heads looked at" in html
    assert "0.5 µm per pixel" in html
    assert not is_kept
    assert not uploaded.exists()


def test_from_python_what_cannot_be_read_is_an_error_of_ours(world, both, tmp_path):
    with pytest.raises(ImageError, match="does not say its own"):
        both.predict(world.fresh.urls[0])
    with pytest.raises(StorageError, match=r"gone\.png"):
        both.predict(tmp_path / "gone.png", mpp=0.5)


def test_no_upload_and_one_that_has_gone_are_messages(mil, tmp_path):
    assert analyse(mil, None) == (message_html("Choose an image first."), True)
    html, is_kept = analyse(mil, str(tmp_path / "gone.png"))
    assert "The upload is gone" in html
    assert not is_kept


def test_options_that_make_no_sense_are_refused(world):
    with pytest.raises(OptionError, match="between 0 and 1"):
        Predictor.open(world.runs / "mil", abstain_below=2.0)
    for wrong in ({"port": 0}, {"max_mb": 0}, {"max_mb": math.nan}):
        with pytest.raises(OptionError, match=re.escape(next(iter(wrong)))):
            Server(**wrong)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = call("zoo", "app", world.runs / "mil", "--port", port)
    assert done.code == 1
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    assert done.err.count("\n") == 1


# Honesty -----------------------------------------------------------------------------------


def test_no_class_is_named_below_the_threshold(world, uploaded):
    asked = Predictor.open(world.runs / "mil", weights=WEIGHTS, device="cpu", abstain_below=1.0)
    answer = asked.predict(uploaded)
    assert answer.to_json()["prediction"] is None
    assert answer.doubts[0] == "a class is named only from a confidence of 1.00 on"
    html = answer_html(answer, illustrate(answer, uploaded), asked)
    assert ">No clear answer</h2>" in html
    assert "as was asked" in card_html(asked)


def test_no_class_is_named_where_heads_disagree(mil, uploaded):
    answer = mil.predict(uploaded)
    split = [
        Opinion(run_name="a", fold=0, seed=k, weight=0.5, prob=np.array(prob))
        for k, prob in enumerate([[0.9, 0.1], [0.2, 0.8]])
    ]
    torn = dataclasses.replace(
        answer, opinions=tuple(split), prob=np.array([0.55, 0.45]), threshold=None, novel_to=0
    )
    assert torn.agreement == 0.5
    assert torn.doubts == ("only 50 % of the heads favour it",)


def test_an_image_unlike_all_of_the_training_is_doubted(mil, uploaded, tmp_path):
    assert mil.predict(uploaded).novel_to == 0
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    answer = mil.predict(tmp_path / "noise.png")
    assert answer.novel_to == 20
    assert any("unlike those of the training" in doubt for doubt in answer.doubts)
    html = answer_html(answer, illustrate(answer, tmp_path / "noise.png"), mil)
    assert ">No clear answer</h2>" in html
    assert "held-out images" not in html


def test_none_of_the_training_is_unlike_it():
    means = np.random.default_rng(1).normal(size=(40, 6))
    known = KnownImages.of_means(means)
    assert not any(known.is_novel(mean[None]) for mean in means)
    assert known.is_novel(means[:1] + 20)


def test_glass_is_doubted(mil, tmp_path):
    Image.fromarray(np.full((128, 128, 3), 245, np.uint8)).save(tmp_path / "glass.png")
    answer = mil.predict(tmp_path / "glass.png")
    assert "no tissue was found in the image" in answer.doubts
    assert "No tissue was found" in answer_html(
        answer, illustrate(answer, tmp_path / "glass.png"), mil
    )


@given(
    st.lists(st.tuples(st.sampled_from([0.4, 0.5, 0.6, 0.7, 0.8, 0.9]), st.booleans()), max_size=60)
)
def test_the_threshold_is_the_lowest_from_which_on_enough_are_right(told):
    confidence = np.array([c for c, _ in told])
    right = np.array([r for _, r in told], dtype=bool)

    def is_enough(threshold):
        above = confidence >= threshold
        return above.sum() >= LEAST_IMAGES and right[above].mean() >= ACCURACY

    good = [threshold for threshold in np.unique(confidence) if is_enough(threshold)]
    assert choose_confidence(confidence, right) == (min(good) if good else None)


def test_reliability_counts_held_out_images(mil):
    told = Reliability(
        confidence=np.linspace(0.5, 1.0, 51), right=np.arange(51) > 10, threshold=0.8
    )
    assert told.near(0.6) == (5, 11, pytest.approx(0.55), pytest.approx(0.65))
    assert told.near(0.2) is None
    assert told.named() == (21, 21, 51)
    tested = mil.run.test_probabilities()
    assert len(mil.reliability.confidence) == len(tested.image_ids) == 20
    assert mil.reliability.right.mean() == pytest.approx(
        mil.run.document["metrics"]["test"]["accuracy"]["value"]
    )


# Words and pictures ------------------------------------------------------------------------


def test_what_comes_from_outside_is_escaped(mil, uploaded):
    file = uploaded.rename(uploaded.with_name("<img src=x onerror=alert(1)>.png"))
    html, _ = analyse(mil, str(file))
    assert "<img src=x" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;.png" in html
    assert "<b>" not in message_html("<b>")


def test_pictures_hold_their_own_data_and_have_a_text(mil, uploaded):
    answer = mil.predict(uploaded)
    html = answer_html(answer, illustrate(answer, uploaded), mil)
    images = re.findall(r"<img [^>]*>", html)
    assert len(images) == 2 + len(answer.coords)
    assert all('src="data:image/webp;base64,' in image for image in images)
    assert all(re.search(r'alt="[^"]+"', image) for image in images)
    assert not re.findall(r"https?://", html)


def test_tiles_are_ordered_by_weight_and_bounded(mil, tmp_path):
    Image.fromarray(picture(0, height=320, width=320)).save(tmp_path / "large.png")
    answer = mil.predict(tmp_path / "large.png")
    drawn = illustrate(answer, tmp_path / "large.png")
    weights = [float(tile.value.rstrip("×")) for tile in drawn.tiles]
    assert weights == sorted(weights, reverse=True)
    assert (len(drawn.tiles), drawn.n_left_out) == (MOST_TILES, 100 - MOST_TILES)
    assert [tile.number for tile in drawn.tiles[:6]] == [1, 2, 3, 4, 5, None]
    assert weights[0] == pytest.approx(answer.weighed.value.max(), abs=0.005)
    assert weights[-1] == pytest.approx(answer.weighed.value.min(), abs=0.005)


def test_heads_without_attention_show_what_leaving_patches_out_does(world, tmp_path):
    asked = Predictor.open(world.runs / "scaled", weights=WEIGHTS, device="cpu")
    answer = asked.predict(world.fresh.urls[0], mpp=0.5)
    html = answer_html(answer, illustrate(answer, world.fresh.urls[0]), asked)
    assert answer.weighed.method == "leave-one-out"
    assert "these heads have no attention" in html
    assert "speak most for" in html
    Image.fromarray(picture(0, height=64, width=64)).save(tmp_path / "one.png")
    alone = asked.predict(tmp_path / "one.png", mpp=0.5)
    assert alone.weighed is None
    assert "There is no map" in answer_html(alone, illustrate(alone, tmp_path / "one.png"), asked)


def test_the_card_tells_metrics_with_intervals(mil):
    html = card_html(mil)
    told = mil.run.document["metrics"]["test"]["macro_f1"]
    assert f"<td>{told['value']:.3f}</td><td>{told['low']:.3f} to {told['high']:.3f}</td>" in html
    assert "20 images of 10 patients" in html


def test_the_answer_is_json(mil, uploaded):
    told = json.loads(json.dumps(mil.predict(uploaded).to_json(), allow_nan=False))
    assert told["image"] == "upload.png"
    assert sum(told["prob"].values()) == pytest.approx(1)
    assert told["n_heads"] == 4
