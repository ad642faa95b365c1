"""What decides a vector, and nothing else, decides its feature set."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.encoders.base import EncoderIdentity
from histostore.errors import FormatError, OptionError
from histostore.grid import PatchGrid
from histostore.images.tissue import TissueFilter
from histostore.spec import FeatureSpec
from histostore.testing import spec_of

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def specs(draw):
    return FeatureSpec(
        encoder=EncoderIdentity(
            name=draw(st.text(min_size=1)),
            weights=draw(st.sampled_from(["none", "sha256:00", "sha256:ff"])),
            preprocessing=draw(st.dictionaries(st.text(), JSON_VALUES, max_size=3)),
        ),
        n_features=draw(st.integers(1, 10_000)),
        grid=PatchGrid(patch_size=draw(st.integers(16, 512))),
        tissue=TissueFilter(method=draw(st.sampled_from(["hsv", "otsu", "none"]))),
        dtype=draw(st.sampled_from(["float16", "float32"])),
    )


@given(specs())
def test_a_specification_survives_being_written_down(spec):
    again = FeatureSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert again.canonical() == spec.canonical()
    assert (again.digest, again.name) == (spec.digest, spec.name)


@given(specs())
def test_a_name_is_safe_in_a_path_and_ends_in_the_digest(spec):
    assert re.fullmatch(r"[a-z0-9_][a-z0-9._-]*-[0-9a-f]{8}", spec.name)
    assert spec.name.endswith(spec.digest[:8])
    assert len(spec.name) < 100


@given(specs(), specs())
def test_digests_are_equal_where_specifications_are(one, other):
    assert (one.digest == other.digest) == (one.canonical() == other.canonical())


def test_the_order_in_which_a_mapping_was_filled_does_not_matter():
    one = spec_of()
    forth = replace(one, encoder=EncoderIdentity(name="e", preprocessing={"a": 1, "b": [2]}))
    back = replace(one, encoder=EncoderIdentity(name="e", preprocessing={"b": [2], "a": 1}))
    assert forth.digest == back.digest


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": EncoderIdentity(name="other")},
        {"encoder": EncoderIdentity(name="test", weights="sha256:00")},
        {"encoder": EncoderIdentity(name="test", precision="bfloat16")},
        {"n_features": 5},
        {"grid": PatchGrid(patch_size=32)},
        {"tissue": TissueFilter(method="none")},
        {"stain": "macenko"},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_whatever_decides_a_vector_changes_the_digest(change):
    assert replace(spec_of(), **change).digest != spec_of().digest


def test_nonsense_is_refused():
    with pytest.raises(OptionError, match="n_features=0"):
        spec_of(n_features=0)
    with pytest.raises(OptionError, match="float16 or float32"):
        spec_of(dtype="float64")


def test_every_wrong_key_of_a_document_is_named_at_once():
    document = spec_of().to_json()
    del document["grid"]
    document["sugar"] = 1
    with pytest.raises(FormatError) as caught:
        FeatureSpec.from_json(document)
    assert caught.value.problems == ("'grid' is missing", "'sugar' is unknown")


@pytest.mark.parametrize("key", ["encoder", "grid", "tissue", "n_features", "dtype"])
def test_a_document_with_nonsense_in_it_is_refused(key):
    with pytest.raises(FormatError, match="feature specification"):
        FeatureSpec.from_json({**spec_of().to_json(), key: "nonsense"})
