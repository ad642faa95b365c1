"""The store on object stores: the same promises, by real drivers, against real servers.

moto answers S3 in this process; Ceph's gateway is a real object store, which checks
signatures; azurite is Microsoft's own emulator. The latter two run where they are installed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.errors import CorruptError, NotFound, StorageError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, spec_of
from tests import servers

pytest.importorskip("s3fs", reason="needs the extra s3")
pytest.importorskip("moto.server", reason="needs moto[server]")

pytestmark = pytest.mark.filterwarnings("default")  # drivers warn of themselves

BEFORE = fragment_of(["a", "b"], counts=[4, 3], seed=1)
LATER = fragment_of(["c", "d"], counts=[5, 2], seed=2)
CUT = Encoding(chunk_bytes=100_000)
SMALL = Encoding(chunk_bytes=32, shard_bytes=64)
N_CHANGES = 17  # 7 metadata documents, 8 data objects of LATER, one settling, one put
ENCODER = EncoderOptions(name="texture", threads=1)
OPTIONS = BuildOptions(
    encoder=ENCODER, grid=PatchGrid(patch_size=32), tissue=TissueFilter(method="none")
)
FLAGS = ("--patch-size", "32", "--tissue", "none", "--threads", "1")
HISTOSTORE = (sys.executable, "-c", "import cli; cli.histostore_main()")
ZOO = (sys.executable, "-c", "import cli; cli.zoo_main()")


@pytest.fixture(scope="module")
def moto():
    with servers.moto() as server:
        yield server


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    if missing := servers.missing_ceph():
        pytest.skip(f"Ceph is not installed ({missing}): see .ci/install-servers")
    with servers.ceph(tmp_path_factory.mktemp("ceph")) as server:
        yield server


@pytest.fixture(scope="module")
def azurite():
    if shutil.which("azurite-blob") is None:
        pytest.skip("azurite is not installed: see .ci/install-servers")
    pytest.importorskip("adlfs", reason="needs the extra azure")
    with servers.azurite() as server:
        yield server


@pytest.fixture(params=["moto", "ceph", "azurite"])
def server(request):
    """A server that speaks S3, or Azure's own protocol."""
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["moto", "ceph"])
def s3(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["local", "memory", "moto", "ceph", "azurite"])
def place(request, tmp_path):
    """Where a store shall be, and the storage options to reach it."""
    if request.param == "local":
        return str(tmp_path / "lab" / "store"), {}
    if request.param == "memory":
        return f"memory://{uuid.uuid4()}/lab/store", {}
    server = request.getfixturevalue(request.param)
    return f"{server.bucket()}/lab/store", server.options


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
    plain = xr.open_zarr(folder, storage_options=options or None)
    assert plain.embedding.dims == ("augmentation", "patch", "feature")
    np.testing.assert_array_equal(plain.embedding[0, 30:], fragments[0].embedding[0, 30:])


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


@pytest.mark.parametrize("moment", [0, 5, N_CHANGES - 2, N_CHANGES - 1])
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
    fs, path = fsspec.core.url_to_fs(url, **options)
    fs.rm(f"{path}/{features.name}/fragments/{fragment_id}/embedding/c.0.0.0")
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding.*missing"):
        features.load()


@pytest.mark.parametrize("kept", [0, 10, 60, -30])
def test_an_object_cut_short_is_named(place, kept):
    url, options = place
    features = open_store(url, options, mode="a").create_feature_set(spec_of())
    fragment_id = features.commit(fragment_of(["a"], counts=20_000), {}, encoding=CUT)
    fs, path = fsspec.core.url_to_fs(url, **options)
    shard = f"{path}/{features.name}/fragments/{fragment_id}/embedding/c.0.0.0"
    fs.pipe_file(shard, fs.cat_file(shard)[:kept])
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding"):
        features.load()
    with pytest.raises(CorruptError, match=f"{fragment_id}, array embedding"):
        features.to_xarray().embedding[-1].compute()


# What is refused --------------------------------------------------------------------------


