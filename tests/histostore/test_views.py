"""The eight views are the group of the square, and numpy agrees about each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError
from histostore.views import VIEWS, apply_view, compose_views, invert_view, parse_views

NUMPY = {
    "identity": lambda p: p,
    "rot90": lambda p: np.rot90(p, 1),
    "rot180": lambda p: np.rot90(p, 2),
    "rot270": lambda p: np.rot90(p, 3),
    "flip-h": np.fliplr,
    "flip-v": np.flipud,
    "transpose": lambda p: np.swapaxes(p, 0, 1),
    "anti-transpose": lambda p: np.rot90(np.swapaxes(p, 0, 1), 2),
}
views = st.sampled_from(VIEWS)


@st.composite
def batches(draw: st.DrawFn, *, square: bool = True) -> np.ndarray:
    side = st.integers(1, 9)
    y = draw(side)
    x = y if square else draw(side)
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.integers(0, 256, (draw(st.integers(0, 4)), y, x, 3), dtype=np.uint8)


def test_the_names_are_those_of_the_store_format() -> None:
    assert set(VIEWS) == set(NUMPY)
    assert VIEWS[0] == "identity"


@given(batches(square=False), views)
def test_every_view_is_what_numpy_does_to_each_patch(batch: np.ndarray, name: str) -> None:
    turned = apply_view(batch, name)
    assert len(turned) == len(batch)
    for patch, expected in zip(turned, batch, strict=True):
        np.testing.assert_array_equal(patch, NUMPY[name](expected))


@given(batches(), views, views)
def test_two_views_one_after_the_other_are_a_view(batch: np.ndarray, a: str, b: str) -> None:
    np.testing.assert_array_equal(
        apply_view(apply_view(batch, a), b), apply_view(batch, compose_views(a, b))
    )


@given(batches(square=False), views)
def test_every_view_can_be_undone(batch: np.ndarray, name: str) -> None:
    np.testing.assert_array_equal(apply_view(apply_view(batch, name), invert_view(name)), batch)


@given(views, views, views)
def test_composition_is_associative(a: str, b: str, c: str) -> None:
    assert compose_views(compose_views(a, b), c) == compose_views(a, compose_views(b, c))


def test_the_views_differ_from_each_other() -> None:
    batch = np.arange(4, dtype=np.uint8).reshape(1, 2, 2, 1)
    assert len({apply_view(batch, name).tobytes() for name in VIEWS}) == len(VIEWS)


@given(batches(square=False), views)
def test_a_view_is_contiguous_and_leaves_its_argument_alone(batch: np.ndarray, name: str) -> None:
    before = batch.copy()
    turned = apply_view(batch, name)
    assert turned.flags.c_contiguous
    np.testing.assert_array_equal(batch, before)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("identity", ("identity",)),
        ("identity,rot90", ("identity", "rot90")),
        (" flip-h , identity ", ("flip-h", "identity")),  # order as given, blanks forgiven
        ("d4", VIEWS),
        ("affine-3,d4", ("affine-3", *VIEWS)),
        ("jitter:2,stain-jitter-7", ("jitter-1", "jitter-2", "stain-jitter-7")),
    ],
)
def test_parsing_views(text: str, expected: tuple[str, ...]) -> None:
    assert parse_views(text) == expected


@pytest.mark.parametrize("text", ["", "rot45", "identity,", "D4", "Rot90"])
def test_an_unknown_view_is_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(OptionError, match=r"unknown view .*; known: identity, rot90, .*d4"):
        parse_views(text)


@pytest.mark.parametrize("text", ["rot90,rot90", "identity,d4", "jitter-1,jitter:2"])
def test_a_view_named_twice_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="twice"):
        parse_views(text)


def test_patches_need_four_axes() -> None:
    with pytest.raises(OptionError, match="3 axes"):
        apply_view(np.zeros((2, 2, 3), np.uint8), "rot90")
