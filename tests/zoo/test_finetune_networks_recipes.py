"""Recipes of the reference systems, to the number; settings; augmentations."""

from __future__ import annotations

import pytest
import torch

from zoo.errors import RecipeError
from zoo.finetune.augment import AUGMENTATIONS, augmentation
from zoo.finetune.presets import PRESETS, FinetuneRecipe, preset


def drawn(name, images, *, px=None, seed=0, epoch=1, index=None):
    look = augmentation(name)
    index = range(len(images)) if index is None else index
    return look(images, px=px or images.shape[-1], seed=seed, epoch=epoch, index=index)


@pytest.fixture(scope="module")
def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8, generator=generator)


# -- recipes ------------------------------------------------------------------------------------


def test_r6_has_the_numbers_of_the_report():
    r6 = preset("r6")
    assert [phase.epochs for phase in r6.phases] == [7, 10, 13]
    assert r6.epochs == 30
    assert (r6.batch_size, r6.label_smoothing) == (32, 0.2)
    assert (r6.class_weights, r6.sampler, r6.monitor) == ("balanced", "balanced", "auroc")
    for phase in r6.phases:
        assert (phase.optimiser, phase.weight_decay) == ("adamw", 1e-5)
        assert (phase.schedule, phase.plateau_patience, phase.plateau_factor) == ("plateau", 3, 0.2)
        assert (phase.gradient_clip, phase.patience, phase.precision) == (1.0, 7, "bfloat16")
    assert [phase.learning_rates["head"] for phase in r6.phases] == [1e-4, 2e-5, 1e-5]
    assert r6.phases[1].learning_rates["vit.last:4"] == 1e-6
    assert r6.phases[2].learning_rates["all"] == 5e-7
    assert [r6.augmentation_of(p) for p in r6.phases] == ["r6-strong", "r6-medium", "r6-mild"]


def test_r5_r9_and_r11_have_what_their_documents_say():
    r5 = preset("r5")
    assert (r5.class_weights, len(r5.test_views)) == ("balanced", 8)
    assert r5.label_smoothing > 0
    r9 = preset("r9")
    assert (r9.batch_size, r9.phases[0].learning_rates) == (1, {"all": 1e-3, "head": 1e-3})
    assert r9.augmentation == "right-angles"
    r11 = preset("r11")
    assert list(r11.phases[0].learning_rates) == ["last:1", "head"]
    assert r11.augmentation == "r11"


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_survives_json(name):
    recipe = preset(name)
    assert recipe.name == name
    again = FinetuneRecipe.from_json(recipe.to_json())
    assert again == recipe
    assert again.digest == recipe.digest
    assert preset(name, epochs=3).digest != recipe.digest


def test_settings_reach_the_recipe_all_phases_or_one():
    r6 = preset("r6", **{"batch_size": "4", "epochs": "2", "phase-2.epochs": "5", "keep": "last"})
    assert (r6.batch_size, r6.keep) == (4, "last")
    assert [phase.epochs for phase in r6.phases] == [2, 5, 2]
    plain = preset("r6", augmentation="none")
    assert {plain.augmentation_of(phase) for phase in plain.phases} == {"none"}
    one = preset("r6", **{"phase-3.augmentation": "none"})
    assert [one.augmentation_of(p) for p in one.phases] == ["r6-strong", "r6-medium", "none"]
    faster = preset("r6", **{"phase-2.lr": "2e-4"}).phases[1].learning_rates
    assert faster["head"] == pytest.approx(2e-4)
    assert faster["cnn.last:3"] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"epoch": 5}, "unknown setting 'epoch' .did you mean 'epochs'"),
        ({"phase-4.epochs": 5}, "did you mean 'phase-"),
        ({"name": "mine"}, "unknown setting 'name'"),
        ({"batch_size": 0}, "batch_size is 0, but must be a whole number of at least 1|from 1"),
        ({"phase-1.precision": "float8"}, "precision is 'float8'"),
        ({"lr": "fast"}, "lr is 'fast', but must be a number above 0"),
        ({"lr": -1}, "lr is -1"),
        ({"augmentation": "r12"}, "no augmentation is called 'r12'"),
        ({"test_views": "identity,rot45"}, "test_views"),
        ({"keep": "some", "monitor": "luck"}, "keep.*monitor"),
    ],
)
def test_what_a_recipe_does_not_know_is_refused_in_one_line(settings, told):
    with pytest.raises(RecipeError, match=told) as caught:
        preset("r6", **settings)
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_and_a_damaged_one_are_refused():
    with pytest.raises(RecipeError, match=r"did you mean 'r11'\?.*known: default, r5"):
        preset("r111")
    document = preset("r6").to_json()
    for key, value in (("phases", []), ("phases", 3), ("name", None), ("more", 1)):
        with pytest.raises(RecipeError):
            FinetuneRecipe.from_json({**document, key: value})
    for rates in ({}, {"head": "x"}, {"head": 0}, {"head": True}, {"head": float("nan")}, None):
        phase = {**document["phases"][0], "learning_rates": rates}
        with pytest.raises(RecipeError):
            FinetuneRecipe.from_json({**document, "phases": [phase]})


