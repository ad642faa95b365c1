"""Fragments become few, and every row can be read at every moment, by whoever looks."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from histostore.errors import CorruptError, OptionError, StorageError
from histostore.files import filesystem
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.checked import n_bytes_of
from histostore.store.compact import compact, plan_merges
from histostore.store.gc import collect_garbage
from histostore.store.reader import Store
from histostore.store.verify import verify
from histostore.testing import FaultyBackend, fragment_of, spec_of

SMALL = Encoding(chunk_bytes=64, shard_bytes=256)


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4()}"


def fill(url, batches, views=("identity",)):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    for number, image_ids in enumerate(batches):
        counts = [1 + (hash_of(image_id) % 4) for image_id in image_ids]
        fragment = fragment_of(image_ids, counts=counts, augmentations=views, seed=number)
        features.commit(fragment, {"batch": number}, encoding=SMALL)
    return features


def hash_of(image_id):
    return sum(image_id.encode())


def rows_of(url):
    """What a reader that comes now gets, by (image, view)."""
    features = open_store(url).feature_set()
    found = {}
    for view in features.augmentations:
        loaded = features.load(augmentation=view)
        assert max(Counter(loaded.image_ids).values()) == 1
        for at, image_id in enumerate(loaded.image_ids):
            rows = slice(*loaded.offset[at : at + 2])
            found[image_id, view] = (
                loaded.embedding[rows].tobytes(),
                loaded.coords[rows].tobytes(),
                loaded.tissue[rows].tobytes(),
                features.sources[image_id],
            )
    return found


def numbers_of(url):
    """Rows without sources: which of an image's views tells its source may change."""
    return {key: value[:3] for key, value in rows_of(url).items()}


batches = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=6,
)


@given(
    st.lists(
        st.tuples(batches, st.sampled_from([("identity",), ("identity", "rot90"), ("rot90",)])),
        max_size=3,
    ),
    st.integers(1, 2000),
)
@settings(max_examples=40)
def test_compaction_changes_no_row_whatever_there_was(groups, target):
    url = f"memory://{uuid.uuid4()}"
    open_store(url, mode="a").create_feature_set(spec_of())
    for several, views in groups:
        fill(url, several, views)
    before = numbers_of(url)
    features = open_store(url, mode="a").feature_set()
    n_before = len(features.fragments)
    report = compact(features, target_bytes=target)
    assert (report.n_before, report.n_after) == (n_before, len(features.fragments))
    assert report.n_after <= n_before
    assert not report.skipped
    assert numbers_of(url) == before
    assert verify(url).ok
    collect_garbage(url, min_age_s=0)
    assert numbers_of(url) == before
    assert len(open_store(url).feature_set().committed) == report.n_after
    assert compact(features, target_bytes=target).n_after <= report.n_after


@given(batches, st.integers(1, 2000))
def test_a_plan_keeps_its_bounds(several, target):
    features = fill(f"memory://{uuid.uuid4()}", several)
    groups = plan_merges(features.fragments, target_bytes=target)
    planned = [record.fragment_id for group in groups for record in group]
    assert len(planned) == len(set(planned))
    for group in groups:
        assert len(group) > 1
        assert list(group) == sorted(group, key=lambda record: record.fragment_id)
        assert len({record.augmentations for record in group}) == 1
        images = {
            image_id: count
            for record in group
            for image_id, count in zip(record.image_ids, record.n_patches, strict=True)
        }
        assert sum(images.values()) * 16 <= target
        assert all(2 * n_bytes_of(record) <= target for record in group)


def test_many_small_fragments_become_one_that_says_where_its_rows_come_from(url):
    features = fill(url, [[f"{n}"] for n in range(20)])
    before, order = rows_of(url), features.image_ids
    seen = []
    report = compact(features, progress=lambda done, total: seen.append((done, total)))
    [merged] = features.fragments
    assert seen == [(20, 20)]
    assert (report.n_before, report.n_after) == (20, 1)
    assert report.merged == ((merged.fragment_id, merged.replaces),)
    assert features.image_ids == order
    assert [origin["provenance"] for origin in merged.provenance["merged"]] == [
        {"batch": number} for number in range(20)
    ]
    assert rows_of(url) == before
    fill(url, [["x"], ["y"]])
    compact(features)
    [again] = features.fragments
    assert set(again.replaces) > {merged.fragment_id, *merged.replaces}
    assert len(again.provenance["merged"]) == 20, "equal ones are listed once"
    assert rows_of(url).keys() == {(str(n), "identity") for n in (*range(20), "x", "y")}


