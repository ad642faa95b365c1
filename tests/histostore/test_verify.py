"""Whatever is not what was written is found and named; what can be mended is mended."""

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
import pandas as pd
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.repair import repair
from histostore.cohort import Cohort
from histostore.errors import FormatError, NotFound, StorageError
from histostore.files import stat
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import Encoding, open_store
from histostore.store.backend import open_backend
from histostore.store.layout import metadata_path
from histostore.store.record import seal
from histostore.store.survey import survey
from histostore.store.verify import VerifyReport, check_fragment, verify
from histostore.testing import FaultyBackend, fragment_of, spec_of

SMALL = Encoding(chunk_bytes=48, shard_bytes=96)


@pytest.fixture
def url(tmp_path):
    """A small store: two fragments of equal shape, two views, a record of a build."""
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    for seed, image_ids in enumerate((["a", "b"], ["c", "d"])):
        fragment = fragment_of(
            image_ids, counts=[5, 2], augmentations=("identity", "rot90"), seed=seed
        )
        features.commit(fragment, {"seed": seed}, encoding=SMALL)
    features.record_build({"failed": [{"image_id": "e", "url": "e.png", "reason": "no image"}]})
    return str(tmp_path / "store")


def objects(url):
    return sorted(path for path in Path(url).rglob("*") if path.is_file())


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


# Mending ----------------------------------------------------------------------------------

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
    views=("identity", "rot90"),
)


@pytest.fixture
def built(tmp_path):
    """A store built from four images, two in each of two fragments: (url, cohort)."""
    rows = []
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (64, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image_id": f"image-{number}", "path": f"{number}.png"})
    pd.DataFrame(rows).to_csv(tmp_path / "cohort.csv", index=False)
    cohort = Cohort.read(str(tmp_path / "cohort.csv"))
    for part in (cohort.select([0, 1]), cohort.select([2, 3])):
        build(part, str(tmp_path / "store"), OPTIONS)
    return str(tmp_path / "store"), cohort


def rows_of(url):
    features = open_store(url).feature_set()
    chosen = sorted(features.image_ids)
    return [
        (view, bag.embedding.tobytes(), bag.coords.tobytes(), bag.tissue.tobytes())
        for view in features.augmentations
        for bag in (features.bag(image_id, view) for image_id in chosen)
    ]


def damage(url, pattern, at=-9):
    path = min(Path(url).glob(pattern))
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "pattern",
    [
        "embedding/c.0.0.0",
        "y/c.0",
        "x/c.0",
        "tissue/c.0",
        "embedding/zarr.json",
        "image_id/c.0",
        "offset/c.0",
    ],
)
def test_what_is_damaged_is_embedded_again_and_nothing_else_is_touched(built, pattern):
    url, _ = built
    before = rows_of(url)
    path = damage(url, f"*/fragments/*/{pattern}")
    others = {each: each.read_bytes() for each in objects(url)}
    report = repair(url, EncoderOptions(threads=1))
    [outcome] = report.outcomes
    assert not outcome.kept
    assert verify(url).ok
    assert verify(url).n_replaced == 1
    assert rows_of(url) == before
    # Only rows that may be damaged are computed again: names and metadata need none.
    rows_hit = path.name != "zarr.json" and path.parent.name in ("embedding", "y", "x", "tissue")
    assert outcome.embedded == (("image-0", "image-1") if rows_hit else ())
    assert {each: each.read_bytes() for each in others} == others
    assert repair(url).outcomes == ()


def test_only_the_images_of_a_damaged_shard_are_embedded_again(tmp_path, built, monkeypatch):
    url, _ = built
    features = open_store(url, mode="a").feature_set()
    before = rows_of(url)
    from histostore.store.compact import compact

    compact(features, encoding=Encoding(chunk_bytes=6 * 275 * 4, shard_bytes=6 * 275 * 4))
    merged = features.fragments[0]
    assert merged.image_ids == tuple(f"image-{n}" for n in range(4))
    # One shard holds the six patches of one image in one view.
    damage(url, f"*/fragments/{merged.fragment_id}/embedding/c.1.2.0")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert (outcome.embedded, outcome.n_copied) == (("image-2",), 3)
    assert rows_of(url) == before


def test_a_swapped_object_is_not_believed_although_its_checksums_hold(built):
    url, _ = built
    before = rows_of(url)
    one, other = sorted(Path(url).glob("*/fragments/*/embedding/c.0.0.0"))
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    report = repair(url, EncoderOptions(threads=1))
    assert len(report.mended) == 2
    assert rows_of(url) == before


def test_a_flipped_bit_of_a_commit_record_is_turned_back(built):
    url, _ = built
    before = {path: path.read_bytes() for path in objects(url)}
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    for at in range(5, path.stat().st_size, 397):
        damage(url, path.relative_to(url).as_posix(), at)
        with pytest.raises(FormatError):
            open_store(url).feature_set()
        assert len(repair(url).mended) == 1
        assert {each: each.read_bytes() for each in objects(url)} == before


