"""A fragment that is written while it is computed is the one that is written at once."""

from __future__ import annotations

import uuid
from contextlib import nullcontext
from functools import partial

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.errors import OptionError, StorageError
from histostore.store import open_store
from histostore.store.backend import open_backend
from histostore.store.layout import plan_stream
from histostore.store.reader import Store
from histostore.store.verify import verify
from histostore.testing import FaultyBackend, fragment_of, spec_of

ROW = 4 * 4
HOUR = 3600.0


def opened(url, backend=None):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    return features if backend is None else Store(backend, writable=True).feature_set()


@pytest.fixture
def tiny(monkeypatch):
    """Shards of four rows."""
    plan = partial(plan_stream, chunk_bytes=2 * ROW, shard_bytes=4 * ROW)
    monkeypatch.setattr("histostore.store.streaming.plan_stream", plan)


def pour(stream, embedding, step=3):
    """Put all rows, a block of all views after the other."""
    for start in range(0, embedding.shape[1], step):
        for view, rows in enumerate(embedding):
            stream.put(view, start, rows[start : start + step])


@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.integers(1, 9),
    st.integers(1, 200),
    st.integers(1, 600),
)
@settings(max_examples=40)
def test_a_stream_holds_what_was_put_into_it(n_views, n_patches, step, chunk_bytes, shard_bytes):
    url = f"memory://{uuid.uuid4()}"
    views = tuple(f"view-{number}" for number in range(n_views))
    fragment = fragment_of("a", counts=n_patches, augmentations=views)
    features = opened(url)
    plan = plan_stream((n_views, n_patches, 4), 4, chunk_bytes=chunk_bytes, shard_bytes=shard_bytes)
    assert n_views * plan.shard[1] * ROW <= max(shard_bytes, n_views * ROW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("histostore.store.streaming.plan_stream", lambda *_: plan)
        stream = features.stream(fragment.embedding.shape)
    pour(stream, fragment.embedding, step)
    fragment_id = stream.commit(fragment, {"of": "a test"})
    assert [record.fragment_id for record in features.fragments] == [fragment_id]
    there = open_store(url).feature_set()
    for view, rows in zip(views, fragment.embedding, strict=True):
        bag = there.bag("a", view)
        np.testing.assert_array_equal(bag.embedding, rows)
        np.testing.assert_array_equal(bag.coords, np.stack([fragment.x, fragment.y], axis=1))
    assert verify(url).ok


def test_any_reader_of_zarr_opens_it(tmp_path, tiny):
    fragment = fragment_of("a", counts=11, augmentations=("identity", "rot90"))
    stream = opened(str(tmp_path)).stream(fragment.embedding.shape)
    pour(stream, fragment.embedding)
    stream.commit(fragment, {})
    [folder] = tmp_path.glob("*/fragments/*")
    np.testing.assert_array_equal(
        zarr.open_group(folder, mode="r")["embedding"][:], fragment.embedding
    )


def test_a_refusal_at_any_moment_leaves_nothing_half_there(tmp_path, tiny):
    url = str(tmp_path / "store")
    fragment = fragment_of("a", counts=11)
    opened(url).commit(fragment_of("b"), {})
    for moment in range(100):

        def refuse(number, path, content, moment=moment):
            if number == moment:
                raise StorageError(f"{path}: refused")

        backend = FaultyBackend(open_backend(url), refuse)
        stream = opened(url, backend).stream(fragment.embedding.shape)
        try:
            pour(stream, fragment.embedding)
            stream.commit(fragment, {})
        except StorageError:
            assert open_store(url).feature_set().image_ids == ("b",)
            assert verify(url).ok
            # Only where the record itself was refused it may have been put all the same.
            there = [
                entry.path for entry in open_backend(url).walk("") if "embedding" in entry.path
            ]
            assert len(there) == 2 or backend.paths[-1].endswith("/zarr.json")
        else:
            break
    assert moment > 10
    assert open_store(url).feature_set().image_ids == ("b", "a")


def test_what_is_not_whole_is_never_committed(tiny):
    fragment = fragment_of("a", counts=11)
    features = opened(f"memory://{uuid.uuid4()}")
    for wrong in ("empty", "short", "of others", "discarded"):
        stream = features.stream(fragment.embedding.shape)
        if wrong != "empty":
            pour(stream, fragment.embedding[:, :8] if wrong == "short" else fragment.embedding)
        if wrong == "discarded":
            stream.discard()
        with pytest.raises(OptionError):
            stream.commit(fragment_of("a", counts=12 if wrong == "of others" else 11), {})
    features.refresh()
    assert features.fragments == ()
    assert features.backend.walk(f"{features.name}/fragments") == []


def test_a_store_that_is_open_for_reading_takes_no_stream():
    url = f"memory://{uuid.uuid4()}"
    opened(url)
    with pytest.raises(OptionError, match="reading"):
        open_store(url).feature_set().stream((1, 1, 4))


@pytest.mark.parametrize(("pause", "sound"), [(5 * HOUR, True), (7 * HOUR, False)])
def test_a_stream_may_take_days_but_not_lie_still_for_long(monkeypatch, tiny, pause, sound):
    """What is written to again and again is not old; what lay still may be gone."""
    fragment = fragment_of("a", counts=40)
    features = opened(f"memory://{uuid.uuid4()}")
    now = [0.0]
    monkeypatch.setattr("histostore.store.writer.time.time", lambda: now[0])
    stream = features.stream(fragment.embedding.shape)
    with nullcontext() if sound else pytest.raises(StorageError, match=r"7\.0 hours"):
        for start in range(0, 40, 4):
            stream.put(0, start, fragment.embedding[0, start : start + 4])
            now[0] += pause
        stream.commit(fragment, {})
        assert now[0] > 2 * 24 * HOUR
    features.refresh()
    assert features.image_ids == (("a",) if sound else ())
