"""Several workers do what one does: the same rows, once each, whoever dies on the way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import histostore
from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.plan import UNIT_IMAGES
from histostore.build.unit import UnitTask, _left_over, build_unit
from histostore.cohort import Cohort
from histostore.errors import EncoderError, MissingExtra, OptionError, StorageError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from tests.servers import free_port, scheduler, worker

distributed = pytest.importorskip("distributed", reason="needs the extra cluster")

# Connections that die with a worker are warned of when they are collected.
pytestmark = [pytest.mark.filterwarnings("default"), pytest.mark.slow]

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)
N_IMAGES = 4 * UNIT_IMAGES + 10
COMMAND = (sys.executable, "-c", "import cli; cli.histostore_main()", "build")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A cohort of small images, one of them broken."""
    folder = tmp_path_factory.mktemp("cohort")
    generator = np.random.default_rng(0)
    rows = []
    for number in range(N_IMAGES):
        pixels = generator.integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append({"image_id": f"{number:03}", "path": f"{number}.png"})
    (folder / "7.png").write_bytes(b"this is no picture")
    pd.DataFrame(rows).to_csv(folder / "cohort.csv", index=False)
    return str(folder / "cohort.csv")


@pytest.fixture(scope="module")
def expected(table, tmp_path_factory):
    """Rows as one process without Dask's cluster makes them."""
    store = str(tmp_path_factory.mktemp("expected"))
    build(table, store, OPTIONS)
    return everything(store)


def everything(url):
    features = histostore.open(url).feature_set(None)
    loaded = features.load(sorted(features.image_ids))
    return loaded.image_ids, loaded.offset.tolist(), loaded.embedding.tobytes()


def copies(url):
    """Say in how many fragments each image lies."""
    features = histostore.open(url).feature_set(None)
    return Counter(image_id for record in features.fragments for image_id in record.image_ids)


@pytest.fixture
def cluster(tmp_path):
    """A scheduler and two workers, each in its own folder."""
    with ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        processes = [
            stack.enter_context(worker(address, tmp_path / f"worker-{n}")) for n in range(2)
        ]
        with distributed.Client(address) as client:
            client.wait_for_workers(2, timeout=60)
        yield address, processes


def loads(address):
    """How often each worker has loaded an encoder, and asked for one."""

    def count():
        from histostore.build.unit import _load

        found = _load.cache_info()
        return found.misses, found.misses + found.hits

    with distributed.Client(address) as client:
        return list(client.run(count).values())


def test_a_cluster_gives_the_same_rows_and_loads_one_encoder_per_worker(
    cluster, table, tmp_path, expected
):
    seen = []
    store = str(tmp_path / "store")
    report = build(table, store, OPTIONS, scheduler=cluster[0], progress=seen.append)
    assert everything(store) == expected
    assert (report.n_embedded, [each.image_id for each in report.failed]) == (N_IMAGES - 1, ["007"])
    assert [load for load, _ in loads(cluster[0])] == [1, 1]
    assert sum(asked for _, asked in loads(cluster[0])) == 5
    # Whole units are counted, to the end.
    assert len(seen) == 5
    assert (seen[-1].n_images, seen[-1].n_total, seen[-1].n_failed) == (N_IMAGES, N_IMAGES, 1)
    again = build(table, store, OPTIONS, scheduler=cluster[0])
    assert (again.n_done, again.n_embedded) == (N_IMAGES - 1, 0)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_worker_killed_in_mid_build_costs_nothing_but_time(
    cluster, table, tmp_path, expected, victim
):
    address, processes = cluster

    def kill(_):
        if processes[victim].poll() is None:
            processes[victim].send_signal(signal.SIGKILL)
            processes[victim].wait()

    store = str(tmp_path / "store")
    report = build(table, store, OPTIONS, scheduler=address, progress=kill)
    assert everything(store) == expected
    assert set(copies(store).values()) == {1}
    assert (report.n_done, report.n_embedded, len(report.failed)) == (0, N_IMAGES - 1, 1)
    with distributed.Client(address) as client:
        assert len(client.scheduler_info()["workers"]) == 1


