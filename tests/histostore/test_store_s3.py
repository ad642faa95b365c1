"""The store on S3, by a real driver, against a server on this machine."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
import xarray as xr

from histostore.errors import CorruptError, NotFound, StorageError
from histostore.store import Encoding, open_store
from histostore.testing import fragment_of, spec_of

s3fs = pytest.importorskip("s3fs", reason="needs the extra s3")
moto_server = pytest.importorskip("moto.server", reason="needs moto[server]")

pytestmark = pytest.mark.filterwarnings("default")  # drivers warn of themselves


@pytest.fixture(scope="module")
def options():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "key": "AKIATESTKEY",
        "secret": "hunter2hunter2",
        "endpoint_url": f"http://{host}:{port}",
    }
    server.stop()


@pytest.fixture
def url(options):
    bucket = f"bucket-{uuid.uuid4()}"
    s3fs.S3FileSystem(**options).mkdir(bucket)
    return f"s3://{bucket}/lab/store"


def test_rows_come_back_as_they_were(url, options):
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
    np.testing.assert_array_equal(again.bag("c").embedding, fragments[1].embedding[0])
    lazy = again.to_xarray("rot90").sel(image_id="c").embedding
    np.testing.assert_array_equal(lazy, fragments[1].embedding[1])
    folder = f"{url}/{again.name}/fragments/{again.fragments[0].fragment_id}"
    plain = xr.open_zarr(folder, storage_options=options)
    assert plain.embedding.dims == ("augmentation", "patch", "feature")


def test_what_is_missing_or_refused_is_said_without_secrets(url, options):
    with pytest.raises(NotFound, match="no store at"):
        open_store(url, options)
    with pytest.raises(StorageError, match="no such bucket; create it first"):
        open_store("s3://no-such-bucket/store", options, mode="a")
    away = {**options, "endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match="Could not connect") as caught:
        open_store(url, away, mode="a")
    assert "hunter2" not in str(caught.value)


def test_a_lost_object_is_named(url, options):
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment_of(["a"]), {})
    s3fs.S3FileSystem(**options).rm_file(
        f"{url.removeprefix('s3://')}/{features.name}/fragments/{fragment_id}/embedding/c.0.0.0"
    )
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding.*missing"):
        features.load()