# -- augmentations ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_what_is_drawn_depends_on_seed_epoch_and_image_alone(name, images):
    before, state = images.clone(), torch.get_rng_state()
    looks = drawn(name, images)
    assert looks.shape == images.shape
    assert looks.dtype == torch.uint8
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), state)
    alone = drawn(name, images[2:3], index=[2])
    assert torch.equal(looks[2:3], alone)
    assert torch.equal(looks.flip(0), drawn(name, images.flip(0), index=[3, 2, 1, 0]))
    if name == "none":
        assert torch.equal(looks, images)
    else:
        others = [drawn(name, images, epoch=2), drawn(name, images, seed=1)]
        assert not any(torch.equal(looks, other) for other in others)


def test_patches_of_one_bag_are_looked_at_alike(images):
    patches = images[:1].expand(5, -1, -1, -1)
    looks = drawn("right-angles", patches, index=[7] * 5)
    assert all(torch.equal(looks[0], look) for look in looks)


def test_right_angles_only_move_pixels_and_reach_all_eight_views(images):
    image = images[:1]
    found = set()
    for epoch in range(60):
        look = drawn("right-angles", image, epoch=epoch, index=[0])
        assert torch.equal(look.flatten().sort().values, image.flatten().sort().values)
        found.add(look.numpy().tobytes())
    assert len(found) == 8


def test_r11_fills_with_the_border_and_scales_brightness_within_the_table(images):
    flat = torch.full((1, 3, 64, 64), 100, dtype=torch.uint8)
    flat[:, 0], flat[:, 2] = 150, 50
    factors = []
    for epoch in range(40):
        look = drawn("r11", flat, epoch=epoch, index=[0])
        # No colour comes in from outside: whatever the geometry, a flat image stays flat.
        assert all(len(look[0, channel].unique()) == 1 for channel in range(3))
        factors.append(float(look[0, 0, 0, 0]) / 150)
    assert 0.19 < min(factors) < 0.4
    assert 1.0 < max(factors) < 1.21
    corner = torch.zeros((1, 3, 64, 64), dtype=torch.uint8)
    corner[..., 24:40, 24:40] = 255
    for epoch in range(20):
        lit = drawn("r11", corner, epoch=epoch, index=[0])[0, 0].float()
        place = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"))
        centre = (place * lit).sum((1, 2)) / lit.sum()
        assert (centre - 31.5).abs().max() < 0.1 * 64 * 1.3  # shifted by a tenth, then sheared


def test_r6_crops_and_is_milder_in_later_phases(images):
    smooth = torch.linspace(60, 200, 64).to(torch.uint8).expand(1, 3, 64, 64)
    changes = []
    for name in ("r6-strong", "r6-medium", "r6-mild"):
        looks = [drawn(name, smooth, epoch=epoch, index=[0]).float() for epoch in range(40)]
        changes.append(float(torch.stack(looks).std(dim=0).mean()))
    assert changes[0] > changes[2]
    assert drawn("r6-mild", images, px=32).shape == (4, 3, 32, 32)
