"""Whatever is not what was written is found and named."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from histostore.errors import FormatError, NotFound, StorageError
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.record import seal
from histostore.store.survey import survey
from histostore.store.verify import check_fragment, verify
from histostore.testing import FaultyBackend, fragment_of, spec_of
from tests.histostore.damage import objects, small_store


@pytest.fixture
def url(tmp_path):
    return small_store(tmp_path)


def read_by(url):
    """What readers get: rows, places, sources and logs."""
    features = open_store(url).feature_set()
    loaded = [features.load(augmentation=view) for view in features.augmentations]
    return [
        (each.image_ids, each.embedding.tobytes(), each.coords.tobytes(), each.tissue.tobytes())
        for each in loaded
    ], ([features.sources[image_id] for image_id in features.image_ids], features.builds())


def belongs(problem, path, url):
    """Whether a problem names this object."""
    relative = path.relative_to(url).as_posix()
    return relative.endswith(problem.path) and (
        not problem.fragment or problem.fragment in relative
    )


# What is sound ----------------------------------------------------------------------------


def test_a_sound_store_has_no_problem_and_everything_was_read(url):
    report = verify(url)
    assert report.ok
    assert report.problems == report.uncommitted == ()
    assert (report.n_feature_sets, report.n_fragments, report.n_builds) == (1, 2, 1)
    in_fragments = [
        p for p in objects(url) if "fragments" in p.parts and p.parent.parent.name != "fragments"
    ]
    assert report.n_objects == len(in_fragments)
    assert report.n_bytes == sum(path.stat().st_size for path in in_fragments)
    assert json.loads(json.dumps(report.to_json()))["ok"]
    assert "sound" in report.to_text()


def test_progress_ends_at_all_bytes(url):
    seen = []
    report = verify(url, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (report.n_bytes, report.n_bytes)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_store_in_memory_and_one_with_compressed_chunks_are_sound():
    url = f"memory://{uuid.uuid4()}"
    features = open_store(url, mode="a").create_feature_set(spec_of(dtype="float16"))
    features.commit(
        fragment_of(["ü/1"], counts=40, dtype="float16"), {}, encoding=Encoding(codec="zstd")
    )
    assert verify(url).ok


def test_nothing_and_something_else_are_refused(tmp_path):
    with pytest.raises(NotFound):
        verify(str(tmp_path / "nothing"))
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    with pytest.raises(FormatError, match="no histostore"):
        verify(str(tmp_path))


def test_a_feature_set_that_is_not_there_is_refused(url):
    with pytest.raises(NotFound, match=r"no-such.*it holds test-"):
        verify(url, feature_set="no-such")


# Every byte -------------------------------------------------------------------------------


def test_every_flipped_byte_of_every_object_is_found_and_named_or_is_harmless(url):
    """One flip per byte; the bit changes with the place. Harmless: readers get the same."""
    before, harmless = read_by(url), 0
    first = open_store(url).feature_set().fragments[0].fragment_id
    for path in objects(url):
        if "fragments" in path.parts and first not in path.parts:
            continue  # the other one is like it
        content = path.read_bytes()
        for at in range(len(content)):
            flipped = bytearray(content)
            flipped[at] ^= 1 << (at % 8)
            path.write_bytes(flipped)
            problems = problems_near(url, path)
            if problems:
                assert all(belongs(problem, path, url) for problem in problems), (path, at)
            else:
                harmless += 1
                assert json.loads(flipped) == json.loads(content) or read_by(url) == before
        path.write_bytes(content)
    assert harmless < 40, "bytes that do not matter are few: those of documents without digest"
    assert verify(url).ok


def problems_near(url, path):
    """Verify what a change to one object can concern: quicker than the whole store."""
    backend = open_backend(url)
    parts = path.relative_to(url).parts
    if len(parts) == 5:  # an object of a fragment; its record is sound
        features = open_store(url).feature_set()
        record = next(each for each in features.fragments if each.fragment_id == parts[2])
        inside = "/".join(parts[3:])
        alone = replace(record, objects={inside: record.objects[inside]})
        found = check_fragment(backend, features.name, alone)
        return [problem for problem in found if problem.path == inside]
    return survey(backend).problems


def test_check_fragment_finds_what_verify_finds(url):
    path = next(Path(url).glob("*/fragments/*/embedding/c.*"))
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert list(verify(url).problems) == problems_near(url, path) != []


@pytest.mark.parametrize("length", [0, 1, -1])
def test_every_object_cut_short_is_found(url, length):
    for path in objects(url):
        content = path.read_bytes()
        path.write_bytes(content[:length])
        problems = verify(url).problems
        assert problems, path
        assert "histostore build" not in str(problems[0])
        assert all(belongs(problem, path, url) for problem in problems), path
        path.write_bytes(content)


def test_every_object_grown_is_found_or_harmless(url):
    before = read_by(url)
    for path in objects(url):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert verify(url).problems or (path.suffix == ".json" and read_by(url) == before), path
        path.write_bytes(content)


def test_every_object_that_is_gone_is_found(url):
    for path in objects(url):
        content = path.read_bytes()
        path.unlink()
        report = verify(url)
        if path.parent.name == "builds":
            assert report.ok  # a log; nothing depends on it
        elif path.parent.parent.name == "fragments":
            # As after a writer that was killed: the images are built again.
            assert report.ok
            assert report.uncommitted == (path.parent.relative_to(url).as_posix(),)
        else:
            assert report.problems, path
            assert all(belongs(problem, path, url) for problem in report.problems)
        path.write_bytes(content)


def test_objects_that_changed_places_are_found(url):
    """Of one fragment or two, of equal shape: every checksum inside them holds."""
    inside = [path for path in objects(url) if "fragments" in path.parts]
    swapped = 0
    for one, other in itertools.combinations(inside, 2):
        first, second = one.read_bytes(), other.read_bytes()
        if len(first) != len(second) or first == second:
            continue
        one.write_bytes(second)
        other.write_bytes(first)
        found = verify(url).problems
        for path in (one, other):
            assert any(belongs(problem, path, url) for problem in found), (one, other)
            path.write_bytes(second if path is other else first)
        swapped += 1
    assert swapped > 20
    assert verify(url).ok


def test_image_and_chunk_are_named(url):
    """Five rows of "a" and two of "b", three rows a chunk: the first chunk is of "a" alone."""
    features = open_store(url).feature_set()
    record = features.fragments[0]
    assert record.arrays["embedding"].chunk == (1, 3, 4)
    path = Path(url, features.name, "fragments", record.fragment_id, "embedding", "c.0.0.0")
    content = bytearray(path.read_bytes())
    index = 2 * 16 + 4  # entries of two chunks, and their checksum
    assert len(content) == index + 2 * (48 + 4)
    content[index + 5] ^= 4
    path.write_bytes(content)
    [problem] = verify(url).problems
    assert (problem.chunks, problem.image_ids) == ((0,), ("a",))
    assert problem.fragment == record.fragment_id
    assert "embedding/c.0.0.0, chunk 0" in str(problem)
    assert "images a)" in str(problem)
    content[index + 5] ^= 4
    content[index + 52 + 5] ^= 4
    path.write_bytes(content)
    [problem] = verify(url).problems
    assert (problem.chunks, problem.image_ids) == ((1,), ("a", "b"))


# What is as it was written, and wrong all the same ----------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("embedding", np.nan, "not finite"),
        ("embedding", np.inf, "not finite"),
        ("tissue", 1.5, "outside 0 to 1"),
        ("tissue", np.nan, "outside 0 to 1"),
        ("y", -1, "negative"),
        ("x", -7, "negative"),
    ],
)
def test_numbers_that_no_fragment_may_hold_are_found(tmp_path, name, value, what):
    fragment = fragment_of(["a", "b"], counts=[3, 2])
    array = getattr(fragment, name)
    array[(0, 4, 1) if name == "embedding" else 4] = value  # past the checks of Fragment
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    features.commit(fragment, {})
    [problem] = verify(str(tmp_path)).problems
    assert what in problem.what
    assert problem.kind == "values"
    assert problem.image_ids == ("b",)


def test_names_and_bounds_that_differ_from_the_record_are_found(tmp_path):
    """A writer of another make, whose digests are right and whose arrays are not."""
    features = open_store(str(tmp_path), mode="a").create_feature_set(spec_of())
    for image_ids, counts in ((["a", "b"], [3, 2]), (["a", "c"], [2, 3])):
        features.commit(fragment_of(image_ids, counts=counts), {})
    folders = [tmp_path / features.name / "fragments" / r.fragment_id for r in features.fragments]
    record = json.loads((folders[1] / "zarr.json").read_text())
    ours = record["attributes"]["histostore"]
    for name in ("image_id/c.0", "offset/c.0"):
        shutil.copy(folders[0] / name, folders[1] / name)
        content = (folders[1] / name).read_bytes()
        ours["objects"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    ours["record_sha256"] = "0" * 64
    (folders[1] / "zarr.json").write_bytes(seal(json.dumps(record).encode()))
    problems = verify(str(tmp_path)).problems
    assert sorted(problem.path for problem in problems) == ["image_id/c.0", "offset/c.0"]


# A storage that refuses -------------------------------------------------------------------


@pytest.mark.parametrize(("number", "unreadable"), [(errno.EIO, False), (errno.EACCES, True)])
def test_what_cannot_be_read_is_named_and_the_rest_is_read(url, monkeypatch, number, unreadable):
    """A bad sector is damage; what we may not read is no reason to compute it again."""
    backend = open_backend(url)

    class Refusing(FaultyBackend):
        def read(self, path):
            if path.endswith("tissue/c.0"):
                cause = OSError(number, os.strerror(number))
                raise StorageError(f"{path}: {cause.strerror}") from cause
            return super().read(path)

    monkeypatch.setattr("histostore.store.verify.open_backend", lambda *_: Refusing(backend))
    report = verify(url)
    assert [problem.path for problem in report.problems] == ["tissue/c.0"] * 2
    assert {problem.unreadable for problem in report.problems} == {unreadable}
