"""Round trips: what is exported and imported again is what was there."""

from __future__ import annotations

import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from histostore.bridges import EXPORTS, IMPORTS, export_layout, import_layout, outgoing
from histostore.bridges.naming import escape, unescape
from histostore.errors import NotFound, OptionError
from histostore.grid import PatchGrid
from histostore.spec import FeatureSpec
from histostore.store import open_store
from histostore.testing import fragment_of, fragments, names, spec_of

pytest.importorskip("h5py")

BOTH_WAYS = sorted(EXPORTS.keys() & IMPORTS.keys())


def fresh_store(fragment, **settings_):
    """Commit a fragment to a store in memory; give its URL and the feature set."""
    url = f"memory://{uuid.uuid4().hex}"
    spec = spec_of(n_features=fragment.n_features, dtype=str(fragment.embedding.dtype), **settings_)
    features = open_store(url, mode="a").create_feature_set(spec)
    features.commit(fragment, {})
    return url, features


def same_numbers(left, right):
    """Equal bit for bit, once both are float32: signs of zero and subnormals too."""
    return left.astype("f4").tobytes() == right.astype("f4").tobytes()


def target_in(folder, layout):
    return str(Path(folder) / ("out.npz" if layout == "npz" else "out"))


@pytest.mark.parametrize("layout", BOTH_WAYS)
@settings(max_examples=20)
@given(data=st.data())
def test_what_is_exported_and_imported_again_is_what_was_there(layout, data):
    fragment = data.draw(fragments())
    if layout == "npz":
        fragment = _without_zeros(fragment)
    url, features = fresh_store(fragment)
    view = fragment.augmentations[0]
    back = f"memory://{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        target = target_in(folder, layout)
        exported = export_layout(url, target, layout, augmentation=view)
        report = import_layout(target, back, layout)
    assert (exported.n_images, exported.n_patches) == (fragment.n_images, fragment.n_patches)
    assert (report.failed, report.n_imported) == ((), fragment.n_images)
    found = open_store(back).feature_set()
    assert set(found.image_ids) == set(features.image_ids)
    assert found.spec.encoder.name == f"import:{layout}:{features.name}"
    for image_id in features.image_ids:
        ours, theirs = features.bag(image_id, view), found.bag(image_id)
        assert same_numbers(theirs.embedding, ours.embedding)
        assert np.array_equal(theirs.coords, ours.coords)
        if layout == "npz":
            assert np.array_equal(theirs.tissue, ours.tissue)
        if layout != "clam":  # which reads float32 alone
            assert theirs.embedding.dtype == ours.embedding.dtype


def _without_zeros(fragment):
    ids = [image_id.replace("\0", "␀") for image_id in fragment.image_ids]
    unique = [f"{image_id}{at}" for at, image_id in enumerate(ids)]
    return replace(fragment, image_ids=tuple(unique))


@given(names(max_size=6))
def test_different_ids_become_different_sound_file_names_and_back(ids):
    stems = [escape(image_id) for image_id in ids]
    assert len(set(stems)) == len(ids)
    assert [unescape(stem) for stem in stems] == ids
    for stem in stems:
        assert not set(stem) & set('/\\:*?"<>|\0\n')
        assert stem[0] not in ". "
        assert stem[-1] not in ". "


@given(st.text(st.sampled_from("%20FfCc3Aax. /ü"), min_size=1, max_size=12))
@example("50%20grey")
@example("%2f")
def test_a_name_that_we_did_not_make_is_left_alone(stem):
    assert unescape(stem) == stem or escape(unescape(stem)) == stem


@pytest.mark.parametrize("layout", ["trident", "clam"])
def test_ids_too_long_for_a_file_name_are_refused_before_anything_is_written(layout, tmp_path):
    url, _ = fresh_store(fragment_of(["short", "x" * 300]))
    with pytest.raises(OptionError, match="takes 300 bytes as a file name"):
        export_layout(url, str(tmp_path / "out"), layout)
    assert not (tmp_path / "out").exists()


