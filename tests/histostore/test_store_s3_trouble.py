"""Buckets behind a bad network: it costs requests and time, and nothing else.

The drivers' own ways to try again are at work; only the waits that botocore draws at random, from
nothing to seconds, are drawn short here.
"""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest

from histostore.errors import StorageError
from histostore.store import Encoding, open_store
from histostore.testing import fragment_of, spec_of
from tests import servers

pytestmark = pytest.mark.filterwarnings("default")  # drivers warn of themselves

BEFORE = fragment_of(["a", "b"], counts=[4, 3], seed=1)
LATER = fragment_of(["c", "d"], counts=[5, 2], seed=2)
SMALL = Encoding(chunk_bytes=32, shard_bytes=64)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    """Let botocore's waits between tries be among the short ones that it may draw."""
    handler = pytest.importorskip("botocore.retryhandler", reason="needs the extra s3")
    short = SimpleNamespace(random=lambda: random.uniform(0, 0.02))
    monkeypatch.setattr(handler, "random", short)


def store_before(url, options):
    """Make a store that holds one fragment."""
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    features.commit(BEFORE, {}, encoding=SMALL)


def assert_holds(url, options, *fragments):
    """Read the store afresh: these fragments are whole, and there is nothing else."""
    features = open_store(url, options).feature_set()
    assert sorted(features.image_ids) == sorted(i for each in fragments for i in each.image_ids)
    for fragment in fragments:
        loaded = features.load(fragment.image_ids)
        assert loaded.embedding.tobytes() == fragment.embedding[0].tobytes()


def write_and_read(server, url):
    """Make a store, add to it, read it."""
    store_before(url, server.options)
    features = open_store(url, server.options, mode="a").feature_set()
    features.commit(LATER, {}, encoding=SMALL)
    assert_holds(url, server.options, BEFORE, LATER)


def every_third(answer):
    return lambda asked: answer if asked.number % 3 == 0 else None


@pytest.mark.parametrize("trouble", ["busy", "drop", "lose"])
def test_obstore_tries_again_as_well(moto, trouble):
    with servers.proxy(moto.endpoint) as proxy:
        server, url = moto.behind(proxy.endpoint), f"obstore+{moto.bucket()}/store"
        proxy.fault = every_third(trouble)
        write_and_read(server, url)
    assert_holds(url, moto.options, BEFORE, LATER)


@pytest.mark.parametrize("trouble", ["busy", "drop", "lose", 0.05])
def test_a_server_that_is_busy_slow_or_hangs_up_costs_requests_and_nothing_else(s3, trouble):
    """Each third request fails; ``lose`` carries it out and loses the answer."""
    with servers.proxy(s3.endpoint) as proxy:
        server, url = s3.behind(proxy.endpoint), f"{s3.bucket()}/store"
        write_and_read(server, f"{s3.bucket()}/store")
        quiet = sum(proxy.counts().values())
        proxy.fault = every_third(trouble)
        write_and_read(server, url)
        proxy.fault = None
        asked = sum(proxy.counts().values())
    failed = 0 if trouble == 0.05 else (asked + 2) // 3
    assert asked - failed == quiet
    assert_holds(url, s3.options, BEFORE, LATER)


@pytest.mark.parametrize("refused", servers.moments(16, 0, 9, 15))
def test_a_server_that_stays_busy_is_an_error_in_the_end(moto, refused):
    """From some put of a commit on, until the command gives up."""
    url = f"{moto.bucket()}/store"
    store_before(url, moto.options)
    with servers.proxy(moto.endpoint) as proxy:
        options = moto.behind(proxy.endpoint).options
        options = {**options, "config_kwargs": {"retries": {"max_attempts": 1}}}
        features = open_store(url, options, mode="a").feature_set()
        proxy.counts()
        proxy.fault = lambda asked: "busy" if asked.number >= refused else None
        with pytest.raises(StorageError, match=r"Reduce|SlowDown|busy|503") as caught:
            features.commit(LATER, {}, encoding=SMALL)
    assert "\n" not in str(caught.value)
    assert_holds(url, moto.options, BEFORE)


@pytest.mark.parametrize(
    ("driver", "said"), [("", "Could not connect"), ("obstore+", "error sending request")]
)
def test_a_server_that_is_not_there_is_said(driver, said):
    away = {
        "key": "AKIATESTKEY",
        "secret": servers.SECRET,
        "endpoint_url": f"http://127.0.0.1:{servers.free_port()}",
    }
    with pytest.raises(StorageError, match=said) as caught:
        open_store(f"{driver}s3://bucket/store", away, mode="a")
    assert servers.SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
