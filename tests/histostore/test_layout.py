"""How embeddings are cut: few objects, chunks of like size, nothing left out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError
from histostore.store.layout import (
    CHUNK_BYTES,
    SHARD_BYTES,
    Encoding,
    is_id,
    new_id,
    plan_chunks,
    plan_column,
)


@given(
    st.tuples(st.integers(1, 16), st.integers(1, 5_000_000), st.integers(1, 5000)),
    st.sampled_from([2, 4]),
)
def test_chunks_and_shards_keep_their_bounds(shape, itemsize):
    views, patches, features = shape
    plan = plan_chunks(shape, itemsize)
    chunk_bytes = math.prod(plan.chunk) * itemsize
    n_chunks = math.ceil(patches / plan.chunk[1])
    assert plan.chunk[0] == 1
    assert plan.chunk[2] == plan.shard[2] == features
    assert chunk_bytes <= CHUNK_BYTES
    assert math.prod(plan.shard) * itemsize <= SHARD_BYTES
    assert plan.shard[1] % plan.chunk[1] == 0
    assert plan.shard[0] <= views
    # Padding is less than one row per chunk.
    assert n_chunks * plan.chunk[1] - patches < n_chunks
    # No more objects than half-full shards would need.
    n_shards = math.ceil(views / plan.shard[0]) * math.ceil(patches / plan.shard[1])
    assert n_shards <= max(1, 2 * views * n_chunks * chunk_bytes / (SHARD_BYTES / 2))


def test_one_row_is_never_split_however_wide():
    plan = plan_chunks((2, 10, 2 * SHARD_BYTES), 4)
    assert plan.chunk == plan.shard == (1, 1, 2 * SHARD_BYTES)


@pytest.mark.parametrize("views", [1, 3, 8])
def test_a_small_fragment_is_one_object_whatever_its_views(views):
    plan = plan_chunks((views, 64 * 12, 384), 4)
    assert plan.shard == (views, 768, 384)


@given(st.integers(1, 2**40), st.sampled_from([4, 8]))
def test_a_column_is_one_chunk_until_it_outgrows_a_shard(rows, itemsize):
    plan = plan_column(rows, itemsize)
    assert plan.chunk == plan.shard
    assert plan.chunk[0] * itemsize <= SHARD_BYTES
    assert (plan.chunk[0] == rows) == (rows * itemsize <= SHARD_BYTES)


@given(st.integers(0, 2**60), st.integers(0, 2**60))
def test_ids_sort_by_creation_time_and_are_unique(one, other):
    first, second = new_id(one), new_id(other)
    assert is_id(first)
    assert first != second
    if one // 1_000_000 != other // 1_000_000:
        assert (first < second) == (one < other)


def test_nonsense_is_refused():
    with pytest.raises(OptionError, match="none or zstd"):
        Encoding(codec="lzma")
    with pytest.raises(OptionError, match="positive"):
        Encoding(chunk_bytes=0)