def test_a_grid_survives_the_way_through_trident(tmp_path):
    fragment = fragment_of(["a"])
    base = spec_of()
    spec = FeatureSpec(
        encoder=base.encoder,
        n_features=4,
        grid=PatchGrid(224, 112, 0.5),
        tissue=base.tissue,
    )
    url = f"memory://{uuid.uuid4().hex}"
    features = open_store(url, mode="a").create_feature_set(spec)
    features.commit(fragment, {})
    export_layout(url, str(tmp_path / "out"), "trident")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["20x_224px_112px_overlap"]
    report = import_layout(str(tmp_path / "out"), str(tmp_path / "store"), "trident")
    assert open_store(str(tmp_path / "store"))[report.feature_sets[0]].spec.grid == spec.grid


def test_what_was_not_known_is_not_known_after_a_second_trip(tmp_path):
    np.savez(tmp_path / "bags.npz", X=np.ones((3, 2), "f4"), bag=[0, 0, 1])
    import_layout(str(tmp_path / "bags.npz"), str(tmp_path / "first"), "npz")
    for layout in BOTH_WAYS:
        target = target_in(tmp_path / layout, layout)
        export_layout(str(tmp_path / "first"), target, layout)
        import_layout(target, str(tmp_path / f"{layout}-store"), layout)
        said = (
            open_store(str(tmp_path / f"{layout}-store")).feature_set().spec.encoder.preprocessing
        )
        assert (said["grid"], said["coords"]) == ("unknown", "row number")


@pytest.mark.parametrize("layout", sorted(EXPORTS))
def test_an_export_needs_little_memory_at_once(layout, tmp_path, monkeypatch):
    url, _ = fresh_store(fragment_of([f"i{n}" for n in range(20)], counts=5))
    monkeypatch.setattr(outgoing, "BATCH_BYTES", 3 * 5 * 4 * 4)
    told = []
    export_layout(url, target_in(tmp_path, layout), layout, progress=told.append)
    assert [now.n_images for now in told] == [3, 6, 9, 12, 15, 18, 20]
    assert told[-1].n_patches == 100


@pytest.mark.parametrize("layout", sorted(EXPORTS))
def test_an_export_does_not_write_over_what_is_there_unless_told_to(layout, tmp_path):
    url, _ = fresh_store(fragment_of(["a", "b"]))
    target = target_in(tmp_path, layout)
    first = export_layout(url, target, layout)
    with pytest.raises(OptionError, match="is already there"):
        export_layout(url, target, layout)
    again = export_layout(url, target, layout, overwrite=True)
    assert (again.n_images, again.n_files) == (first.n_images, first.n_files)


def test_images_without_the_view_are_left_out_and_counted(tmp_path):
    url, features = fresh_store(fragment_of(["a"], augmentations=["identity", "rot90"]))
    features.commit(fragment_of(["b"]), {})
    report = export_layout(url, str(tmp_path / "out"), "trident", augmentation="rot90")
    assert (report.n_images, report.n_left_out) == (1, 1)
    with pytest.raises(NotFound, match="holds no view 'flip-h'; it holds identity, rot90"):
        export_layout(url, str(tmp_path / "none"), "trident", augmentation="flip-h")


@pytest.mark.parametrize("layout", sorted(EXPORTS))
def test_an_export_tells_how_far_it_is(layout, tmp_path):
    url, _ = fresh_store(fragment_of(["a", "b"]))
    told = []
    export_layout(url, target_in(tmp_path, layout), layout, progress=told.append)
    assert (told[-1].n_images, told[-1].n_total, told[-1].n_patches) == (2, 2, 6)


def test_an_unknown_layout_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(OptionError, match="unknown layout 'h5ad'; known: trident, clam, anndata"):
        export_layout("memory://nowhere", str(tmp_path), "h5ad")
    with pytest.raises(OptionError, match="unknown layout 'h5ad'; known: trident, clam, stamp"):
        import_layout(str(tmp_path), "memory://nowhere", "h5ad")


@pytest.mark.parametrize("layout", BOTH_WAYS)
def test_a_bucket_will_do_as_well_as_a_disk(layout):
    fragment = fragment_of(["a/1", "b"], dtype="float16")
    url, features = fresh_store(fragment)
    target = target_in(f"memory:/{uuid.uuid4().hex}", layout).replace("memory:/", "memory://")
    export_layout(url, target, layout)
    back = f"memory://{uuid.uuid4().hex}"
    report = import_layout(target, back, layout)
    assert report.failed == ()
    assert same_numbers(
        open_store(back).feature_set().bag("a/1").embedding, features.bag("a/1").embedding
    )
    assert import_layout(target, back, layout).n_done == 2
