"""What a shell is told when Tab is pressed: names that are there, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete

import cli
from histostore.encoders.catalog import ENCODERS
from histostore.store import open_store
from histostore.testing import spec_of
from tests.commands import ROOT
from zoo.heads import HEADS
from zoo.recipes import PRESETS

GROUPS = {"histostore": cli.histostore_group, "zoo": cli.zoo_group}


def completed(program, *words):
    """Complete the last word as a shell does that has parsed those before it."""
    *before, begun = words
    shell = ShellComplete(GROUPS[program], {}, program, f"_{program.upper()}_COMPLETE")
    return [item.value for item in shell.get_completions([str(word) for word in before], begun)]


def named(program, option):
    """Give the commands that have an option."""
    return [
        name
        for name, command in GROUPS[program].commands.items()
        if any(option in parameter.opts for parameter in command.params)
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of two feature sets."""
    url = tmp_path_factory.mktemp("completion") / "store"
    opened = open_store(str(url), mode="a")
    return url, [opened.create_feature_set(spec_of(name=name)).name for name in ("one", "two")]


@pytest.mark.parametrize("name", ["fit", "tune"])
def test_heads_and_recipes_are_completed(name):
    assert completed("zoo", name, "--head", "") == list(HEADS)
    assert completed("zoo", name, "--head", "clam") == ["clam-sb", "clam-mb"]
    assert completed("zoo", name, "--recipe", "") == list(PRESETS)
    assert completed("zoo", name, "store", "c.csv", "--head", "svm", "--recipe", "sw") == ["swa"]


def test_names_to_be_listed_are_completed():
    assert completed("zoo", "heads", "svm", "extra") == ["extra-trees"]
    assert completed("zoo", "recipes", "r-d") == ["r-drop"]


def test_encoders_are_completed_but_not_their_patterns():
    found = completed("histostore", "build", "--encoder", "")
    assert {"texture", "squeezenet1_1", "uni2-h"} <= set(found) <= set(ENCODERS)
    assert not any(name.endswith(":NAME") for name in found)
    assert completed("histostore", "build", "--encoder", "tex") == ["texture"]


@pytest.mark.parametrize(
    ("program", "name"),
    [(program, name) for program in GROUPS for name in named(program, "--feature-set")],
)
def test_feature_sets_are_those_of_the_store_on_the_line(program, name, store):
    url, names = store
    before = {"predict": ["run"], "explain": ["run"]}.get(name, [])
    assert completed(program, name, *before, url, "--feature-set", "") == names
    assert completed(program, name, *before, url, "--feature-set", "tw") == [names[1]]


@pytest.mark.parametrize("place", ["nowhere", "bogus://x", "README.md", ""])
def test_where_there_is_no_store_nothing_is_offered(place, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert completed("zoo", "fit", place, "--feature-set", "") == []
    assert completed("zoo", "fit", "--feature-set", "") == []


def test_completing_loads_nothing_heavy():
    code = (
        "import sys\n"
        "from tests.test_completion import completed\n"
        "completed('zoo', 'fit', '--head', ''), completed('zoo', 'fit', '--recipe', '')\n"
        "completed('histostore', 'build', '--encoder', '')\n"
        "print([m for m in ('torch', 'sklearn', 'dask', 'lightgbm') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("program", GROUPS)
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_installed_commands_write_the_script_of_a_shell(program, shell):
    path = Path(sys.executable).parent / program
    done = subprocess.run(
        [path],
        capture_output=True,
        text=True,
        check=True,
        env={f"_{program.upper()}_COMPLETE": f"{shell}_source", "PATH": "/usr/bin:/bin"},
    )
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in done.stdout
    assert not done.stderr


def test_bash_itself_completes_a_head(tmp_path):
    script = tmp_path / "complete.sh"
    script.write_text(
        f'export PATH="{Path(sys.executable).parent}:$PATH"\n'
        "source <(_ZOO_COMPLETE=bash_source zoo)\n"
        "COMP_WORDS=(zoo fit --head clam-m); COMP_CWORD=3\n"
        '_zoo_completion zoo; echo "${COMPREPLY[*]}"\n'
    )
    done = subprocess.run(["bash", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["clam-mb"]


def test_every_command_can_print_json():
    lacking = [
        (program, name)
        for program, group in GROUPS.items()
        for name, command in group.commands.items()
        if not any(isinstance(p, click.Option) and "--json" in p.opts for p in command.params)
    ]
    assert lacking == []