def test_a_bucket_that_is_not_there_is_said(server):
    url = f"{server.scheme}://no-such-bucket-{uuid.uuid4()}/store"
    with pytest.raises(NotFound, match="no store at"):
        open_store(url, server.options)
    with pytest.raises(StorageError, match="no such bucket; create it first"):
        open_store(url, server.options, mode="a")


@pytest.mark.xfail(
    strict=False, reason="where the service gives a code but no message, ours is 'None'"
)
def test_wrong_credentials_are_said_without_being_shown(ceph):
    """By Ceph alone: moto and azurite let some of them pass."""
    url = f"{ceph.bucket()}/store"
    wrong = {**ceph.options, "secret": "wrong-secret-wrong-secret"}
    with pytest.raises(StorageError, match=url) as caught:
        open_store(url, wrong, mode="a")
    said = str(caught.value)
    assert "\n" not in said
    assert "wrong-secret" not in said
    assert "denied" in said.lower() or "forbidden" in said.lower() or "signature" in said.lower()


def test_a_server_that_is_not_there_is_said():
    away = {
        "key": "AKIATESTKEY",
        "secret": servers.SECRET,
        "endpoint_url": f"http://127.0.0.1:{servers.free_port()}",
    }
    with pytest.raises(StorageError, match="Could not connect") as caught:
        open_store("s3://bucket/store", away, mode="a")
    assert servers.SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


# Trouble on the way -----------------------------------------------------------------------


def every_third(answer):
    return lambda asked: answer if asked.number % 3 == 0 else None


@pytest.mark.parametrize("trouble", ["busy", "drop", "lose", 0.05])
def test_a_server_that_is_busy_slow_or_hangs_up_costs_time_and_nothing_else(s3, trouble):
    """Each third request fails; ``lose`` carries it out and loses the answer.

    s3fs tries five times, with waits of 0.1 s to 0.8 s between; botocore, below it, up to
    five times as well.
    """
    url = f"{s3.bucket()}/store"
    with servers.proxy(s3.endpoint) as proxy:
        options = s3.behind(proxy.endpoint).options
        proxy.fault = every_third(trouble)
        holding_before((url, options))
        open_store(url, options, mode="a").feature_set().commit(LATER, {}, encoding=SMALL)
        assert_holds((url, options), BEFORE, LATER)
        proxy.fault = None
    assert_holds((url, s3.options), BEFORE, LATER)


def test_a_server_that_stays_busy_is_an_error_in_the_end(moto):
    url = f"{moto.bucket()}/store"
    holding_before((url, moto.options))
    with servers.proxy(moto.endpoint) as proxy:
        options = moto.behind(proxy.endpoint).options
        options = {**options, "config_kwargs": {"retries": {"max_attempts": 1}}}
        features = open_store(url, options, mode="a").feature_set()
        proxy.fault = lambda asked: "busy" if asked.kind == "PUT" else None
        with pytest.raises(StorageError, match=r"Reduce|SlowDown|busy|503") as caught:
            features.commit(LATER, {}, encoding=SMALL)
    assert "\n" not in str(caught.value)
    assert_holds((url, moto.options), BEFORE)


# A build ----------------------------------------------------------------------------------


