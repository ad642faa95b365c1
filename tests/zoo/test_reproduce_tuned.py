"""A report tells a tuned run's own command, which searches the same space again."""

from __future__ import annotations

import shlex

from zoo.heads.catalog import spec
from zoo.recipes import recipe
from zoo.report.reproduce import _tuning_options
from zoo.tuning.space import read_space


def test_the_search_space_of_a_command_is_the_space_that_was_searched():
    head, how = spec("mlp-simple"), recipe()
    space = read_space({"dropout": "0:0.5", "hidden": "64,128", "lr": "1e-4:1e-2:log"}, head, how)
    told = {"trials": 7, "inner_folds": 3, "seed": 5, "prune": True}
    words = _tuning_options({**told, "space": {name: str(part) for name, part in space.items()}})
    assert shlex.split(shlex.join(words)) == words
    assert words[words.index("--trials") + 1] == "7"
    assert words[words.index("--search-seed") + 1] == "5"
    assert "--prune" in words
    given = dict(words[at + 1].split("=", 1) for at, word in enumerate(words) if word == "--space")
    assert read_space(given, head, how) == space


def test_a_run_that_was_not_tuned_has_no_such_words():
    assert _tuning_options({}) == []
