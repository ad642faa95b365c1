"""Builds into buckets: from the command line, killed at any put, and by several workers."""

from __future__ import annotations

import signal

import fsspec
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.plan import UNIT_IMAGES
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from tests import servers
from tests.commands import BUILD, call, end, start

pytestmark = [
    pytest.mark.filterwarnings("default"),  # drivers warn of themselves
    pytest.mark.slow,
]

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)
N_IMAGES = UNIT_IMAGES + 4
"""Two fragments."""
MOMENTS = 40
KILLS = [
    (name, moment)
    for name, few in (("moto", (3,)), ("ceph", (15, 25)), ("azurite", (38,)))
    for moment in servers.moments(MOMENTS, *few)
]
"""Fortieths of a build's puts: two for the store and the feature set, then two fragments' at once."""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder with a cohort of small images of one patch or two, one of them broken."""
    folder = tmp_path_factory.mktemp("images")
    rows = []
    for number in range(N_IMAGES):
        noise = np.random.default_rng(number).integers(0, 255, (32, 32 + 32 * (number % 3 == 0), 3))
        Image.fromarray((noise // (1 + number % 2)).astype(np.uint8)).save(folder / f"{number}.png")
        rows.append({"image_id": f"{number:02}", "path": f"{number}.png"})
        rows[-1]["label"] = "ab"[number % 2]
    (folder / "3.png").write_bytes(b"this is no picture")
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def on_disk(images, tmp_path_factory):
    """The same cohort built on a disk."""
    store = tmp_path_factory.mktemp("expected")
    build(str(images / "cohort.csv"), str(store), OPTIONS)
    return store


@pytest.fixture(scope="module")
def expected(on_disk):
    return everything(str(on_disk))


def everything(url, options=None):
    features = open_store(url, options).feature_set()
    loaded = features.load(sorted(features.image_ids))
    return loaded.image_ids, loaded.offset.tolist(), loaded.embedding.tobytes()


def upload(folder, server):
    """Put the cohort into a bucket; give its URL."""
    bucket = server.bucket()
    fs = fsspec.filesystem(server.scheme, **server.options)
    fs.pipe({f"{bucket}/study/{path.name}": path.read_bytes() for path in folder.iterdir()})
    return f"{bucket}/study/cohort.csv"


def everything_stored(url, options):
    """Read every object of a bucket."""
    fs, _ = fsspec.core.url_to_fs(url, **options)
    bucket = url.split("://")[1].split("/")[0]
    fs.invalidate_cache()
    return fs.cat(fs.find(bucket))


@pytest.mark.parametrize(
    ("name", "given"), [("moto", "options"), ("ceph", "environment"), ("azurite", "options")]
)
def test_images_and_store_in_a_bucket_from_the_command_line(
    request, images, expected, tmp_path, caplog, name, given
):
    """Build, look, fit: by options or by the environment; and no secret is left anywhere."""
    server = request.getfixturevalue(name)
    table = upload(images, server)
    store = table.replace("study/cohort.csv", "store")
    pairs = [f"{key}={value}" for key, value in server.options.items()]
    options = [word for pair in pairs for word in ("--storage-option", pair)]
    where = options if given == "options" else []
    extra = server.environment if given == "environment" else {}
    environment = {**servers.without_credentials(), **extra}
    # A process of its own: the driver is loaded, used, and torn down when the command ends.
    made = end(
        start("histostore", "build", table, store, *BUILD, "--json", *where, env=environment)
    )
    assert made.code == 3, made.err
    assert [item["image_id"] for item in made.json["failed"]] == ["03"]
    assert everything(store, server.options) == expected
    again = call("histostore", "build", table, store, *BUILD, *where, env=extra)
    assert again.code == 3, again.err
    looked = call("histostore", "info", store, *where, env=extra)
    listed = call("histostore", "ls", store, *where, env=extra)
    assert (looked.code, listed.code) == (0, 0)
    fitted = call("zoo", "fit", store, table, "--head", "logistic", "--folds", "2",
        "--seeds", "1", "-o", tmp_path / "run", *where, env=extra)  # fmt: skip
    assert fitted.code == 0, fitted.err
    wrong = call("histostore", "info", f"{store}-nowhere", *where, env=extra)
    assert wrong.code == 1
    said = "".join(done.out + done.err for done in (made, again, looked, listed, fitted, wrong))
    assert "Traceback" not in said
    assert server.secret not in said
    assert server.secret not in caplog.text
    left = [*everything_stored(store, server.options).items()]
    left += [(path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    assert len(left) > 100
    for path, content in left:
        assert server.secret.encode() not in content, path


@pytest.mark.parametrize(("name", "moment"), KILLS)
def test_a_build_into_a_bucket_that_is_killed_resumes_to_the_same_rows(
    request, images, on_disk, expected, name, moment
):
    """Killed while one of its puts is under way, which is then carried out."""
    server = request.getfixturevalue(name)
    store = f"{server.bucket()}/store"
    last = sum(path.is_file() for path in on_disk.rglob("*")) * moment // MOMENTS
    processes = []
    with servers.proxy(server.endpoint) as proxy:

        def kill(asked):
            if sum(each.kind == "PUT" for each in proxy.asked[: asked.number + 1]) > last:
                processes[0].kill()

        proxy.fault = kill
        environment = {
            **servers.without_credentials(),
            **server.behind(proxy.endpoint).environment,
        }
        words = ("build", images / "cohort.csv", store, *BUILD)
        processes.append(start("histostore", *words, env=environment))
        killed = end(processes[0])
        assert killed.code == -signal.SIGKILL, killed.err
    report = build(str(images / "cohort.csv"), store, OPTIONS, storage_options=server.options)
    assert [failure.image_id for failure in report.failed] == ["03"]
    assert everything(store, server.options) == expected


def test_workers_write_into_a_bucket(request, images, expected):
    pytest.importorskip("distributed", reason="needs the extra cluster")
    server = request.getfixturevalue("moto" if servers.missing_ceph() else "ceph")
    table = upload(images, server)
    store = f"{server.bucket()}/store"
    report = build(table, store, OPTIONS, storage_options=server.options, workers=2)
    assert (report.n_embedded, len(report.failed)) == (N_IMAGES - 1, 1)
    assert everything(store, server.options) == expected