def test_doubled_images_are_kept_once(url):
    features = fill(url, [["a", "b"], ["b", "c"], ["a"]])
    before = rows_of(url)
    compact(features)
    assert [record.image_ids for record in features.fragments] == [("a", "b", "c")]
    assert rows_of(url) == before


def test_large_fragments_and_other_views_are_left_alone(url):
    features = fill(url, [["a"]])
    fill(url, [["a"]], views=("rot90",))
    features.commit(fragment_of(["big"], counts=100), {})
    assert compact(features, target_bytes=2000).merged == ()


def test_a_store_open_for_reading_is_not_compacted(url):
    fill(url, [["a"], ["b"]])
    with pytest.raises(OptionError, match="open for reading"):
        compact(open_store(url).feature_set())


def test_damage_is_never_copied(tmp_path):
    """Not even damage that the checksums inside an object cannot show."""
    features = fill(str(tmp_path), [["a", "b"], ["c", "d"], ["b", "a"]])
    folders = [tmp_path / features.name / "fragments" / r.fragment_id for r in features.fragments]
    first, last = (next(folders[at].glob("embedding/c.*")) for at in (0, 2))
    content = last.read_bytes()
    last.write_bytes(first.read_bytes())
    fill(str(tmp_path), [["e"]])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    features = open_store(str(tmp_path), mode="a").feature_set()
    # The group's doubled images come from its first fragment: the damaged one is not needed.
    assert compact(features).merged
    last.write_bytes(content)
    for path in set(tmp_path.rglob("*")) - before.keys():
        if path.is_file():
            path.unlink()
    first.write_bytes(bytes([first.read_bytes()[0] ^ 1]) + first.read_bytes()[1:])
    report = compact(open_store(str(tmp_path), mode="a").feature_set())
    assert report.merged == ()
    assert "SHA-256" in report.skipped[0]


# Faults -----------------------------------------------------------------------------------


BATCHES = [["a", "b"], ["c"], ["b", "d"], ["e", "f"], ["g"]]


def fresh_urls(tmp_path, kind):
    while True:
        name = str(uuid.uuid4())
        yield str(tmp_path / name) if kind == "local" else f"memory://{name}"


def copied(url, to):
    """Copy a store object by object, which is quicker than to write it again; give the copy."""
    if "://" not in url:
        return shutil.copytree(url, to)
    (fs, old), (_, new) = filesystem(url), filesystem(to)
    for path in fs.find(old):
        fs.pipe_file(new + path.removeprefix(old), fs.cat_file(path))
    return to


def changes_of(url):
    backend = FaultyBackend(open_backend(url))
    report = compact(Store(backend, writable=True).feature_set(), target_bytes=TARGET)
    assert len(report.merged) == 2
    return backend.requests["change"]


TARGET = 160


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("kind", "step"), [("memory", 1), ("local", 5)])
def test_a_failure_at_any_change_leaves_every_row_once(tmp_path, kind, step, after):
    """Also one that is reported although the change was made."""
    urls = fresh_urls(tmp_path, kind)
    whole = filled(next(urls))
    before = rows_of(whole)
    for moment in range(0, changes_of(copied(whole, next(urls))), step):
        url = copied(whole, next(urls))
        backend = open_backend(url)

        def fail(number, path, content, moment=moment, backend=backend):
            if number >= moment:
                if after and path:
                    backend.put(path, content)
                raise StorageError(f"{path}: connection reset")

        features = Store(FaultyBackend(backend, fail), writable=True).feature_set()
        with pytest.raises(StorageError, match="connection reset"):
            compact(features, target_bytes=TARGET)
        assert rows_of(url) == before
        assert verify(url).ok
        compact(open_store(url, mode="a").feature_set(), target_bytes=TARGET)
        assert rows_of(url) == before
        collect_garbage(url, min_age_s=0)
        assert rows_of(url) == before
        assert verify(url).uncommitted == ()


def filled(url):
    fill(url, BATCHES)
    return url


