"""What the store asks of a bucket grows with fragments, not with images; counted on the wire."""

from __future__ import annotations

from contextlib import ExitStack

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.encoders.base import EncoderIdentity
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import Encoding, open_store
from histostore.testing import fragment_of, spec_of
from tests import servers

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto.server", reason="needs moto[server]")

pytestmark = pytest.mark.filterwarnings("default")  # drivers warn of themselves

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)


@pytest.fixture(scope="module", params=["moto", "ceph"])
def wire(request):
    """A bucket server, and the proxy in front of it that counts."""
    with ExitStack() as stack:
        if request.param == "ceph":
            server = request.getfixturevalue("ceph")
        else:
            server = stack.enter_context(servers.moto())
        proxy = stack.enter_context(servers.proxy(server.endpoint))
        yield server.behind(proxy.endpoint), proxy


def filled(server, *, n_fragments, n_images):
    """Make a store of small fragments; give its URL."""
    url = f"{server.bucket()}/store"
    features = open_store(url, server.options, mode="a").create_feature_set(spec_of())
    for at in range(n_fragments):
        ids = [f"{at}-{n}" for n in range(n_images)]
        features.commit(fragment_of(ids, counts=2, seed=at), {})
    return url


@pytest.mark.parametrize("n_images", [1, 50])
@pytest.mark.parametrize("n_fragments", [1, 6])
def test_opening_and_reading_cost_requests_per_fragment(wire, n_fragments, n_images):
    server, proxy = wire
    url = filled(server, n_fragments=n_fragments, n_images=n_images)
    proxy.counts()
    features = open_store(url, server.options).feature_set()
    # The store's and the feature set's metadata, and one commit record per fragment.
    assert proxy.counts() == {"list": 2, "GET": 2 + n_fragments}
    loaded = features.load()
    assert len(loaded) == n_fragments * n_images
    assert proxy.counts() == {"GET": n_fragments}  # one object of embeddings each
    assert loaded.coords.shape == (2 * n_fragments * n_images, 2)
    assert proxy.counts() == {"GET": 2 * n_fragments}  # y and x
    features.bag("0-0")
    assert sum(proxy.counts().values()) <= 4
    features.refresh()
    assert proxy.counts() == {"list": 1}


def test_a_view_is_read_by_one_request_per_shard_and_without_the_others(wire):
    server, proxy = wire
    url = f"{server.bucket()}/store"
    features = open_store(url, server.options, mode="a").create_feature_set(spec_of())
    views = tuple(f"view-{n}" for n in range(8))
    fragment = fragment_of(["a", "b"], counts=40_000, augmentations=views)  # 8 x 1.2 MiB
    features.commit(fragment, {}, encoding=Encoding(chunk_bytes=2**18, shard_bytes=2**24))
    proxy.counts()
    features.load(augmentation="view-3")
    counts = proxy.counts()
    assert counts == {"GET": 2}  # the index, and this view's chunks, which lie together


def test_a_commit_is_one_put_per_object(wire):
    server, proxy = wire
    url = filled(server, n_fragments=1, n_images=2)
    features = open_store(url, server.options, mode="a").feature_set()
    proxy.counts()
    features.commit(fragment_of(["new"]), {})
    # 7 arrays with their metadata, and the commit record.
    assert proxy.counts() == {"PUT": 15}


def cohort_in(server, folder, n_images):
    """Put images into a bucket: one folder; give the URL of the table."""
    fs = fsspec.filesystem("s3", **server.options)
    bucket = server.bucket()
    path = folder / "image.png"
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(path)
    rows = [{"image_id": f"{n}", "path": f"images/{n}.png"} for n in range(n_images)]
    for row in rows:
        fs.pipe_file(f"{bucket}/study/{row['path']}", path.read_bytes())
    table = f"{bucket}/study/cohort.csv"
    fs.pipe_file(table, pd.DataFrame(rows).to_csv(index=False).encode())
    return table


def test_a_build_with_nothing_to_do_asks_as_much_for_200_images_as_for_10(wire, tmp_path):
    server, proxy = wire
    asked = {}
    for n_images in (10, 200):
        table = cohort_in(server, tmp_path, n_images)
        store = f"{server.bucket()}/store"
        build(table, store, OPTIONS, storage_options=server.options)
        proxy.counts()
        report = build(table, store, OPTIONS, storage_options=server.options)
        assert (report.n_done, report.n_embedded) == (n_images, 0)
        asked[n_images] = proxy.counts()
        n_fragments = len(open_store(store, server.options).feature_set().fragments)
        proxy.counts()
        # The table (size and content), its images' folder, and the store as it is opened.
        assert asked[n_images] == {"HEAD": 1, "GET": 3 + n_fragments, "list": 3}
    assert asked[200]["GET"] - asked[10]["GET"] == 3  # 200 images lie in three fragments more


def test_a_build_asks_of_the_store_one_listing_per_unit(wire, tmp_path, monkeypatch):
    """Images are read once each; the store is asked per unit and fragment."""

    class Quick:
        identity = EncoderIdentity(name="quick")
        n_features, batch_size = 4, 64

        def encode(self, patches):
            return np.ones((len(patches), 4), np.float32)

    monkeypatch.setattr("histostore.build.options.load_encoder", lambda *_, **__: Quick())
    server, proxy = wire
    table = cohort_in(server, tmp_path, 130)
    store = f"{server.bucket()}/store"
    options = BuildOptions(encoder=EncoderOptions(name="quick"), grid=OPTIONS.grid)
    proxy.counts()
    build(table, store, options, storage_options=server.options)
    of_images = [asked for asked in proxy.asked if "/images/" in asked.path]
    of_store = [asked for asked in proxy.asked if "/store/" in asked.path]
    assert len(of_images) <= 2 * 130
    assert sum(asked.kind == "PUT" for asked in of_store) == 2 + 3 * 21 + 1
    assert len(of_store) < 90
