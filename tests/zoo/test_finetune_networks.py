"""Networks at their full architecture: widths, one step, what moves in each phase, weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from histostore.errors import EncoderError
from zoo.errors import RecipeError
from zoo.finetune.networks import NETWORKS, known_networks, network
from zoo.finetune.phases import Phase, prepare, rates_of, teach, trained_groups
from zoo.finetune.presets import preset
from zoo.finetune.stepping import begin_phase

# At a small input: the parameters are those of the full networks, the steps take a second.
FULL = {
    "efficientnet-b7": ("r5", 64, 2560, 63_786_960),
    "resnet50": ("r11", 64, 2048, 23_508_032),
    "densenet121": ("r11", 64, 1024, 6_953_856),
    "kimianet": ("r11", 64, 1024, 6_953_856),
}


@pytest.fixture(scope="module")
def hybrid():
    return network("r6-hybrid", 2, seed=0, weights="none", px=32)


def steps(net, phase, n=2, outputs=3):
    """Take one step on two images; give the names of parameters and of statistics that moved."""
    for layer in net.module.modules():
        if type(layer).__name__ == "StochasticDepth":
            layer.p = 0.0  # it leaves whole blocks out by chance, which then do not move
        if isinstance(layer, nn.BatchNorm2d) and not layer.weight.any():
            nn.init.ones_(layer.weight)  # a branch that begins at zero moves from step 2 on
    before = {name: value.clone() for name, value in net.module.state_dict().items()}
    stepper, rates = begin_phase(net, phase)
    teach(net.module)
    rates.begin(0.0)
    pixels = torch.randn((n, 3, net.px, net.px), generator=torch.Generator().manual_seed(0))
    logits = net.module(pixels)
    assert logits.shape == (n, outputs)
    nn.functional.cross_entropy(logits, torch.arange(n) % outputs).backward()
    stepper.step()
    after = net.module.state_dict()
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    parameters = {name for name, _ in net.module.named_parameters()}
    return moved & parameters, moved - parameters


def owner(name):
    """Name the module that holds a statistic."""
    return name.rpartition(".")[0]


@pytest.mark.parametrize("name", FULL)
def test_one_step_of_the_full_network_moves_what_its_recipe_says(name):
    recipe, px, width, size = FULL[name]
    net = network(name, 3, seed=0, weights="none", px=px)
    assert sum(part.width for part in net.parts) == width
    body = sum(p.numel() for key, p in net.module.named_parameters() if key.startswith("body."))
    assert body == size
    if name == "efficientnet-b7":
        assert [type(layer) for layer in net.module.head] == [nn.Dropout, nn.Linear]
    phase = preset(recipe).phases[0]
    wanted = {key for group in rates_of(net, phase) for key in net.groups[group]}
    moved, statistics = steps(net, phase)
    assert moved == wanted
    # Frozen layers keep their running statistics: they were in evaluation mode.
    assert {owner(key) for key in statistics} <= {owner(key) for key in wanted}


def test_the_hybrid_takes_one_step_of_each_phase_on_two_images(hybrid):
    sizes = dict.fromkeys(("cnn", "vit"), 0)
    for key, value in hybrid.module.named_parameters():
        if key.startswith("body."):
            sizes[key.split(".")[1]] += value.numel()
    # Of torchvision's 21,458,488 and 86,567,656 without their classifiers, and at 32 px a
    # transformer has 5 positions instead of 197.
    assert sizes == {"cnn": 20_177_488, "vit": 85_798_656 - 192 * 768}
    moved, statistics = steps(hybrid, preset("r6").phases[1], outputs=2)
    wanted = {
        key for group in rates_of(hybrid, preset("r6").phases[1]) for key in hybrid.groups[group]
    }
    assert moved == wanted
    assert {owner(key) for key in statistics} <= {owner(key) for key in wanted}


def test_the_classifiers_are_those_of_the_documents(hybrid):
    head = hybrid.module.head
    fuse, classify = head
    assert [layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)] == [0.6, 0.7]
    assert (fuse[0].linear.in_features, fuse[0].linear.out_features) == (2048, 1024)
    assert (fuse[4].in_features, fuse[4].out_features) == (1024, 1024)
    assert (classify[0].linear.out_features, classify[3].out_features) == (512, 2)


def test_phases_of_the_hybrid_unfreeze_what_the_report_says(hybrid):
    net = hybrid
    first, second, third = (rates_of(net, phase) for phase in preset("r6").phases)
    assert first == {"head": 1e-4}
    cnn = {f"cnn.stage-{number}": 1e-6 for number in (5, 6, 7)}
    vit = {f"vit.stage-{number}": 1e-6 for number in (9, 10, 11, 12)}
    assert second == {**cnn, **vit, "vit.norm": 1e-6, "head": 2e-5}
    assert set(third) == set(net.groups)
    assert {rate for group, rate in third.items() if group != "head"} == {5e-7}
    assert third["head"] == 1e-5
    assert net.groups["cnn.stage-5"][0].startswith("body.cnn.module.features.5.")
    assert net.groups["vit.stage-12"][0].startswith(
        "body.vit.module.encoder.layers.encoder_layer_11."
    )


def test_r11_trains_the_last_stage_and_the_classifier_alone():
    phase = preset("r11").phases[0]
    for name, stage in (("resnet50", "layer4."), ("densenet121", "features.denseblock4.")):
        net = network(name, 3, seed=0, weights="none", px=32)
        groups = prepare(net, phase)
        assert [group["lr"] for group in groups] == [1e-4, 1e-4]
        learning = {key for key, value in net.module.named_parameters() if value.requires_grad}
        assert learning == {
            key for key in dict(net.module.named_parameters()) if f"module.{stage}" in key or key.startswith("head.")
        }  # fmt: skip


@pytest.mark.parametrize("name", ["r6-hybrid-small", "timm:resnet10t", "small-cnn", "amil-cnn"])
def test_every_parameter_stands_in_one_group_from_input_to_output(name):
    net = network(
        name, 2, seed=0, weights="none" if ":" in name or "hybrid" in name else None, px=64
    )
    listed = [key for group in net.groups.values() for key in group]
    assert sorted(listed) == sorted(key for key, _ in net.module.named_parameters())
    assert list(net.groups)[-1] == "head"


@pytest.mark.parametrize("name", ["r5-small", "r11-small"])
def test_small_siblings_have_an_input_of_their_own_and_take_the_same_recipe(name):
    assert network(name, 2, seed=0, weights="none").px == 128
    net = network(name, 3, seed=0, weights="none", px=64)
    assert net.px == 64
    phase = preset(name.removesuffix("-small")).phases[0]
    moved, _ = steps(net, phase)
    assert moved == {key for group in rates_of(net, phase) for key in net.groups[group]}


def test_each_phase_of_a_small_hybrid_moves_its_own_groups():
    net = network("r6-hybrid-small", 3, seed=0, weights="none", px=32)
    for phase in preset("r6").phases:
        wanted = {key for group in rates_of(net, phase) for key in net.groups[group]}
        moved, _ = steps(net, phase)
        assert moved == wanted


def test_seeds_draw_the_network_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one, same, other = (
        network("squeezenet1_1", 2, seed=seed, weights="none", px=64).module.state_dict()
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


# -- parts and rates ----------------------------------------------------------------------------


def test_a_part_that_is_not_there_is_refused_with_what_there_is():
    net = network("squeezenet1_1", 2, seed=0, weights="none", px=64)
    for part in ("last:0", "last:99", "cnn.last:1", "stage-77", "haed", "", "last:x"):
        with pytest.raises(RecipeError, match=r"groups: stem, stage-1, .*, head; or all, last:N"):
            trained_groups(net.groups, part)
    with pytest.raises(RecipeError, match=r"vit\.last:4"):
        rates_of(
            net, dataclasses.replace(preset("r6").phases[1], learning_rates={"vit.last:4": 1.0})
        )


def test_of_overlapping_parts_the_later_counts():
    net = network("squeezenet1_1", 2, seed=0, weights="none", px=64)
    rates = rates_of(net, Phase(learning_rates={"all": 1e-4, "last:2": 1e-3, "head": 1e-2}))
    assert rates["stage-6"] == 1e-4
    assert (rates["stage-7"], rates["stage-8"], rates["head"]) == (1e-3, 1e-3, 1e-2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)],
)
def test_steps_are_those_of_torch_with_a_rate_per_group_and_go_on_from_their_state(ours, theirs):
    def fresh():
        net = network("squeezenet1_1", 2, seed=0, weights="none", px=64)
        return net, *begin_phase(net, phase)

    phase = Phase(optimiser=ours, weight_decay=0.1, learning_rates={"last:1": 1e-3, "head": 1e-2})
    net, stepper, _ = fresh()
    twin = network("squeezenet1_1", 2, seed=0, weights="none", px=64)
    groups = [{"params": g["params"], "lr": g["lr"]} for g in prepare(twin, phase)]
    more = {"momentum": 0.9} if ours == "sgd" else {}
    reference = theirs(groups, weight_decay=0.1, **more)
    generator = torch.Generator().manual_seed(0)
    for number in range(4):
        if number == 2:  # a killed training: the same weights, a new stepper with the old state
            told = {key: value.clone() for key, value in stepper.state().items()}
            weights = net.module.state_dict()
            net, stepper, _ = fresh()
            net.module.load_state_dict(weights)
            stepper.load_state(told)
        for one, other in zip(net.module.parameters(), twin.module.parameters(), strict=True):
            if one.requires_grad:
                one.grad = torch.randn(one.shape, generator=generator)
                other.grad = one.grad.clone()
        stepper.step()
        reference.step()
    for one, other in zip(net.module.parameters(), twin.module.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_rates_fall_as_torchs_plateau_does():
    net = network("squeezenet1_1", 2, seed=0, weights="none", px=64)
    phase = Phase(schedule="plateau", plateau_patience=2, learning_rates={"head": 1e-2})
    stepper, rates = begin_phase(net, phase)
    reference = torch.optim.SGD(net.module.head.parameters(), lr=1e-2)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        reference, "max", factor=0.2, patience=2, threshold=0.0
    )
    for score in (0.5, 0.6, 0.6, 0.5, 0.4, 0.7, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1):
        rates.see(score)
        plateau.step(score)
        _, again = begin_phase(net, phase)
        again.load_state(rates.state())
        rates.begin(0.5)
        assert stepper.param_groups[0]["lr"] == pytest.approx(reference.param_groups[0]["lr"])
        assert again.state() == rates.state()


# -- weights ------------------------------------------------------------------------------------


def test_random_weights_must_be_asked_for(monkeypatch):
    def offline(*_args, **_keywords):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(EncoderError, match=r"no route to host.*--weights none") as caught:
        network("resnet18", 2, seed=0)
    assert "\n" not in str(caught.value)
    # Its architecture is torchvision's, but ImageNet's weights are not what was asked for.
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: {})
    for name in ("kimianet", "squeezenet1_1"):
        with pytest.raises(EncoderError, match=rf"{name} has no weights to download.*--weights"):
            network(name, 3, seed=0)


def test_a_weights_file_reaches_the_backbone_and_not_the_head(tmp_path):
    given = network("timm:resnet10t", 9, seed=1, weights="none", px=64)
    path = tmp_path / "w.safetensors"
    save_file(given.parts[0].plan.module.state_dict(), path)
    net = network("timm:resnet10t", 2, seed=0, weights=str(path), px=64)
    drawn = network("timm:resnet10t", 2, seed=0, weights="none", px=64)
    inside = [key for key in net.module.state_dict() if key.startswith("body.")]
    ours, theirs = net.module.state_dict(), given.module.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in inside)
    assert torch.equal(net.module.head.weight, drawn.module.head.weight)
    with pytest.raises(EncoderError, match="does not fit"):
        network("timm:test_efficientnet", 2, seed=0, weights=str(path), px=64)
    with pytest.raises(EncoderError, match="no weights file"):
        network("timm:resnet10t", 2, seed=0, weights=str(tmp_path / "absent"), px=64)


def test_kimianets_checkpoint_of_thirty_classes_fits(tmp_path):
    given = network("densenet121", 2, seed=1, weights="none", px=64).parts[0].plan.module
    state = {
        key.replace("features.", "module.model.0."): value
        for key, value in given.state_dict().items()
    }
    state |= {"module.fc_4.weight": torch.zeros(30, 1024), "module.fc_4.bias": torch.zeros(30)}
    torch.save(state, tmp_path / "KimiaNetPyTorchWeights.pth")
    net = network(
        "kimianet", 3, seed=0, weights=str(tmp_path / "KimiaNetPyTorchWeights.pth"), px=64
    )
    ours = net.parts[0].plan.module.state_dict()
    assert all(torch.equal(value, ours[key]) for key, value in given.state_dict().items())


def test_an_unknown_network_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match=r"did you mean 'resnet50'\?.*r6-hybrid") as caught:
        network("resnet-50", 2, seed=0)
    assert all(name in str(caught.value) for name in NETWORKS)
    with pytest.raises(EncoderError, match="resnet10t"):
        network("timm:resnet10", 2, seed=0, weights="none")
    with pytest.raises(RecipeError, match="texture is no torch network"):
        network("texture", 2, seed=0)
    assert "timm:NAME" in known_networks()