@pytest.mark.parametrize(("kind", "step"), [("memory", 1), ("local", 9)])
def test_a_failure_at_any_removal_leaves_every_row_once(tmp_path, kind, step, monkeypatch):
    """``gc`` too may die anywhere, and what it had begun with counts for nothing."""
    urls = fresh_urls(tmp_path, kind)
    whole = next(urls)
    compact(fill(whole, BATCHES[:3]))
    compact(fill(whole, [["x"]]))
    before = rows_of(whole)
    for moment in range(0, 200, step):
        url = copied(whole, next(urls))
        backend = open_backend(url)

        def fail(number, path, content, moment=moment):
            if number == moment:
                raise StorageError("killed")

        faulty = FaultyBackend(backend, fail)
        with monkeypatch.context() as patched:
            patched.setattr("histostore.store.gc.open_backend", lambda *_, f=faulty: f)
            try:
                collect_garbage(url, min_age_s=0)
            except StorageError:
                done = False
            else:
                done = True
        assert rows_of(url) == before
        assert verify(url).ok
        collect_garbage(url, min_age_s=0)
        assert rows_of(url) == before
        assert len(open_store(url).feature_set().committed) == 1
        if done:
            assert moment > 50
            break
    else:
        pytest.fail("there were more removals than were tried")


# Others at work ---------------------------------------------------------------------------


def test_readers_see_every_image_once_while_others_compact_and_build(url):
    fill(url, [[f"{n}"] for n in range(12)])
    expected, stop, seen = set(rows_of(url)), threading.Event(), []

    def read():
        while not stop.is_set():
            found = rows_of(url)
            assert set(found) >= expected
            seen.append(len(found))

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        while len(seen) < 3:
            time.sleep(0.01)
        for turn in range(4):
            writer = pool.submit(fill, url, [[f"new-{turn}"], [f"also-{turn}"]])
            compact(open_store(url, mode="a").feature_set(), target_bytes=400)
            writer.result()
            compact(open_store(url, mode="a").feature_set())
        stop.set()
        for reader in readers:
            reader.result()
    compact(open_store(url, mode="a").feature_set())
    assert len(open_store(url).feature_set().fragments) == 1
    assert len(rows_of(url)) == 20
    assert len(seen) > 4


def test_compactors_at_the_same_time_lose_nothing(url):
    fill(url, [[f"{n}"] for n in range(10)])
    before, start = rows_of(url), threading.Barrier(3)

    def work(target):
        features = open_store(url, mode="a").feature_set()
        start.wait()
        compact(features, target_bytes=target)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, [100, 300, 10_000]))
    assert rows_of(url) == before
    compact(open_store(url, mode="a").feature_set())
    assert rows_of(url) == before
    collect_garbage(url, min_age_s=0)
    assert rows_of(url) == before


def test_a_reader_from_before_reads_on_and_after_gc_finds_the_new_place(url):
    fill(url, [["a", "b"], ["c"]])
    old = open_store(url).feature_set()
    expected = old.load(["c", "a"])
    places, lazy = expected.coords, old.to_xarray()
    digest = old.snapshot
    writer = open_store(url, mode="a").feature_set()
    compact(writer)
    np.testing.assert_array_equal(old.load(["c", "a"]).embedding, expected.embedding)
    assert old.snapshot == digest, "nothing has changed for who does not look again"
    late = old.load(["c", "a"])  # its coordinates are not read yet
    collect_garbage(url, min_age_s=0)
    again = old.load(["c", "a"])
    np.testing.assert_array_equal(again.embedding, expected.embedding)
    np.testing.assert_array_equal(late.coords, places)
    assert old.snapshot == writer.snapshot != digest
    with pytest.raises(CorruptError, match="missing"):
        lazy.embedding.compute()


def test_what_is_missing_and_was_not_replaced_stays_an_error(tmp_path):
    features = fill(str(tmp_path), [["a", "b"], ["c"]])
    next((tmp_path / features.name).glob("fragments/*/embedding/c.*")).unlink()
    with pytest.raises(CorruptError, match="missing"):
        features.load()


def test_a_damaged_record_of_a_replaced_fragment_harms_nobody(tmp_path):
    features = fill(str(tmp_path), [["a"], ["b"]])
    compact(features)
    before = rows_of(str(tmp_path))
    path = tmp_path / features.name / "fragments" / features.fragments[0].replaces[0] / "zarr.json"
    path.write_bytes(b"?" + path.read_bytes()[1:])
    assert rows_of(str(tmp_path)) == before
    assert verify(str(tmp_path)).ok
