"""Experiments: what a file asks for, that it is done once, and that one failure ends nothing."""

from __future__ import annotations

import json
import re
import shutil

import pytest

from histostore.store import open_store
from histostore.testing import spec_of
from tests.commands import ROOT, call
from tests.zoo.runs import make_bags
from tests.zoo.stores import make_world
from zoo.errors import RecipeError
from zoo.experiments import plan, read_experiment
from zoo.experiments import running as running_module
from zoo.experiments.sources import find_set
from zoo.report import collect
from zoo.report.html import to_html
from zoo.run import Run
from zoo.split import Split

WHOLE = """
cohort = "cohort.csv"
store = "store"
folds = 2
seeds = [0, 3]

[features]
one = "%s"

[[grid]]
heads = ["logistic", "knn"]

[[grid]]
heads = ["mean-pool"]
recipes = ["default", "swa"]
settings = {epochs = 2}

[ensemble]
rules = ["mean", "stack"]
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("world"), n=24)


@pytest.fixture(scope="module")
def name(world):
    return world.bags().source["store"]["feature_set"]


@pytest.fixture(scope="module")
def done(world, name):
    """An experiment that was run from a file beside the cohort."""
    file = write(world, WHOLE % name)
    ended = call("zoo", "fit", file, "-o", file.parent / "out", "--workers", 1)
    assert ended.code == 0, ended.err
    return file, file.parent / "out", ended


def write(world, text, called="grid.toml"):
    file = world.table.parent / called
    file.write_text(text, encoding="utf-8")
    return file


def read(tmp_path, text):
    file = tmp_path / "file.toml"
    file.write_text(text, encoding="utf-8")
    return read_experiment(file)


def problems(tmp_path, text):
    with pytest.raises(RecipeError) as error:
        plan(read(tmp_path, text))
    return "\n".join(error.value.problems)


# The file ----------------------------------------------------------------------------------

HEAD = 'cohort = "c.csv"\nstore = "s"\n'
GRID = '[[grid]]\nheads = ["svm"]\n'


def test_everything_wrong_is_listed_at_once_with_what_was_perhaps_meant(tmp_path):
    told = problems(
        tmp_path,
        'cohrt = "c.csv"\nstore = "s"\nfolds = 1\nseeds = []\ntask = "guess"\n'
        "validation-share = 1\n"
        '[[grid]]\nheads = "svm"\nrecipe = ["swa"]\nvary = {lr = 1}\n'
        '[ensemble]\nrules = ["median"]\ncalibrate = "well"\n[report]\nmetrics = "accuracy"\n',
    )
    for wanted in (
        "unknown key 'cohrt'; did you mean cohort?",
        "cohort is missing",
        "folds must be",
        "seeds must be",
        "validation-share must be a number from 0 to below 1",
        "task is 'guess'",
        "grid: heads must be a list",
        "grid: unknown key 'recipe'; did you mean recipes?",
        "grid: vary.lr must be a list",
        "ensemble: rules holds median",
        "ensemble: calibrate is 'well'",
        "report: unknown key 'metrics'; did you mean metric?",
    ):
        assert wanted in told


@pytest.mark.parametrize(
    ("more", "wanted"),
    [
        ('[[grid]]\nheads = ["svn"]', "no head is called 'svn'"),
        ('[[grid]]\nheads = ["knn"]\nrecipes = ["swap"]', "no recipe is called 'swap'"),
        ('[[grid]]\nheads = ["svm"]\nrecipes = ["swa"]', "takes no gradient steps"),
        ('[[grid]]\nheads = ["knn"]\nsettings = {hidden = 3}', "unknown setting 'hidden'"),
        (GRID + GRID, "run svm.default.features is asked for twice"),
        (GRID + "[ensemble]", "needs two runs or more"),
        (GRID + '[ensemble]\nmembers = ["svn*"]', "members holds 'svn*', but no run is called so"),
        (GRID + '[report]\nmetric = "beauty"', "metric is 'beauty': use one of"),
        ('features = {a = "x"}\n[[grid]]\nheads = ["svm"]\nfeatures = ["b"]', "there are a"),
        ('[features]\na = {stor = "x"}\n' + GRID, "features.a: unknown key 'stor'"),
        ("split = 'x'\nrepeats = 2\n" + GRID, "leave out folds and repeats"),
        ('[[grid]]\nheads = ["knn"]\nvary = {n_neighbours = [3, 3]}', "is asked for twice"),
        ("", "grid is missing"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_opened(tmp_path, more, wanted):
    assert wanted in problems(tmp_path, HEAD + more)


@pytest.mark.parametrize("text", ["cohort = ", "cohort = 1\ncohort = 2", "\x00"])
def test_what_is_no_toml_says_where(tmp_path, text):
    with pytest.raises(RecipeError, match=r"file\.toml is no TOML"):
        read(tmp_path, text)


def test_credentials_in_a_file_are_refused_and_not_repeated(tmp_path):
    told = problems(tmp_path, 'cohort = "s3://key:hush@bucket/c.csv"\nstore = "s"\n' + GRID)
    assert "credentials" in told
    assert "hush" not in told


def test_paths_start_at_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir("/")
    told = read(tmp_path, 'cohort = "sub/c.csv"\nstore = "s3://bucket/store"\n' + GRID)
    assert told.cohort == str(tmp_path / "sub" / "c.csv")
    assert {source.store for source in told.sources.values()} == {"s3://bucket/store"}


def test_the_plan_is_the_product_and_leaves_out_recipes_without_meaning(tmp_path):
    planned = plan(
        read(
            tmp_path,
            HEAD + 'folds = 3\nrepeats = 2\nseeds = 4\n[features]\na = "x"\nb = "y"\n'
            '[[grid]]\nheads = ["svm", "mean-pool"]\nrecipes = ["default", "swa"]\n'
            '[[grid]]\nheads = ["abmil"]\nfeatures = ["b"]\nvary = {lr = [0.1, 0.2], hidden = [8, 9]}\n',
        )
    )
    names = {cell.name for cell in planned.cells}
    # svm × default, mean-pool × 2 recipes, on both; abmil × 2 × 2 on one.
    assert len(names) == len(planned.cells) == 2 * 3 + 4
    assert {"svm.default.a", "mean-pool.swa.b", "abmil.default.b.lr=0.1.hidden=9"} <= names
    assert planned.notes == ("svm takes no gradient steps: left out with swa",)
    assert planned.to_json()["n_fits"] == 10 * 3 * 2 * 4
    assert [c.source.alias for c in planned.cells] == sorted(c.source.alias for c in planned.cells)
    varied = {(c.recipe.lr, c.head.hidden) for c in planned.cells if c.head.name == "abmil"}
    assert varied == {(0.1, 8), (0.1, 9), (0.2, 8), (0.2, 9)}


# Doing it ----------------------------------------------------------------------------------


def test_one_command_makes_runs_ensembles_and_a_report(done):
    file, out, ended = done
    names = {"logistic.default.one", "knn.default.one", "mean-pool.default.one"}
    names |= {"mean-pool.swa.one"}
    assert {path.name for path in (out / "runs").iterdir()} == names
    assert {path.name for path in (out / "ensembles").iterdir()} == {
        "ensemble.mean",
        "ensemble.stack",
    }
    for name in names:
        assert name in ended.out
        assert Run.load(out / "runs" / name).document["seeds"] == [0, 3]
    combined = Run.load(out / "ensembles" / "ensemble.mean").document
    assert {member["run"] for member in combined["members"]} == names
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("<h1") == 1
    assert "ensemble.stack" in page
    assert (out / "experiment.toml").read_text(encoding="utf-8").endswith(file.read_text())


def test_runs_equal_those_of_the_command_for_one(done, world, tmp_path):
    _, out, _ = done
    alone = call(
        *("zoo", "fit", world.store, world.table, "--head=mean-pool", "--recipe=swa"),
        *("--folds=2", "--seeds=4", "--set=epochs=2", "--workers=1", "-o", tmp_path / "alone"),
    )
    assert alone.code == 0
    keys = ["fold", "seed", "role", "image_id"]
    frames = []
    for path in (tmp_path / "alone", out / "runs" / "mean-pool.swa.one"):
        frame = Run.load(path).predictions
        frames.append(frame[frame["seed"].isin([0, 3])].sort_values(keys).reset_index(drop=True))
    assert frames[0].equals(frames[1])


def test_again_nothing_is_fitted_and_nothing_changes(done):
    file, out, _ = done
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    again = call("zoo", "fit", file, "-o", out, "--json")
    assert again.json["n_fitted"] == 0
    after = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert after.keys() == before.keys()
    changed = {path.name for path in before if before[path] != after[path]}
    assert changed <= {"experiment.json"}  # counts what was fitted now


def test_the_report_is_titled_and_reproduced_by_the_experiment(done, tmp_path):
    file, out, _ = done
    page = (out / "report" / "index.html").read_text("utf-8")
    told = json.loads((out / "report" / "report.json").read_text("utf-8"))
    assert told["title"].startswith("Grid: 6 runs")
    assert told["experiment"]["command"] == f"zoo fit {file} -o {out}"
    assert told["experiment"]["failed"] == []
    assert "One command and one file led to all of this" in page
    assert "epochs = 2" in page
    # Of some of the runs, with a failure on record, both are said.
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    known = json.loads((copy / "experiment.json").read_text("utf-8"))
    known["failed"] = [{"name": "svm.default.one", "reason": "<b>too few</b> images"}]
    (copy / "experiment.json").write_text(json.dumps(known), "utf-8")
    some = collect(sorted((copy / "runs").iterdir()))
    assert "1 of the experiment failed: svm.default.one" in some.notes[0]
    assert some.notes[1] == "4 of the 6 runs of the experiment are shown."
    assert "&lt;b&gt;too few&lt;/b&gt; images" in to_html(some)
    # Runs of two experiments are of none.
    assert collect([copy / "runs" / "knn.default.one", out / "runs" / "knn.default.one"]).experiment is None  # fmt: skip


def test_what_is_missing_is_fitted_and_its_ensembles_are_made_anew(done, tmp_path):
    file, whole, _ = done
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    shutil.rmtree(out / "runs" / "knn.default.one")
    # Members are named by their folders, so those of the copy are others.
    before = (out / "ensembles" / "ensemble.mean" / "run.json").read_bytes()
    again = call("zoo", "fit", file, "-o", out, "--json")
    assert again.code == 0
    assert again.json["n_fitted"] == 1
    assert (out / "ensembles" / "ensemble.mean" / "run.json").read_bytes() != before
    assert not list((out / "ensembles").glob(".*"))


def test_a_killed_experiment_goes_on_with_the_fits_that_are_missing(world, name, tmp_path):
    file = write(world, WHOLE % name, "killed.toml")
    planned = plan(read_experiment(file))
    seen = []

    def stop(done, _total, message):
        seen.append(message)
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        running_module.run_experiment(
            planned, tmp_path / "out", execution=running_module.Execution(progress=stop)
        )
    stopped = tmp_path / "out" / "runs" / "logistic.default.one"
    kept = {path.name: path.read_bytes() for path in (stopped / "heads").iterdir()}
    assert kept
    ended = call("zoo", "fit", file, "-o", tmp_path / "out", "--json", "--workers", 1)
    assert ended.json["n_fitted"] == 4
    heads = {path.name: path.read_bytes() for path in (stopped / "heads").iterdir()}
    assert {key: heads[key] for key in kept} == kept
    assert len(heads) == 4


def test_finished_runs_of_another_plan_are_named_and_kept(done, world, name):
    _, out, _ = done
    other = write(world, (WHOLE % name).replace("epochs = 2", "epochs = 3"), "other.toml")
    refused = call("zoo", "fit", other, "-o", out)
    assert refused.code == 1
    assert "mean-pool.swa.one was made with another recipe" in refused.err
    assert "logistic" not in refused.err
    assert Run.load(out / "runs" / "mean-pool.swa.one").document["recipe"]["epochs"] == 2


def test_one_failing_run_is_listed_and_the_others_go_on(done, world, name, tmp_path, monkeypatch):
    file = write(world, (WHOLE % name) + "\n[report]\nfull = 2\n", "failing.toml")
    fit_run = running_module.fit_run

    def fail(bags, head, **options):
        if head.name == "knn":
            raise ZeroDivisionError("by nought")
        return fit_run(bags, head, **options)

    monkeypatch.setattr(running_module, "fit_run", fail)
    ended = call("zoo", "fit", file, "-o", tmp_path / "out", "--json")
    assert ended.code == 3
    assert ended.json["failed"] == [
        {"name": "knn.default.one", "reason": "ZeroDivisionError: by nought"}
    ]
    assert len(ended.json["runs"]) == 3
    assert len(ended.json["ensembles"]) == 2
    monkeypatch.undo()
    mended = call("zoo", "fit", file, "-o", tmp_path / "out")
    assert mended.code == 0
    assert "1 runs fitted now, 3 were there before" in mended.out
    members = json.loads((tmp_path / "out/ensembles/ensemble.mean/run.json").read_text())["members"]
    assert len(members) == 4


def test_a_folder_with_other_things_is_refused(done, tmp_path):
    file, _, _ = done
    (tmp_path / "letter.txt").write_text("dear")
    refused = call("zoo", "fit", file, "-o", tmp_path)
    assert refused.code == 1
    assert "holds other things (letter.txt)" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_unknown_feature_sets_are_all_named_before_any_work(world, tmp_path):
    text = WHOLE % "nothing" + '\n[features.two]\nfeature-set = "neither"\n'
    refused = call("zoo", "fit", write(world, text, "unknown.toml"), "-o", tmp_path / "out")
    assert refused.code == 1
    assert "'nothing'" in refused.err
    assert "'neither'" in refused.err
    assert not (tmp_path / "out").exists()


def test_a_feature_set_is_found_by_its_encoder_where_there_is_one(tmp_path):
    specs = [spec_of(), spec_of(dtype="float16")]
    both = make_world(tmp_path / "two", n=8, specs=specs)
    encoder = specs[0].encoder.name
    store = open_store(both.store)
    with pytest.raises(LookupError, match="holds several feature sets of"):
        find_set(store, encoder)
    assert find_set(store, specs[1].name).name == specs[1].name
    alone = make_world(tmp_path / "one", n=8)
    opened = open_store(alone.store)
    assert find_set(opened, encoder).spec.encoder.name == encoder


# The command -------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(world, name, tmp_path):
    file = write(world, WHOLE % name, "dry.toml")
    shown = call("zoo", "fit", file, "-o", tmp_path / "out", "--dry-run")
    assert shown.code == 0
    assert "4 runs, 16 fits; 2 ensembles; a report" in shown.out
    told = call("zoo", "fit", file, "-o", tmp_path / "out", "--dry-run", "--json").json
    assert (told["n_runs"], told["fits_per_run"], told["n_fits"]) == (4, 4, 16)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("x.toml", "c.csv"), "'[COHORT]' belongs into FILE.toml"),
        (("x.toml", "--head", "svm"), "'--head' belongs into FILE.toml"),
        (("x.toml", "--seeds", "2"), "'--seeds' belongs into FILE.toml"),
        (("store",), "Missing argument 'COHORT'"),
        (("store", "c.csv", "--head=svm", "--dry-run"), "--dry-run is for FILE.toml"),
    ],
)
def test_what_does_not_go_together_is_misuse(words, message, tmp_path):
    refused = call("zoo", "fit", *words, "-o", tmp_path / "out")
    assert refused.code == 2
    assert message in " ".join(refused.err.split())


def test_the_files_in_the_papers_can_be_planned(tmp_path):
    text = (ROOT / "docs" / "how-to" / "experiments.md").read_text(encoding="utf-8")
    files = re.findall(r"^```toml\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    assert len(files) >= 2
    for file in files:
        assert plan(read(tmp_path, file)).cells


def test_the_column_of_a_split_is_recorded(tmp_path):
    rows = ["train"] * 12 + ["val"] * 4 + ["test"] * 8
    bags = make_bags(n=24)
    patients = [str(n) for n in range(24)]
    split = Split.from_column(rows, bags.labels, patients, column="set-aside")
    assert split.to_json()["column"] == "set-aside"
    again = Split.from_column(rows, bags.labels, patients)
    assert "column" not in again.to_json()
    assert split.digest == again.digest
