"""What counts for nothing goes, once nobody can want it; everything else stays."""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from dataclasses import replace

import pytest

from histostore.errors import NotFound, OptionError, StorageError
from histostore.store import open_store
from histostore.store.backend import open_backend
from histostore.store.compact import compact
from histostore.store.gc import collect_garbage
from histostore.store.layout import new_id
from histostore.store.reader import Store
from histostore.store.verify import verify
from histostore.testing import FaultyBackend, fragment_of, spec_of

HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture(params=["local", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else f"memory://{uuid.uuid4()}"


def holding(url, *image_ids):
    features = open_store(url, mode="a").create_feature_set(spec_of())
    for image_id in image_ids:
        features.commit(fragment_of([image_id]), {})
    return features


def orphan(url, fragment_id=None):
    """Leave what a writer leaves that is killed just before its commit; give the folder."""
    backend = open_backend(url)
    features = holding(url)
    folder = f"{features.name}/fragments/{fragment_id or new_id()}"
    for name in ("embedding/zarr.json", "embedding/c.0.0.0", "y/c.0"):
        backend.write(f"{folder}/{name}", b"some bytes")
    return folder


class OlderBackend(FaultyBackend):
    """A storage on which objects were written longer ago than they were, by its own clock."""

    def __init__(self, backend, age_s, *, young=()):
        super().__init__(backend)
        self._age_s = age_s
        self._young = young

    def walk(self, folder):
        return [
            entry
            if entry.path.startswith((".gc.", *self._young)) or self._age_s is None
            else replace(entry, modified=entry.modified - self._age_s)
            for entry in super().walk(folder)
        ]


@pytest.fixture
def older(monkeypatch):
    """Make the storage that ``gc`` opens older, and its ids too as far as ``gc`` can tell."""

    def make(url, age_s, *, ids=True, young=()):
        backend = OlderBackend(open_backend(url), age_s, young=young)
        monkeypatch.setattr("histostore.store.gc.open_backend", lambda *_: backend)
        if ids:
            from histostore.store.layout import id_seconds

            monkeypatch.setattr(
                "histostore.store.gc.id_seconds", lambda name: id_seconds(name) - age_s
            )

    return make


def folders(url):
    backend = open_backend(url)
    return sorted(
        {entry.path.rsplit("/", 1)[0] for entry in backend.walk("") if "fragments" in entry.path}
    )


# What goes, and when ----------------------------------------------------------------------


def test_what_a_killed_writer_left_goes_after_a_day(url, older):
    features = holding(url, "a")
    folder = orphan(url)
    before = folders(url)
    report = collect_garbage(url)
    assert report.removed == ()
    assert [(each.path, each.kind) for each in report.kept] == [(folder, "uncommitted")]
    assert "goes after 24" in report.kept[0].kept
    assert folders(url) == before
    older(url, 23 * HOUR)
    assert collect_garbage(url).removed == ()
    older(url, 25 * HOUR)
    report = collect_garbage(url)
    assert [each.path for each in report.removed] == [folder]
    assert (report.removed[0].n_objects, report.n_bytes) == (3, 30)
    assert not any(path.startswith(folder) for path in folders(url))
    assert open_store(url).feature_set().image_ids == features.image_ids
    assert verify(url).ok
    assert verify(url).uncommitted == ()
    assert collect_garbage(url).found == ()


def test_a_dry_run_removes_and_writes_nothing(url):
    holding(url, "a")
    folder = orphan(url)
    backend = open_backend(url)
    before = {entry.path for entry in backend.walk("")}
    report = collect_garbage(url, min_age_s=0, dry_run=True)
    assert [each.path for each in report.removed] == [folder]
    assert "would go" in report.to_text()
    assert {entry.path for entry in backend.walk("")} == before
    assert json.loads(json.dumps(report.to_json()))["dry_run"]


def test_one_young_object_keeps_a_fragment(url, older):
    """A writer of a large fragment is at work for long; its last object is never old."""
    folder = orphan(url)
    older(url, 2 * DAY, young=(f"{folder}/y/",))
    assert collect_garbage(url).removed == ()


def test_replaced_fragments_go_a_day_after_they_were_replaced(url, older):
    features = holding(url, "a", "b")
    compact(features)
    report = collect_garbage(url)
    assert {each.kind for each in report.kept} == {"replaced"}
    assert len(report.kept) == 2
    merged = features.fragments[0].fragment_id
    older(url, 2 * DAY, ids=False, young=(f"{features.name}/fragments/{merged}/",))
    assert collect_garbage(url).removed == ()
    older(url, 2 * DAY)
    assert len(collect_garbage(url).removed) == 2
    assert open_store(url).feature_set().image_ids == ("a", "b")


def test_a_replaced_fragment_stays_while_what_replaced_it_is_damaged(tmp_path):
    features = holding(str(tmp_path), "a", "b")
    compact(features)
    path = tmp_path / features.name / "fragments" / features.fragments[0].fragment_id / "y" / "c.0"
    content = path.read_bytes()
    path.write_bytes(b"?" + content[1:])
    report = collect_garbage(str(tmp_path), min_age_s=0)
    assert report.removed == ()
    assert "is damaged" in report.kept[0].kept
    path.write_bytes(content)
    assert len(collect_garbage(str(tmp_path), min_age_s=0).removed) == 2


def test_a_replaced_fragment_whose_successor_vanished_counts_again_and_stays(tmp_path):
    features = holding(str(tmp_path), "a", "b")
    compact(features)
    merged = features.fragments[0].fragment_id
    shutil.rmtree(tmp_path / features.name / "fragments" / merged)
    assert collect_garbage(str(tmp_path), min_age_s=0).found == ()
    assert open_store(str(tmp_path)).feature_set().image_ids == ("a", "b")


def test_half_made_puts_and_empty_folders_go(tmp_path):
    features = holding(str(tmp_path), "a")
    fragment = tmp_path / features.name / "fragments" / features.fragments[0].fragment_id
    hidden = [
        tmp_path / ".zarr.json.0123abcd",
        tmp_path / features.name / ".zarr.json.0123abcd",
        fragment / ".zarr.json.0123abcd",
    ]
    for path in hidden:
        path.write_bytes(b"{")
    empty = fragment.with_name(new_id())
    (empty / "embedding").mkdir(parents=True)
    mine = tmp_path / ".gitignore"
    mine.write_text("*")
    assert {each.kind for each in collect_garbage(str(tmp_path)).kept} == {
        "temporary",
        "uncommitted",
    }
    report = collect_garbage(str(tmp_path), min_age_s=0)
    assert len(report.removed) == 4
    assert not any(path.exists() for path in (*hidden, empty))
    assert mine.exists()
    assert verify(str(tmp_path)).ok


# What never goes --------------------------------------------------------------------------


def test_what_is_not_ours_or_is_damaged_is_never_touched(tmp_path):
    features = holding(str(tmp_path), "a")
    fragments = tmp_path / features.name / "fragments"
    (fragments / "notes").mkdir()
    (fragments / "notes" / "zarr.txt").write_text("mine")
    (tmp_path / "other" / "fragments" / new_id(0)).mkdir(parents=True)
    (tmp_path / "other" / "fragments" / new_id(0) / "x").parent.mkdir()
    record = fragments / features.fragments[0].fragment_id / "zarr.json"
    record.write_bytes(b"?" + record.read_bytes()[1:])
    before = sorted(tmp_path.rglob("*"))
    assert collect_garbage(str(tmp_path), min_age_s=0).found == ()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_feature_set_whose_own_document_is_damaged_is_left_alone(tmp_path):
    features = holding(str(tmp_path), "a")
    orphan(str(tmp_path))
    (tmp_path / features.name / "zarr.json").write_bytes(b"{}")
    assert collect_garbage(str(tmp_path), min_age_s=0).found == ()


def test_what_is_committed_while_gc_looks_stays(url, monkeypatch):
    """The record of a slow writer comes between the listing and the removal."""
    features = holding(url)
    late = open_backend(url)

    class Stalled(FaultyBackend):
        def put(self, path, content):
            held.append((path, content))

    held = []
    Store(Stalled(late), writable=True).feature_set().commit(fragment_of(["late"]), {})

    class Racing(FaultyBackend):
        def read(self, path):
            content = super().read(path)
            if path == held[0][0] and content is None:
                late.put(*held[0])
            return content

    racing = Racing(open_backend(url))
    monkeypatch.setattr("histostore.store.gc.open_backend", lambda *_: racing)
    collect_garbage(url, min_age_s=0)
    features.refresh()
    assert features.image_ids == ("late",)
    assert verify(url).ok


def test_nothing_and_a_negative_age_are_refused(tmp_path):
    with pytest.raises(NotFound):
        collect_garbage(str(tmp_path / "nothing"))
    with pytest.raises(OptionError, match="-1"):
        collect_garbage(str(tmp_path), min_age_s=-1)


# Clocks -----------------------------------------------------------------------------------


def test_an_id_from_the_future_neither_saves_nor_condemns(url, older):
    """Its maker's clock was wrong, so the storage's own decides."""
    ahead = orphan(url, new_id(int((time.time() + 1000 * DAY) * 1e9)))
    assert collect_garbage(url).removed == ()
    older(url, 2 * DAY, ids=False)
    assert [each.path for each in collect_garbage(url).removed] == [ahead]


def test_an_id_from_the_past_does_not_condemn_what_was_just_written(url):
    """A builder whose clock stands still in 1970 is at work."""
    orphan(url, new_id(0))
    assert collect_garbage(url).removed == ()


def test_a_young_id_saves_what_the_storage_calls_old(url, older):
    orphan(url)
    older(url, 2 * DAY, ids=False)
    assert collect_garbage(url).removed == ()


@pytest.mark.parametrize("jump", [-400 * DAY, 400 * DAY])
def test_a_jump_of_our_own_clock_changes_nothing(url, jump, monkeypatch, older):
    """Ages are told by the storage's clock alone."""
    orphan(url, new_id(0))
    real = time.time
    monkeypatch.setattr("histostore.store.gc.time.time", lambda: real() + jump)
    assert collect_garbage(url).removed == ()
    older(url, 2 * DAY)
    assert len(collect_garbage(url).removed) == 1


def test_copying_tools_do_not_make_a_fragment_old(tmp_path):
    """They set times back, and may be at work: the record comes last there too."""
    folder = tmp_path / "store" / orphan(str(tmp_path / "store"), new_id(0))
    for path in folder.rglob("*"):
        os.utime(path, (0, 0))
    assert collect_garbage(str(tmp_path / "store")).removed == ()


def test_a_storage_that_tells_no_times_is_refused(url, monkeypatch):
    orphan(url)

    class Timeless(FaultyBackend):
        def walk(self, folder):
            return [replace(entry, modified=None) for entry in super().walk(folder)]

    backend = Timeless(open_backend(url))
    monkeypatch.setattr("histostore.store.gc.open_backend", lambda *_: backend)
    with pytest.raises(StorageError, match="does not say when"):
        collect_garbage(url)
    assert [entry for entry in open_backend(url).walk("") if entry.path.startswith(".gc")] == []


def test_a_writer_that_slept_does_not_commit_what_may_be_gone(url, monkeypatch):
    features = holding(url, "a")
    times = iter([1000.0, 1000.0 + 7 * HOUR])
    monkeypatch.setattr("histostore.store.writer.time.time", lambda: next(times))
    with pytest.raises(StorageError, match=r"7\.0 hours"):
        features.commit(fragment_of(["b"]), {})
    assert open_store(url).feature_set().image_ids == ("a",)
