"""Trained networks as encoders: ``run:RUN``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import histostore
from histostore.build.options import BuildOptions, EncoderOptions
from histostore.build.run import build
from histostore.cohort import Cohort
from histostore.encoders.assembly import describe_layers, layers_from
from histostore.encoders.catalog import load_encoder
from histostore.errors import Ambiguous, EncoderError, HistostoreError, NotFound
from histostore.grid import PatchGrid
from histostore.images.readers import open_image
from histostore.images.tissue import TissueFilter
from tests.commands import call, make_cohort
from zoo.finetune.checkpoint import save_network
from zoo.finetune.export import write_encoder
from zoo.finetune.networks import network
from zoo.finetune.predicting import shifted

NETWORKS = {
    "timm:test_efficientnet": 64,
    "r6-hybrid-small": 32,
    "squeezenet1_1": 64,
    "amil-cnn": 28,
    "small-cnn": 64,
    "amil:timm:test_vit": 160,
}


def written(folder, name="timm:test_efficientnet", px=64, member="0-0", seed=0):
    """Write what a finished training of a network leaves."""
    given = None if name in {"amil-cnn", "small-cnn"} else "none"
    net = network(name, 3, seed=seed, weights=given, px=px)
    (folder / "heads").mkdir(parents=True, exist_ok=True)
    save_network(folder / "heads" / f"{member}.safetensors", net, {"outputs": 3})
    write_encoder(folder, member, net)
    net.module.eval()
    return net


def patches(px, n=3):
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 3), np.uint8)


def load(folder, member="", **options):
    return load_encoder(f"run:{folder}{member}", device="cpu", threads=1, **options)


@torch.inference_mode()
def features(net, seen):
    return net.module.features(shifted(torch.from_numpy(seen).permute(0, 3, 1, 2), net)).numpy()


@pytest.mark.parametrize("name", NETWORKS)
def test_vectors_are_what_the_classifier_saw(name, tmp_path):
    net = written(tmp_path, name, NETWORKS[name])
    encoder = load(tmp_path)
    seen = patches(net.px)
    vectors = encoder.encode(seen)
    assert encoder.n_features == vectors.shape[1]
    np.testing.assert_allclose(vectors, features(net, seen), atol=1e-5)
    assert encoder.identity.name == f"run:{name}#0-0"
    assert encoder.identity.weights.startswith("sha256:")


def test_a_store_built_with_a_run_holds_the_networks_vectors(tmp_path):
    table = make_cohort(tmp_path / "cohort", n=4)
    net = written(tmp_path / "run")
    options = BuildOptions(
        encoder=EncoderOptions(name=f"run:{tmp_path / 'run'}", device="cpu"),
        grid=PatchGrid(patch_size=64),
        tissue=TissueFilter(method="none"),
        dtype="float32",
    )
    cohort = Cohort.read(table)
    report = build(cohort, str(tmp_path / "store"), options)
    assert not report.failed
    store = histostore.open(str(tmp_path / "store"))
    stored = store[next(iter(store))]
    for image_id, url in zip(cohort.image_ids, cohort.urls, strict=True):
        bag = stored.bag(image_id)
        reader = open_image(url)
        inside = [row for row, (x, _) in enumerate(bag.coords) if x + 64 <= reader.width_px]
        seen = np.stack([reader.region(*bag.coords[row], 64, 64) for row in inside])
        reader.close()
        assert inside
        np.testing.assert_allclose(bag.embedding[inside], features(net, seen), atol=1e-5)


def test_the_identity_is_that_of_the_weights_not_of_the_place(tmp_path):
    written(tmp_path / "a")
    written(tmp_path / "b", seed=1)
    shutil.copytree(tmp_path / "a", tmp_path / "moved")
    one, other = load(tmp_path / "a").identity, load(tmp_path / "b").identity
    assert load(tmp_path / "moved").identity == one
    assert one.weights != other.weights
    told = load_encoder("run:elsewhere#0-0", weights=tmp_path / "moved", device="cpu", threads=1)
    assert told.identity == one


def test_of_several_members_one_must_be_named(tmp_path):
    for member in ("1-0", "0-0", "10-1"):
        written(tmp_path, member=member, seed=int(member[0]))
    with pytest.raises(Ambiguous, match=r"3 trained networks.*out of 0-0, 1-0, 10-1"):
        load(tmp_path)
    assert load(tmp_path, "#1-0").identity.name.endswith("#1-0")
    for wrong in ("#2-0", "#x", "#../0-0"):
        with pytest.raises(NotFound, match="there are 0-0, 1-0, 10-1"):
            load(tmp_path, wrong)


def test_what_is_no_run_of_networks_is_refused(tmp_path):
    with pytest.raises(EncoderError, match="is no run"):
        load(tmp_path / "absent")
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(EncoderError, match="trained on stored vectors"):
        load(tmp_path)


def test_weights_that_were_changed_are_refused(tmp_path):
    written(tmp_path)
    path = tmp_path / "heads" / "0-0.safetensors"
    state = load_file(path)
    name = next(key for key in state if key.startswith("body.") and state[key].ndim == 4)
    state[name].view(-1)[0] += 1e-3
    save_file(state, path)
    with pytest.raises(EncoderError, match="changed after its training"):
        load(tmp_path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(EncoderError, match="nothing in it was executed"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(EncoderError, match="no weights file"):
        load(tmp_path)


HUGE = [{"kind": "linear", "in_features": 65_535, "out_features": 65_535}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"format": 2}, "format 2, this version reads up to 1"),
        ({"format": None}, "format None"),
        ({"kind": "zoo.head"}, "no description of an encoder"),
        ({"parts": {}}, "parts"),
        ({"parts": []}, "parts"),
        ({"input_px": 10**9}, "input_px"),
        ({"input_px": "64"}, "input_px"),
        ({"mean": [0.5, 0.5]}, "mean"),
        ({"std": [0.5, 0.5, "x"]}, "std"),
        ({"interpolation": "magic"}, "interpolation"),
        ({"prefix": "head."}, "does not fit"),
        ({"digest": "sha256:0"}, "changed after its training"),
        ({"architecture": "timm:nothing_like_it"}, "no model 'nothing_like_it'"),
        ({"architecture": "os:system"}, "no architecture is 'os:system'"),
        ({"architecture": "histostore:nothing"}, "no architecture is 'histostore:nothing'"),
        ({"architecture": None}, "no architecture is None"),
        ({"options": {"checkpoint_path": "/etc/passwd"}}, "not built with checkpoint_path"),
        ({"options": {"pretrained": True}}, "not built with pretrained"),
        ({"options": {"img_size": "x"}}, "describes no network"),
        ({"options": 3}, "no architecture"),
        ({"pooling": "token"}, "describes no network"),
        ({"mean_of_part": 3}, "three numbers"),
        ({"parts": {"": {"layers": HUGE, "names": ["head"]}}}, "does not fit the layers"),
        ({"parts": {"": {"layers": [{"kind": "eval"}], "names": []}}}, "no layer is 'eval'"),
        ({"parts": {"": {"layers": [], "names": []}}}, "describes no layers"),
        ({"parts": {"": {"layers": HUGE, "names": 3}}}, "names is no list"),
        ({"parts": {"a b": {}, "c": {}}}, "no branch is called 'a b'"),
        ({"parts": {"": 3}}, "not a description"),
    ],
)
def test_a_description_that_makes_no_sense_is_refused_in_one_line(change, told, tmp_path):
    written(tmp_path)
    path = tmp_path / "encoders" / "0-0.json"
    document = json.loads(path.read_text())
    for key, value in change.items():
        if key in {"architecture", "options", "pooling"}:
            document["parts"][""][key] = value
        elif key == "mean_of_part":
            document["parts"][""]["mean"] = value
        else:
            document[key] = value
    path.write_text(json.dumps(document))
    with pytest.raises(HistostoreError, match=told) as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"format": 1', "\x00", "[" * 5000])
def test_a_description_that_is_no_json_object_is_refused(text, tmp_path):
    written(tmp_path)
    (tmp_path / "encoders" / "0-0.json").write_text(text)
    with pytest.raises(EncoderError):
        load(tmp_path)


def test_layers_are_described_whole_or_refused():
    nn = torch.nn
    layers = [nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    again = layers_from(describe_layers(layers))
    assert repr(list(again)) == repr(layers)
    for odd in (nn.Conv2d(3, 4, (1, 3)), nn.Conv2d(4, 4, 3, groups=2), nn.Linear(2, 2, bias=False)):
        with pytest.raises(EncoderError, match="cannot be described"):
            describe_layers([odd])
    with pytest.raises(EncoderError, match="kind Tanh"):
        describe_layers([nn.Tanh()])


def test_the_command_says_what_to_do_in_one_line(tmp_path):
    table = make_cohort(tmp_path / "cohort", n=2)
    for member in ("0-0", "1-0"):
        written(tmp_path / "run", member=member)
    refused = call(
        "histostore", "build", str(table), str(tmp_path / "store"), "--encoder", f"run:{tmp_path / 'run'}"
    )  # fmt: skip
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert "#0-0" in refused.err
    assert not (tmp_path / "store").exists()
