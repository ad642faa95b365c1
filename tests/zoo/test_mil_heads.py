"""What is particular to single heads: the parts that their papers add."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from zoo.errors import RecipeError
from zoo.heads.acmil import ACMIL, ACMILModule
from zoo.heads.catalog import spec
from zoo.heads.clam import CLAMSB, CLAMModule, _extremes
from zoo.heads.dtfd import _deal
from zoo.heads.nystrom import NystromAttention, pseudo_inverse
from zoo.recipes import Recipe, recipe
from zoo.testing import toy_bags
from zoo.training.layout import Packed, Padded
from zoo.training.losses import Loss

GRADIENT = (
    "gated-mil", "abmil", "clam-sb", "clam-mb", "dsmil", "dtfd", "acmil", "attention-pool",
    "transmil", "fusion", "mean-pool", "max-pool",
)  # fmt: skip


def module_of(name, **settings):
    torch.manual_seed(0)
    return spec(name, **settings).build(6, 3)


@pytest.mark.parametrize("name", GRADIENT)
def test_both_layouts_give_the_same_logits_and_weights(name):
    module = module_of(name).eval()
    lengths = torch.tensor([1, 5, 3, 9])
    rows = torch.randn(int(lengths.sum()), 6)
    packed = Packed(lengths)
    x, mask = packed.pad(rows)
    with torch.no_grad():
        torch.testing.assert_close(
            module.logits(rows, packed), module.logits(x, Padded(mask)), atol=1e-5, rtol=1e-4
        )
        if hasattr(module, "weights"):
            flat, square = module.weights(rows, packed), module.weights(x, Padded(mask))
            torch.testing.assert_close(flat, square[mask], atol=1e-5, rtol=1e-4)
            assert square[~mask].abs().max() == 0


@pytest.mark.parametrize("name", GRADIENT)
@pytest.mark.parametrize("soft", [False, True])
def test_every_parameter_learns(name, soft):
    module = module_of(name).train()
    lengths = torch.tensor([1, 5, 3, 9, 20, 2])
    target = torch.tensor([0, 1, 2, 0, 1, 2])
    loss = Loss(Recipe(), target, 3)
    given_target = functional.one_hot(target, 3).float() if soft else target
    rows = torch.randn(int(lengths.sum()), 6)
    result = module.objective(rows, Packed(lengths), given_target, loss)
    assert result.logits.shape == (6, 3)
    result.loss.backward()
    still = [key for key, weight in module.named_parameters() if weight.grad is None]
    # A score's bias shifts all scores of a bag alike, which a softmax takes away again; and six
    # bags are too short for more than one landmark stretch of the query.
    assert still == []
    assert torch.isfinite(result.loss)


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    k=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_extremes_are_the_most_and_the_least_attended_patches_of_a_bag(lengths, k, seed):
    generator = torch.Generator().manual_seed(seed)
    packed = Packed(torch.tensor(lengths))
    attention, mask = packed.pad(torch.rand(sum(lengths), generator=generator))
    top, bottom, real = _extremes(attention, mask, k)
    for bag, length in enumerate(lengths):
        n = min(k, max(1, length // 2))
        assert int(real[bag].sum()) == n
        order = attention[bag, :length].argsort(descending=True).tolist()
        assert top[bag][real[bag]].tolist() == order[:n]
        assert bottom[bag][real[bag]].tolist() == order[::-1][:n]
        assert length < 2 or set(order[:n]).isdisjoint(order[::-1][:n])


@pytest.mark.parametrize("kind", ["svm", "ce"])
def test_the_instance_loss_is_that_of_its_paper(kind):
    module = CLAMModule(CLAMSB(instance_loss=kind), 6, 2, n_branches=1)
    logits, truth = torch.randn(4, 5, 2), torch.randint(2, (4, 5))
    found = module._of_instances(logits, truth)
    if kind == "ce":
        expected = functional.cross_entropy(logits.transpose(1, 2), truth, reduction="none")
    else:  # τ log Σ_j exp((α [j ≠ y] + s_j − s_y) / τ), with α = τ = 1
        margin = 1.0 - functional.one_hot(truth, 2)
        right = logits.gather(-1, truth.unsqueeze(-1))
        expected = torch.logsumexp(margin + logits - right, dim=-1)
    torch.testing.assert_close(found, expected)


def test_clam_alone_learns_from_patches_what_the_bag_loss_does_not_touch():
    bags = toy_bags(seed=1, longest=12)
    fitted = spec("clam-sb", hidden=16, attention=8).fit(bags, recipe=recipe(epochs=15, lr=1e-2))
    plain = spec("clam-sb", hidden=16, attention=8, bag_weight=1.0)
    alone = plain.fit(bags, recipe=recipe(epochs=15, lr=1e-2))
    moved = [
        float((a.module.instances[0].weight - b.module.instances[0].weight).abs().max())
        for a, b in ((fitted, alone),)
    ]
    assert moved[0] > 1e-3


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    n_groups=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_patch_is_dealt_once_and_to_its_own_bag(lengths, n_groups, seed):
    key = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed))
    dealt = _deal(key, torch.tensor(lengths), n_groups)
    assert sorted(dealt.order.tolist()) == list(range(sum(lengths)))
    assert dealt.outer.lengths.tolist() == [min(n, n_groups) for n in lengths]
    owner = Packed(torch.tensor(lengths)).bag
    group = 0
    for bag, n in enumerate(dealt.outer.lengths.tolist()):
        sizes = dealt.inner.lengths[group : group + n]
        assert int(sizes.sum()) == lengths[bag]
        assert int(sizes.max() - sizes.min()) <= 1
        group += n
    assert owner[dealt.order].tolist() == owner.tolist()


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    n_masked=st.integers(1, 12),
    share=st.floats(0, 1),
)
def test_masking_takes_that_share_of_the_top_and_always_leaves_a_patch(lengths, n_masked, share):
    module = ACMILModule(ACMIL(hidden=4, n_masked=n_masked, mask_share=share), 6, 2)
    scores, mask = Packed(torch.tensor(lengths)).pad(torch.randn(sum(lengths)))
    branches = scores.masked_fill(~mask, -torch.inf).unsqueeze(1).repeat(1, 3, 1)
    hidden = module._masked(branches, mask)
    for bag, length in enumerate(lengths):
        k = min(n_masked, length)
        expected = min(int(np.float32(k) * np.float32(share)), length - 1)
        assert hidden[bag, :, :length].sum(dim=1).tolist() == [expected] * 3
        top = branches[bag, 0].topk(k).indices
        assert not hidden[bag, 0].index_fill(0, top, value=False).any()


def test_linear_queries_and_values_are_those_of_the_paper():
    module = module_of("dsmil", linear=True, query=4).eval()
    x = torch.randn(1, 5, 6)
    best, logits, attention = module._streams(x, Padded(torch.ones(1, 5, dtype=torch.bool)))
    scores, q, v = module.instance(x[0]), module.query[0](x[0]), module.value[1](x[0])
    for c in range(3):
        critical = scores[:, c].argmax()
        share = (q @ q[critical] / 4**0.5).softmax(dim=0)
        torch.testing.assert_close(attention[0, :, c], share)
        torch.testing.assert_close(best[0, c], scores[critical, c])
    pooled = attention[0].T @ v
    expected = (module.classify.weight * pooled).sum(dim=(1, 2)) + module.classify.bias
    torch.testing.assert_close(logits[0], expected)


def test_one_tier_of_the_double_tier_head_does_not_move_the_other():
    module = module_of("dtfd").train()
    rows, layout = torch.randn(12, 6), Packed(torch.tensor([7, 5]))
    module.logits(rows, layout).sum().backward()
    moved = {name.split(".")[0] for name, w in module.named_parameters() if w.grad is not None}
    assert moved == {"second", "second_classify"}


def test_landmarks_come_near_exact_attention_and_few_tokens_are_exact():
    torch.manual_seed(0)
    layer = NystromAttention(16, n_heads=2, n_landmarks=32, dropout=0.0).eval()
    exact = NystromAttention(16, n_heads=2, n_landmarks=1000, dropout=0.0).eval()
    exact.load_state_dict(layer.state_dict())
    # Tokens that change slowly, as landmarks suppose.
    steps = torch.linspace(0, 3, 200).unsqueeze(1)
    x = torch.cat([torch.sin(steps * k) for k in range(1, 17)], dim=1).unsqueeze(0)
    with torch.no_grad():
        near, truth = layer(x), exact(x)
        torch.testing.assert_close(layer(x[:, :32]), exact(x[:, :32]))
    assert float((near - truth).norm() / truth.norm()) < 0.02


@given(seed=st.integers(0, 99), n=st.integers(2, 6))
def test_the_pseudo_inverse_of_one_matrix_does_not_depend_on_another(seed, n):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(2, n, n, generator=generator).softmax(dim=-1)
    b = torch.stack([a[0], 100 * a[1]])
    torch.testing.assert_close(pseudo_inverse(a)[0], pseudo_inverse(b)[0])


def test_a_bag_longer_than_the_landmarks_has_the_same_prediction_alone():
    head = spec("transmil", hidden=32).fit(
        toy_bags(20, longest=40), recipe=recipe(epochs=2, lr=1e-3)
    )
    bags = toy_bags(12, seed=4, longest=60)
    together = head.predict_proba(bags)
    alone = np.concatenate([head.predict_proba(bags[[i]]) for i in range(len(bags))])
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_transformer_sees_no_patch_that_dropout_left_out():
    # Dropped patches leave holes in the mask, not only padding at its end.
    module = spec("transmil", hidden=16).build(4, 2).eval()
    x = torch.randn(3, 11, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 11, dtype=torch.bool)
    mask[0, [0, 3, 7]] = mask[1, 2:] = mask[2, ::2] = False
    with torch.inference_mode():
        for bag, kept, found in zip(x, mask, module(x, mask), strict=True):
            alone = module(bag[kept][None], kept[kept][None])[0]
            torch.testing.assert_close(found, alone)


def test_heads_that_must_divide_the_width_say_so():
    with pytest.raises(RecipeError, match="does not divide hidden"):
        spec("attention-pool", hidden=30, n_heads=8).build(6, 2)
