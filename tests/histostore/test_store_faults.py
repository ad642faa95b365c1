"""Nothing is lost, doubled, half there or silently wrong, whatever goes wrong and when."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from histostore.errors import CorruptError, FormatError, StorageError
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.reader import Store
from histostore.testing import FaultyBackend, fragment_of, spec_of

BEFORE = fragment_of(["a", "b"], counts=[4, 3], seed=1)
LATER = fragment_of(["c", "d"], counts=[5, 2], seed=2)
SMALL = Encoding(chunk_bytes=32, shard_bytes=64)
N_CHANGES = 17  # 7 metadata documents, 8 data objects of LATER, one settling, one put


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4()}"


def holding_before(url):
    """Make a store that holds one fragment."""
    open_store(url, mode="a").create_feature_set(spec_of()).commit(BEFORE, {}, encoding=SMALL)


def assert_all_or_nothing(url, *, later):
    """Read the store afresh: the first fragment is whole, the later one is or is not there."""
    features = open_store(url).feature_set()
    expected = [BEFORE, LATER] if later else [BEFORE]
    assert sorted(features.image_ids) == sorted(i for each in expected for i in each.image_ids)
    for fragment in expected:
        loaded = features.load(fragment.image_ids)
        assert loaded.embedding.tobytes() == fragment.embedding[0].tobytes()
        np.testing.assert_array_equal(loaded.coords[:, 0], fragment.x)


def assert_the_next_commit_works(url):
    open_store(url, mode="a").feature_set().commit(LATER, {}, encoding=SMALL)
    assert_all_or_nothing(url, later=True)


# A storage that refuses -------------------------------------------------------------------


def test_the_number_of_changes_is_known(url):
    holding_before(url)
    backend = FaultyBackend(open_backend(url))
    Store(backend, writable=True).feature_set().commit(LATER, {}, encoding=SMALL)
    assert backend.requests["change"] == N_CHANGES


@pytest.mark.parametrize("moment", range(N_CHANGES))
def test_a_refusal_at_any_moment_leaves_nothing_half_there(url, moment):
    holding_before(url)
    backend = open_backend(url)

    def refuse(number, path, content):
        if number == moment:
            if not path.endswith("zarr.json") and path:
                backend.write(path, content[: len(content) // 2])
            raise StorageError(f"{path}: No space left on device")

    features = Store(FaultyBackend(backend, refuse), writable=True).feature_set()
    with pytest.raises(StorageError, match="No space left"):
        features.commit(LATER, {}, encoding=SMALL)
    assert features.image_ids == BEFORE.image_ids
    assert_all_or_nothing(url, later=False)
    if moment < N_CHANGES - 1:  # else the put may have happened, and its objects must stay
        folders = backend.names(f"{features.name}/fragments")
        assert folders == [features.fragments[0].fragment_id]
    assert_the_next_commit_works(url)


def test_a_put_that_fails_after_it_has_happened_loses_and_doubles_nothing(url):
    holding_before(url)
    backend = open_backend(url)

    def time_out(number, path, content):
        if number == N_CHANGES - 1:
            backend.put(path, content)
            raise StorageError(f"{path}: timed out")

    features = Store(FaultyBackend(backend, time_out), writable=True).feature_set()
    with pytest.raises(StorageError, match="timed out"):
        features.commit(LATER, {}, encoding=SMALL)
    assert_all_or_nothing(url, later=True)
    assert_the_next_commit_works(url)
    assert len(open_store(url).feature_set().load()) == 4


class FullFileSystem(MemoryFileSystem):
    """Object storage that takes so many puts, and then says that it is full."""

    protocol = "full"
    store: dict[str, object] = {}  # noqa: RUF012 - shared by instances, as fsspec's own
    pseudo_dirs = [""]  # noqa: RUF012
    left = 0

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        if FullFileSystem.left == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        FullFileSystem.left -= 1
        super().pipe_file(path, value, mode=mode, **kwargs)


@pytest.mark.parametrize("left", range(0, N_CHANGES - 1, 3))
def test_a_driver_that_refuses_is_quoted_in_one_line(left):
    fsspec.register_implementation("full", FullFileSystem, clobber=True)
    url = f"full://{uuid.uuid4()}"
    FullFileSystem.left = 1000
    holding_before(url)
    features = open_store(url, mode="a").feature_set()
    FullFileSystem.left = left
    with pytest.raises(StorageError, match=f"{url}.*No space left on device$") as caught:
        features.commit(LATER, {}, encoding=SMALL)
    assert "\n" not in str(caught.value)
    assert_all_or_nothing(url, later=False)
    FullFileSystem.left = 1000
    assert_the_next_commit_works(url)


def test_a_disk_that_takes_no_more_is_a_storage_error(tmp_path):
    url = str(tmp_path / "store")
    holding_before(url)
    features = open_store(url, mode="a").feature_set()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large = fragment_of(["c"], counts=50_000)  # 800 kB
    resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            features.commit(large, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_all_or_nothing(url, later=False)
    assert len(list((tmp_path / "store" / features.name / "fragments").iterdir())) == 1


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_a_storage_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied"):
        open_store(str(tmp_path / "store"), mode="a")


# A process that dies ----------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
from histostore.store import Encoding, open_store
from histostore.testing import fragment_of
url = sys.argv[1]
later = fragment_of(["c", "d"], counts=[5, 2], seed=2)
open_store(url)  # the parent never starts zarr's threads, so that it may fork
fsync, replace = os.fsync, os.replace
for moment in range(200):
    child = os.fork()
    if child == 0:
        calls = iter(range(200))
        def dying(call, kill_after):
            def wrapped(*args):
                if next(calls) == moment:
                    if kill_after:
                        call(*args)
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args)
            return wrapped
        if sys.argv[2] == "before":
            os.fsync = dying(fsync, False)
        Path.replace = dying(replace, sys.argv[2] == "after")
        features = open_store(url, mode="a").feature_set()
        features.commit(later, {}, encoding=Encoding(chunk_bytes=32, shard_bytes=64))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    features = open_store(url).feature_set()
    print(moment, os.waitstatus_to_exitcode(status), len(features.fragments), flush=True)
    for fragment in features.fragments:
        for image_id in fragment.image_ids:
            features.bag(image_id)
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("order", ["before", "after"])
def test_a_writer_killed_at_every_flush_and_at_the_renaming(tmp_path, order):
    """A real process dies before every fsync, before the one rename, and right after it."""
    url = str(tmp_path / "store")
    holding_before(url)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, url, order], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    turns = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    exits, counts = [code for _, code, _ in turns], [count for _, _, count in turns]
    assert exits == [-signal.SIGKILL] * (len(turns) - 1) + [0]
    assert len(turns) == 2 if order == "after" else len(turns) > 30
    # Until the renaming nothing counts; from it on, every commit counts, and wholly.
    first = counts.index(2)
    assert counts == [1] * first + list(range(2, 2 + len(counts) - first))
    assert_all_or_nothing(url, later=True)
    assert_the_next_commit_works(url)


# Several writers --------------------------------------------------------------------------


def test_many_writers_of_the_same_images_leave_each_row_once(url):
    open_store(url, mode="a")
    start = threading.Barrier(4)

    def write(seed):
        start.wait()
        features = open_store(url, mode="a").create_feature_set(spec_of())
        return features.commit(fragment_of(["a", "b"], seed=seed), {}), seed

    with ThreadPoolExecutor(4) as pool:
        winner = min(pool.map(write, range(4)))
    features = open_store(url).feature_set()
    assert len(features.fragments) == 4
    expected = fragment_of(["a", "b"], seed=winner[1])
    np.testing.assert_array_equal(features.load().embedding, expected.embedding[0])
    assert features.index["a", "identity"][0].fragment_id == winner[0]


def test_one_feature_set_takes_commits_from_many_threads(url):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    with ThreadPoolExecutor(8) as pool:
        ids = list(pool.map(lambda n: features.commit(fragment_of([str(n)]), {}), range(24)))
    assert [record.fragment_id for record in features.fragments] == sorted(ids)
    assert open_store(url).feature_set().snapshot == features.snapshot


# Bytes that change ------------------------------------------------------------------------


def everything(url):
    """Read all there is to read."""
    features = open_store(url).feature_set()
    loaded = [features.load(augmentation=view) for view in features.augmentations]
    return [
        (each.image_ids, each.embedding.tobytes(), each.coords.tobytes(), each.tissue.tobytes())
        for each in loaded
    ], [features.sources[image_id] for image_id in features.image_ids]


@pytest.fixture
def two_views(tmp_path):
    store = tmp_path / "store"
    features = open_store(str(store), mode="a").create_feature_set(spec_of())
    features.commit(
        fragment_of(["a", "b"], counts=[5, 2], augmentations=("identity", "rot90")),
        {},
        encoding=Encoding(chunk_bytes=48, shard_bytes=96),
    )
    return store


@pytest.mark.parametrize("what", ["embedding/c.*", "[yx]/c.*", "tissue/c.*"])
def test_every_flipped_byte_of_the_data_is_found_and_named(two_views, what):
    paths = sorted(two_views.glob(f"*/fragments/*/{what}"))
    assert paths
    for path in paths:
        content = path.read_bytes()
        for at in range(len(content)):
            flipped = bytearray(content)
            flipped[at] ^= 1 << (at % 8)
            path.write_bytes(flipped)
            with pytest.raises(CorruptError) as caught:
                everything(str(two_views))
            assert path.parent.parent.name in str(caught.value)
            assert f"array {path.parent.name}, shard {path.name}" in str(caught.value)
        path.write_bytes(content)


def test_a_flipped_byte_of_anything_else_is_found_or_changes_nothing(two_views):
    """The commit record is covered whole; what else there is is not needed to read rows."""
    expected = everything(str(two_views))
    for path in sorted(two_views.rglob("*")):
        if not path.is_file() or path.parent.name in ("embedding", "y", "x", "tissue"):
            continue
        content = path.read_bytes()
        record = path.parent.parent.name == "fragments"
        for at in range(0, len(content), 7 if record else 1):
            flipped = bytearray(content)
            flipped[at] ^= 1 << (at % 8)
            path.write_bytes(flipped)
            if record:
                with pytest.raises(FormatError, match=path.parent.name):
                    everything(str(two_views))
                continue
            with contextlib.suppress(FormatError):
                assert everything(str(two_views)) == expected, f"{path.name}, byte {at}"
        path.write_bytes(content)
    assert everything(str(two_views)) == expected


def test_a_shard_cut_short_anywhere_is_found(two_views):
    for path in two_views.glob("*/fragments/*/embedding/c.*"):
        content = path.read_bytes()
        for length in range(len(content)):
            path.write_bytes(content[:length])
            with pytest.raises(CorruptError, match="array embedding, shard c"):
                everything(str(two_views))
        path.write_bytes(content)


@pytest.mark.parametrize("name", ["embedding", "y", "tissue"])
def test_an_object_that_is_gone_is_named(two_views, name):
    path = next(iter(two_views.glob(f"*/fragments/*/{name}/c.*")))
    path.unlink()
    with pytest.raises(CorruptError, match=f"array {name}, shard {path.name}.*missing"):
        everything(str(two_views))


def test_an_object_gone_from_a_bucket_is_named():
    url = f"memory://{uuid.uuid4()}"
    holding_before(url)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm_file(next(iter(fs.glob(f"{path}/*/fragments/*/embedding/c.*"))))
    with pytest.raises(CorruptError, match=r"array embedding, shard c.*missing"):
        everything(url)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_shard_of_another_fragment_in_its_place_is_found(tmp_path, codec):
    """Both are sound for themselves, but they hold another number of rows."""
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    packed = Encoding(codec=codec)
    ids = [
        features.commit(fragment_of([image], counts=count), {}, encoding=packed)
        for image, count in (("a", 5), ("b", 6))
    ]
    one, other = (tmp_path / features.name / "fragments" / each / "embedding" for each in ids)
    shutil.copy(one / "c.0.0.0", other / "c.0.0.0")
    with pytest.raises(CorruptError, match=ids[1]):
        open_store(str(tmp_path)).feature_set().load(["b"])
