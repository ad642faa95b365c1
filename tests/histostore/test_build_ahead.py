"""While the encoder has one batch the next is gathered, and every vector finds its row."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from PIL import Image

from histostore.build import pipeline
from histostore.build.pipeline import ImageJob, encode_images
from histostore.files import Source
from histostore.images.tissue import TissueFilter
from histostore.testing import spec_of
from histostore.views import apply_view

SPEC = replace(spec_of(n_features=3), tissue=TissueFilter(method="none"))
VIEWS = ("identity", "rot90", "transpose")


class Mean:
    """Encodes a patch as its top-left pixel, when it is allowed to."""

    n_features = 3

    def __init__(self, batch_size=4, wait=lambda: None):
        self.batch_size, self.wait = batch_size, wait
        self.sizes = []
        self.threads = set()

    def encode(self, patches):
        self.sizes.append(len(patches))
        self.threads.add(threading.get_ident())
        self.wait()
        return patches[:, 0, 0].astype(np.float32)


@pytest.fixture
def pictures(tmp_path):
    """Five images of 1, 6, 2, 12 and 4 patches: the jobs, and their pixels."""
    rng = np.random.default_rng(0)
    jobs, pixels = [], []
    for number, (down, across) in enumerate([(1, 1), (2, 3), (1, 2), (3, 4), (2, 2)]):
        pixels.append(rng.integers(0, 255, (16 * down, 16 * across, 3)).astype(np.uint8))
        path = tmp_path / f"{number}.png"
        Image.fromarray(pixels[-1]).save(path)
        source = Source(url=str(path), size=None, version=None)
        jobs.append(ImageJob(image_id=f"i{number}", source=source))
    return jobs, pixels


@pytest.fixture
def encode(pictures):
    with ThreadPoolExecutor(2) as pool:
        yield partial(encode_images, pictures[0], SPEC, pool=pool)


@pytest.mark.parametrize("batch_size", [1, 4, 7, 200])
@pytest.mark.parametrize("block", [1, 5, 64])
def test_every_vector_finds_its_row(encode, pictures, monkeypatch, batch_size, block):
    monkeypatch.setattr(pipeline, "BLOCK_PATCHES", block)
    rng = np.random.default_rng(1)
    encoder = Mean(batch_size, lambda: time.sleep(rng.choice([0, 0.001])))
    found = list(encode(encoder=encoder, views=VIEWS))
    for image, pixels in zip(found, pictures[1], strict=True):
        down, across = (side // 16 for side in pixels.shape[:2])
        patches = pixels.reshape(down, 16, across, 16, 3).swapaxes(1, 2).reshape(-1, 16, 16, 3)
        seen = [apply_view(patches, view, None)[:, 0, 0] for view in VIEWS]
        np.testing.assert_array_equal(image.rows.values, np.stack(seen))
    assert set(encoder.sizes[:-1]) <= {batch_size}  # full batches, whatever the blocks
    assert len(encoder.threads) == 1


def test_the_next_batch_is_gathered_while_one_is_encoded(encode, monkeypatch):
    monkeypatch.setattr(pipeline, "BLOCK_PATCHES", 1)
    asked, in_time = [], []
    more = threading.Event()

    def wait():
        """End the first call only once blocks are asked for that come after its own."""
        in_time.append(more.wait(20))

    def stopped():
        asked.append(len(encoder.sizes))
        if asked.count(1) > 1:  # a block that came while the first batch was being encoded
            more.set()
        return False

    encoder = Mean(4, wait)
    list(encode(encoder=encoder, views=("identity",), stopped=stopped))
    assert all(in_time)


def test_a_build_that_stops_waits_for_one_batch_alone(encode):
    begun, asked = threading.Event(), []

    def wait():
        begun.set()
        time.sleep(0.2)

    def stopped():
        asked.append(len(encoder.sizes))
        return len(asked) > 2 and begun.wait(20)  # a full batch is with the encoder by now

    encoder = Mean(20, wait)
    for image in encode(encoder=encoder, views=VIEWS, stopped=stopped):
        assert image.n_patches == 1  # all that one batch can have finished
    assert encoder.sizes == [20]


def test_an_encoder_that_fails_is_heard_of_and_not_asked_again(encode):
    encoder = Mean(4, lambda: (_ for _ in ()).throw(MemoryError("no more")))
    with pytest.raises(MemoryError, match="no more"):
        list(encode(encoder=encoder, views=VIEWS))
    assert encoder.sizes == [4]
