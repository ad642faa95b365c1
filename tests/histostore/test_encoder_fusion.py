"""Several encoders as one: ``a+b``."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1]))

from commands import call, make_cohort

from histostore.encoders.base import Encoder, EncoderIdentity
from histostore.encoders.catalog import card, load_encoder
from histostore.encoders.fusion import FusedEncoder, fuse, members, weights_of
from histostore.errors import EncoderError, MissingExtra, OptionError
from histostore.store import open_store

PAIR = "texture+squeezenet1_1"
RANDOM = {"weights": "random:0", "device": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def pair():
    return load_encoder(PAIR, **RANDOM)


def patches(n, side=48, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


@dataclass
class Fixed:
    """An encoder that says what it is told, and remembers what it saw."""

    identity: EncoderIdentity
    n_features: int = 2
    batch_size: int = 4
    closed: bool = False

    def encode(self, patches):
        assert 0 < len(patches) <= self.batch_size
        sums = patches.sum(axis=(1, 2, 3), dtype=np.float32)
        return np.tile(sums[:, None], (1, self.n_features)) * self.batch_size

    def close(self):
        self.closed = True


def fixed(name, **options):
    return Fixed(EncoderIdentity(name=name, weights=f"sha256:{name}"), **options)


# Vectors and identity ----------------------------------------------------------------------


def test_features_are_those_of_the_members_side_by_side_in_the_order_given(pair):
    alone = [load_encoder("texture", threads=1), load_encoder("squeezenet1_1", **RANDOM)]
    seen = patches(5)
    vectors = pair.encode(seen)
    assert isinstance(pair, Encoder)
    assert (vectors.dtype, vectors.shape) == (np.float32, (5, 275 + 512))
    assert pair.n_features == 275 + 512
    np.testing.assert_array_equal(vectors[:, :275], alone[0].encode(seen))
    np.testing.assert_array_equal(vectors[:, 275:], alone[1].encode(seen))
    other = load_encoder("squeezenet1_1+texture", **RANDOM)
    np.testing.assert_array_equal(other.encode(seen), np.roll(vectors, 512, axis=1))
    assert other.identity != pair.identity


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4),
    st.integers(0, 20),
)
def test_each_member_sees_every_patch_once_in_batches_it_likes(sizes, n):
    parts = [
        fixed(f"e{at}", n_features=width, batch_size=batch)
        for at, (width, batch) in enumerate(sizes)
    ]
    fused = FusedEncoder(parts)
    seen = patches(n, side=3, seed=n)
    vectors = fused.encode(seen)
    assert vectors.shape == (n, fused.n_features)
    sums = seen.sum(axis=(1, 2, 3), dtype=np.float32)
    wanted = [np.tile(sums[:, None], (1, width)) * batch for width, batch in sizes]
    np.testing.assert_array_equal(vectors, np.concatenate(wanted, axis=1))
    assert fused.batch_size == max(batch for _, batch in sizes)


def test_the_identity_holds_that_of_every_member():
    first, second = fixed("a"), fixed("b")
    identity = FusedEncoder([first, second]).identity
    assert identity.name == "a+b"
    assert identity.weights.startswith("sha256:")
    told = identity.to_json()
    assert EncoderIdentity.from_json(json.loads(json.dumps(told))) == identity
    assert [row["name"] for row in told["preprocessing"]["members"]] == ["a", "b"]
    changed = [
        [fixed("a"), fixed("c")],
        [second, first],
        [first, Fixed(EncoderIdentity(name="b", weights="sha256:other"))],
        [first, Fixed(EncoderIdentity(name="b", weights="sha256:b", preprocessing={"x": 1}))],
        [first, fixed("b", n_features=3)],
    ]
    others = [FusedEncoder(parts).identity.to_json() for parts in changed]
    assert all(other != told for other in others)
    bare = FusedEncoder([Fixed(EncoderIdentity(name=name)) for name in "ab"])
    assert bare.identity.weights == "none"


def test_closing_closes_every_member_that_can_be(pair):
    parts = [fixed("a"), fixed("b")]
    FusedEncoder(parts).close()
    assert all(part.closed for part in parts)
    pair.close()  # neither of these holds anything
    assert pair.encode(patches(1)).shape == (1, 787)


# Names and weights -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("texture+", "on both sides"),
        ("+texture", "on both sides"),
        ("texture++squeezenet1_1", "on both sides"),
        ("texture+texture", "names texture twice"),
        ("texture+textur", r"unknown encoder 'textur' \(did you mean 'texture'\?\)"),
    ],
)
def test_a_name_that_cannot_be_is_refused(name, said):
    with pytest.raises(EncoderError, match=said):
        load_encoder(name, threads=1)


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(["squeezenet1_1", "timm:a", "timm:a.b", "torchvision:c"]),
        unique=True,
        min_size=1,
    ),
    st.data(),
)
def test_weights_by_name_reach_their_member_whatever_the_order(names, data):
    path = st.text(st.characters(codec="utf-8", exclude_characters="="), min_size=1, max_size=12)
    given_ = {name: data.draw(path) for name in data.draw(st.permutations(names))}
    text = ",".join(f"{name}={path}" for name, path in given_.items())
    assert weights_of([card(name) for name in names], text) == given_


@pytest.mark.parametrize(
    ("name", "weights", "found"),
    [
        ("texture+squeezenet1_1", "a=b,c.npz", {"texture": None, "squeezenet1_1": "a=b,c.npz"}),
        ("timm:a+squeezenet1_1", "w", {"timm:a": None, "squeezenet1_1": "w"}),
        ("texture+timm:a", "w", {"texture": None, "timm:a": "w"}),
        ("timm:a", "timm:a=w", {"timm:a": "w"}),
        ("timm:a", "w=1", {"timm:a": "w=1"}),
        ("timm:a+timm:b", "timm:b=w", {"timm:a": None, "timm:b": "w"}),
        ("timm:a+timm:b", None, {"timm:a": None, "timm:b": None}),
    ],
)
def test_a_path_alone_goes_to_the_one_member_that_it_can_be_for(name, weights, found):
    assert weights_of([card(each) for each in members(name)], weights) == found


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("timm:a+timm:b", "w", "for which of timm:a, timm:b.*timm:a=PATH,timm:b=PATH"),
        ("timm:a+timm:b", "timm:a=v,timm:a=w", "of timm:a are given twice"),
        ("texture+timm:b", "w,timm:b=v", "given twice"),
    ],
)
def test_weights_that_could_be_for_several_are_refused(name, weights, said):
    with pytest.raises(OptionError, match=said) as caught:
        weights_of([card(each) for each in members(name)], weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, r"member squeezenet1_1 of texture\+squeezenet1_1: squeezenet1_1 has no weights"),
        ({"weights": "nowhere.npz"}, "member squeezenet1_1 of .*: no weights file at nowhere"),
        (
            {"weights": "random:0", "precision": "bfloat16"},
            "member texture of .*: texture gives float32",
        ),
        ({"weights": "texture=w,squeezenet1_1=random:0"}, "member texture of .* needs no weights"),
    ],
)
def test_the_member_that_cannot_be_loaded_is_named(options, said):
    with pytest.raises(EncoderError, match=said) as caught:
        load_encoder(PAIR, **{"device": "cpu", "threads": 1, **options})
    assert "\n" not in str(caught.value)


def test_members_loaded_before_one_that_fails_are_closed():
    first = fixed("texture")

    def load(row):
        if row.name == "texture":
            return first
        raise MissingExtra.named("torch", extra="torch")

    with pytest.raises(
        MissingExtra, match=r"member squeezenet1_1 of texture\+squeezenet1_1: torch is not"
    ):
        fuse([card("texture"), card("squeezenet1_1")], load)
    assert first.closed


# Builds ------------------------------------------------------------------------------------


def test_a_build_with_two_encoders_is_one_feature_set(tmp_path, pair):
    table = make_cohort(tmp_path / "study", n=3)
    words = ("--patch-size", 32, "--tissue", "none", "--threads", 1, "--device", "cpu")
    done = call("histostore", "build", table, tmp_path / "store", "--encoder", PAIR, "--weights", "squeezenet1_1=random:0", *words)  # fmt: skip
    assert done.code == 0, done.err
    ((name, features),) = open_store(str(tmp_path / "store")).items()
    assert name.startswith("texture-squeezenet1_1-")
    assert features.spec.encoder == pair.identity
    assert features.bag("i1").embedding.shape[1] == 787
    again = call("histostore", "build", table, tmp_path / "store", "--encoder", PAIR, "--weights", "random:0", "--json", *words)  # fmt: skip
    assert (again.json["feature_set"], again.json["n_embedded"]) == (name, 0)
    twice = call("histostore", "build", table, tmp_path / "two", "--encoder", "timm:test_vit+squeezenet1_1", "--weights", "squeezenet1_1=random:0", "--weights", "timm:test_vit=random:1", *words)  # fmt: skip
    assert twice.code == 0, twice.err


@pytest.mark.real
def test_real_images_are_embedded_by_texture_and_squeezenet_at_once(real_data, tmp_path):
    folder, weights = real_data / "lymphoma", real_data / "weights"
    table = tmp_path / "cohort.csv"
    assert call("histostore", "cohort", "lymphoma", folder, "-o", table).code == 0
    words = ("--limit", 2, "--top-k", 3, "--device", "cpu", "--threads", 1)
    file = weights / "squeezenet1_1_imagenet_features_oihw.npz"
    done = call("histostore", "build", table, tmp_path / "store", "--encoder", PAIR, "--weights", file, *words)  # fmt: skip
    assert done.code == 0, done.err
    call("histostore", "build", table, tmp_path / "store", "--encoder", "texture", *words)
    fused, alone = (
        next(
            found
            for found in open_store(str(tmp_path / "store")).values()
            if found.spec.n_features == n
        )
        for n in (787, 275)
    )
    assert len(fused.image_ids) == 2
    for image in fused.image_ids:
        vectors = fused.bag(image).embedding
        np.testing.assert_array_equal(vectors[:, :275], alone.bag(image).embedding)
        assert vectors[:, 275:].std() > 0
