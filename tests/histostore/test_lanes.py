"""Forward passes side by side: every row once and in order, every thread used, nothing else moved."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.encoders.catalog import available_cores, load_encoder
from histostore.encoders.lanes import PIECE, Lanes
from histostore.errors import EncoderError

THREADS = (1, 2, 3, 5)
LANES = {threads: Lanes(threads, batch_size=32) for threads in THREADS}


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 100), threads=st.sampled_from(THREADS))
def test_every_row_goes_through_once_and_comes_back_in_its_place(n, threads):
    batch, seen = torch.arange(n), []

    def noted(piece: torch.Tensor) -> torch.Tensor:
        seen.append(piece)
        return -piece

    assert torch.equal(LANES[threads].map(noted, batch), -batch)
    assert torch.equal(torch.cat(seen).sort().values, batch)
    sizes = [len(piece) for piece in seen]
    assert max(sizes) <= PIECE
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize(
    ("threads", "batch_size", "n"),
    [
        (1, 32, 1),
        (2, 1, 1),
        (2, 8, 1),
        (2, 16, 2),
        (4, 16, 2),
        (5, 1000, 5),
        (5, 32, 1),
        (6, 31, 3),
    ],
)
def test_lanes_share_all_threads_and_no_more(threads, batch_size, n):
    before = torch.get_num_threads()
    lanes, found = Lanes(threads, batch_size=batch_size), {}
    together = threading.Barrier(n, timeout=20)

    def noted(piece: torch.Tensor) -> torch.Tensor:
        found[threading.get_ident()] = torch.get_num_threads()
        together.wait()  # so each lane has one piece
        return piece

    lanes.map(noted, torch.arange(n))
    assert list(found.values()) == [threads // n] * n
    assert torch.get_num_threads() == before


def test_a_thread_that_comes_later_has_torch_s_number_of_before():
    before, found = torch.get_num_threads(), []
    Lanes(before + 2, batch_size=8 * (before + 2))
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [before]


def test_an_encoder_uses_every_core_there_is_and_leaves_torch_s_threads_alone(monkeypatch):
    asked = []

    class Noted(Lanes):
        def __init__(self, threads: int, *, batch_size: int) -> None:
            asked.append(threads)
            super().__init__(threads, batch_size=batch_size)

    monkeypatch.setattr("histostore.encoders.torch.Lanes", Noted)
    before = torch.get_num_threads()
    for threads in (None, before + 3):
        load_encoder("squeezenet1_1", weights="random:0", device="cpu", threads=threads)
    assert asked == [available_cores(), before + 3]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["timm:test_resnet", "timm:test_vit", "squeezenet1_1"])
def test_vectors_do_not_depend_on_the_lanes(name, precision):
    patches = np.random.default_rng(0).integers(0, 256, (37, 72, 72, 3), np.uint8)
    options = {"weights": "random:0", "device": "cpu", "precision": precision}
    one, three = (load_encoder(name, threads=n, **options) for n in (1, 3))
    alone, shared = one.encode(patches), three.encode(patches)
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[precision] * np.abs(alone).max()
    np.testing.assert_allclose(shared, alone, atol=tolerance)
    np.testing.assert_array_equal(three.encode(patches), shared)


def test_a_lane_that_fails_fails_the_call_and_the_next_call_works():
    def odd(piece: torch.Tensor) -> torch.Tensor:
        if 13 in piece:
            raise EncoderError("no thirteen")
        return piece

    with pytest.raises(EncoderError, match="no thirteen"):
        LANES[3].map(odd, torch.arange(32))
    assert torch.equal(LANES[3].map(odd, torch.arange(12)), torch.arange(12))
