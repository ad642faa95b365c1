"""Pages that are written from the code: commands, heads, recipes."""

from __future__ import annotations

import importlib
import inspect
import re
import textwrap
from dataclasses import asdict

from click.testing import CliRunner

import cli
from zoo.finetune.networks import known_networks
from zoo.finetune.presets import PRESETS
from zoo.heads.catalog import known_heads
from zoo.recipes import Recipe, known_recipes
from zoo.settings import describe

GROUPS = {"histostore": cli.histostore_group, "zoo": cli.zoo_group}

COMMANDS = """\
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

HEADS = """\
# Heads

A head makes an image's class of the embeddings of its patches. All of them take the same bags, the
same folds and the same report, so that a comparison shows the head and nothing else. This page is
generated from the heads' own cards: `WRITE_DOCS=1 pytest tests/test_documentation.py` writes it anew.

`zoo fit STORE COHORT --head NAME --set key=value` takes any setting below; `zoo heads --json` prints
the same. *Gradient* heads take any [recipe](recipes.md); the others are estimators, most of them on
pooled statistics, fitted in one go. What departs from a paper is a **difference**, with its reason.
"""

RECIPES = """\
# Recipes

A recipe says how to train: loss, optimiser, schedule, averaging, regularisers. Any recipe trains any
head that learns by gradient steps. This page is generated: `WRITE_DOCS=1 pytest
tests/test_documentation.py` writes it anew.

`zoo fit STORE COHORT --head gated-mil --recipe r-drop --set epochs=80` takes a recipe and changes one
setting; `zoo recipes --json` prints them.

| recipe | what it is | departs from `default` in |
|---|---|---|
"""

PIXELS = """\
## Of networks on pixels

`zoo finetune` has recipes of its own: phases, each with the parts of the network that learn and their
rates; what is not named stays as it is.

| recipe | what it is | phases | test views |
|---|---|---|---|
"""

NETWORKS = """\
## Networks

`--model` of `zoo finetune`.

| network | what it is |
|---|---|
"""


# Commands ----------------------------------------------------------------------------------


def help_of(group, *words):
    """What ``--help`` prints, 100 columns wide."""
    shown = CliRunner().invoke(group, [*words, "--help"], terminal_width=100, color=False)
    assert shown.exit_code == 0
    return shown.stdout.rstrip()


def commands_page():
    """Write the page of all commands."""
    parts = [COMMANDS]
    for program, group in GROUPS.items():
        parts.append(f"## {program}\n\n```text\n{help_of(group)}\n```\n")
        parts += [
            f"### {program} {name}\n\n```text\n{help_of(group, name)}\n```\n"
            for name in sorted(group.commands)
        ]
    return "\n".join(parts)


# Heads and recipes -------------------------------------------------------------------------


def heads_page():
    """Write the page of the heads that come with the zoo."""
    cards = [card for card in known_heads() if not card.package]
    rows = [
        f"| [`{card.name}`](#{card.name}) | {card.summary} | {_yes(card.attention)} "
        f"| {_yes(card.gradient)} | {card.source} |"
        for card in cards
    ]
    table = [
        "| head | what it does | attention | gradient | source |",
        "|---|---|:-:|:-:|---|",
        *rows,
    ]
    return "\n\n".join([HEADS.rstrip(), "\n".join(table), *map(_head, cards)]) + "\n"


def _head(card):
    module, _, name = card.target.partition(":")
    cls = getattr(importlib.import_module(module), name)
    tasks = ", ".join(cls.tasks)
    facts = f"Source: {card.source}. Tasks: {tasks}." + (
        " Weighs patches, so `zoo explain` shows its attention." if card.attention else ""
    )
    parts = [f"## {card.name}", _prose(inspect.getdoc(cls)), facts, settings_table(card.settings())]
    return "\n\n".join(parts)


def _prose(text):
    """Give a docstring as Markdown: without its sections, and without marks of its own."""
    text = re.split(r"^(?:Raises|Parameters|Examples|Notes)\n-+$", text, flags=re.MULTILINE)[0]
    text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r"``([^`]+)``", r"`\1`", text)
    text = text.replace("NOTE[DIFF] ", "").replace("::\n", ":\n").strip()
    # A block of code after a colon is indented; Markdown needs no more than that.
    return textwrap.dedent(text)


def settings_table(settings):
    """Give settings as a table: name, default, what is allowed, meaning."""
    lines = ["| setting | default | allowed | meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{one['name']}` | {shown(one['default'])} | {one['allowed']} | {one['meaning']} |"
        for one in settings
    ]
    return "\n".join(lines) if settings else "No settings."


def shown(value):
    """Write a setting's value as on a command line."""
    if isinstance(value, list | tuple):
        return f"`{','.join(map(str, value))}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return "`none`" if value is None else f"`{value}`"


def recipes_page():
    """Write the page of the recipes and of all their settings."""
    plain = asdict(Recipe())
    rows = []
    for recipe, what in known_recipes():
        changed = {key: value for key, value in asdict(recipe).items() if value != plain[key]}
        changed.pop("name", None)
        departs = ", ".join(f"`{key}={shown(value)[1:-1]}`" for key, value in changed.items())
        rows.append(f"| `{recipe.name}` | {what} | {departs or '–'} |")
    parts = [RECIPES + "\n".join(rows), "## Settings", settings_table(describe(Recipe)), _pixels()]
    return "\n\n".join(parts) + "\n"


def _pixels():
    """Write what is said of the recipes that train networks on pixels."""
    rows = [
        f"| `{recipe.name}` | {what} | {'; '.join(map(_phase, recipe.phases))} "
        f"| {', '.join(recipe.test_views)} |"
        for recipe, what in PRESETS.values()
    ]
    networks = [f"| `{name}` | {what} |" for name, what in known_networks().items()]
    table = "\n".join([*PIXELS.splitlines(), *rows])
    return "\n\n".join([table, "\n".join([*NETWORKS.splitlines(), *networks])])


def _phase(phase):
    rates = ", ".join(f"{part} {rate:g}" for part, rate in phase.learning_rates.items())
    return f"{phase.epochs} epochs of {phase.optimiser}, rates: {rates}"


def _yes(value):
    return "yes" if value else "–"


PAGES = {"cli.md": commands_page, "heads.md": heads_page, "recipes.md": recipes_page}
"""Every generated page of ``docs/``, and what writes it."""
