"""Grad-CAM++: it lights what decides, at any architecture; pictures side by side."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from histostore.cohort import Cohort
from histostore.errors import NotFound, OptionError
from histostore.synthetic import make_cohort
from tests.commands import call
from zoo.errors import NotSupported
from zoo.explaining.cams import Look, draw_looks, look_at
from zoo.finetune.gradcam import cam_layer, grad_cam
from zoo.finetune.networks import Network, network
from zoo.finetune.presets import preset
from zoo.finetune.running import finetune, prepare_images
from zoo.finetune.spec import FinetuneSpec, Machine
from zoo.fit import make_split

PX = 32
HALF = (0.5, 0.5, 0.5)


class Reds(nn.Module):
    """Says class 1 of what is red, class 0 of what is blue; the truth is known."""

    def __init__(self):
        super().__init__()
        self.maps = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.AvgPool2d(2))
        self.head = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            self.maps[0].weight.copy_(torch.tensor([[-1.0, -1, 1], [1, -1, -1]])[..., None, None])
            self.maps[0].bias.fill_(-1.0)
            self.head.weight.copy_(torch.eye(2) * 40)

    def features(self, pixels):
        return self.maps(pixels).mean(dim=(2, 3))

    def forward(self, pixels):
        return self.head(self.features(pixels))


def reds():
    module = Reds()
    groups = {"head": tuple(name for name, _ in module.named_parameters())}
    return Network(name="reds", module=module, groups=groups, px=PX, mean=HALF, std=HALF)


def two_squares():
    """Paint a red square at the top left and a blue one at the bottom right."""
    image = np.full((1, PX, PX, 3), 128, np.uint8)
    image[0, 4:12, 4:12] = (255, 0, 0)
    image[0, 20:28, 20:28] = (0, 0, 255)
    return image


@pytest.mark.parametrize("frozen", [False, True])
def test_the_map_of_a_class_lights_what_decides_for_it(frozen):
    net = reds()
    net.module.requires_grad_(not frozen)
    red, blue = (grad_cam(net, two_squares(), [target])[0] for target in (1, 0))
    assert red.shape == (PX, PX)
    assert red.max() == 1.0
    assert red[5:11, 5:11].min() > 0.5
    assert red[18:, 18:].max() < 0.1
    assert blue[21:27, 21:27].min() > 0.5
    assert blue[:14, :14].max() < 0.1


def test_several_images_at_once_are_several_images():
    net, image = reds(), two_squares()
    turned = np.ascontiguousarray(image[:, ::-1, ::-1])
    both = grad_cam(net, np.concatenate([image, turned]), [1, 1])
    np.testing.assert_allclose(both[0], grad_cam(net, image, [1])[0], atol=1e-6)
    np.testing.assert_allclose(both[1], both[0][::-1, ::-1], atol=1e-6)


def test_a_map_in_which_nothing_speaks_for_a_class_is_zero():
    assert not grad_cam(reds(), np.full((1, PX, PX, 3), 128, np.uint8), [1]).any()


@pytest.mark.parametrize(
    ("name", "px", "path"),
    [
        ("resnet50", 64, "body.module.layer4"),
        ("densenet121", 64, "body.module.features"),
        ("squeezenet1_1", 64, "body.module.features"),
        ("timm:test_vit", 160, "body.module.blocks.5.norm1"),
        ("small-cnn", 64, "stages.4.1"),
    ],
)
def test_the_layer_is_the_last_that_has_places(name, px, path):
    net = network(name, 3, seed=0, weights="none", px=px)
    assert cam_layer(net)[0] is net.module.get_submodule(path)
    seen = np.random.default_rng(0).integers(0, 256, (1, px, px, 3), np.uint8)
    maps = grad_cam(net, seen, [2])
    assert maps.shape == (1, px, px)
    assert np.isfinite(maps).all()
    assert 0 <= maps.min() <= maps.max() <= 1
    assert all(weight.grad is None for weight in net.module.parameters())


def test_networks_that_see_bags_show_their_attention_instead():
    with pytest.raises(NotSupported, match="attention"):
        grad_cam(network("amil-cnn", 2, seed=0), np.zeros((3, 28, 28, 3), np.uint8), [0])


# -- pictures -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cams")
    table = Path(make_cohort(folder / "cohort", n_images=40, image_px=96, patch_px=32))
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HISTOSTORE_CACHE", str(folder / "cache"))
        for spec in (FinetuneSpec(model="small-cnn", px=64), FinetuneSpec(model="amil-cnn")):
            prepared = prepare_images(Cohort.read(table), spec)
            made.append(folder / spec.model)
            finetune(
                prepared,
                spec,
                out=made[-1],
                recipe=preset(epochs=1),
                split=make_split(prepared.images, folds=2),
                machine=Machine(device="cpu", workers=0, threads=1),
            )
    return table, made


def test_grad_cam_and_attention_stand_side_by_side(runs, tmp_path):
    table, made = runs
    image_id = Cohort.read(table).image_ids[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        told = look_at(made, table, image_id)
    assert [look.method for look in told.looks] == ["Grad-CAM++", "attention"]
    for look in told.looks:
        assert look.unseen
        assert look.n_networks == 1
        assert 0 <= np.nanmin(look.heat) < np.nanmax(look.heat) <= 1 + 1e-9
        assert look.prob.sum() == pytest.approx(1.0)
    out = tmp_path / "cam.png"
    shown = call(
        "zoo", "cam", *map(str, made), str(table), "--image", image_id, "-o", str(out), "--json"
    )
    assert [row["name"] for row in shown.json["looks"]] == ["small-cnn", "amil-cnn"]
    with Image.open(out) as picture:
        assert picture.size == told.picture.size
        assert np.asarray(picture).std() > 20


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(runs, tmp_path):
    table, made = runs
    image_id = Cohort.read(table).image_ids[0]
    with pytest.raises(NotFound, match="did you mean"):
        look_at(made, table, f"{image_id}x")
    with pytest.raises(NotFound, match="knows no class 'x'; it has"):
        look_at(made, table, image_id, asked="x")
    with pytest.raises(OptionError, match="one run at least"):
        draw_looks(np.zeros((8, 8, 3), np.uint8), [], image_id="i")
    out = tmp_path / "cam.jpg"
    refused = call("zoo", "cam", str(made[0]), str(table), "--image", image_id, "-o", str(out))
    assert refused.code == 1
    assert ".png" in refused.err
    assert not list(tmp_path.iterdir())


def test_colours_say_where(tmp_path):
    heat = np.zeros((60, 80))
    heat[:, :40] = 1.0
    prob = np.array([0.25, 0.75])
    look = Look(name="a", method="Grad-CAM++", heat=heat, classes=("x", "y"), prob=prob, n_networks=2, unseen=False)  # fmt: skip
    pixels = np.full((60, 80, 3), 128, np.uint8)
    picture = np.asarray(draw_looks(pixels, [look], image_id="i", label="x"))
    panel = picture[116 : 116 + 60, 24 + 80 + 24 : 24 + 80 + 24 + 80].astype(int)
    hot, cold = panel[30, 10], panel[30, 70]
    assert hot[0] > cold[0] + 40  # viridis: yellow has red in it, violet little
    assert hot[1] > cold[1] + 40
