"""The local file of a cohort that does not fit: equal to memory, whole or not there at all."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.cohort import Cohort
from histostore.errors import NotFound, StorageError
from histostore.store import Encoding, open_store
from histostore.testing import fragment_of, spec_of
from zoo import filling
from zoo.bags import Bags
from zoo.cache import cache_entries, cache_folder
from zoo.memory import memory_budget

SMALL = Encoding(chunk_bytes=64, shard_bytes=200)
VIEWS = ("identity", "rot90")


def stored(folder, *, dtype="float32", batches=(("a", "b", "c"), ("d", "e"))):
    features = open_store(str(folder), mode="a").create_feature_set(spec_of(dtype=dtype))
    for seed, images in enumerate(batches):
        counts = [1 + (seed + i) % 4 for i in range(len(images))]
        features.commit(
            fragment_of(images, counts=counts, augmentations=VIEWS, dtype=dtype, seed=seed),
            {},
            encoding=SMALL,
        )
    return features


def cohort_of(images):
    frame = pd.DataFrame({"image_id": images, "path": [f"{i}.png" for i in images]})
    frame["label"] = [str(i % 2) for i in range(len(images))]
    return Cohort.from_frame(frame, url="cohort.csv", check_files=False)


@pytest.fixture(scope="module")
def two_types(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    return {dtype: stored(folder / dtype, dtype=dtype) for dtype in ("float32", "float16")}


@given(
    st.permutations("abcde"),
    st.integers(1, 5),
    st.sampled_from(VIEWS),
    st.sampled_from(["float32", "float16"]),
    st.data(),
)
def test_a_mapped_cohort_equals_the_same_in_memory(
    two_types, tmp_path_factory, order, n, view, dtype, data
):
    cohort, features = cohort_of(list(order[:n])), two_types[dtype]
    home = tmp_path_factory.mktemp("cache")
    here = Bags(features, cohort, augmentation=view, memory_limit=2**30)
    mapped = Bags(features, cohort, augmentation=view, memory_limit=0, cache=home)
    assert here.folder is None
    assert mapped.folder.parent == home
    assert mapped.embedding.dtype == np.float32
    for name in ("embedding", "offset", "coords", "labels"):
        assert np.array_equal(getattr(mapped, name), getattr(here, name)), name
    assert mapped.digest == here.digest
    choice = data.draw(st.lists(st.integers(0, n - 1), max_size=8))
    assert np.array_equal(mapped[choice].embedding, here[choice].embedding)
    assert np.array_equal(mapped[choice].coords, here[choice].coords)
    for one, other in zip(mapped, here, strict=True):
        assert np.array_equal(one.embedding, other.embedding)
        assert (one.label, one.image_id) == (other.label, other.image_id)


def test_bags_of_a_mapped_file_are_slices_of_it_and_read_only(two_types, tmp_path):
    bags = Bags(two_types["float32"], cohort_of(list("abcde")), memory_limit=0, cache=tmp_path)
    flat = bags.embedding
    assert np.shares_memory(flat, bags[3].embedding)
    assert np.shares_memory(flat, bags[1:4].embedding)
    assert not np.shares_memory(flat, bags[[3, 1]].embedding)
    with pytest.raises(ValueError, match="read-only"):
        bags[0].embedding[0] = 0


@given(st.integers(0, 400))
def test_blocks_hold_every_bag_once_in_order_and_their_bound(two_types, tmp_path_factory, n_bytes):
    home = tmp_path_factory.getbasetemp() / "blocks"
    bags = Bags(two_types["float32"], cohort_of(list("abcde")), memory_limit=0, cache=home)
    blocks = list(bags.blocks(n_bytes))
    assert sum((block.image_ids for block in blocks), ()) == bags.image_ids
    for block in blocks:
        assert len(block) == 1 or block.embedding.nbytes <= n_bytes
    assert np.array_equal(np.concatenate([b.embedding for b in blocks]), bags.embedding)


def test_a_file_is_filled_once_and_then_used(two_types, tmp_path, monkeypatch):
    cohort = cohort_of(list("abc"))
    first = Bags(two_types["float32"], cohort, memory_limit=0, cache=tmp_path)
    monkeypatch.setattr(filling.Filling, "_fill", None)
    again = Bags(two_types["float32"], cohort, memory_limit=0, cache=tmp_path)
    assert again.folder == first.folder
    assert np.array_equal(again.embedding, first.embedding)


def test_images_order_view_and_type_have_files_of_their_own(two_types, tmp_path):
    folders = {
        Bags(
            two_types[dtype], cohort_of(images), augmentation=view, memory_limit=0, cache=tmp_path
        ).folder
        for images in (["a", "b"], ["b", "a"], ["a"])
        for view in VIEWS
        for dtype in two_types
    }
    assert len(folders) == 12
    entries = cache_entries(tmp_path)
    assert {entry.path for entry in entries} == folders
    assert {entry.n_images for entry in entries} == {1, 2}
    assert {entry.augmentation for entry in entries} == set(VIEWS)
    sizes = [entry.n_bytes for entry in entries]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0


def test_a_store_that_has_grown_is_read_again(tmp_path):
    features = stored(tmp_path / "store")
    cohort = cohort_of(list("abc"))
    before = Bags(features, cohort, memory_limit=0, cache=tmp_path / "cache")
    features.commit(fragment_of(["f"], seed=9), {})
    after = Bags(features, cohort, memory_limit=0, cache=tmp_path / "cache")
    assert after.folder != before.folder
    assert np.array_equal(after.embedding, before.embedding)
    snapshots = {entry.snapshot for entry in cache_entries(tmp_path / "cache")}
    assert features.snapshot in snapshots
    assert len(snapshots) == 2


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: flip(folder / "embedding.npy", -1),
        lambda folder: flip(folder / "embedding.npy", 130),
        lambda folder: flip(folder / "embedding.npy", 20),
        lambda folder: flip(folder / "coords.npy", -1),
        lambda folder: flip(folder / "crc32c.npy", -1),
        lambda folder: (folder / "embedding.npy").unlink(),
        lambda folder: (folder / "embedding.npy").write_bytes(b""),
        lambda folder: (folder / "cache.json").write_text("{"),
        lambda folder: (folder / "cache.json").write_text("{}"),
        lambda folder: (folder / "cache.json").unlink(),
        lambda folder: os.truncate(folder / "embedding.npy", 200),
    ],
)
def test_what_is_damaged_is_never_used_and_made_again(two_types, tmp_path, caplog, damage):
    features, cohort = two_types["float32"], cohort_of(list("abcde"))
    expected = Bags(features, cohort, memory_limit=2**30).embedding
    folder = Bags(features, cohort, memory_limit=0, cache=tmp_path).folder
    damage(folder)
    with caplog.at_level(logging.WARNING):
        again = Bags(features, cohort, memory_limit=0, cache=tmp_path)
    assert "is not used and made again" in caplog.text
    assert again.folder == folder
    assert np.array_equal(again.embedding, expected)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


class Killed(BaseException):
    """The process ends here, without any handler of ours."""


@pytest.mark.parametrize("moment", range(7))
def test_a_filling_that_is_cut_short_at_any_flush_leaves_nothing(two_types, tmp_path, moment):
    """Ends a process with no chance to clean up; the next one sweeps and fills."""
    features, cohort = two_types["float32"], cohort_of(list("abcde"))
    code = textwrap.dedent(f"""
        import os, sys
        import numpy as np
        seen = 0
        def count(real):
            def call(*args, **kwargs):
                global seen
                if seen == {moment}:
                    os._exit(9)
                seen += 1
                return real(*args, **kwargs)
            return call
        os.fsync, os.rename = count(os.fsync), count(os.rename)
        np.save = count(np.save)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_cache import cohort_of, open_store
        from zoo.bags import Bags
        features = open_store({features._backend.url!r}).feature_set()
        Bags(features, cohort_of(list("abcde")), memory_limit=0, cache={str(tmp_path)!r})
    """)
    ended = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert ended.returncode in (0, 9), ended.stderr
    whole = [entry.path for entry in cache_entries(tmp_path)]
    left = {path for path in tmp_path.iterdir() if path.name.startswith(".")}
    assert len(whole) + len(left) == 1
    bags = Bags(features, cohort, memory_limit=0, cache=tmp_path)
    assert np.array_equal(bags.embedding, Bags(features, cohort, memory_limit=2**30).embedding)
    assert list(tmp_path.iterdir()) == [bags.folder]


def test_a_store_that_fails_half_way_leaves_no_file(two_types, tmp_path, monkeypatch):
    features = two_types["float32"]
    real = type(features).load

    def load(self, image_ids, augmentation):
        if "e" in image_ids:
            raise StorageError("the bucket is gone")
        return real(self, image_ids, augmentation)

    monkeypatch.setattr(type(features), "load", load)
    monkeypatch.setattr("zoo.cache._LEAST_PART_BYTES", 16)
    with pytest.raises(StorageError, match="the bucket is gone"):
        Bags(features, cohort_of(list("abcde")), memory_limit=0, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_several_who_fill_at_once_end_with_one_file(two_types, tmp_path):
    features, cohort = two_types["float32"], cohort_of(list("abcde"))

    def one(_):
        return Bags(features, cohort, memory_limit=0, cache=tmp_path)

    with ThreadPoolExecutor(8) as pool:
        several = list(pool.map(one, range(16)))
    expected = Bags(features, cohort, memory_limit=2**30).embedding
    assert len({bags.folder for bags in several}) == 1
    assert all(np.array_equal(bags.embedding, expected) for bags in several)
    assert list(tmp_path.iterdir()) == [several[0].folder]


def test_several_who_find_it_damaged_at_once_end_with_one_sound_file(two_types, tmp_path):
    features, cohort = two_types["float32"], cohort_of(list("abcde"))
    flip(Bags(features, cohort, memory_limit=0, cache=tmp_path).folder / "embedding.npy", -1)
    with ThreadPoolExecutor(8) as pool:
        several = list(
            pool.map(
                lambda _: Bags(features, cohort, memory_limit=0, cache=tmp_path).embedding,
                range(16),
            )
        )
    expected = Bags(features, cohort, memory_limit=2**30).embedding
    assert all(np.array_equal(rows, expected) for rows in several)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_mapped_set_travels_to_another_process_as_its_path(two_types, tmp_path):
    bags = Bags(two_types["float32"], cohort_of(list("abcde")), memory_limit=0, cache=tmp_path)
    sent = pickle.dumps(bags[[4, 0]])
    rows = bags.embedding.tobytes()
    assert rows[: 4 * 4] not in sent
    again = pickle.loads(sent)  # noqa: TID251 - as multiprocessing does
    assert again.image_ids == ("e", "a")
    assert np.array_equal(again.embedding, bags[[4, 0]].embedding)


def test_images_that_are_not_there_are_named_before_anything_is_filled(two_types, tmp_path):
    with pytest.raises(NotFound, match="holds no image 'zz'"):
        Bags.unlabelled(two_types["float32"], ["a", "zz"], memory_limit=0, cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_space_or_leave_is_refused_in_one_line(two_types, tmp_path, monkeypatch):
    features, cohort = two_types["float32"], cohort_of(list("abcde"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cache .*file"):
        Bags(features, cohort, memory_limit=0, cache=tmp_path / "file")
    usage = type("usage", (), {"free": 10})
    monkeypatch.setattr(filling.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match=r"needed.* free; name another folder by HISTOSTORE_C"):
        Bags(features, cohort, memory_limit=0, cache=tmp_path)


def test_the_folder_is_the_one_asked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("HISTOSTORE_CACHE", str(tmp_path / "b"))
    assert cache_folder(tmp_path / "a") == tmp_path / "a"
    assert cache_folder() == tmp_path / "b"
    monkeypatch.delenv("HISTOSTORE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / "histostore"
    assert 0 < memory_budget() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_stays_within_the_budget_while_filling_and_while_gathering(tmp_path):
    """Resident memory of a process of its own, above what importing takes.

    256 MiB of embeddings under a budget of 64: filling takes the parts it says (16 MiB here,
    read while the last is still held), gathering a batch takes the batch.
    """
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(
        spec_of(n_features=1024)
    )
    for at in range(8):
        images = [f"i{at}-{n}" for n in range(8)]
        features.commit(fragment_of(images, counts=1024, n_features=1024, seed=at), {})
    code = textwrap.dedent(f"""
        import json
        import numpy as np
        import zoo
        from zoo.bags import Bags
        from histostore.store import open_store

        def status(name):  # MiB; what getrusage says begins with the parent's peak
            lines = open("/proc/self/status").read().splitlines()
            return next(int(x.split()[1]) for x in lines if x.startswith(name)) // 1024

        Bags.unlabelled(open_store({str(tmp_path / "store")!r}).feature_set(), ["i0-0"])
        open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
        before, anonymous_before = status("VmRSS"), status("RssAnon")
        features = open_store({str(tmp_path / "store")!r}).feature_set()
        bags = Bags.unlabelled(features, memory_limit=64 * 2**20, cache={str(tmp_path / "c")!r})
        filled, most, n_rows = status("VmHWM"), 0, 0
        for index in np.random.default_rng(0).permutation(64).reshape(16, 4):
            rows = bags[index].embedding
            most = max(most, status("RssAnon"))
            n_rows += len(rows)
        print(json.dumps([filled - before, most - anonymous_before, n_rows]))
    """)
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    filled, gathered, n_rows = json.loads(done.stdout)
    assert n_rows == 64 * 1024
    assert filled > 8  # else nothing was measured
    assert filled < 64
    assert gathered < 64


def test_half_precision_is_widened_exactly(monkeypatch):
    """Every number that half precision has, the infinities and those below normal too."""
    every = np.arange(2**16, dtype=np.uint16).view(np.float16).reshape(256, 256)
    for least in (0, 2**40):
        monkeypatch.setattr(filling, "_WORTH_TORCH_BYTES", least)
        widened = filling.single_precision(every)
        assert widened.dtype == np.float32
        np.testing.assert_array_equal(widened, every.astype(np.float32))
    single = np.ones(3, np.float32)
    assert filling.single_precision(single) is single