def test_a_unit_given_out_twice_is_done_once(table, tmp_path):
    """As when its worker dies between the commit and the answer."""
    cohort = Cohort.read(table).limit(6)
    store = str(tmp_path / "store")
    build(cohort.limit(1), store, OPTIONS)
    task = unit_of(cohort, store)
    first, second = build_unit(task), build_unit(task)
    assert first.n_embedded == second.n_embedded == 5
    assert first.n_patches == second.n_patches
    assert (first.n_found, second.n_found) == (0, 0)
    other = build_unit(replace(task, build_id="another"))
    assert (other.n_embedded, other.n_found) == (0, 5)
    assert set(copies(store).values()) == {1}
    assert first.n_images == second.n_images == other.n_images == 5


def unit_of(cohort, store, **changed):
    """Make the task of all images but the first."""
    from histostore.build.pipeline import ImageJob

    jobs = tuple(
        ImageJob(image_id=image_id, source=cohort.sources[url])
        for image_id, url in zip(cohort.image_ids[1:], cohort.urls[1:], strict=True)
    )
    settings = {
        "build_id": "one",
        "store_url": store,
        "feature_set": histostore.open(store).feature_set(None).name,
        "encoder": OPTIONS.encoder,
        "views": ("identity",),
        "jobs": jobs,
        "storage_options": {},
    }
    return UnitTask(**{**settings, **changed})


def test_only_views_that_are_still_lacking_are_left_over(table, tmp_path):
    cohort = Cohort.read(table).limit(4)
    store = str(tmp_path / "store")
    build(cohort.limit(2), store, OPTIONS)
    features = histostore.open(store).feature_set(None)
    both = unit_of(cohort, store, views=("identity", "rot90"))
    jobs, tally = _left_over(features, both)
    assert [job.image_id for job in jobs] == ["001", "002", "003"]
    jobs, tally = _left_over(features, replace(both, views=("identity",)))
    assert [job.image_id for job in jobs] == ["002", "003"]
    assert tally.n_found == 1


def test_relative_paths_mean_the_same_to_every_worker(
    cluster, table, tmp_path, expected, monkeypatch
):
    """The cohort and the store are named from a folder that is not the workers'."""
    monkeypatch.chdir(Path(table).parent)
    report = build("cohort.csv", os.path.relpath(tmp_path / "store"), OPTIONS, scheduler=cluster[0])
    assert len(report.failed) == 1
    assert everything(str(tmp_path / "store")) == expected


def test_a_store_that_a_worker_does_not_see_is_not_made_anew_there(table, tmp_path):
    cohort = Cohort.read(table).limit(2)
    build(cohort, str(tmp_path / "store"), OPTIONS)
    task = unit_of(cohort, str(tmp_path / "store"), store_url=str(tmp_path / "elsewhere"))
    with pytest.raises(StorageError, match=r"worker does not see the store.*elsewhere"):
        build_unit(task)
    assert not (tmp_path / "elsewhere").exists()


def test_an_encoder_other_than_the_planned_one_is_refused(table, tmp_path):
    """As a worker that has other weights at the same path."""
    cohort = Cohort.read(table).limit(2)
    build(cohort.limit(1), str(tmp_path / "store"), OPTIONS)
    task = unit_of(cohort, str(tmp_path / "store"))
    features = histostore.open(str(tmp_path / "store")).feature_set(None)
    identity = replace(features.spec.encoder, weights="sha256:" + 64 * "0")
    features.spec = replace(features.spec, encoder=identity)
    with pytest.raises(EncoderError, match=r"weights none here, sha256:0+ where the build"):
        build_unit(task, features=features)


def test_a_cluster_without_the_package_is_said_in_one_line(table, tmp_path):
    hidden = tmp_path / "hidden" / "histostore"
    hidden.mkdir(parents=True)
    text = "raise ModuleNotFoundError(\"No module named 'histostore'\", name='histostore')"
    (hidden / "__init__.py").write_text(text)
    without = {**os.environ, "PYTHONPATH": str(tmp_path / "hidden")}
    store = str(tmp_path / "store")
    with scheduler(tmp_path) as address, worker(address, tmp_path / "one", environment=without):
        with pytest.raises(MissingExtra, match=r"worker at .* cannot import histostore") as caught:
            build(table, store, OPTIONS, scheduler=address)
        assert "\n" not in str(caught.value)
    with scheduler(tmp_path, environment=without) as address, worker(address, tmp_path / "two"):
        with pytest.raises(MissingExtra, match="scheduler and workers need histostore") as caught:
            build(table, store, OPTIONS, scheduler=address)
        assert "\n" not in str(caught.value)


