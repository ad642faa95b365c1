"""A fragment whose parts do not fit each other cannot be made."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from histostore.errors import FormatError
from histostore.testing import fragment_of, fragments

GOOD = fragment_of(["a", "b"], counts=[1, 2], augmentations=("identity", "rot90"))


@given(fragments())
def test_any_drawn_fragment_is_sound(fragment):
    assert fragment.n_images == len(fragment.image_ids)
    assert fragment.n_patches == fragment.offset[-1] == len(fragment.y)
    assert fragment.embedding.shape == (
        len(fragment.augmentations),
        fragment.n_patches,
        fragment.n_features,
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_ids": ("a", "a")}, "image_ids repeats 'a'"),
        ({"image_ids": ("a", "")}, "image_ids holds an empty name"),
        ({"image_ids": ("a", "\ud800")}, "UTF-8 cannot express"),
        ({"augmentations": ("identity", "identity")}, "augmentations repeats 'identity'"),
        ({"augmentations": ("identity",)}, "embedding has 2 views for 1 names"),
        ({"sources": GOOD.sources[:1]}, "sources has 1 entries for 2 images"),
        ({"flags": ()}, "flags has 0 entries for 2 images"),
        ({"embedding": GOOD.embedding[0]}, "not (augmentation, patch, feature)"),
        ({"embedding": GOOD.embedding.astype("f8")}, "embedding is float64"),
        ({"embedding": GOOD.embedding[:, :, :0]}, "embedding has no feature"),
        ({"embedding": np.full_like(GOOD.embedding, np.nan)}, "not finite at augmentation 0"),
        ({"embedding": np.full_like(GOOD.embedding, np.inf)}, "not finite at augmentation 0"),
        ({"offset": np.array([0, 0, 3])}, "image 0 has no patch"),
        ({"offset": np.array([0, 1, 2])}, "offset runs from 0 to 2, not from 0 to 3"),
        ({"offset": np.array([1, 2, 3])}, "offset runs from 1 to 3"),
        ({"offset": np.array([0, 3])}, "not int64 (3,)"),
        ({"offset": np.array([0, 1, 3], "i4")}, "offset is int32"),
        ({"y": np.zeros(2, "i4")}, "y is int32 (2,), not int32 (3,)"),
        ({"x": np.zeros(3, "i8")}, "x is int64"),
        ({"x": np.full(3, -1, "i4")}, "x is negative"),
        ({"tissue": np.full(3, 1.5, "f4")}, "tissue lies outside 0 to 1"),
        ({"tissue": np.full(3, np.nan, "f4")}, "tissue lies outside 0 to 1"),
    ],
    ids=str,
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(FormatError) as caught:
        replace(GOOD, **change)
    assert message in str(caught.value) or message in " ".join(caught.value.problems)


def test_an_empty_fragment_is_refused():
    with pytest.raises(FormatError, match="problem"):
        replace(GOOD, image_ids=(), sources=(), flags=())


def test_all_that_is_wrong_is_said_at_once():
    with pytest.raises(FormatError) as caught:
        replace(GOOD, sources=(), y=np.zeros(1, "i4"))
    assert len(caught.value.problems) == 2
