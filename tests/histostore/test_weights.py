"""Weights files: what fits is loaded, what does not is refused, nothing is executed."""

from __future__ import annotations

import os
import pickle
import zipfile
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from histostore.encoders.weights import digest, load_strictly, read_state
from histostore.errors import EncoderError

if TYPE_CHECKING:
    from pathlib import Path


def _network(seed: int = 0, width: int = 4) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.Linear(width, 2))


def _write(container: str, state: dict, path: Path) -> Path:
    if container == "safetensors":
        save_file(state, path)
    elif container == "npz":
        with path.open("wb") as stream:
            np.savez(stream, **{name: value.numpy() for name, value in state.items()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "checkpoint")
    return path


CONTAINERS = ("safetensors", "npz", "checkpoint", "old-checkpoint")


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_same_weights_have_one_identity_in_any_container(container, tmp_path):
    original = _network(seed=1)
    # The name says nothing: the content decides.
    path = _write(container, original.state_dict(), tmp_path / "weights.bin")
    copy = _network(seed=2)
    assert digest(copy) != digest(original)
    load_strictly(copy, read_state(path), source="weights.bin", droppable=())
    assert digest(copy) == digest(original)
    for name, value in original.state_dict().items():
        assert torch.equal(copy.state_dict()[name], value)


@pytest.mark.parametrize("wrap", ["state_dict", "model", "both", "parallel"])
def test_wrappers_are_opened_and_the_parallel_prefix_taken_off(wrap, tmp_path):
    state = _network().state_dict()
    wrapped = {
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"lr": 0.1}},
        "both": {"state_dict": {"model": state}},
        "parallel": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    }[wrap]
    torch.save(wrapped, tmp_path / "w.pt")
    read = read_state(tmp_path / "w.pt")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], value) for name, value in state.items())


def test_equal_values_in_half_precision_have_the_same_identity(tmp_path):
    original = _network().half().float()  # values that float16 holds exactly
    save_file(
        {n: v.half() for n, v in original.state_dict().items()}, tmp_path / "half.safetensors"
    )
    copy = _network(seed=5)
    load_strictly(copy, read_state(tmp_path / "half.safetensors"), source="half", droppable=())
    assert digest(copy) == digest(original)


@given(st.data())
def test_the_digest_changes_with_any_single_value(data):
    network = _network()
    before = digest(network)
    name = data.draw(st.sampled_from([n for n in network.state_dict() if "batches" not in n]))
    values = network.state_dict()[name].view(-1)
    place = data.draw(st.integers(0, len(values) - 1))
    values[place] = torch.nextafter(values[place], torch.tensor(torch.inf))
    assert digest(network) != before


def test_the_digest_does_not_count_training_steps():
    network = _network()
    before = digest(network)
    network[1].num_batches_tracked += 7
    assert digest(network) == before


class _Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _write_bomb(kind: str, bomb: _Bomb, path: Path) -> None:
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"w": bomb}))
    elif kind == "old pickle":
        path.write_bytes(pickle.dumps({"w": bomb}, protocol=0))
    elif kind == "npz":
        with path.open("wb") as stream:
            np.savez(stream, w=np.array([bomb], dtype=object), allow_pickle=True)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"w": bomb}))
            archive.writestr("archive/version", "3\n")
    else:
        torch.save({"w": torch.zeros(2), "x": bomb}, path)


@pytest.mark.parametrize("kind", ["pickle", "old pickle", "npz", "zip", "checkpoint"])
@pytest.mark.parametrize("suffix", [".pt", ".npz", ".safetensors"])
def test_code_in_a_weights_file_is_refused_and_never_runs(kind, suffix, tmp_path):
    marker, path = tmp_path / "it-ran", tmp_path / f"weights{suffix}"
    _write_bomb(kind, _Bomb(marker), path)
    with pytest.raises(EncoderError, match="refused; nothing in it was executed") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_bomb_is_live(tmp_path):
    # Without this the test above could pass on a dud.
    os_call, arguments = _Bomb(tmp_path / "it-ran").__reduce__()
    os_call(*arguments)
    assert (tmp_path / "it-ran").exists()


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> dict[str, bytes]:
    """Bytes of one sound file of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    state = _network().state_dict()
    return {kind: _write(kind, state, folder / kind).read_bytes() for kind in CONTAINERS}


@given(data=st.data())
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_truncated_file_is_an_encoder_error(container, sound, tmp_path_factory, data):
    whole = sound[container]
    path = tmp_path_factory.mktemp("cut") / "weights"
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(EncoderError) as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


@given(data=st.data())
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_damaged_file_gives_tensors_or_an_encoder_error(container, sound, tmp_path_factory, data):
    damaged = bytearray(sound[container])
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "weights"
    path.write_bytes(damaged)
    try:
        state = read_state(path)
    except EncoderError:
        return
    assert all(isinstance(value, torch.Tensor) for value in state.values())


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"image_id,path\n", b"\0" * 99])
def test_what_is_no_weights_file_is_refused(content, tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(content)
    with pytest.raises(EncoderError, match="refused; nothing in it was executed"):
        read_state(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "absent.pt", tmp_path):
        with pytest.raises(EncoderError, match="no weights file at") as caught:
            read_state(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("saved", [[torch.zeros(2)], {}, {"a": torch.zeros(2), "epoch": 3}])
def test_a_checkpoint_of_anything_but_named_tensors_is_refused(saved, tmp_path):
    torch.save(saved, tmp_path / "w.pt")
    with pytest.raises(EncoderError, match="named tensors"):
        read_state(tmp_path / "w.pt")


def test_up_to_three_misfits_of_each_kind_are_named():
    state = _network().state_dict()
    state["0.weight"] = torch.zeros(4, 3, 5, 5)
    del state["1.bias"]
    state |= {f"extra.{i}": torch.zeros(1) for i in range(5)}
    with pytest.raises(EncoderError) as caught:
        load_strictly(_network(), state, source="w.pt", droppable=())
    assert str(caught.value) == (
        "w.pt does not fit: 1 missing (1.bias); 5 unexpected (extra.0, extra.1, extra.2, …); "
        "1 of another shape (0.weight is (4, 3, 5, 5), not (4, 3, 3, 3)). "
        "Give the weights of this architecture"
    )


def test_a_left_over_classifier_is_allowed_and_a_missing_layer_is_not():
    state = _network().state_dict()
    headless = _network()[:2]
    load_strictly(headless, state, source="w.pt", droppable=("2.",))
    with pytest.raises(EncoderError, match=r"2 unexpected \(2.weight, 2.bias\)"):
        load_strictly(_network()[:2], state, source="w.pt", droppable=("fc.",))
    with pytest.raises(EncoderError, match=r"2 missing \(2.weight, 2.bias\)"):
        load_strictly(_network(), headless.state_dict(), source="w.pt", droppable=("2.",))
