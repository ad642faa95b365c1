"""The report: right numbers, safe text, readable page; whatever the runs are called."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import OptionError, StorageError
from tests.zoo.reports import EVIL, Page, fake_run
from zoo.errors import RunError
from zoo.report import collect, write_report
from zoo.report.markdown import escaped


def test_the_three_files_agree(page, runs):
    document = json.loads((page.parent / "report.json").read_text("utf-8"))
    assert (document["format"], document["kind"]) == (2, "report")
    html, markdown = page.read_text("utf-8"), (page.parent / "report.md").read_text("utf-8")
    scores = [run["test"]["macro_f1"] for run in document["runs"]]
    assert [s["value"] for s in scores] == sorted((s["value"] for s in scores), reverse=True)
    for score, run in zip(scores, document["runs"], strict=True):
        assert sum(map(sum, run["confusion"])) == 45
        for number in (score["value"], score["low"], score["high"]):
            assert f"{number:.3f}" in html
            assert f"{number:.3f}" in markdown
        for row in run["report"]:
            assert f"{row['f1']:.4f}" in html
            assert f"{row['f1']:.4f}" in markdown
    assert document["facts"]["n_patients"] == 23
    assert document["facts"]["classes"][0] == {"name": "CLL", "images": 15, "patients": 15}


def test_the_same_runs_give_the_same_bytes(runs, tmp_path):
    pages = [write_report(order, tmp_path / "out").read_bytes() for order in (runs, runs[::-1])]
    # the order of the paths shows in nothing but the command to repeat
    assert pages[0] == pages[1]


# The page ----------------------------------------------------------------------------------


def test_the_page_is_sound_and_accessible(page):
    document = Page(page.read_text("utf-8"))
    ids = document.values("id")
    assert len(ids) == len(set(ids))
    targets = document.values("aria-labelledby") + [
        href[1:] for href in document.values("href") if href.startswith("#")
    ]
    assert set(targets) <= set(ids)
    tags = [tag for tag, _ in document.elements]
    assert tags.count("h1") == tags.count("main") == tags.count("nav") == 1
    assert tags.count("table") == tags.count("caption")
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(b - a <= 1 for a, b in itertools.pairwise(levels))
    for tag, attributes in document.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
        if tag == "th":
            assert attributes.get("scope") in {"col", "row", "colgroup"}


def test_the_page_loads_nothing_and_runs_nothing(page):
    import base64
    import hashlib

    text = page.read_text("utf-8")
    document = Page(text)
    tags = {tag for tag, _ in document.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form"}
    assert document.values("style") == []
    assert not [a for _, e in document.elements for a in e if a.startswith("on")]
    assert all(value.startswith("data:") for value in document.values("src"))
    links = [href for href in document.values("href") if not href.startswith(("#", "data:"))]
    assert set(links) == {"report.json", "report.md"}
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(a for a in document.values("content") if a.startswith("default-src"))
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:;")


def test_names_from_outside_are_text_and_never_markup(tmp_path):
    classes = (EVIL, "a|b", 'x & "y"')
    run = fake_run(
        tmp_path / "run",
        name=f"{EVIL} | run",
        classes=classes,
        id_prefix='"><img src=x onerror=alert(1)>',
        target=EVIL,
        versions={EVIL: EVIL},
        head={"name": EVIL, "settings": {EVIL: EVIL, "nested": {"</code>": EVIL}}},
        recipe={"name": EVIL, "x": EVIL},
    )
    page = write_report([run, fake_run(tmp_path / "b", name="`b`", classes=classes)], tmp_path)
    document = Page(page.read_text("utf-8"))
    tags = {tag for tag, _ in document.elements}
    assert not tags & {"script", "img"}
    assert not [a for _, e in document.elements for a in e if a.startswith("on")]
    assert EVIL in "".join(document.texts)
    markdown = (tmp_path / "report.md").read_text("utf-8")
    outside_code = re.sub(r"^(`{3,}).*?^\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"<\s*(script|img)", outside_code)
    rows = [line for line in outside_code.splitlines() if line.startswith("| a\\|b")]
    assert rows
    # every row of a table has as many cells as its header, whatever its words
    for block in re.findall(r"(?:^\|.*\n)+", outside_code, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in block.splitlines()}) == 1


@given(st.text())
def test_escaped_text_opens_no_tag_and_no_table_cell(text):
    told = escaped(text)
    assert "<" not in told
    assert "\n" not in told
    assert not re.search(r"(?<!\\)(\\\\)*\|", told)


def _luminance(colour: tuple[float, ...]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_colour_reads_on_its_ground(scheme):
    # WCAG 2.2, 1.4.3: 4.5 to 1
    from importlib.resources import files

    css = (files("zoo.report") / "report.css").read_text("utf-8")
    block = css[css.index("prefers-color-scheme: dark") :] if scheme == "dark" else css
    block = block[: block.index("}")]
    hexes = dict(re.findall(r"--(\w+): #(\w{6})", block))
    colour = {k: tuple(int(v[i : i + 2], 16) / 255 for i in (0, 2, 4)) for k, v in hexes.items()}
    for text in ("ink", "soft", "accent", "train", "gap"):
        for ground in ("paper", "panel"):
            assert _contrast(colour[text], colour[ground]) >= 4.5
    for name in ("hit", "miss"):
        over = [int(v) / 255 for v in re.search(rf"--{name}: ([\d ]+)", block).group(1).split()]
        share = max(float(v) for v in re.findall(rf"rgb\(var\(--{name}\) / (\.\d+)\)", css))
        ground = tuple(
            share * a + (1 - share) * b for a, b in zip(over, colour["paper"], strict=True)
        )
        assert _contrast(colour["ink"], ground) >= 4.5


# What was compared, and what is refused ----------------------------------------------------


def test_the_summary_names_the_leader_with_its_interval(runs):
    data = collect(runs)
    best = data.runs[0]
    score = best.test["macro_f1"]
    words = f"macro-F1 {score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
    assert data.summary.startswith(f"{best.name} is ahead on 45 images of 23 patients: {words}.")
    assert best.difference is None
    assert all(run.difference.value <= 0 for run in data.runs[1:])
    alone = collect(runs[:1])
    assert alone.summary.startswith("gated-mil reaches macro-F1 ")


def test_a_run_and_its_copy_cannot_be_told_apart(runs, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    data = collect([runs[0], copy])
    assert "cannot be told apart from it" in data.summary
    assert data.runs[1].difference.value == 0


def test_runs_on_other_images_are_not_subtracted_and_a_note_says_so(runs, tmp_path):
    other = fake_run(
        tmp_path / "other", name="other", n_images=30, cohort={"digest": "00" * 32, "url": "o.csv"}
    )
    data = collect([runs[0], other])
    assert [run.difference for run in data.runs] == [None, None]
    assert any("another cohort" in note for note in data.notes)


def test_commands_quote_what_a_shell_would_take_apart(embedded, tmp_path):
    import shlex

    root, run, cohort = embedded
    build, fit, report = collect([run], out_dir="my report").commands
    assert shlex.split(build)[:6] == ["histostore", "build", str(cohort), str(root / "store"), "--encoder", "texture"]  # fmt: skip
    assert "--folds 3" in fit
    assert "--seeds 3" in fit
    assert "--set hidden=160" in fit
    assert shlex.split(report)[-1] == "my report"


@pytest.mark.parametrize("name", ["gated-mil", "mlp-improved", "logistic", "lightgbm"])
def test_the_fit_command_gives_the_same_head_and_recipe(tmp_path, name):
    import shlex

    from zoo.configure import configure
    from zoo.heads.catalog import spec
    from zoo.recipes import recipe

    head, how = spec(name), recipe("swa", epochs=7, patch_dropout=0.1)
    run = fake_run(tmp_path / "run", head=head.to_json(), recipe=how.to_json())
    fit = shlex.split(next(c for c in collect([run]).commands if c.startswith("zoo fit")))
    settings = {}
    for word, following in itertools.pairwise(fit):
        if word == "--set":
            key, _, value = following.partition("=")
            try:
                settings[key] = json.loads(value)
            except json.JSONDecodeError:
                settings[key] = value
    options = {a: b for a, b in itertools.pairwise(fit) if a in {"--head", "--recipe"}}
    assert configure(options["--head"], options["--recipe"], settings) == (head, how)


def test_a_cohort_without_patients_is_said_and_not_called_patients(tmp_path):
    run = fake_run(tmp_path / "run")
    frame = pd.read_parquet(run / "predictions.parquet")
    frame["patient_id"] = frame["image_id"]
    frame.to_parquet(run / "predictions.parquet", index=False)
    data = collect([run])
    assert any("no patient ids" in note for note in data.notes)
    assert "patient" not in data.summary


def test_what_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(RunError, match="no runs"):
        write_report([], tmp_path / "out")
    with pytest.raises(RunError):
        write_report([tmp_path / "nothing"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written_is_said_in_one_line(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*report\.json: "):
        write_report(runs[:1], tmp_path / "file")


def test_a_page_of_something_else_is_not_written_over(runs, tmp_path):
    page = tmp_path / "index.html"
    page.write_text("my home page")
    with pytest.raises(OptionError, match="is of no report"):
        write_report(runs[:1], tmp_path)
    assert page.read_text() == "my home page"


def test_a_report_that_finds_no_space_leaves_the_earlier_one_whole(runs, tmp_path, monkeypatch):
    write_report(runs[:1], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = Path.write_text

    def full(path, *args, **options):
        if "index.html" in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, *args, **options)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left"):
        write_report(runs, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_report_is_not_written_into_a_run(runs):
    before = sorted(path.name for path in runs[0].iterdir())
    with pytest.raises(OptionError, match="directory of its own"):
        write_report(runs[:1], runs[0])
    assert sorted(path.name for path in runs[0].iterdir()) == before


def test_the_schema_of_the_json_file_is_documented(page):
    from tests.commands import ROOT

    text = (ROOT / "docs/how-to/report.md").read_text("utf-8")
    known = set(re.findall(r"`(\w+)`", text))
    document = json.loads((page.parent / "report.json").read_text("utf-8"))
    run = document["runs"][0]
    told = {*document, *document["facts"], *run, *run["cost"], *run["learning"]}
    told |= {*run["judged"], *run["operating"][0], *document["examples"][0]}
    told |= {*document["pairs"][0], *document["groups"][0]}
    assert told <= known
