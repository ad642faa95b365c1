"""Models of torchmil behind the zoo's contract: padding, neighbours and order of bags."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from histostore.errors import MissingExtra
from zoo.errors import RecipeError
from zoo.heads import load_head, spec
from zoo.heads.torchmil import MODELS
from zoo.recipes import recipe
from zoo.testing import check_head, toy_bags

pytest.importorskip("torchmil", reason="needs the extra torchmil")
torch = pytest.importorskip("torch")

SMALL = {
    "IIBMIL": "att_dim=16,n_heads=2",
    "TransMIL": "att_dim=16,n_heads=2,pinv_iterations=2",
    "TransformerABMIL": "transf_att_dim=16,transf_n_heads=2",
}


def small(name):
    return spec("torchmil", model=name, hidden=16, arguments=SMALL.get(name, ""))


@pytest.mark.parametrize("name", MODELS)
def test_neither_padding_nor_other_bags_change_a_prediction(name, tmp_path):
    bags = toy_bags(12, classes=("a", "b", "c"))
    head = small(name).fit(bags, recipe=recipe(epochs=1, lr=1e-2))
    together = head.predict_proba(bags)
    assert np.array_equal(together, head.predict_proba(bags))
    alone = np.concatenate([head.predict_proba(bags[[i]]) for i in range(len(bags))])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    lengths = torch.as_tensor(bags.lengths)
    mask = torch.arange(int(lengths.max()) + 4) < lengths.unsqueeze(1)
    x = torch.full((*mask.shape, bags.n_features), torch.inf)
    x[mask] = torch.from_numpy(head.standardiser(bags.embedding))
    with torch.inference_mode():
        padded = head.module(x, mask).double().softmax(dim=1).numpy()
    np.testing.assert_allclose(padded, together, atol=1e-5)
    head.save(tmp_path / "0-0.safetensors")
    again = load_head(tmp_path / "0-0.safetensors")
    assert again.spec == head.spec
    assert np.array_equal(again.predict_proba(bags), together)


@pytest.mark.parametrize("name", ["CLAM_SB"])
def test_wrapped_models_keep_the_whole_contract(name):
    check_head(small(name), recipe(epochs=20, lr=1e-2))


def test_two_classes_take_one_network_and_more_take_one_each():
    head = small("ABMIL")
    assert len(head.build(8, 2).models) == 1
    assert len(head.build(8, 3).models) == 3


def test_arguments_reach_the_model():
    module = spec("torchmil", hidden=None, arguments="att_dim=24, gated=true").build(8, 2)
    assert module.models[0].pool.fc1.module.out_features == 24
    assert module.models[0].pool.gated is True
    assert spec("torchmil", arguments="att_dim=24, gated=true").arguments == "att_dim=24,gated=true"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "DTFDMIL"}, "must be one of ABMIL, CLAM_SB"),
        ({"model": "os"}, "must be one of ABMIL, CLAM_SB"),
        ({"arguments": "att_dim"}, "key=value pairs"),
        ({"arguments": "a=1,a=2"}, "each key once"),
        ({"arguments": "__import__('os')=1"}, "key=value pairs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(RecipeError, match=said):
        spec("torchmil", **settings)


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        ("ABMIL", "depth=3", "no argument 'depth'; it has att_dim"),
        ("ABMIL", "criterion=none", "no argument 'criterion'"),
        ("ABMIL", "att_act=sine", "ABMIL refuses att_act=sine"),
        ("ABMIL", "att_dim=wide", "ABMIL refuses att_dim=wide"),
        ("TransMIL", "n_layers=1", "TransMIL refuses n_layers=1"),
        ("TransformerABMIL", "transf_dropout=0.1", "stays on in predicting"),
    ],
)
def test_arguments_that_the_model_refuses_are_told(model, arguments, said):
    with pytest.raises(RecipeError, match=said):
        spec("torchmil", model=model, arguments=arguments).build(8, 2)


def test_without_torchmil_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmil", None)
    with pytest.raises(MissingExtra, match=r"histostore\[torchmil\]"):
        spec("torchmil").build(8, 2)
