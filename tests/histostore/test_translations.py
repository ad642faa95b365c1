"""Checkpoints of other authors: loaded strictly, and computing what their authors compute."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own users expect
from safetensors.torch import save_file

from histostore.encoders.architectures import blueprint
from histostore.encoders.catalog import card
from histostore.encoders.conch import AttentionalPooler
from histostore.encoders.special import DenseFeatures
from histostore.encoders.torch import load
from histostore.encoders.torchvision_guard import import_guarded
from histostore.encoders.translations import TRANSLATIONS
from histostore.encoders.weights import load_strictly, read_state
from histostore.errors import EncoderError

WIDTH, DEPTH, HEADS, PX = 32, 2, 4, 28


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


# -- transformers -------------------------------------------------------------------------------


def _linear(state, name: str, x):
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def _norm(state, name: str, x):
    return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)


def _transformers(state, x, *, patch: int, dino: bool, swiglu: bool):
    """Compute a ViTModel or Dinov2Model of transformers from its own names, as its code reads."""
    kernel = state["embeddings.patch_embeddings.projection.weight"]
    bias = state["embeddings.patch_embeddings.projection.bias"]
    squares = F.conv2d(x, kernel, bias, stride=patch).flatten(2).transpose(1, 2)
    first = state["embeddings.cls_token"].expand(len(x), -1, -1)
    x = torch.cat([first, squares], 1) + state["embeddings.position_embeddings"]
    if "embeddings.register_tokens" in state:
        registers = state["embeddings.register_tokens"].expand(len(x), -1, -1)
        x = torch.cat([x[:, :1], registers, x[:, 1:]], 1)
    for i in range(DEPTH):
        layer = f"encoder.layer.{i}"
        y = _norm(state, f"{layer}.norm1" if dino else f"{layer}.layernorm_before", x)
        role = f"{layer}.attention.attention"
        q, k, v = (
            _linear(state, f"{role}.{part}", y).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        y = (weights @ v).transpose(1, 2).flatten(2)
        y = _linear(state, f"{layer}.attention.output.dense", y)
        x = x + (y * state[f"{layer}.layer_scale1.lambda1"] if dino else y)
        y = _norm(state, f"{layer}.norm2" if dino else f"{layer}.layernorm_after", x)
        if swiglu:
            gate, value = _linear(state, f"{layer}.mlp.weights_in", y).chunk(2, dim=-1)
            y = _linear(state, f"{layer}.mlp.weights_out", F.silu(gate) * value)
        else:
            inner, outer = (
                (f"{layer}.mlp.fc1", f"{layer}.mlp.fc2")
                if dino
                else (f"{layer}.intermediate.dense", f"{layer}.output.dense")
            )
            y = _linear(state, outer, F.gelu(_linear(state, inner, y)))
        x = x + (y * state[f"{layer}.layer_scale2.lambda1"] if dino else y)
    return _norm(state, "layernorm", x)


def _transformers_state(*, patch: int, dino: bool, swiglu: bool, registers: int):
    n_squares = (PX // patch) ** 2
    state = {
        "embeddings.cls_token": torch.randn(1, 1, WIDTH),
        "embeddings.position_embeddings": torch.randn(1, 1 + n_squares, WIDTH),
        "embeddings.patch_embeddings.projection.weight": torch.randn(WIDTH, 3, patch, patch) / 9,
        "embeddings.patch_embeddings.projection.bias": torch.randn(WIDTH),
        "layernorm.weight": torch.randn(WIDTH),
        "layernorm.bias": torch.randn(WIDTH),
    }
    if dino:
        state["embeddings.mask_token"] = torch.randn(1, WIDTH)
    if registers:
        state["embeddings.register_tokens"] = torch.randn(1, registers, WIDTH)

    for i in range(DEPTH):
        layer = _layer_state(dino=dino, swiglu=swiglu)
        state |= {f"encoder.layer.{i}.{name}": value for name, value in layer.items()}
    return state


def _layer_state(*, dino: bool, swiglu: bool):
    heads = ("attention.attention.query", "attention.attention.key", "attention.attention.value")
    linear = dict.fromkeys((*heads, "attention.output.dense"), (WIDTH, WIDTH))
    norms = ("norm1", "norm2") if dino else ("layernorm_before", "layernorm_after")
    if swiglu:
        linear |= {"mlp.weights_in": (WIDTH, 2 * 64), "mlp.weights_out": (64, WIDTH)}
    elif dino:
        linear |= {"mlp.fc1": (WIDTH, 4 * WIDTH), "mlp.fc2": (4 * WIDTH, WIDTH)}
    else:
        linear |= {"intermediate.dense": (WIDTH, 4 * WIDTH), "output.dense": (4 * WIDTH, WIDTH)}
    state = {f"{name}.{kind}": torch.randn(WIDTH) for name in norms for kind in ("weight", "bias")}
    for name, (n_in, n_out) in linear.items():
        state[f"{name}.weight"] = torch.randn(n_out, n_in) / n_in**0.5
        state[f"{name}.bias"] = torch.randn(n_out)
    if dino:
        state |= {f"layer_scale{i}.lambda1": torch.randn(WIDTH) for i in (1, 2)}
    return state


KINDS = {
    "phikon": {"patch": 16, "dino": False, "swiglu": False, "registers": 0, "px": 32},
    "phikon-v2": {"patch": 16, "dino": True, "swiglu": False, "registers": 0, "px": 32},
    "hibou-b": {"patch": 14, "dino": True, "swiglu": True, "registers": 4, "px": 28},
    "midnight-12k": {"patch": 14, "dino": True, "swiglu": True, "registers": 0, "px": 28},
}


@pytest.mark.parametrize("name", KINDS)
def test_a_checkpoint_of_transformers_computes_what_transformers_computes(
    name, tmp_path, monkeypatch
):
    kind = dict(KINDS[name])
    px = kind.pop("px")
    monkeypatch.setitem(globals(), "PX", px)
    small = {"img_size": px, "embed_dim": WIDTH, "depth": DEPTH, "num_heads": HEADS}
    if kind["swiglu"]:
        small["mlp_ratio"] = 2 * 64 / WIDTH
    row = card(name)
    row = dataclasses.replace(
        row, options={**row.options, **small}, n_features=None, input_px=px, batch_size=4
    )
    state = _transformers_state(**kind)
    prefix = "vit." if name == "phikon" else ""
    file = {f"{prefix}{key}": value for key, value in state.items()}
    file["pooler.dense.weight"] = torch.randn(WIDTH, WIDTH)
    save_file(file, tmp_path / "w.safetensors")
    encoder = load(card=row, weights=str(tmp_path / "w.safetensors"), device="cpu", threads=1)

    patches = np.random.default_rng(0).integers(0, 256, (3, px, px, 3), dtype=np.uint8)
    pixels = torch.from_numpy(patches).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (row.mean, row.std))
    tokens = _transformers(
        state, (pixels - mean) / std, patch=kind["patch"], dino=kind["dino"], swiglu=kind["swiglu"]
    )
    expected = tokens[:, 0]
    if row.pooling == "token+patches":
        expected = torch.cat([expected, tokens[:, 1 + kind["registers"] :].mean(1)], -1)
    np.testing.assert_allclose(encoder.encode(patches), expected.numpy(), rtol=1e-3, atol=1e-3)


def test_a_name_that_no_rule_knows_stays_and_is_refused():
    state = {
        "encoder.layer.0.attention.attention.query.weight": torch.zeros(2, 2),
        "odd": torch.zeros(1),
    }
    assert TRANSLATIONS["transformers"](state).keys() == {"odd"}  # and its query went missing


# -- KimiaNet -----------------------------------------------------------------------------------


def _kimianet_file(path, **extra):
    """Save a checkpoint of KimiaNet's layout: parallel training, a body and 30 classes."""
    body = DenseFeatures().features
    state = {f"module.model.0.{name}": value for name, value in body.state_dict().items()}
    state["module.fc_4.weight"] = torch.randn(30, 1024)
    state["module.fc_4.bias"] = torch.randn(30)
    torch.save({**state, **extra}, path)
    return body


