"""The table of encoders, and the door through which they are loaded."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.encoders import catalog
from histostore.encoders.base import Encoder
from histostore.encoders.catalog import ENCODERS, EncoderCard, card, known_encoders, load_encoder
from histostore.errors import EncoderError, OptionError


def test_the_catalogue_loads_no_torch():
    heavy = "{'torch', 'timm', 'torchvision', 'sklearn', 'scipy'}"
    code = (
        f"import sys, histostore.encoders; sys.exit(', '.join({heavy} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_row_stands_under_its_name_and_names_a_loader():
    for name, row in ENCODERS.items():
        module, colon, function = row.loader.partition(":")
        assert row.name == name
        assert module.startswith("histostore.encoders.")
        assert colon
        assert function.isidentifier()
        assert row.summary
        assert row.licence
    assert {row.name for row in known_encoders()} == ENCODERS.keys()


def test_a_pattern_is_filled_in():
    row = card("timm:resnet18")
    assert (row.name, row.architecture) == ("timm:resnet18", "timm:resnet18")
    assert not row.is_pattern
    assert ENCODERS["timm:NAME"].is_pattern


def _is_known(name: str) -> bool:
    return name in ENCODERS or name.startswith(("timm:", "torchvision:"))


@given(st.text(max_size=30).filter(lambda name: not _is_known(name)))
def test_an_unknown_name_is_answered_with_the_known_ones_in_one_line(name):
    with pytest.raises(EncoderError) as caught:
        card(name)
    assert "\n" not in str(caught.value)
    assert all(known in str(caught.value) for known in ENCODERS)


@pytest.mark.parametrize("name", ["timm:", "torchvision:", "timm:NAME", ""])
def test_a_pattern_without_a_name_is_unknown(name):
    with pytest.raises(EncoderError, match="unknown encoder"):
        card(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("textur", "texture"),
        ("squeezenet", "squeezenet1_1"),
        ("tim:resnet18", "timm:resnet18"),
        ("resnet18", "timm:resnet18"),
        ("torch-vision:resnet18", "torchvision:resnet18"),
    ],
)
def test_the_nearest_name_is_offered(name, meant):
    with pytest.raises(EncoderError, match=rf"did you mean '{meant}'\?"):
        card(name)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:x"}, "unknown device"),
        ({"precision": "fp16"}, "float32, bfloat16, float16"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"threads": -1}, "threads is -1"),
        ({"precision": "float16", "device": "cpu"}, "float16 needs a GPU"),
        ({"weights": "random:often"}, "whole number"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options, said):
    with pytest.raises(OptionError, match=said):
        load_encoder("squeezenet1_1", **{"weights": "random:0", "threads": 1, **options})


def test_an_encoder_without_published_weights_says_how_to_give_them():
    with pytest.raises(EncoderError, match="give the file with --weights"):
        load_encoder("squeezenet1_1")


def test_a_new_encoder_is_a_row_of_the_table(monkeypatch):
    row = EncoderCard(
        name="mine",
        loader="histostore.encoders.torch:load",
        summary="…",
        licence="…",
        architecture="timm:test_vit",
        options={"img_size": 32, "global_pool": "avg"},
        input_px=32,
        n_features=64,
        mean=(0.7, 0.6, 0.5),
        std=(0.2, 0.2, 0.2),
        interpolation="bilinear",
        batch_size=3,
    )
    monkeypatch.setattr(catalog, "ENCODERS", MappingProxyType({**ENCODERS, "mine": row}))
    encoder = load_encoder("mine", weights="random:0", device="cpu", threads=1)
    assert isinstance(encoder, Encoder)
    assert (encoder.identity.name, encoder.n_features, encoder.batch_size) == ("mine", 64, 3)
    assert encoder.identity.preprocessing == {
        "input_px": 32,
        "interpolation": "bilinear, antialiased",
        "channels": "RGB",
        "mean": [0.7, 0.6, 0.5],
        "std": [0.2, 0.2, 0.2],
        "pooling": "avg",
        "options": {"img_size": 32, "global_pool": "avg"},
    }
    assert encoder.encode(np.zeros((1, 40, 40, 3), np.uint8)).shape == (1, 64)


def test_a_card_that_names_the_wrong_width_is_found_out():
    from histostore.encoders.torch import load

    wrong = dataclasses.replace(card("squeezenet1_1"), n_features=100)
    with pytest.raises(EncoderError, match="gives 512 features; its card says 100"):
        load(card=wrong, weights="random:0", device="cpu", threads=1)
