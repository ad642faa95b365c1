"""What the commands that look after a store say, and the exit status that they end with."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

import cli
from histostore.errors import Ambiguous
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of


def call(*words):
    return CliRunner().invoke(cli.histostore_group, [str(word) for word in words])


def filled(url, name, batches):
    features = open_store(str(url), mode="a").create_feature_set(spec_of(name=name))
    for image_ids in batches:
        features.commit(fragment_of(image_ids), {})
    return features


def damage(store, feature_set):
    path = next(iter(sorted((store / feature_set).glob("fragments/*/y/c.0"))))
    path.write_bytes(bytes(len(path.read_bytes())))
    return path.parts[-3]


# Feature sets without an image -------------------------------------------------------------


def test_feature_sets_without_an_image_make_nothing_ambiguous(tmp_path):
    filled(tmp_path, "tried", [])
    with_images = filled(tmp_path, "used", ["ab"])
    filled(tmp_path, "wrong", [])
    assert open_store(str(tmp_path)).feature_set().name == with_images.name
    done = call("ls", tmp_path)
    assert done.exit_code == 0
    assert [line for line in done.stderr.splitlines() if "holds no image" in line] == [
        f"Note: left out feature set {name}, which holds no image"
        for name in sorted(open_store(str(tmp_path)))
        if name != with_images.name
    ]
    assert "Note" not in call("ls", tmp_path, "--feature-set", with_images.name).stderr
    assert json.loads(call("ls", tmp_path, "--json").stdout)[0]["image_id"] == "a"


def test_of_several_feature_sets_with_images_one_must_be_named(tmp_path):
    names = [filled(tmp_path, name, [image]).name for name, image in (("one", "a"), ("two", "b"))]
    filled(tmp_path, "empty", [])
    with pytest.raises(Ambiguous) as caught:
        open_store(str(tmp_path)).feature_set()
    assert all(name in str(caught.value) for name in names)
    assert "empty" not in str(caught.value)


def test_of_several_feature_sets_without_any_image_one_must_be_named(tmp_path):
    names = [filled(tmp_path, name, []).name for name in ("one", "two")]
    with pytest.raises(Ambiguous) as caught:
        open_store(str(tmp_path)).feature_set()
    assert all(name in str(caught.value) for name in names)
    filled(tmp_path / "alone", "one", [])
    assert open_store(str(tmp_path / "alone")).feature_set().image_ids == ()


def test_a_damaged_feature_set_is_not_an_empty_one(tmp_path):
    damaged = filled(tmp_path, "damaged", ["a"])
    filled(tmp_path, "sound", ["b"])
    [record] = (tmp_path / damaged.name).glob("fragments/*/zarr.json")
    record.write_bytes(record.read_bytes()[:-1] + b" ")
    with pytest.raises(Ambiguous, match="damaged"):
        open_store(str(tmp_path)).feature_set()


# compact -----------------------------------------------------------------------------------


def test_compact_goes_through_all_feature_sets_unless_one_is_named(tmp_path):
    names = [filled(tmp_path, name, ["a", "b", "c"]).name for name in ("one", "two")]
    named = call("compact", tmp_path, "--feature-set", names[0], "--json")
    assert [row["feature_set"] for row in json.loads(named.stdout)] == [names[0]]
    rows = json.loads(call("compact", tmp_path, "--json").stdout)
    assert [row["feature_set"] for row in rows] == sorted(names)
    assert [(row["n_before"], row["n_after"]) for row in rows] == [(1, 1), (3, 1)]
    assert all(len(features.fragments) == 1 for features in open_store(str(tmp_path)).values())


def test_compact_ends_with_3_and_names_what_it_left(tmp_path):
    one = filled(tmp_path, "one", ["a", "b"])
    two = filled(tmp_path, "two", ["a", "b"])
    fragment = damage(tmp_path, one.name)
    done = call("compact", tmp_path)
    assert done.exit_code == 3
    assert fragment in done.stdout
    assert "fails its SHA-256" in done.stdout
    assert "histostore verify --repair" in done.stdout
    assert [len(open_store(str(tmp_path))[each.name].fragments) for each in (one, two)] == [2, 1]
    assert call("compact", tmp_path, "--feature-set", two.name).exit_code == 0


def test_compact_says_that_there_is_nothing(tmp_path):
    open_store(str(tmp_path), mode="a")
    assert call("compact", tmp_path).exit_code == 1


# verify ------------------------------------------------------------------------------------


def test_verify_ends_with_0_where_all_is_sound_1_where_not_and_3_where_it_stays_so(tmp_path):
    features = filled(tmp_path, "gone", ["a"])
    assert call("verify", tmp_path).exit_code == 0
    assert call("verify", tmp_path, "--repair").exit_code == 0
    fragment = damage(tmp_path, features.name)
    found = call("verify", tmp_path)
    assert found.exit_code == 1
    assert fragment in found.stdout
    kept = call("verify", tmp_path, "--repair")
    assert kept.exit_code == 3, "there is no such image to embed again"
    assert "not mended" in kept.stdout


def test_verify_ends_with_0_where_damage_was_mended(tmp_path):
    features = filled(tmp_path, "mended", ["a"])
    features.record_build({"failed": []})
    [path] = (tmp_path / features.name).glob("builds/*.json")
    path.write_bytes(b"!" + path.read_bytes()[1:])
    assert call("verify", tmp_path).exit_code == 1
    done = call("verify", tmp_path, "--repair")
    assert done.exit_code == 0
    assert "mended" in done.stdout
    assert call("verify", tmp_path).exit_code == 0


# Files of somebody else -----------------------------------------------------------------------


@pytest.mark.parametrize("words", [("verify",), ("verify", "--repair"), ("gc",), ("compact",)])
def test_files_that_lie_about_in_a_store_are_left_alone(tmp_path, words):
    features = filled(tmp_path, "one", ["ab"])
    notes = [tmp_path / "notes.txt", tmp_path / ".DS_Store", tmp_path / features.name / "README"]
    for path in notes:
        path.write_text("mine")
    done = call(words[0], tmp_path, *words[1:])
    assert done.exit_code == 0, done.stderr
    assert all(path.read_text() == "mine" for path in notes)
