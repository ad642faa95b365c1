"""What is written is so: examples run, commands parse, the reference is fresh.

``WRITE_DOCS=1 pytest tests/test_documentation.py`` writes the generated pages of ``docs/`` anew.
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

import histostore
import zoo
from benchmarks import bench_precision
from tests.commands import BUILD, ROOT, call, make_cohort
from tests.pages import GROUPS, PAGES, heads_page, shown
from zoo.heads.catalog import known_heads

PAPERS = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *(page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "adr"),
    ]
)
MODULES = [
    "histostore",
    "zoo",
    *(
        module.name
        for package in (histostore, zoo)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    ),
]


PRECISIONS = ("table of precisions: generated", "end of the table of precisions")


def fenced(path, *languages):
    """Give the blocks of code in a Markdown file, each with its line."""
    text = path.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return [
        (text.count("\n", 0, block.start()) + 1, block[2])
        for block in found
        if block[1] in languages
    ]


# Pages that are written from the code ------------------------------------------------------


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_fresh(name):
    page, text = ROOT / "docs" / name, PAGES[name]()
    if os.environ.get("WRITE_DOCS"):
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text, "run with WRITE_DOCS=1"


def test_the_page_of_heads_has_every_head_with_its_settings():
    text = heads_page()
    for card in known_heads():
        part = text.partition(f"\n## {card.name}\n")[2].partition("\n## ")[0]
        assert card.source in part
        for setting in card.settings():
            assert f"| `{setting['name']}` | {shown(setting['default'])} |" in part


def test_the_table_of_precisions_is_that_of_the_committed_run():
    page = ROOT / "docs" / "encoders.md"
    text = page.read_text(encoding="utf-8")
    start, end = (f"<!-- {name} -->\n" for name in PRECISIONS)
    before, _, rest = text.partition(start)
    after = rest.partition(end)[2]
    fresh = f"{before}{start}\n{bench_precision.shown()}\n\n{end}{after}"
    if os.environ.get("WRITE_DOCS"):
        page.write_text(fresh, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == fresh, "run with WRITE_DOCS=1"


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
