"""The store on object stores: the same promises, by real drivers, against real servers.

What storages and networks do wrong is in ``test_store_s3_trouble.py``, builds in
``test_build_s3.py``. With ``HISTOSTORE_FULL=1`` faults come at every moment, not at a few.
"""

from __future__ import annotations

import copy
import re
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
import xarray as xr

from histostore.errors import CorruptError, NotFound, StorageError
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, spec_of
from tests import servers

pytestmark = pytest.mark.filterwarnings("default")  # drivers warn of themselves

BEFORE = fragment_of(["a", "b"], counts=[4, 3], seed=1)
LATER = fragment_of(["c", "d"], counts=[5, 2], seed=2)
CUT = Encoding(chunk_bytes=100_000)
SMALL = Encoding(chunk_bytes=32, shard_bytes=64)
N_CHANGES = 17  # 7 metadata documents, 8 data objects of LATER, one settling, one put


@pytest.fixture(params=["local", "memory", "moto", "ceph", "azurite", "obstore"])
def place(request, tmp_path):
    """Where a store shall be, and the storage options to reach it."""
    if request.param == "local":
        return str(tmp_path / "lab" / "store"), {}
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}/lab/store", {}
    if request.param == "obstore":
        server = request.getfixturevalue("ceph")
        return f"obstore+{server.bucket()}/lab/store", server.options
    server = request.getfixturevalue(request.param)
    return f"{server.bucket()}/lab/store", server.options


def plain(url):
    """Give the URL that fsspec knows."""
    return url.removeprefix("obstore+")


# The store --------------------------------------------------------------------------------


def test_rows_come_back_as_they_were(place):
    url, options = place
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    fragments = [
        fragment_of(["a", "b"], counts=[30, 4], augmentations=("identity", "rot90"), seed=1),
        fragment_of(["c"], counts=9, augmentations=("identity", "rot90"), seed=2),
    ]
    for fragment in fragments:
        features.commit(fragment, {}, encoding=Encoding(chunk_bytes=64, shard_bytes=256))
    features.record_build({"failed": []})
    again = open_store(url, options).feature_set()
    assert again.snapshot == features.snapshot
    assert again.builds() == [{"failed": []}]
    expected = np.concatenate([fragment.embedding[1] for fragment in fragments])
    loaded = again.load(["a", "b", "c"], "rot90")
    np.testing.assert_array_equal(loaded.embedding, expected)
    np.testing.assert_array_equal(loaded.coords[:, 1], np.concatenate([f.y for f in fragments]))
    np.testing.assert_array_equal(again.bag("c").embedding, fragments[1].embedding[0])
    lazy = again.to_xarray("rot90").sel(image_id="c").embedding
    np.testing.assert_array_equal(lazy, fragments[1].embedding[1])
    folder = f"{url}/{again.name}/fragments/{again.fragments[0].fragment_id}"
    zarr = xr.open_zarr(plain(folder), storage_options=options or None)
    assert zarr.embedding.dims == ("augmentation", "patch", "feature")
    np.testing.assert_array_equal(zarr.embedding[0, 30:], fragments[0].embedding[0, 30:])


def holding_before(place):
    """Make a store that holds one fragment."""
    features = open_store(*place, mode="a").create_feature_set(spec_of())
    features.commit(BEFORE, {}, encoding=SMALL)


def assert_holds(place, *fragments):
    """Read the store afresh: these fragments are whole, and there is nothing else."""
    features = open_store(*place).feature_set()
    assert sorted(features.image_ids) == sorted(i for each in fragments for i in each.image_ids)
    for fragment in fragments:
        loaded = features.load(fragment.image_ids)
        assert loaded.embedding.tobytes() == fragment.embedding[0].tobytes()


@pytest.mark.parametrize("moment", servers.moments(N_CHANGES, 0, 5, N_CHANGES - 2, N_CHANGES - 1))
def test_a_refusal_at_any_moment_leaves_nothing_half_there(place, moment):
    holding_before(place)
    backend = open_backend(*place)

    def refuse(number, path, content):
        if number == moment:
            raise StorageError(f"{path}: no")

    with pytest.raises(StorageError, match="no"):
        Store(FaultyBackend(backend, refuse), writable=True).feature_set().commit(
            LATER, {}, encoding=SMALL
        )
    assert_holds(place, BEFORE)
    open_store(*place, mode="a").feature_set().commit(LATER, {}, encoding=SMALL)
    assert_holds(place, BEFORE, LATER)