def test_weights_that_a_worker_lacks_are_said_in_one_line(cluster, table, tmp_path):
    """The file goes once the build is planned: to a worker it was never there."""
    pytest.importorskip("torch", reason="needs the extra torch")
    from safetensors.torch import save_file

    from histostore.build.unit import encoder_of
    from histostore.encoders.squeezenet import SqueezeNetFeatures

    weights = tmp_path / "weights.safetensors"
    save_file(SqueezeNetFeatures().state_dict(), weights)
    encoder = EncoderOptions(name="squeezenet1_1", weights=str(weights), threads=1)
    encoder_of(encoder)
    weights.unlink()
    with pytest.raises(EncoderError, match=str(weights)) as caught:
        build(table, str(tmp_path / "s"), replace(OPTIONS, encoder=encoder), scheduler=cluster[0])
    assert "\n" not in str(caught.value)


def test_a_scheduler_that_is_not_there_or_goes_away_is_said_in_one_line(table, tmp_path):
    store = str(tmp_path / "store")
    address = f"tcp://127.0.0.1:{free_port()}"
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(StorageError, match=f"no Dask scheduler answers at {address}") as caught,
    ):
        build(table, store, OPTIONS, scheduler=address)
    assert "\n" not in str(caught.value)
    with ExitStack() as outer, ExitStack() as stack:
        address = stack.enter_context(scheduler(tmp_path))
        outer.enter_context(worker(address, tmp_path / "worker"))
        with pytest.raises(StorageError, match="went away") as caught:
            build(table, store, OPTIONS, scheduler=address, progress=lambda _: stack.close())
    assert "\n" not in str(caught.value)


def test_a_scheduler_without_workers_is_waited_for_and_said(table, tmp_path, caplog):
    cohort = Cohort.read(table).limit(3)
    with scheduler(tmp_path) as address, ExitStack() as stack:

        class Joins(logging.Handler):
            def emit(self, record):
                stack.enter_context(worker(address, tmp_path / "late"))

        handler = Joins(logging.WARNING)
        logging.getLogger("histostore.build.cluster").addHandler(handler)
        stack.callback(logging.getLogger("histostore.build.cluster").removeHandler, handler)
        report = build(cohort, str(tmp_path / "store"), OPTIONS, scheduler=address)
    assert report.n_embedded == 3
    assert f"no worker has joined {address} yet" in caplog.text


def test_memory_of_this_process_is_out_of_reach_for_workers(tmp_path):
    frame = pd.DataFrame({"image_id": ["a"], "path": ["memory://somewhere/a.png"]})
    cohort = Cohort.from_frame(frame, url=str(tmp_path / "cohort.csv"), check_files=False)
    with pytest.raises(OptionError, match=r"memory://somewhere/a.png exists in this process"):
        build(cohort, str(tmp_path / "store"), OPTIONS, workers=1)


# Commands ---------------------------------------------------------------------------------

FLAGS = ("--patch-size", "32", "--tissue", "none")


def test_shards_of_a_job_array_make_the_whole(table, tmp_path, expected):
    """Each shard is a process of its own, all at once, the last one started twice."""
    store = tmp_path / "store"
    command = [*COMMAND, table, str(store), *FLAGS, "--threads", "1", "--shard"]
    jobs = [
        subprocess.Popen([*command, f"{n}/3"], stdout=subprocess.PIPE, text=True)
        for n in (1, 2, 3, 3)
    ]
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 0, 3, 3] or sorted(
        job.returncode for job in jobs
    ) == [0, 0, 0, 3], said
    assert everything(str(store)) == expected


def test_ctrl_c_ends_workers_and_leaves_a_store_that_resumes(table, tmp_path, expected):
    store = tmp_path / "store"
    command = [*COMMAND, table, str(store), *FLAGS, "--workers", "2"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    limit = time.monotonic() + 120
    while not list(store.glob("*/fragments/*/zarr.json")) and time.monotonic() < limit:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Interrupted" in said
    assert "Traceback" not in said
    while alive_in_group(process.pid) and time.monotonic() < limit:
        time.sleep(0.1)
    assert alive_in_group(process.pid) == []
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 3, done.stderr
    assert everything(str(store)) == expected


def alive_in_group(group):
    """List the processes of a group that still run."""
    psutil = pytest.importorskip("psutil")
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found.append(process.cmdline())
        except (ProcessLookupError, psutil.Error):
            continue
    return found
