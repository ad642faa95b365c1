"""What a build, and a verification, hold in memory does not grow with the slide."""

from __future__ import annotations

import sys
import tracemalloc
import uuid
from functools import partial

import numpy as np
import pytest
from PIL import Image

from benchmarks.slide_memory import peak_of
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.encoders.base import EncoderIdentity
from histostore.errors import StorageError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import Encoding, open_store
from histostore.store.layout import plan_stream
from histostore.store.verify import THREADS, verify
from histostore.testing import fragment_of, spec_of

BUDGET_MIB = 64
"""What an image of any size may cost more than a small one: see ``FragmentStream``."""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak from /proc")
def test_the_memory_of_a_build_does_not_grow_with_the_slide(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (2272, 2272, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "slide.png", compress_level=0)
    (tmp_path / "cohort.csv").write_text("image_id,path\nslide,slide.png\n")
    every = partial(peak_of, tmp_path / "cohort.csv", patch_size=16, method="none")
    n_few, small = every(tmp_path / "small", top_k=500)
    n_many, large = every(tmp_path / "large")
    assert (n_few, n_many) == (500, 142 * 142)
    # In float32 it would be 79 MiB, and to join, convert and encode it the same again, twice.
    assert large - small <= BUDGET_MIB
    assert verify(str(tmp_path / "large")).ok


def test_verify_holds_a_few_shards_and_not_a_fragment():
    url = f"memory://{uuid.uuid4()}"
    features = open_store(url, mode="a").create_feature_set(spec_of(n_features=256))
    fragment = fragment_of("a", counts=32_768, n_features=256)
    shard = 2**18
    features.commit(fragment, {}, encoding=Encoding(chunk_bytes=shard, shard_bytes=shard))
    del fragment
    verify(url)  # whatever is loaded once
    tracemalloc.start()
    try:
        report = verify(url)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.ok
    assert report.n_bytes > 32 * 2**20
    # Of each object that is held: its bytes, the rows taken out of them, what is thought of these.
    assert peak < 3 * THREADS * shard + 2**20


class Tenth:
    """An encoder of which the tenth patch of an image may be no number."""

    identity = EncoderIdentity(name="tenth")
    n_features, batch_size = 6, 7
    wrong = False

    def encode(self, patches):
        vectors = patches.reshape(len(patches), -1)[:, :6].astype(np.float32)
        if self.wrong:
            vectors[patches[:, 0, 0, 0] == 10] = np.nan
        return vectors


@pytest.fixture
def slides(tmp_path, monkeypatch):
    """Three images of 12, 60 and 4 patches; only the second is too large to be held."""
    encoder = Tenth()
    monkeypatch.setattr("histostore.build.options.load_encoder", lambda *_, **__: encoder)
    rows = ["image_id,path"]
    for name, (down, across) in {"a": (3, 4), "b": (6, 10), "c": (2, 2)}.items():
        tile = np.random.default_rng(ord(name)).integers(11, 255, (8 * down, 8 * across, 3))
        Image.fromarray(tile.astype(np.uint8)).save(tmp_path / f"{name}.png")
        rows.append(f"{name},{name}.png")
    (tmp_path / "cohort.csv").write_text("\n".join(rows))
    monkeypatch.setattr("histostore.build.pipeline.HELD_BYTES", 2 * 20 * 6 * 4)
    in_bits = partial(plan_stream, chunk_bytes=5 * 6 * 4, shard_bytes=4 * 5 * 6 * 4)
    monkeypatch.setattr("histostore.store.streaming.plan_stream", in_bits)
    return str(tmp_path / "cohort.csv"), encoder


OPTIONS = BuildOptions(
    grid=PatchGrid(patch_size=8), tissue=TissueFilter(method="none"), views=("identity", "rot90")
)


def options(tmp_path):
    """Make options that no other test has used: encoders are kept for as long as a process."""
    return BuildOptions(
        encoder=EncoderOptions(name=str(tmp_path)),
        grid=OPTIONS.grid,
        tissue=OPTIONS.tissue,
        views=OPTIONS.views,
    )


def test_a_streamed_image_has_the_rows_of_a_held_one(slides, tmp_path, monkeypatch):
    cohort, _ = slides
    build(cohort, str(tmp_path / "streamed"), options(tmp_path))
    monkeypatch.setattr("histostore.build.pipeline.HELD_BYTES", 2**20)
    build(cohort, str(tmp_path / "held"), options(tmp_path))
    streamed, held = (
        open_store(str(tmp_path / name)).feature_set() for name in ("streamed", "held")
    )
    assert sorted(record.image_ids for record in streamed.fragments) == [("a", "c"), ("b",)]
    assert [record.image_ids for record in held.fragments] == [("a", "b", "c")]
    for image_id in "abc":
        for view in OPTIONS.views:
            one, other = streamed.bag(image_id, view), held.bag(image_id, view)
            np.testing.assert_array_equal(one.embedding, other.embedding)
            np.testing.assert_array_equal(one.coords, other.coords)
            assert one.columns.keys() == other.columns.keys()
    assert verify(str(tmp_path / "streamed")).ok


def test_a_streamed_image_that_fails_leaves_nothing(slides, tmp_path):
    cohort, encoder = slides
    encoder.wrong = True
    picture = np.array(Image.open(tmp_path / "b.png"))
    picture[40, 72] = 10  # the last patch but a few
    Image.fromarray(picture).save(tmp_path / "b.png")
    report = build(cohort, str(tmp_path / "store"), options(tmp_path))
    assert [failure.image_id for failure in report.failed] == ["b"]
    features = open_store(str(tmp_path / "store")).feature_set()
    assert sorted(features.image_ids) == ["a", "c"]
    assert len(list((tmp_path / "store").glob("*/fragments/*"))) == 1


def test_a_build_that_is_stopped_inside_a_streamed_image_leaves_nothing_of_it(
    slides, tmp_path, monkeypatch
):
    cohort, encoder = slides
    calls = []

    def encode(patches):
        calls.append(len(patches))
        if sum(calls) > 125:
            # Rows of 'b' lie there already, of which nobody may ever hear.
            assert list((tmp_path / "store").glob("*/fragments/*/embedding/c.*"))
            raise StorageError("no more")
        return Tenth.encode(encoder, patches)

    monkeypatch.setattr(encoder, "encode", encode, raising=False)
    with pytest.raises(StorageError):
        build(cohort, str(tmp_path / "store"), options(tmp_path))
    assert not list((tmp_path / "store").glob("*/fragments/*/embedding"))
