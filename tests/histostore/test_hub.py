"""Weights from the hub, pinned to a revision and a digest: held to both before anything is read."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from histostore.encoders.architectures import blueprint
from histostore.encoders.catalog import card, load_encoder
from histostore.encoders.hub import given
from histostore.encoders.weights import digest as digest_of
from histostore.encoders.weights import load_strictly
from histostore.errors import EncoderError
from tests.commands import BUILD, call, picture, write_table

if TYPE_CHECKING:
    from pathlib import Path

NAME = "timm:test_vit"  # timm's smallest network, for tests
OWNER = "hf-hub:lab/slides"
FIRST, SECOND = "1" * 40, "2" * 40
"""Commits of the repository; the main branch stands at the second."""


@pytest.fixture(scope="module")
def states():
    """The weights that two commits hold."""
    with torch.random.fork_rng(devices=[]):
        return [blueprint(card(NAME)).module.state_dict() for _ in (FIRST, SECOND)]


@pytest.fixture
def cache(states, tmp_path, monkeypatch) -> Path:
    """A cache as huggingface_hub lays it out, and no network."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "hub" / "models--lab--slides"
    for commit, state in zip((FIRST, SECOND), states, strict=True):
        (repository / "snapshots" / commit / "old").mkdir(parents=True)
        save_file(state, repository / "snapshots" / commit / "model.safetensors")
    save_file(states[0], repository / "snapshots" / SECOND / "old" / "v1.safetensors")
    (repository / "refs" / "refs" / "pr").mkdir(parents=True)
    for name, commit in (("main", SECOND), ("v1.0", FIRST), ("refs/pr/3", FIRST)):
        (repository / "refs" / name).write_text(commit)
    return repository / "snapshots"


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("pin", "which"),
    [
        pytest.param("", 1, id="the main branch"),
        pytest.param("@v1.0", 0, id="a tag"),
        pytest.param(f"@{FIRST}", 0, id="a commit"),
        pytest.param("@refs%2Fpr%2F3", 0, id="a revision with slashes"),
        pytest.param("/old/v1.safetensors", 0, id="a file"),
        pytest.param(f"@{SECOND}/model.safetensors", 1, id="a file of a commit"),
    ],
)
def test_a_pin_gives_the_weights_that_it_names(cache, states, pin, which):
    encoder = load_encoder(NAME, weights=f"{OWNER}{pin}", device="cpu", threads=1)
    module = blueprint(card(NAME)).module
    load_strictly(module, states[which], source="the test", droppable=())
    # How they were had is no part of what they are.
    assert encoder.identity.weights == digest_of(module)


def test_the_digest_is_that_of_the_file_in_either_case(cache, states):
    digest = sha256(cache / FIRST / "model.safetensors")
    for spelt in (digest, digest.upper()):
        state = given(card(NAME), f"{OWNER}@v1.0#sha256={spelt}")
        assert all(torch.equal(state[name], value) for name, value in states[0].items())


def test_another_digest_is_refused_before_anything_is_read(cache):
    file = cache / SECOND / "model.safetensors"
    wanted = sha256(cache / FIRST / "model.safetensors")
    file.write_bytes(b"not even a weights file")
    with pytest.raises(EncoderError, match=rf"has SHA-256 \w+, not {wanted} as asked") as caught:
        given(card(NAME), f"{OWNER}#sha256={wanted}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param("hf-hub:slides", id="no owner"),
        pytest.param(f"{OWNER}@", id="no revision"),
        pytest.param(f"{OWNER}#sha256=12ab", id="a digest cut short"),
        pytest.param(f"{OWNER}#{'0' * 64}", id="a digest of no name"),
    ],
)
def test_what_names_nothing_is_refused_with_the_spelling(cache, weights):
    with pytest.raises(EncoderError, match=r"say hf-hub:OWNER/NAME.*@REVISION") as caught:
        given(card(NAME), weights)
    assert "\n" not in str(caught.value)


def test_a_revision_that_is_not_cached_is_named(cache):
    with pytest.raises(EncoderError, match=r"lab/slides at revision v9: HF_HUB_OFFLINE is set"):
        given(card(NAME), f"{OWNER}@v9")


def test_one_member_of_a_fusion_is_pinned(cache):
    pin = f"{OWNER}@v1.0#sha256={sha256(cache / FIRST / 'model.safetensors')}"
    alone = load_encoder(NAME, weights=pin, device="cpu", threads=1)
    fused = load_encoder(f"texture+{NAME}", weights=f"{NAME}={pin}", device="cpu", threads=1)
    assert fused.identity.preprocessing["members"][1]["weights"] == alone.identity.weights


def test_build_says_in_one_line_that_the_digest_is_another(cache, tmp_path):
    Image.fromarray(picture(0)).save(tmp_path / "a.png")
    cohort = write_table(tmp_path / "cohort.csv", [{"image_id": "a", "path": "a.png"}])
    options = ("--encoder", NAME, "--weights", f"{OWNER}@v1.0#sha256={'0' * 64}")
    done = call("histostore", "build", cohort, tmp_path / "store", *BUILD, *options)
    assert done.code == 1
    assert f"not {'0' * 64} as asked for" in done.err.strip().splitlines()[-1]
    assert not (tmp_path / "store").exists()
