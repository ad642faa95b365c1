"""The commands from end to end: what they print, where, and how they end."""

from __future__ import annotations

import ast
import os
import re
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import click
import numpy as np
import pytest

import cli
from histostore import progress
from histostore.bridges import EXPORTS, IMPORTS
from tests.commands import BUILD, ROOT, begin, call, end, make_cohort
from zoo.metrics import METRICS

COMMANDS = [
    (program, name)
    for program, group in (("histostore", cli.histostore_group), ("zoo", cli.zoo_group))
    for name in group.commands
]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A cohort of 24 images, its store, two runs and their ensemble."""
    folder = tmp_path_factory.mktemp("study")
    make_cohort(folder, n=24)
    store, table = folder / "store", folder / "cohort.csv"
    steps = [
        ("histostore", "build", table, store, *BUILD),
        fitting(folder, "logistic", folder / "runs" / "one"),
        (
            *fitting(folder, "lightgbm", folder / "runs" / "two"),
            *("--seeds", 2, "--set", "rounds=5"),
        ),
        ("zoo", "ensemble", folder / "runs/one", folder / "runs/two", "-o", folder / "runs/both"),
        (*(word.format(folder) for word in FINETUNE), "-o", folder / "runs/network"),
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "SECONDS_BETWEEN_LINES", np.inf)  # however slow the machine is
        for step in steps:
            done = call(*step)
            assert (done.code, done.err) == (0, ""), step
    return folder


def fitting(folder, head, out):
    return (
        *("zoo", "fit", folder / "store", folder / "cohort.csv", "--head", head, "-o", out),
        *("--folds", 2, "--device", "cpu", "--workers", 1),
    )


# The happy path ----------------------------------------------------------------------------


def test_a_build_says_what_it_did_and_a_second_one_has_nothing_to_do(tmp_path):
    table = make_cohort(tmp_path, n=4)
    first = call("histostore", "build", table, tmp_path / "store", *BUILD)
    assert first.code == 0
    assert "4 of 4 images are there" in first.out
    assert "embedded now  4, 24 patches" in first.out
    again = call("histostore", "build", table, tmp_path / "store", *BUILD)
    assert "embedded now  0" in again.out
    assert "there before  4" in again.out


def test_parts_of_a_cohort_make_the_whole(tmp_path):
    table = make_cohort(tmp_path, n=5)
    counts = [
        call("histostore", "build", table, tmp_path / "store", *BUILD, *part, "--json").json
        for part in (("--shard", "1/2"), ("--limit", 2), ("--shard", "2/2"), ("--shard", "7/7"))
    ]
    assert [count["n_embedded"] for count in counts] == [3, 1, 1, 0]
    rows = call("histostore", "ls", tmp_path / "store", "--json").json
    assert {row["image_id"] for row in rows} == {f"i{n}" for n in range(5)}


def test_changed_images_are_counted_and_the_first_are_named(tmp_path):
    table = make_cohort(tmp_path, n=6)
    call("histostore", "build", table, tmp_path / "store", *BUILD)
    for number in range(5):
        os.utime(tmp_path / "images" / f"{number}.png", ns=(0, number))
    done = call("histostore", "build", table, tmp_path / "store", *BUILD)
    assert done.code == 0
    assert "changed       5 since embedded (i0, i1, i2, …): the old embeddings stay" in done.out


def test_a_fit_prints_every_metric_with_its_interval(study):
    done = call(*fitting(study, "logistic", study / "again"))
    assert done.code == 0
    lines = {line.split()[0]: line for line in done.out.splitlines()[1:]}
    assert set(METRICS) <= set(lines)
    assert " to " in lines["macro_f1"]
    assert "24 images tested, 2 classes, 2 folds, 1 seed" in done.out


def test_runs_are_ranked_and_reported(study):
    runs = [study / "runs" / name for name in ("one", "two", "both")]
    ranked = call("zoo", "compare", *runs)
    assert ranked.code == 0
    assert all(run.name in ranked.out for run in runs)
    page = call("zoo", "report", *runs, "-o", study / "report")
    assert page.out.strip() == str(study / "report" / "index.html")
    assert (study / "report" / "index.html").stat().st_size > 1000


def test_a_stopped_fit_goes_on_only_with_the_same_settings(study, tmp_path):
    words = fitting(study, "logistic", tmp_path / "run")
    call(*words)
    (tmp_path / "run" / "run.json").unlink()
    (tmp_path / "run" / "unfinished").mkdir()
    (tmp_path / "run" / "unfinished" / "plan.json").write_text("{}")
    refused = call(*words)
    assert refused.code == 1
    assert "unfinished run with another" in refused.err


def test_relative_paths_are_recorded_from_the_root(study, tmp_path, monkeypatch):
    monkeypatch.chdir(study)
    done = call(
        *("zoo", "fit", "store", "cohort.csv", "--head", "logistic", "-o", tmp_path / "run"),
        *("--folds", 2, "--json"),
    )
    assert done.json["store"]["url"] == str(study / "store")
    assert done.json["cohort"]["url"] == str(study / "cohort.csv")


# JSON --------------------------------------------------------------------------------------

FINETUNE = (
    *("zoo", "finetune", "{0}/cohort.csv", "--model=small-cnn", "--px=32", "--folds=2"),
    *("--set=epochs=1", "--device=cpu", "--workers=1"),
)

JSON = {
    ("histostore", "build", "{0}/cohort.csv", "{0}/store", *BUILD): {
        *("feature_set", "n_images", "n_done", "n_embedded", "n_flagged", "n_failed", "failed"),
        *("changed", "n_patches", "seconds"),
    },
    ("histostore", "info", "{0}/store"): {"url", "feature_sets"},
    ("histostore", "ls", "{0}/store"): {
        *("image_id", "n_patches", "augmentations", "flags", "fragment", "source"),
    },
    ("histostore", "encoders"): {"name", "n_features", "licence", "summary"},
    ("histostore", "cohort", "folder", "{0}/classes", "-o", "{0}/made.csv"): {
        *("path", "n_images", "labels"),
    },
    (
        "zoo",
        "fit",
        "{0}/store",
        "{0}/cohort.csv",
        "--head=logistic",
        "--folds=2",
        "-o",
        "{0}/json",
    ): {
        *("format", "kind", "name", "head", "recipe", "target", "classes", "split", "seeds"),
        *("store", "cohort", "metrics", "versions", "created", "seconds"),
    },
    ("histostore", "verify", "{0}/store"): {"ok", "problems", "n_fragments", "n_bytes"},
    ("histostore", "compact", "{0}/store"): {"feature_set", "n_before", "n_after", "merged"},
    ("histostore", "preview", "{0}/cohort.csv", "-o", "{0}/preview", *BUILD[:4]): {
        *("path", "n_images", "n_failed", "images"),
    },
    ("histostore", "quality", "{0}/cohort.csv", "-o", "{0}/quality.csv"): {
        *("path", "wanted", "n_images", "n_passed", "images"),
    },
    ("histostore", "gc", "{0}/store", "--dry-run"): {"url", "dry_run", "n_removed", "found"},
    ("histostore", "export", "{0}/store", "{0}/out.npz", "--layout=npz"): {"target", "n_images"},
    ("histostore", "import", "{0}/foreign.npz", "{0}/store2", "--layout=npz"): {
        *("feature_sets", "n_images", "n_imported", "n_failed", "failed"),
    },
    ("zoo", "ensemble", "{0}/runs/one", "{0}/runs/two", "-o", "{0}/json2"): {"kind", "members"},
    ("zoo", "compare", "{0}/runs/one", "{0}/runs/two"): {"runs", "level", "resamples", "warnings"},
    ("zoo", "report", "{0}/runs/one", "-o", "{0}/json3"): {"path"},
    ("zoo", "predict", "{0}/runs/one", "{0}/store", "-o", "{0}/submission.csv"): {"path"},
    (
        *("zoo", "explain", "{0}/runs/one", "{0}/store", "--image=i0"),
        *("-o", "{0}/map.png"),
    ): {"image_id"},
    (
        *("zoo", "tune", "{0}/store", "{0}/cohort.csv", "--head=logistic", "--trials=2"),
        *("--inner-folds=2", "--folds=2", "--workers=1", "-o", "{0}/tuned"),
    ): {"format", "kind", "head", "split", "metrics", "tuning"},
    (*FINETUNE, "-o", "{0}/trained"): {"format", "kind", "head", "split", "metrics", "cohort"},
    (
        *("zoo", "cam", "{0}/runs/network", "{0}/cohort.csv", "--image=i0"),
        *("-o", "{0}/cam.png"),
    ): {"image_id"},
    ("zoo", "heads"): {"name", "summary", "source", "settings"},
    ("zoo", "recipes"): {"name", "summary", "settings"},
}


def test_json_is_tested_for_every_command():
    # The demonstration has tests of its own, for it takes minutes; the application, for it serves.
    assert {words[:2] for words in JSON} == set(COMMANDS) - {("zoo", "demo"), ("zoo", "app")}


@pytest.mark.parametrize("words", JSON, ids=lambda words: "-".join(words[:2]))
def test_json_is_all_that_stands_on_standard_output(study, words):
    (study / "classes" / "one").mkdir(parents=True, exist_ok=True)
    (study / "classes" / "one" / "a.png").write_bytes((study / "images" / "0.png").read_bytes())
    np.savez(study / "foreign.npz", X=np.eye(4, dtype=np.float32), bag=[0, 0, 1, 1])
    done = call(*(word.format(study) for word in words), "--json")
    assert done.code == 0
    assert done.out.isascii()
    document = done.json
    for row in document if isinstance(document, list) else [document]:
        assert JSON[words] <= set(row)


# Help and misuse ---------------------------------------------------------------------------


@pytest.mark.parametrize(("program", "name"), COMMANDS)
def test_every_command_and_every_option_has_help(program, name):
    done = call(program, name, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: {program} {name} ")
    assert call(program, name, "-h").out == done.out
    group = {"histostore": cli.histostore_group, "zoo": cli.zoo_group}[program]
    chosen = group.commands[name]
    assert "..." not in chosen.get_short_help_str(60), "its first sentence is too long for the list"
    for option in chosen.params:
        assert isinstance(option, click.Argument) or option.help, option.name


def test_help_loads_nothing_heavy():
    code = (
        "import sys, cli\n"
        "try: cli.histostore_group(['--help'])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('numpy', 'zarr', 'pandas', 'dask', 'torch', 'rich') if m in sys.modules])"
    )
    done = end(begin([sys.executable, "-c", code]))
    assert done.out.splitlines()[-1] == "[]"


@pytest.mark.parametrize(("name", "table"), [("import", IMPORTS), ("export", EXPORTS)])
def test_every_layout_can_be_named(name, table):
    (option,) = (
        each for each in cli.histostore_group.commands[name].params if each.name == "layout"
    )
    assert list(option.type.choices) == list(table)


def test_both_commands_are_installed_and_know_their_version():
    for program in ("histostore", "zoo"):
        done = end(begin([Path(sys.executable).parent / program, "--version"]))
        assert (done.code, done.out.split()[0], done.err) == (0, f"{program},", "")


MISUSE = [
    (("histostore", "biuld"), "No such command 'biuld'; did you mean build?"),
    (("zoo", "dance"), "there are app, cam, compare, demo, ensemble"),
    (("histostore", "build"), "Missing argument 'COHORT'"),
    (("histostore", "build", "c", "s", "--encodr", "x"), "--encoder"),
    (("histostore", "build", "c", "s", "--patch-size", "0"), "0 is not in the range x>=1"),
    (("histostore", "build", "c", "s", "--workers", "-1"), "-1 is not in the range x>=1"),
    (("histostore", "build", "c", "s", "--shard", "3/2"), "'3/2' is not I/N with 1 <= I <= N"),
    (("histostore", "build", "c", "s", "--tissue", "no"), "'hsv', 'otsu', 'none'"),
    (("histostore", "info", "s", "--storage-option", "key"), "'key' is not key=value"),
    (("histostore", "build", "c", ""), "Invalid value for 'STORE': is empty"),
    (("zoo", "fit", "s", "c", "-o", "r"), "Missing option '--head'"),
    (("zoo", "fit", "s", "c", "-o", "r", "--head=x", "--split-seed=-1"), "not in the range x>=0"),
    (("zoo", "fit", "s", "c", "-o", "r", "--head=x", "--set=a=1", "--set=a=2"), "a is given twice"),
    (("zoo", "ensemble", "a", "b", "-o", "pyproject.toml"), "is a file"),
]


@pytest.mark.parametrize(("words", "message"), MISUSE, ids=lambda value: "-".join(value[:2]))
def test_misuse_ends_with_2_and_a_hint(words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    done = call(*words)
    assert done.code == 2
    assert done.out == ""
    assert message in " ".join(done.err.split())


UNKNOWN = [
    (
        ("histostore", "build", "{0}/cohort.csv", "{0}/new", "--encoder=dino"),
        "squeezenet1_1, texture, timm:NAME",
    ),
    (
        ("histostore", "build", "{0}/cohort.csv", "{0}/new", "--augment=rot45"),
        "known: identity, rot90",
    ),
    (("histostore", "build", "{0}/cohort.csv", "{0}/new", "--min-tissue=7"), "a share from 0 to 1"),
    (
        ("histostore", "ls", "{0}/store", "--feature-set=x"),
        "holds no feature set 'x'; it holds texture-",
    ),
    (
        ("zoo", "fit", "{0}/store", "{0}/cohort.csv", "--head=x", "-o", "{0}/new"),
        "known: gated-mil, mlp-simple",
    ),
    (("zoo", "heads", "x"), "known: gated-mil, mlp-simple"),
    (("zoo", "recipes", "x"), "known: default, r-drop"),
    (("{fit}", "--recipe=x"), "known: default, r-drop"),
    (("{fit}", "--set=colour=1"), "recipes know batch_size"),
    (("{fit}", "--target=grade"), "its columns are image_id, path, label"),
    (("{fit}", "--split=part"), "no column 'part'; it has image_id, path, label"),
    (("{fit}", "--augmentation=rot90"), "holds no view 'rot90'; it holds identity"),
    (("{fit}", "--feature-set=x"), "holds no feature set 'x'; it holds texture-"),
    (("{fit}", "--folds=many"), "give a number or leave-one-patient-out"),
    (("{fit}", "--recipe=r-drop"), "use recipe default"),
]


@pytest.mark.parametrize(("words", "message"), UNKNOWN, ids=lambda value: "".join(value[-1:]))
def test_what_is_unknown_is_answered_with_what_there_is(study, words, message):
    fit = ("zoo", "fit", "{0}/store", "{0}/cohort.csv", "--head=logistic", "-o", "{0}/new")
    words = (*fit, *words[1:]) if words[0] == "{fit}" else words
    done = call(*(word.format(study) for word in words))
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("Error: ")
    assert done.err.count("\n") == 1, "one line"
    assert message in done.err
    assert not (study / "new").exists()


def test_of_several_feature_sets_one_must_be_named(tmp_path):
    table = make_cohort(tmp_path, n=4)
    for size in (32, 64):
        call("histostore", "build", table, tmp_path / "store", *BUILD, "--patch-size", size)
    names = [
        row["name"]
        for row in call("histostore", "info", tmp_path / "store", "--json").json["feature_sets"]
    ]
    assert len(names) == 2
    for words in (
        ("histostore", "ls", tmp_path / "store"),
        ("zoo", "fit", tmp_path / "store", table, "--head", "logistic", "-o", tmp_path / "run"),
    ):
        done = call(*words)
        assert done.code == 1
        assert all(name in done.err for name in names)
    assert call("histostore", "ls", tmp_path / "store", "--feature-set", names[0]).code == 0


def test_a_missing_library_is_answered_with_the_command_that_installs_it(study, monkeypatch):
    with monkeypatch.context() as without:
        for library in ("sklearn", "sklearn.linear_model"):
            without.setitem(sys.modules, library, None)
        done = call(*fitting(study, "logistic", study / "none"))
    assert (done.code, done.out) == (1, "")
    assert done.err == "Error: sklearn is not installed; run: pip install 'histostore[zoo]'\n"
    # Nothing was finished, so another head may have the directory.
    assert call(*fitting(study, "lightgbm", study / "none")).code == 0


def test_without_any_extra_stores_are_built_and_heads_say_what_they_need(study, tmp_path):
    absent = [*cli.LIBRARIES_OF_ZOO, "distributed", "timm", "torchvision"]
    without = f"import sys; sys.modules.update(dict.fromkeys({absent})); import cli; sys.argv[1:] ="
    words = ["build", str(study / "cohort.csv"), str(tmp_path / "store"), *BUILD, "--limit", "1"]
    built = end(begin([sys.executable, "-c", f"{without} {words}; cli.histostore_main()"]))
    assert (built.code, built.err) == (0, "")
    words = [str(word) for word in fitting(study, "gated-mil", tmp_path / "run")[1:]]
    done = end(begin([sys.executable, "-c", f"{without} {words}; cli.zoo_main()"]))
    assert done.code == 1
    assert done.err == "Error: torch is not installed; run: pip install 'histostore[zoo]'\n"


def test_whatever_library_zoo_imports_can_be_named_with_its_extra():
    """Those that answer for themselves are left out: their message is tested where they are."""
    needed = {re.split(r"[^\w-]", each)[0] for each in requires("histostore") if ";" not in each}
    always = {
        module for module, names in packages_distributions().items() if needed.intersection(names)
    }
    trees = [ast.parse(path.read_text()) for path in (ROOT / "zoo").rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    libraries = {name.partition(".")[0] for name in imported} - {"histostore", "zoo"}
    own_message = {"gradio", "optuna", "torchmil"}
    found = libraries - set(sys.stdlib_module_names) - always - own_message
    assert "markupsafe" in found
    assert found <= set(cli.LIBRARIES_OF_ZOO)


def test_right_angle_views_of_an_encoder_that_cannot_see_them_are_remarked(tmp_path):
    table = make_cohort(tmp_path, n=1)
    done = call("histostore", "build", table, tmp_path / "store", *BUILD, "--augment", "d4")
    assert done.code == 0
    assert done.err.count("\n") == 1
    assert "8 of them cost 8 times as much and add nothing" in done.err
