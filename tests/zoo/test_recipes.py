"""Recipes and settings: what is refused, and what survives a round trip."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zoo.errors import RecipeError
from zoo.recipes import PRESETS, Recipe, known_recipes, recipe
from zoo.settings import describe


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_knows_its_name_and_survives_json(name):
    preset = recipe(name)
    assert preset.name == name
    assert Recipe.from_json(json.loads(json.dumps(preset.to_json()))) == preset


def test_the_presets_are_those_of_the_reports():
    r_drop, swa, focal = recipe("r-drop"), recipe("swa"), recipe("focal-lion")
    assert r_drop.label_smoothing > 0
    assert r_drop.r_drop > 0
    assert r_drop.patch_dropout > 0
    assert r_drop.min_patches >= 1
    assert r_drop.embedding_noise > 0
    assert (swa.optimiser, swa.schedule, swa.r_drop) == ("adamw", "cosine", 0)
    assert swa.label_smoothing > 0
    assert swa.swa_start is not None
    assert (focal.focal_gamma, focal.class_weights, focal.optimiser) == (2.0, "none", "lion")
    assert focal.lr < recipe().lr
    assert focal.weight_decay > recipe().weight_decay
    ilse = recipe("ilse")
    assert (ilse.optimiser, ilse.lr, ilse.weight_decay) == ("sgd", 5e-4, 5e-3)
    assert (ilse.epochs, ilse.batch_size, ilse.schedule) == (100, 1, "none")
    assert ilse.gradient_clip is None
    assert not ilse.needs_validation
    assert all(about for _, about in known_recipes())


@given(
    lr=st.floats(1e-8, 1),
    epochs=st.integers(1, 1000),
    clip=st.none() | st.floats(0.1, 10),
    weights=st.sampled_from(["none", "balanced"]),
)
def test_a_recipe_survives_json_and_text(lr, epochs, clip, weights):
    made = Recipe(lr=lr, epochs=epochs, gradient_clip=clip, class_weights=weights)
    again = Recipe.from_json(json.loads(json.dumps(made.to_json())))
    assert again == made
    assert again.digest == made.digest
    text = {"lr": repr(lr), "epochs": str(epochs), "gradient_clip": str(clip).lower()}
    assert recipe(**text, class_weights=weights) == made


def test_the_digest_tells_settings_apart():
    assert recipe(lr=1e-3).digest != recipe(lr=2e-3).digest
    assert len(recipe().digest) == 64


def test_unknown_settings_are_refused_with_the_known_ones():
    with pytest.raises(RecipeError, match=r"unknown setting 'epoch' \(known: .*epochs"):
        recipe("swa", epoch=3)
    with pytest.raises(RecipeError, match=r"'adam'.*default, r-drop, swa, focal-lion"):
        recipe("adam")


def test_all_problems_are_told_at_once():
    with pytest.raises(RecipeError) as caught:
        recipe(lr="fast", epochs=0, optimiser="adam", speed=3)
    assert len(caught.value.problems) == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lr": 0}, "a rate of zero learns nothing"),
        ({"lr": float("nan")}, "NaN is no number to step with"),
        ({"epochs": 2.5}, "half an epoch"),
        ({"epochs": "2.5"}, "half an epoch as text"),
        ({"epochs": True}, "a bool is no number"),
        ({"label_smoothing": 1.0}, "nothing left of the label"),
        ({"patch_dropout": 1.0}, "nothing left of the bag"),
        ({"gradient_clip": 0}, "no gradient left"),
        ({"optimiser": "adam"}, "not offered"),
        ({"swa_lr": 0.1}, "no averaging that would use it"),
        ({"swa_start": 0.5, "keep": "best"}, "the average is not an epoch"),
        ({"swa_start": 0.5, "patience": 3}, "stopping early leaves nothing to average"),
        ({"name": "mine"}, "the name is not a setting"),
    ],
)
def test_values_that_make_no_sense_are_refused(settings, reason):
    with pytest.raises(RecipeError):
        recipe(**settings)


def test_a_constructor_checks_as_well():
    with pytest.raises(RecipeError, match="epochs is '3'"):
        Recipe(epochs="3")


def test_a_stored_recipe_with_foreign_keys_is_refused():
    with pytest.raises(RecipeError, match="unknown setting 'lrr'"):
        Recipe.from_json({"name": "x", "lrr": 1})
    with pytest.raises(RecipeError, match="needs a name"):
        Recipe.from_json({"lr": 1})


def test_every_setting_is_described():
    told = describe(Recipe)
    assert {row["name"] for row in told} == set(recipe().to_json()) - {"name"}
    assert all(row["meaning"] and row["allowed"] for row in told)
