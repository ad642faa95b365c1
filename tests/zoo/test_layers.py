"""Layouts and layers: padded and packed give the same numbers, padding is never seen."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from zoo.errors import EmptyBag
from zoo.heads.catalog import spec
from zoo.heads.gated_mil import GatedMIL
from zoo.heads.layers import Dropout, GatedAttention, NormLinear
from zoo.training.layout import Packed, Padded

LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)
TORCH_HEADS = ("gated-mil", "mlp-simple", "mlp-improved")


def drawn(lengths, n_features=5, seed=0):
    """Give the same rows padded (filled with zeros), with their mask, and packed."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    packed = torch.randn(int(lengths.sum()), n_features, generator=generator)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    padded = torch.zeros(*mask.shape, n_features)
    padded[mask] = packed
    return padded, mask, packed, lengths


@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_both_layouts_do_the_same(lengths, seed):
    padded, mask, packed, lengths = drawn(lengths, seed=seed)
    one, other = Padded(mask), Packed(lengths)
    torch.testing.assert_close(one.mean(padded), other.mean(packed))
    weights = one.softmax(30 * padded[..., 0])
    torch.testing.assert_close(one.real(weights), other.softmax(30 * packed[:, 0]))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(lengths)))
    assert (weights[~mask] == 0).all()
    torch.testing.assert_close(
        one.sum(weights, padded), other.sum(other.real(weights[mask]), packed)
    )


@settings(max_examples=15)
@given(lengths=LENGTHS, name=st.sampled_from(TORCH_HEADS), squeeze=st.booleans())
def test_a_head_gives_the_same_logits_and_gradients_in_both_layouts(lengths, name, squeeze):
    padded, mask, packed, lengths = drawn(lengths)
    chosen = {"squeeze": "pooled"} if name == "gated-mil" and squeeze else {}
    module = spec(name, **chosen).build(5, 3).eval()
    results = []
    for rows, layout in ((padded, Padded(mask)), (packed, Packed(lengths))):
        module.zero_grad()
        logits = module.logits(rows, layout)
        logits.pow(2).sum().backward()
        results.append([logits.detach(), *(w.grad.clone() for w in module.parameters())])
    torch.testing.assert_close(results[0], results[1], atol=1e-4, rtol=1e-4)


def test_softmax_of_huge_scores_is_finite_in_both_layouts():
    scores = torch.tensor([1e30, -1e30, 5.0])
    packed = Packed(torch.tensor([2, 1])).softmax(scores)
    assert packed.tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("name", TORCH_HEADS)
@pytest.mark.parametrize("filling", [1e30, math.inf, math.nan])
def test_what_stands_in_the_padding_never_matters(name, filling):
    padded, mask, _, _ = drawn([3, 1, 7])
    module = spec(name).build(5, 3).eval()
    loud = padded.masked_fill(~mask.unsqueeze(-1), filling)
    assert torch.equal(module(padded, mask), module(loud, mask))
    with pytest.raises(EmptyBag):
        module(padded, torch.zeros_like(mask))


def test_gated_mil_is_the_network_of_the_report():
    module = GatedMIL().build(384, 4)
    shapes = {name: tuple(weight.shape) for name, weight in module.named_parameters()}
    assert shapes == {
        "patch_proj.0.norm.weight": (384,),
        "patch_proj.0.norm.bias": (384,),
        "patch_proj.0.linear.weight": (160, 384),
        "patch_proj.0.linear.bias": (160,),
        "patch_proj.3.weight": (160,),
        "patch_proj.3.bias": (160,),
        "se_block.excitation.0.weight": (20, 160),
        "se_block.excitation.2.weight": (160, 20),
        "attn.V.weight": (96, 160),
        "attn.V.bias": (96,),
        "attn.U.weight": (96, 160),
        "attn.U.bias": (96,),
        "attn.w.weight": (1, 96),
        "attn.w.bias": (1,),
        "cls.weight": (4, 160),
        "cls.bias": (4,),
    }
    assert [layer.p for layer in module.modules() if isinstance(layer, nn.Dropout)] == [0.4, 0.5]


def test_gated_mil_computes_the_equations_of_its_papers():
    module = GatedMIL().build(6, 3).eval()
    w = {name: value.detach() for name, value in module.named_parameters()}
    x = torch.randn(4, 6)
    h = nn.functional.layer_norm(
        x, (6,), w["patch_proj.0.norm.weight"], w["patch_proj.0.norm.bias"]
    )
    h = h @ w["patch_proj.0.linear.weight"].T + w["patch_proj.0.linear.bias"]
    h = nn.functional.layer_norm(
        nn.functional.gelu(h), (160,), w["patch_proj.3.weight"], w["patch_proj.3.bias"]
    )
    gate = torch.relu(w["se_block.excitation.0.weight"] @ h.mean(dim=0))
    h = h * torch.sigmoid(w["se_block.excitation.2.weight"] @ gate)
    v = torch.tanh(h @ w["attn.V.weight"].T + w["attn.V.bias"])
    u = torch.sigmoid(h @ w["attn.U.weight"].T + w["attn.U.bias"])
    a = torch.softmax(((v * u) @ w["attn.w.weight"].T + w["attn.w.bias"]).squeeze(-1), dim=0)
    logits = w["cls.weight"] @ (a @ h) + w["cls.bias"]
    mask = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(module(x[None], mask)[0], logits, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(module.attention(x[None], mask)[0], a, atol=1e-5, rtol=1e-4)


def test_norm_linear_is_layer_norm_then_linear_with_its_gradients():
    layer = NormLinear(7, 4)
    with torch.no_grad():
        layer.norm.weight.uniform_(0.5, 2)
        layer.norm.bias.normal_()
    x = torch.randn(9, 7)
    fast = layer(x)
    fast.square().sum().backward()
    gradients = [weight.grad.clone() for weight in layer.parameters()]
    layer.zero_grad()
    plain = layer.linear(layer.norm(x))
    plain.square().sum().backward()
    torch.testing.assert_close(fast, plain)
    torch.testing.assert_close(
        gradients, [weight.grad for weight in layer.parameters()], atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.ones(401, 501)
        found = Dropout(p)(x)
    assert abs(float((found == 0).float().mean()) - p) < 0.01
    assert abs(float(found.mean()) - 1) < 0.02
    torch.testing.assert_close(found.max(), torch.tensor(1 / (1 - p)), atol=1e-3, rtol=0)
    assert torch.equal(Dropout(p).eval()(x), x)
    # Rows and columns must not share their fate.
    assert float((found == 0).float().mean(dim=0).std()) < 0.05


def test_gated_attention_sums_to_one_over_real_patches():
    padded, mask, _, _ = drawn([2, 5])
    weights = GatedAttention(5, 3)(padded, Padded(mask))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2))
