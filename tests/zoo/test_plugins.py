"""Heads of other packages: listed unseen, loaded when asked for, kept to their own names."""

from __future__ import annotations

import json
import logging
import re
import sys
import textwrap

import numpy as np
import pytest

from tests.commands import ROOT, call
from tests.zoo.runs import make_bags, make_run
from zoo.errors import NotSupported, RunError, UnknownHead
from zoo.fit import fit_run, make_split
from zoo.heads import HEADS, known_heads, load_head, spec
from zoo.recipes import recipe
from zoo.testing import check_head, toy_bags

HEAD = """
    from dataclasses import dataclass
    from typing import ClassVar

    from torch import nn

    from zoo.heads.neural import TorchSpec
    from zoo.settings import whole
    from zoo.training.loop import BagModule


    @dataclass(frozen=True, kw_only=True, slots=True)
    class Mean(TorchSpec):
        name: ClassVar[str] = "{name}"
        hidden: int = whole(16, "width", low=1)

        def build(self, n_features, n_classes):
            return MeanModule(self, n_features, n_classes)


    class MeanModule(BagModule):
        def __init__(self, spec, n_features, n_classes):
            super().__init__()
            self.embed = nn.Sequential(nn.Linear(n_features, spec.hidden), nn.Tanh())
            self.classify = nn.Linear(spec.hidden, n_classes)

        def logits(self, rows, layout):
            return self.classify(layout.mean(self.embed(rows)))
"""

ESTIMATOR = """
    from dataclasses import dataclass
    from typing import ClassVar

    from zoo.heads import HeadCard
    from zoo.heads.logistic import Logistic


    @dataclass(frozen=True, kw_only=True, slots=True)
    class Mine(Logistic):
        name: ClassVar[str] = "mine"


    CARD = HeadCard(
        name="mine",
        target="estimating:Mine",
        summary="logistic regression by another name",
        source="us",
        gradient=False,
        loader="zoo.heads.logistic:load",
    )
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of one module: its code, and the heads that it declares."""
    made = []

    def install(module, code, heads, version="1.0"):
        site = tmp_path / f"site-{module}"
        info = site / f"{module}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {module}\nVersion: {version}\nSummary: heads of {module}\n"
        )
        lines = [f"{name} = {target}" for name, target in heads.items()]
        (info / "entry_points.txt").write_text("\n".join(["[zoo.heads]", *lines, ""]))
        monkeypatch.syspath_prepend(str(site))
        made.append(module)

    yield install
    for module in made:
        sys.modules.pop(module, None)


def test_heads_of_packages_are_listed_without_being_imported(install):
    install("quiet", "raise SystemExit('imported')", {"quiet-head": "quiet:Head"})
    assert "quiet-head" in HEADS
    assert len(HEADS) == len(list(HEADS)) == len(known_heads())
    card = HEADS["quiet-head"]
    assert (card.summary, card.source) == ("heads of quiet", "package quiet 1.0")
    listed = call("zoo", "heads")
    assert listed.code == 0
    assert "quiet-head" in listed.out
    with pytest.raises(UnknownHead, match=r"known: .*torchmil.*quiet-head"):
        spec("quite-head")
    assert "quiet" not in sys.modules


def test_the_head_in_the_papers_keeps_the_contract_once_it_is_installed(install):
    paper = (ROOT / "docs/how-to/your-own-head.md").read_text(encoding="utf-8")
    code, use = re.findall(r"^```py\n(.*?)^```$", paper, flags=re.MULTILINE | re.DOTALL)
    install("papers", code, {"soft-max": "papers:SoftMax"})
    check_head(spec("soft-max", hidden=16), recipe(epochs=25, lr=1e-2))
    exec(use, vars(sys.modules["papers"]))


def test_a_head_of_a_package_is_as_good_as_any(install, tmp_path):
    install("averaging", HEAD.format(name="average"), {"average": "averaging:Mean"})
    told = call("zoo", "heads", "average", "--json").json
    assert [row["name"] for row in told[0]["settings"]] == ["standardise", "hidden"]
    bags = make_bags()
    run = fit_run(
        bags,
        spec("average"),
        out=tmp_path / "run",
        split=make_split(bags, folds=2),
        recipe=recipe(epochs=1),
    )
    head = load_head(run.head_paths()[0, 0])
    assert head.spec == spec("average")


