"""What is written is so: examples run, commands parse, the reference is fresh.

``WRITE_DOCS=1 pytest tests/test_documentation.py`` writes ``docs/cli.md`` anew.
"""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex

import click
import pytest
from click.testing import CliRunner

import cli
import histostore
import zoo
from tests.commands import BUILD, ROOT, call, make_cohort

PAPERS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs/how-to").glob("*.md"),
    ]
)
GROUPS = {"histostore": cli.histostore_group, "zoo": cli.zoo_group}
MODULES = [
    "histostore",
    "zoo",
    *(
        module.name
        for package in (histostore, zoo)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ),
]


def fenced(path, *languages):
    """Give the blocks of code in a Markdown file, each with its line."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [
        (text.count("\n", 0, block.start()) + 1, block[2])
        for block in found
        if block[1] in languages
    ]


# The reference of the commands -------------------------------------------------------------

INTRODUCTION = """\
# Commands

What `--help` says of each command. This page is generated: `WRITE_DOCS=1 pytest
tests/test_documentation.py` writes it anew.

Results go to standard output, progress and notes to standard error. Every command that prints
takes `--json`, and then standard output is one JSON document. Paths may be local, or any URL
that fsspec knows (`s3://…`, `gs://…`, `az://…`).

`eval "$(_HISTOSTORE_COMPLETE=bash_source histostore)"` and `eval "$(_ZOO_COMPLETE=bash_source
zoo)"` make Tab complete commands and options in bash (`zsh_source` and `fish_source` elsewhere).

| exit status | meaning |
|---|---|
| 0 | done |
| 1 | a known error: one line says what was seen and what to do |
| 2 | misuse of the command line |
| 3 | finished, but some images failed; they are listed, and the rest is committed |
| 130 | interrupted (Ctrl-C, SIGTERM): what was finished is kept, run the same again |
"""


def help_of(group, *words):
    shown = CliRunner().invoke(group, [*words, "--help"], terminal_width=100, color=False)
    assert shown.exit_code == 0
    return shown.stdout.rstrip()


def reference():
    """Write the page of all commands."""
    parts = [INTRODUCTION]
    for program, group in GROUPS.items():
        parts.append(f"## {program}\n\n```text\n{help_of(group)}\n```\n")
        parts += [
            f"### {program} {name}\n\n```text\n{help_of(group, name)}\n```\n"
            for name in sorted(group.commands)
        ]
    return "\n".join(parts)


def test_the_reference_of_the_commands_is_fresh():
    page = ROOT / "docs" / "cli.md"
    if os.environ.get("WRITE_DOCS"):
        page.write_text(reference(), encoding="utf-8")
    assert page.read_text(encoding="utf-8") == reference(), "run with WRITE_DOCS=1"


# Command lines in the papers ---------------------------------------------------------------


def command_lines():
    """Give every command line in a fenced block: the paper, its line, the words."""
    found = []
    for path in PAPERS:
        for start, block in fenced(path, "bash", "sh", "console", "text", ""):
            for line in block.replace("\\\n", " ").splitlines():
                words = re.match(
                    r"\s*(?:\$ )?((?:histostore|zoo) [^|&;<>$…]*[^|&;<>$…\s])\s*$", line
                )
                usage = re.search(r"\[OPTIONS\]|\[-|\.\.\.", line)
                if words and not usage:
                    found.append((f"{path.name}:{start}", words[1]))
    return found


@pytest.mark.parametrize(("where", "line"), command_lines())
def test_a_command_line_in_a_paper_parses(where, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program, name, *words = shlex.split(line, comments=True)
    with click.Context(GROUPS[program]) as context:
        GROUPS[program].commands[name].make_context(name, words, parent=context).close()


def spans():
    """Give every command in a span of code within the text."""
    return sorted(
        {
            (path.name, span)
            for path in PAPERS
            for span in re.findall(r"`((?:histostore|zoo) [^`\n]+)`", path.read_text("utf-8"))
        }
    )


@pytest.mark.parametrize(("where", "span"), spans())
def test_a_command_and_its_options_in_running_text_are_there(where, span):
    program, name, *words = span.split()
    group = GROUPS[program]
    known = {option for parameter in group.params for option in parameter.opts} | {"-h", "--help"}
    if not name.startswith("-"):
        assert name in group.commands
        known |= {option for item in group.commands[name].params for option in item.opts}
    assert {word.partition("=")[0] for word in [name, *words] if word.startswith("-")} <= known


# Python ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with ``cohort.csv``, images and ``store``, as the README has them."""
    folder = tmp_path_factory.mktemp("readme")
    table = make_cohort(folder, n=12, prefix="image-")
    assert call("histostore", "build", table, folder / "store", *BUILD).code == 0
    return folder


@pytest.mark.parametrize(
    "paper", [path for path in PAPERS if fenced(path, "python")], ids=lambda path: path.name
)
def test_python_in_the_papers_runs_from_top_to_bottom(folder, paper, tmp_path, monkeypatch):
    # The README takes a cohort and a store for granted; the others make what they need.
    monkeypatch.chdir(folder if paper.name == "README.md" else tmp_path)
    names = {"__name__": "paper"}
    for line, block in fenced(paper, "python"):
        # Empty lines before it, so that an error names the line of the paper.
        exec(compile("\n" * line + block, str(paper), "exec"), names)


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_says_what_it_is(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isfunction(value) or inspect.isclass(value):
            assert value.__doc__, f"{name}.{public}"
            assert not value.__doc__.startswith(f"{public}("), "made by dataclass, says nothing"
