"""Tuning: what is proposed lies in the space, and spaces are checked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.errors import RecipeError
from zoo.heads import HEADS, spec
from zoo.recipes import Recipe, known_recipes
from zoo.tuning import Choice, Range, Trial, default_space, read_space
from zoo.tuning.search import best, propose

pytest.importorskip("optuna", reason="needs the extra tune")


SPACE = {
    "head.n": Range(low=1, high=9, whole=True),
    "recipe.lr": Range(low=1e-4, high=1e-2, log=True),
    "head.statistics": Choice(values=(("mean",), ("mean", "sd"), None)),
}
START = {"head.n": 3, "recipe.lr": 1e-3, "head.statistics": ("mean", "sd")}


def done(number, scores, state="complete", **settings):
    told = {"head.n": 2, "recipe.lr": 2e-4, "head.statistics": ["mean"], **settings}
    return Trial(fold=0, number=number, state=state, settings=told, scores=tuple(scores))


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**32 - 1),
    scores=st.lists(st.floats(0, 1), max_size=14),
    maximise=st.booleans(),
)
def test_what_is_proposed_lies_in_the_space_and_depends_on_nothing_else(seed, scores, maximise):
    known = [done(k, [score], **{"head.n": 1 + k % 9}) for k, score in enumerate(scores)]
    found = [
        propose(known, SPACE, start=START, maximise=maximise, seed=seed).settings for _ in range(2)
    ]
    assert found[0] == found[1]
    assert all(value in SPACE[name] for name, value in found[0].items())
    assert known or found[0] == START


def test_a_trial_below_the_middle_of_those_before_it_is_hopeless():
    known = [done(k, [0.6 + k / 100, 0.7]) for k in range(6)]
    for maximise, hopeless, hopeful in ((True, 0.5, 0.8), (False, 0.8, 0.5)):
        for score, expected in ((hopeless, True), (hopeful, False)):
            proposal = propose(known, SPACE, start=START, maximise=maximise, seed=0)
            assert proposal.is_hopeless([score]) is expected


def test_pruned_trials_have_no_score_and_the_best_is_the_first_of_the_best():
    known = [done(0, [0.5]), done(1, [0.9], "pruned"), done(2, [0.6]), done(3, [0.6])]
    assert [trial.score for trial in known] == [0.5, None, 0.6, 0.6]
    assert best(known, "macro_f1").number == 2
    assert best(known, "log_loss").number == 0


# ---------------------------------------------------------------------- spaces


def test_spaces_are_read_as_on_the_command_line():
    head = spec("logistic")
    space = read_space(
        {"inverse_penalty": "0.1:10:log", "statistics": "mean,mean+sd"}, head, Recipe()
    )
    assert space == {
        "head.inverse_penalty": Range(low=0.1, high=10, log=True),
        "head.statistics": Choice(values=(("mean",), ("mean", "sd"))),
    }
    torch_head = spec("mlp-simple")
    space = read_space(
        {"head.hidden": "16:64", "gradient_clip": "none,1", "standardise": [True, False]},
        torch_head,
        Recipe(),
    )
    assert space == {
        "head.hidden": Range(low=16, high=64, whole=True),
        "recipe.gradient_clip": Choice(values=(None, 1.0)),
        "head.standardise": Choice(values=(True, False)),
    }


@pytest.mark.parametrize(
    ("head", "space", "said"),
    [
        ("mlp-simple", {"hiden": "1:2"}, "unknown setting 'hiden'"),
        ("mlp-simple", {"hidden": "8:4"}, "low below high"),
        ("mlp-simple", {"hidden": "8:64:lin"}, "low:high:log"),
        ("mlp-simple", {"hidden": "8"}, "two values or more"),
        ("mlp-simple", {"hidden": 8}, "two values or more"),
        ("mlp-simple", {"hidden": "8,wide"}, "cannot be wide"),
        ("mlp-simple", {"hidden": "8,8"}, "a value twice"),
        ("mlp-simple", {"hidden": "0:8"}, "cannot go over 0:8"),
        ("mlp-simple", {"hidden": "1.5:8"}, "cannot go over"),
        ("mlp-simple", {"dropout": "0:0.5:log"}, "start above 0"),
        ("mlp-simple", {"optimiser": "1:2"}, "is no number"),
        ("mlp-simple", {"lr": "1e-3,1e-2", "recipe.lr": "1e-3,1e-2"}, "given twice"),
        ("logistic", {"lr": "1e-4:1e-2"}, "no gradient steps"),
        ("logistic", {"statistics": "mean,median"}, "cannot be median"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(head, space, said):
    with pytest.raises(RecipeError, match=said):
        read_space(space, spec(head), Recipe())


def test_what_is_fixed_is_not_searched():
    head = spec("mlp-simple", hidden=48)
    assert "head.hidden" not in default_space(head, fixed=("hidden",))
    assert 48 in default_space(head)["head.hidden"].values
    with pytest.raises(RecipeError, match="fixed and searched"):
        read_space({"hidden": "8,16"}, head, Recipe(), fixed=("head.hidden",))


@pytest.mark.parametrize("name", HEADS)
def test_every_head_has_a_space_that_holds_its_defaults(name):
    head = spec(name)
    space = default_space(head)
    assert read_space(space, head, Recipe()) == space
    for key, part in space.items():
        owner, _, field = key.partition(".")
        assert getattr(head if owner == "head" else Recipe(), field) in part, key


@pytest.mark.parametrize(
    "chosen", [made for made, _ in known_recipes()], ids=lambda made: made.name
)
def test_every_recipe_has_a_space_that_holds_its_values(chosen):
    space = default_space(spec("abmil"), chosen)
    for key, part in space.items():
        owner, _, field = key.partition(".")
        assert owner == "head" or getattr(chosen, field) in part, key
    assert ("recipe.r_drop" in space) == (chosen.r_drop > 0)