def test_a_card_names_what_reads_the_file_of_a_head_that_is_no_network(install, tmp_path):
    install("estimating", ESTIMATOR, {"mine": "estimating:CARD"})
    head = spec("mine", inverse_penalty=2).fit(toy_bags())
    head.save(tmp_path / "0-0.safetensors")
    again = load_head(tmp_path / "0-0.safetensors")
    assert type(again.spec).__name__ == "Mine"
    assert np.array_equal(again.predict_proba(toy_bags()), head.predict_proba(toy_bags()))


def test_a_head_of_a_package_that_is_gone_is_refused(install, tmp_path, monkeypatch):
    install("leaving", HEAD.format(name="left"), {"left": "leaving:Mean"})
    spec("left").fit(toy_bags(), recipe=recipe(epochs=1)).save(tmp_path / "0-0.safetensors")
    monkeypatch.setattr(sys, "path", [path for path in sys.path if "site-leaving" not in path])
    with pytest.raises(RunError, match="no head is called 'left'"):
        load_head(tmp_path / "0-0.safetensors")


@pytest.mark.parametrize(
    ("code", "target", "said"),
    [
        ("import no_such_library", "broken:Head", r"ModuleNotFoundError: No module .*mend or unin"),
        ("1 / 0", "broken:Head", "ZeroDivisionError"),
        ("def", "broken:Head", "SyntaxError"),
        ("", "broken:Head", "AttributeError"),
        ("", "not_there:Head", "ModuleNotFoundError"),
        ("Head = 3", "broken:Head", "no HeadSpec class and no HeadCard"),
        ("class Head: pass", "broken:Head", "no HeadSpec class and no HeadCard"),
        (HEAD.format(name="other"), "broken:Mean", "calls itself 'other'"),
        ("from zoo.heads.logistic import Logistic as L\nclass Head(L): name = 'bad'",
         "broken:Head", "declare a HeadCard that names its loader"),
        ("from zoo.heads import HeadCard\nHead = HeadCard(name='bad', target='broken:Gone', "
         "summary='', source='')", "broken:Head", "AttributeError"),
    ],
)  # fmt: skip
def test_a_broken_package_is_named_in_one_line_and_harms_no_other_head(
    install, tmp_path, code, target, said
):
    install("broken", code, {"bad": target}, version="2.1")
    with pytest.raises(NotSupported, match=rf"head bad of package broken 2\.1.*{said}") as caught:
        spec("bad")
    assert "\n" not in str(caught.value)
    refused = call("zoo", "fit", "s", "c", "--head", "bad", "-o", tmp_path / "run")
    assert refused.code == 1
    assert refused.err.count("\n") == 1
    assert call("zoo", "heads").code == 0
    listed = {row["name"]: row for row in call("zoo", "heads", "--json").json}
    assert set(listed) == set(HEADS)
    assert re.search(rf"bad of package broken 2\.1.*{said}", listed["bad"]["error"])
    assert [name for name, row in listed.items() if "error" in row] == ["bad"]
    assert call("zoo", "heads", "bad", "--json").code == 1
    assert call("zoo", "heads", "logistic").code == 0
    assert spec("logistic").name == "logistic"


def test_no_package_takes_the_name_of_a_built_in_head(install, caplog):
    install("greedy", HEAD.format(name="logistic"), {"logistic": "greedy:Mean"})
    with caplog.at_level(logging.WARNING):
        assert list(HEADS).count("logistic") == 1
        list(HEADS)
    assert [record.getMessage() for record in caplog.records] == [
        "package greedy 1.0 declares a head logistic, which is a name of the zoo's own: not used"
    ]
    assert type(spec("logistic")).__module__ == "zoo.heads.logistic"


def test_a_name_that_two_packages_declare_is_used_for_neither(install):
    for module in ("first", "second"):
        install(module, HEAD.format(name="shared"), {"shared": f"{module}:Mean"})
    assert list(HEADS).count("shared") == 1
    with pytest.raises(NotSupported, match=r"first 1\.0.*uninstall all but one|second 1\.0.*unin"):
        spec("shared")


def test_a_file_leads_to_no_module_that_no_package_declares(tmp_path):
    run = make_run(tmp_path / "run", folds=2)
    path = run.head_paths()[0, 0]
    from safetensors import safe_open
    from safetensors.numpy import load_file, save_file

    with safe_open(path, framework="numpy") as file:
        document = json.loads(file.metadata()["zoo"])
    for name in ("os:system", "zoo.heads.logistic:Logistic", "greedy"):
        document["head"]["name"] = name
        save_file(load_file(path), tmp_path / "x.safetensors", {"zoo": json.dumps(document)})
        with pytest.raises(RunError, match="no head is called"):
            load_head(tmp_path / "x.safetensors")