def test_two_writers_at_once_leave_each_row_once(place):
    open_store(*place, mode="a").create_feature_set(spec_of())

    def write(seed):
        features = open_store(*place, mode="a").create_feature_set(spec_of())
        return features.commit(fragment_of(["a", "b"], seed=seed), {}), seed

    with ThreadPoolExecutor(2) as pool:
        winner = min(pool.map(write, range(2)))
    features = open_store(*place).feature_set()
    assert len(features.fragments) == 2
    expected = fragment_of(["a", "b"], seed=winner[1])
    np.testing.assert_array_equal(features.load().embedding, expected.embedding[0])


def test_a_lost_object_is_named(place):
    url, options = place
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment_of(["a"]), {})
    fs, path = fsspec.core.url_to_fs(plain(url), **options)
    fs.rm(f"{path}/{features.name}/fragments/{fragment_id}/embedding/c.0.0.0")
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding.*missing"):
        features.load()


@pytest.mark.parametrize("kept", [0, 10, 60, -30])
def test_an_object_cut_short_is_named(place, kept):
    url, options = place
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment_of(["a"], counts=20_000), {}, encoding=CUT)
    fs, path = fsspec.core.url_to_fs(plain(url), **options)
    shard = f"{path}/{features.name}/fragments/{fragment_id}/embedding/c.0.0.0"
    fs.pipe_file(shard, fs.cat_file(shard)[:kept])
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding"):
        features.load()
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding"):
        features.to_xarray().embedding[-1].compute()


# What is refused --------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["", "obstore+"])
def test_a_bucket_that_is_not_there_is_said(server, driver):
    if driver and server.scheme == "az":
        pytest.skip("obstore has other names for Azure's options")
    url = f"{driver}{server.scheme}://no-such-bucket-{uuid.uuid4()}/store"
    with pytest.raises(NotFound, match="no store at"):
        open_store(url, server.options)
    with pytest.raises(StorageError, match="no such bucket; create it first"):
        open_store(url, server.options, mode="a")


@pytest.mark.parametrize(
    ("driver", "answer"),
    [
        ("", "the service answers SignatureDoesNotMatch (403)"),
        ("obstore+", "<Code>SignatureDoesNotMatch</Code>"),
    ],
)
def test_wrong_credentials_are_said_without_being_shown(ceph, driver, answer):
    """By Ceph alone: moto and azurite let some of them pass."""
    url = f"{driver}{ceph.bucket()}/store"
    wrong = {**ceph.options, "secret": "wrong-secret-wrong-secret"}
    with pytest.raises(StorageError, match=re.escape(url)) as caught:
        open_store(url, wrong, mode="a")
    said = str(caught.value)
    assert "\n" not in said
    assert "wrong-secret" not in said
    # Ceph sends a code and leaves its message empty.
    assert answer in said


def test_an_option_that_obstore_does_not_know_is_said(moto):
    url = f"obstore+{moto.bucket()}/store"
    with pytest.raises(StorageError, match="'use_slow' is not valid") as caught:
        open_store(url, {**moto.options, "use_slow": "1"}, mode="a")
    assert servers.SECRET not in str(caught.value)


def test_two_drivers_see_one_store(ceph):
    url = f"{ceph.bucket()}/store"
    open_store(f"obstore+{url}", ceph.options, mode="a").create_feature_set(spec_of())
    open_store(url, ceph.options, mode="a").feature_set().commit(BEFORE, {}, encoding=SMALL)
    open_store(f"obstore+{url}", ceph.options, mode="a").feature_set().commit(LATER, {})
    for seen in (url, f"obstore+{url}"):
        assert_holds((seen, ceph.options), BEFORE, LATER)


def test_a_driver_goes_to_a_worker_and_back(moto):
    """As Dask hands it on: by the protocol of pickling, and at work there."""
    url = f"obstore+{moto.bucket()}/store"
    features = open_store(url, moto.options, mode="a").create_feature_set(spec_of())
    features.commit(BEFORE, {})
    lazy = copy.deepcopy(features.to_xarray().embedding)
    np.testing.assert_array_equal(lazy.compute(), BEFORE.embedding[0])


@pytest.mark.parametrize("url", ["obstore+file:///tmp/store", "obstore+memory://x", "obstore+/tmp"])
def test_obstore_is_refused_where_it_would_not_flush(url):
    with pytest.raises(StorageError, match="obstore is for buckets on s3, gs or az"):
        open_store(url, mode="a")
