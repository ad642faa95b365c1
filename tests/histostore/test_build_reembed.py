"""Changed images are embedded again on request, and at every moment each row is there once."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from histostore.build import BuildOptions, EncoderOptions, build
from histostore.build.pipeline import ImageJob
from histostore.build.reembed import embed_again, find_stale
from histostore.cohort import Cohort
from histostore.errors import StorageError
from histostore.files import stat_many
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.store import open_store
from histostore.store.backend import open_backend
from histostore.store.compact import compact
from histostore.store.reader import Store
from histostore.store.verify import verify
from histostore.testing import FaultyBackend

OPTIONS = BuildOptions(
    encoder=EncoderOptions(name="texture", threads=1),
    grid=PatchGrid(patch_size=32),
    tissue=TissueFilter(method="none"),
)
CHANGED = ("b", "d")


def paint(path, seed, width=96):
    pixels = np.random.default_rng(seed).integers(0, 255, (64, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def cohort(tmp_path):
    """Four small images that are embedded, of which two change then; one becomes larger."""
    for seed, name in enumerate("abcd"):
        paint(tmp_path / f"{name}.png", seed)
    table = tmp_path / "cohort.csv"
    table.write_text("image_id,path\n" + "".join(f"{name},{name}.png\n" for name in "abcd"))
    return str(table)


def change(tmp_path):
    for number, name in enumerate(CHANGED):
        paint(tmp_path / f"{name}.png", 10 + number, width=96 + 32 * number)
        os.utime(tmp_path / f"{name}.png", ns=(0, 1 + number))


def rows_of(features, view="identity"):
    """Give the bytes of each image; each may be there but once."""
    loaded = features.load(augmentation=view)
    assert len(set(loaded.image_ids)) == len(loaded.image_ids)
    bounds = loaded.offset.tolist()
    return {
        image_id: (loaded.embedding[at:to].tobytes(), loaded.coords[at:to].tobytes())
        for image_id, at, to in zip(loaded.image_ids, bounds, bounds[1:], strict=False)
    }


def opened(url):
    return open_store(str(url)).feature_set()


def test_changed_images_are_embedded_again_only_on_request(cohort, tmp_path):
    store = tmp_path / "store"
    build(cohort, str(store), OPTIONS)
    old = rows_of(opened(store))
    change(tmp_path)
    first = build(cohort, str(store), OPTIONS)
    assert (first.changed, first.n_reembedded) == (CHANGED, 0)
    assert rows_of(opened(store)) == old
    again = build(cohort, str(store), OPTIONS, reembed_changed=True)
    assert (again.changed, again.n_reembedded, again.n_embedded, again.n_done) == ((), 2, 0, 4)
    build(cohort, str(tmp_path / "fresh"), OPTIONS)
    new = rows_of(opened(store))
    assert new == rows_of(opened(tmp_path / "fresh"))
    assert {name for name in old if old[name] != new[name]} == set(CHANGED)
    assert opened(store).image_ids == tuple("abcd")
    assert verify(str(store)).ok
    last = build(cohort, str(store), OPTIONS, reembed_changed=True)
    assert (last.changed, last.n_reembedded, last.n_done) == ((), 0, 4)
    assert len(opened(store).builds()) == 2, "a build that has nothing to do leaves no record"


def test_views_that_lie_in_several_fragments_are_all_renewed(cohort, tmp_path):
    store = str(tmp_path / "store")
    both = replace(OPTIONS, views=("identity", "rot90"))
    build(cohort, store, OPTIONS)
    build(cohort, store, both)
    change(tmp_path)
    assert build(cohort, store, OPTIONS, reembed_changed=True).n_reembedded == 2
    build(cohort, str(tmp_path / "fresh"), both)
    for view in both.views:
        assert rows_of(opened(store), view) == rows_of(opened(tmp_path / "fresh"), view)


def test_an_image_that_cannot_be_read_any_more_keeps_its_old_rows(cohort, tmp_path):
    store = str(tmp_path / "store")
    build(cohort, store, OPTIONS)
    old = rows_of(opened(store))
    change(tmp_path)
    (tmp_path / "b.png").write_bytes(b"this is no picture")
    report = build(cohort, store, OPTIONS, reembed_changed=True)
    assert [failure.image_id for failure in report.failed] == ["b"]
    assert (report.n_reembedded, report.changed) == (1, ("b",))
    new = rows_of(opened(store))
    assert new["b"] == old["b"]
    assert new["d"] != old["d"]


def test_damage_beside_changed_images_is_never_copied(cohort, tmp_path):
    store = tmp_path / "store"
    build(cohort, str(store), OPTIONS)
    [shard] = store.glob("*/fragments/*/tissue/c.0")
    shard.write_bytes(bytes(len(shard.read_bytes())))
    change(tmp_path)
    report = build(cohort, str(store), OPTIONS, reembed_changed=True)
    assert {failure.image_id for failure in report.failed} == set(CHANGED)
    assert "tissue/c.0" in report.failed[0].reason
    assert report.changed == CHANGED
    assert len(opened(store).committed) == 1


def test_killed_at_any_instant_it_leaves_the_old_rows_or_the_new_ones(cohort, tmp_path):
    """Refuse each change of the storage in turn, as a kill would, and look what is there."""
    store = str(tmp_path / "store")
    build(cohort, store, OPTIONS)
    old = rows_of(opened(store))
    change(tmp_path)
    build(cohort, str(tmp_path / "fresh"), OPTIONS)
    new = rows_of(opened(tmp_path / "fresh"))
    table = Cohort.read(cohort)
    there = stat_many(table.urls, {})
    sources = dict(zip(table.image_ids, map(there.get, table.urls), strict=True))
    encoder = OPTIONS.encoder.load()
    seen = []
    for moment in range(100):

        def kill(number, path, content, moment=moment):
            if number == moment:
                raise StorageError(f"killed at {path}")

        features = Store(FaultyBackend(open_backend(store), kill), writable=True).feature_set()
        [(record, rows)] = find_stale(features, table.image_ids, sources)
        jobs = [
            ImageJob(image_id=table.image_ids[row], source=sources[table.image_ids[row]])
            for row in rows
        ]
        try:
            embed_again(features, record.fragment_id, jobs, encoder, provenance={})
        except StorageError:
            seen.append(rows_of(opened(store)))
            assert seen[-1] in (old, new)
            if seen[-1] == new:
                break
        else:
            seen.append(rows_of(opened(store)))
            break
    assert len(seen) > 10
    assert seen[0] == old
    assert seen[-1] == new


def test_a_fragment_that_was_replaced_meanwhile_is_left_alone(cohort, tmp_path):
    store = str(tmp_path / "store")
    build(cohort, store, OPTIONS)
    build(cohort, store, replace(OPTIONS, views=("rot90",)))
    features = open_store(store, mode="a").feature_set()
    gone = features.fragments[0].fragment_id
    assert compact(features).n_after == 2, "other views are not merged"
    change(tmp_path)
    assert build(cohort, store, OPTIONS, reembed_changed=True).n_reembedded == 2
    features.refresh()
    before = features.snapshot
    assert embed_again(features, gone, (), OPTIONS.encoder.load(), provenance={}) == ([], [])
    features.refresh()
    assert features.snapshot == before


def test_a_large_changed_image_is_streamed(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr("histostore.build.pipeline.HELD_BYTES", 1)
    store = str(tmp_path / "store")
    build(cohort, store, OPTIONS)
    assert len(opened(store).fragments) == 4
    change(tmp_path)
    assert build(cohort, store, OPTIONS, reembed_changed=True).n_reembedded == 2
    build(cohort, str(tmp_path / "fresh"), OPTIONS)
    assert rows_of(opened(store)) == rows_of(opened(tmp_path / "fresh"))
    assert opened(store).image_ids == tuple("abcd")


def test_a_view_of_changed_pixels_never_stands_beside_older_ones(cohort, tmp_path):
    store, both = str(tmp_path / "store"), replace(OPTIONS, views=("identity", "rot90"))
    build(cohort, store, OPTIONS)
    change(tmp_path)
    report = build(cohort, store, both)
    assert [failure.image_id for failure in report.failed] == list(CHANGED)
    assert all("--reembed-changed" in failure.reason for failure in report.failed)
    assert (report.n_embedded, report.n_done, report.changed) == (2, 0, CHANGED)
    assert rows_of(opened(store), "rot90").keys() == {"a", "c"}
    report = build(cohort, store, both, reembed_changed=True)
    assert (report.failed, report.changed) == ((), ())
    build(cohort, str(tmp_path / "fresh"), both)
    for view in both.views:
        assert rows_of(opened(store), view) == rows_of(opened(tmp_path / "fresh"), view)


def test_another_scale_in_the_cohort_is_a_change(cohort, tmp_path):
    store = str(tmp_path / "store")
    scaled = replace(OPTIONS, grid=PatchGrid(patch_size=32, mpp=0.5))
    table = tmp_path / "cohort.csv"

    def give(**mpp):
        lines = [f"{name},{name}.png,{mpp.get(name, 0.5)}\n" for name in "abcd"]
        table.write_text("image_id,path,mpp\n" + "".join(lines))

    give()
    build(cohort, store, scaled)
    old = rows_of(opened(store))
    give(b=0.25)
    assert build(cohort, store, OPTIONS).changed == (), "a grid without a scale asks for none"
    report = build(cohort, store, replace(scaled, views=("identity", "rot90")))
    assert (report.changed, [each.image_id for each in report.failed]) == (("b",), ["b"])
    features = open_store(store).feature_set(report.feature_set)
    assert rows_of(features) == old
    assert build(cohort, store, scaled, reembed_changed=True).n_reembedded == 1
    features.refresh()
    assert [len(features.bag(name).coords) for name in "ab"] == [6, 2]
    assert build(cohort, store, scaled).changed == ()