def test_a_commit_record_with_more_damage_is_replaced_or_made_way_for(built):
    """It is believed in what the arrays say too, or set aside for the next build."""
    url, cohort = built
    before = rows_of(url)
    copy = url + "-copy"
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    size, outcomes = path.stat().st_size, []
    second = path.read_bytes().index(b'"numpy": "') + 10  # in the provenance
    for at in range(3, size, 257):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(url, copy)
        damage(copy, path.relative_to(url).as_posix(), at)
        damage(copy, path.relative_to(url).as_posix(), second)
        [outcome] = repair(copy, EncoderOptions(threads=1)).outcomes
        outcomes.append("kept" if outcome.kept else "copied" if outcome.n_copied else "embedded")
        if outcome.kept:
            assert "run histostore build" in outcome.kept
            assert build(cohort, copy, OPTIONS).n_embedded == 2
        assert verify(copy).ok
        assert rows_of(copy) == before
    assert outcomes.count("copied") > len(outcomes) // 5
    assert "kept" in outcomes


def test_a_sound_fragment_in_a_wrong_place_is_kept(url):
    folder = min(Path(url).glob("*/fragments/*"))
    shutil.copytree(folder, folder.with_name("1" + folder.name[1:]))
    [kept] = repair(url).kept
    assert f"that of fragment {folder.name}" in kept.kept


def test_sources_that_are_gone_or_changed_leave_everything_as_it_was(built, tmp_path):
    url, cohort = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    before = {path: path.read_bytes() for path in objects(url)}
    (tmp_path / "0.png").rename(tmp_path / "moved.png")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert "image-0 is not at" in outcome.kept
    assert {path: path.read_bytes() for path in objects(url)} == before
    assert not verify(url).ok
    frame = cohort.table.assign(path=["moved.png", "1.png", "2.png", "3.png"])
    frame.to_csv(tmp_path / "moved.csv", index=False)
    moved = Cohort.read(str(tmp_path / "moved.csv"))
    [outcome] = repair(url, EncoderOptions(threads=1), cohort=moved).outcomes
    assert outcome.embedded == ("image-0", "image-1")
    assert verify(url).ok
    assert open_store(url).feature_set().sources["image-0"].url.endswith("moved.png")


def test_a_changed_image_is_embedded_again_only_on_request(built, tmp_path):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "1.png")
    [outcome] = repair(url, EncoderOptions(threads=1)).outcomes
    assert "image-1 has changed" in outcome.kept
    [outcome] = repair(url, EncoderOptions(threads=1), accept_changed=True).outcomes
    assert not outcome.kept
    assert len(open_store(url).feature_set().bag("image-1").embedding) == 4


def test_another_encoder_of_the_same_name_is_refused(built, monkeypatch):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    load = EncoderOptions.load

    def other(self):
        encoder = load(self)

        class Other:
            identity = replace(encoder.identity, weights="sha256:" + "1" * 64)
            n_features, batch_size, encode = encoder.n_features, encoder.batch_size, encoder.encode

        return Other()

    monkeypatch.setattr(EncoderOptions, "load", other)
    [outcome] = repair(url).outcomes
    assert "texture is not here what it was" in outcome.kept
    assert "sha256:111" in outcome.kept


def test_an_encoder_that_cannot_be_had_is_a_reason(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    source = stat(str(tmp_path / "a.png"))
    features = open_store(str(tmp_path / "store"), mode="a").create_feature_set(spec_of())
    features.commit(replace(fragment_of(["a"]), sources=(source,)), {})
    damage(str(tmp_path / "store"), "*/fragments/*/embedding/c.0.0.0")
    [outcome] = repair(str(tmp_path / "store")).outcomes
    assert "'test'" in outcome.kept  # the encoder of spec_of, which no catalogue has


def test_documents_are_mended_where_it_is_known_what_they_were(url):
    name = next(iter(open_store(url)))
    root, ours = Path(url, metadata_path()), Path(url, metadata_path(name))
    log = next(Path(url, name, "builds").iterdir())
    before = root.read_bytes(), ours.read_bytes(), log.read_bytes()
    for path, at in ((root, 40), (ours, 333), (log, -9)):
        content = bytearray(path.read_bytes())
        content[at] ^= 2
        path.write_bytes(content)
    assert len(repair(url).mended) == 2
    assert len(repair(url).mended) == 1  # the log: seen once the feature set can be read
    assert verify(url).ok
    assert (root.read_bytes(), ours.read_bytes(), log.read_bytes()) == before
    root.unlink()
    ours.write_bytes(b"{}")
    [kept] = repair(url).kept
    assert "histostore build with the same options" in kept.kept
    ours.unlink()
    open_store(url, mode="a").create_feature_set(spec_of())
    assert verify(url).ok
    assert ours.read_bytes() == before[1]


def test_a_record_of_a_newer_format_is_never_touched(url):
    path = min(Path(url).glob("*/fragments/*/zarr.json"))
    document = json.loads(path.read_bytes().replace(b'"format": 1', b'"format": 9'))
    document["attributes"]["histostore"]["record_sha256"] = "0" * 64
    content = seal(json.dumps(document).encode())
    path.write_bytes(content)
    [kept] = repair(url).kept
    assert "upgrade" in kept.kept
    assert path.read_bytes() == content


def test_a_report_is_json_and_text(built):
    url, _ = built
    damage(url, "*/fragments/*/embedding/c.0.0.0")
    report = repair(url, EncoderOptions(threads=1))
    assert isinstance(report.before, VerifyReport)
    document = json.loads(json.dumps(report.to_json()))
    assert (document["n_mended"], document["n_kept"]) == (1, 0)
    assert "2 images embedded again" in report.to_text()