def test_a_checkpoint_of_kimianet_fits_and_is_averaged_before_the_rectifier(tmp_path):
    body = _kimianet_file(tmp_path / "KimiaNetPyTorchWeights.pth").eval()
    row = dataclasses.replace(card("kimianet"), input_px=64)  # 1000 px would take seconds
    encoder = load(
        card=row, weights=str(tmp_path / "KimiaNetPyTorchWeights.pth"), device="cpu", threads=1
    )
    patches = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    normalise = import_guarded("torchvision.transforms").Normalize(
        [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    )
    with torch.inference_mode():
        pixels = torch.stack([torch.from_numpy(p).permute(2, 0, 1) / 255 for p in patches])
        expected = F.adaptive_avg_pool2d(body(normalise(pixels)), 1).flatten(1).numpy()
    embedding = encoder.encode(patches)
    assert embedding.shape == (2, 1024)
    assert (embedding < 0).any()
    np.testing.assert_allclose(embedding, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    "extra",
    [
        {"module.fc_5.weight": torch.zeros(1)},
        {"module.model.1.weight": torch.zeros(1)},
        {"module.classifier.weight": torch.zeros(30, 1024)},
    ],
    ids=lambda extra: next(iter(extra)),
)
def test_anything_else_in_a_checkpoint_of_kimianet_is_refused(tmp_path, extra):
    _kimianet_file(tmp_path / "w.pth", **extra)
    plan = blueprint(card("kimianet"))
    state = plan.translate(read_state(tmp_path / "w.pth"))
    with pytest.raises(EncoderError, match="1 unexpected") as caught:
        load_strictly(plan.module, state, source="w.pth", droppable=plan.droppable)
    assert "\n" not in str(caught.value)


# -- CTransPath, GPFM, CONCH --------------------------------------------------------------------


def test_a_checkpoint_of_ctranspath_in_the_layout_of_its_time_fits(tmp_path):
    """Old timm kept buffers and downsampled at the end of a stage, new timm at the start."""
    plan = blueprint(card("ctranspath"))
    state = {
        name: torch.randn_like(value) if value.is_floating_point() else value
        for name, value in plan.module.state_dict().items()
    }
    old = {}
    for name, value in state.items():
        stage = name.split(".")[1]
        before = f"layers.{int(stage) - 1}." if ".downsample." in name else f"layers.{stage}."
        old[name.replace(f"layers.{stage}.", before, 1)] = value
    old["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    old["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
    old["head.weight"] = torch.zeros(1000, 768)
    old["head.bias"] = torch.zeros(1000)
    torch.save({"model": old}, tmp_path / "ctranspath.pth")
    state_read = plan.translate(read_state(tmp_path / "ctranspath.pth"))
    load_strictly(plan.module, state_read, source="ctranspath.pth", droppable=plan.droppable)
    for name, value in plan.module.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_the_chunks_of_gpfm_become_blocks():
    state = {
        "backbone.blocks.0.3.attn.qkv.weight": torch.zeros(1),
        "backbone.cls_token": torch.zeros(1),
        "dino_head.mlp.0.weight": torch.zeros(1),
    }
    assert TRANSLATIONS["gpfm"](state).keys() == {
        "blocks.3.attn.qkv.weight",
        "cls_token",
        "dino_head.mlp.0.weight",
    }


def test_the_positions_of_conch_are_resampled_once_and_nothing_else_is():
    smooth = torch.linspace(-1, 1, 14).reshape(1, 14, 1).expand(14, 14, 8).reshape(1, 196, 8)
    table = torch.cat([torch.full((1, 1, 8), 7.0), smooth], dim=1)
    other = torch.randn(3)
    made = TRANSLATIONS["conch"]({"trunk.pos_embed": table, "trunk.norm.weight": other})
    grid = made["trunk.pos_embed"]
    assert grid.shape == (1, 1 + 28 * 28, 8)
    assert torch.equal(grid[:, 0], table[:, 0])
    assert torch.equal(made["trunk.norm.weight"], other)
    columns = grid[0, 1:, 0].reshape(28, 28)
    assert (columns.diff(dim=1) > -0.02).all()  # still rises from left to right
    fitting = {"trunk.pos_embed": torch.zeros(1, 1 + 28 * 28, 8)}
    assert TRANSLATIONS["conch"](fitting) == fitting


def test_attentional_pooling_is_softmax_attention_written_out():
    pooler = AttentionalPooler(16, 24, n_heads=4, n_queries=2).eval()
    tokens = torch.randn(3, 5, 24)
    with torch.inference_mode():
        queries = pooler.to_q(pooler.ln_q(pooler.query))
        keys, values = pooler.to_kv(pooler.ln_k(tokens)).split(16, dim=-1)
        heads = []
        for h in range(4):
            part = slice(4 * h, 4 * h + 4)
            scores = queries[:, part] @ keys[..., part].transpose(1, 2) / 2
            heads.append(scores.softmax(-1) @ values[..., part])
        expected = pooler.to_out(torch.cat(heads, dim=-1))
        torch.testing.assert_close(pooler(tokens), expected)


# -- the digest of a file -----------------------------------------------------------------------


def test_a_weights_file_is_held_to_the_digest_that_was_asked_for(tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert read_state(f"{file}#sha256={digest}").keys() == {"a"}
    assert read_state(f"{file}#sha256={digest.upper()}").keys() == {"a"}


@pytest.mark.parametrize(
    ("digest", "said"),
    [("0" * 64, "not 0000.* as asked for"), ("0" * 63, "give 64 hex digits"), ("", "64 hex")],
)
def test_another_digest_is_refused_in_one_line_and_unread(tmp_path, digest, said):
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"not even a weights file")
    with pytest.raises(EncoderError, match=said) as caught:
        read_state(f"{file}#sha256={digest}")
    assert "\n" not in str(caught.value)