def picture(seed):
    return np.random.default_rng(seed).integers(0, 255, (64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a cohort of 96 images, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(96):
        Image.fromarray(picture(number) // (1 + number % 2)).save(folder / f"{number}.png")
        rows.append(
            {"image_id": f"{number:02}", "path": f"{number}.png", "label": "ab"[number % 2]}
        )
    (folder / "3.png").write_bytes(b"this is no picture")
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
    """The same cohort built on a disk."""
    store = str(tmp_path_factory.mktemp("expected"))
    build(str(images / "cohort.csv"), store, OPTIONS)
    return everything(store)


def everything(url, options=None):
    features = open_store(url, options).feature_set()
    loaded = features.load(sorted(features.image_ids))
    return loaded.image_ids, loaded.offset.tolist(), loaded.embedding.tobytes()


def upload(folder, server):
    """Put the cohort into a bucket; give its URL."""
    bucket = server.bucket()
    fs = fsspec.filesystem(server.scheme, **server.options)
    for path in folder.iterdir():
        fs.pipe_file(f"{bucket}/study/{path.name}", path.read_bytes())
    return f"{bucket}/study/cohort.csv"


def without_credentials():
    keep = {key: value for key, value in os.environ.items() if "AWS" not in key}
    return {**keep, "AWS_EC2_METADATA_DISABLED": "true"}


def run(*command, environment=None):
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**without_credentials(), **(environment or {})},
    )


def everything_stored(url, options):
    """Read every object of a bucket."""
    fs, _ = fsspec.core.url_to_fs(url, **options)
    bucket = url.split("://")[1].split("/")[0]
    fs.invalidate_cache()
    return {path: fs.cat_file(path) for path in fs.find(bucket)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given"), [("moto", "options"), ("ceph", "environment"), ("azurite", "options")]
)
def test_images_and_store_in_a_bucket_from_the_command_line(
    request, images, expected, tmp_path, name, given
):
    """Build, look, fit: by options or by the environment; and no secret is left anywhere."""
    server = request.getfixturevalue(name)
    table = upload(images, server)
    store = table.replace("study/cohort.csv", "store")
    pairs = [f"{key}={value}" for key, value in server.options.items()]
    options = [word for pair in pairs for word in ("--storage-option", pair)]
    where = options if given == "options" else []
    use = {"environment": server.environment if given == "environment" else None}
    made = run(*HISTOSTORE, "build", table, store, *FLAGS, "--json", *where, **use)
    assert made.returncode == 3, made.stderr
    assert [item["image_id"] for item in json.loads(made.stdout)["failed"]] == ["03"]
    assert everything(store, server.options) == expected
    again = run(*HISTOSTORE, "build", table, store, *FLAGS, *where, **use)
    assert again.returncode == 3, again.stderr
    looked = run(*HISTOSTORE, "info", store, *where, **use)
    listed = run(*HISTOSTORE, "ls", store, *where, **use)
    fitted = run(*ZOO, "fit", store, table, "--head", "logistic", "--folds", "2",
        "--seeds", "1", "-o", str(tmp_path / "run"), *where, **use)  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    wrong = run(*HISTOSTORE, "info", f"{store}-nowhere", *where, **use)
    assert wrong.returncode == 1
    said = "".join(
        done.stdout + done.stderr for done in (made, again, looked, listed, fitted, wrong)
    )
    assert "Traceback" not in said
    assert server.secret not in said
    left = [*everything_stored(store, server.options).items()]
    left += [(path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 100
    for path, content in left:
        assert server.secret.encode() not in content, path


@pytest.mark.slow
def test_a_build_into_a_bucket_that_is_killed_resumes_to_the_same_rows(
    server, images, expected, tmp_path
):
    store = f"{server.bucket()}/store"
    command = [*HISTOSTORE, "build", str(images / "cohort.csv"), store, *FLAGS]
    environment = {**without_credentials(), **server.environment}
    with servers.running(*command, env=environment) as process:
        fs = fsspec.filesystem(server.scheme, **server.options)
        limit = time.monotonic() + 120
        while time.monotonic() < limit and process.poll() is None:
            fs.invalidate_cache()
            if fs.glob(f"{store}/*/fragments/*/embedding/*"):
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run(*command, environment=server.environment)
    assert done.returncode == 3, done.stderr
    assert everything(store, server.options) == expected


@pytest.mark.slow
def test_workers_write_into_a_bucket(s3, images, expected):
    pytest.importorskip("distributed", reason="needs the extra cluster")
    table = upload(images, s3)
    store = f"{s3.bucket()}/store"
    report = build(table, store, OPTIONS, storage_options=s3.options, workers=2)
    assert (report.n_embedded, len(report.failed)) == (95, 1)
    assert everything(store, s3.options) == expected
