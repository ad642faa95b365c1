"""The harness of the benchmarks: what it says of numbers. How large they are is not tested."""

from __future__ import annotations

import json
import os
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench_counts, bench_quality, readme
from benchmarks.__main__ import QUESTIONS, TABLES, main, written
from benchmarks.compare import BUSY, ELSEWHERE, QUIET, comparison, missed, moved, noise
from benchmarks.layouts import CANNOT_EVICT, RIVALS, Case, Data, evict, missing, write_store
from benchmarks.measure import Count, Quality, Ratio
from benchmarks.report import markdown
from histostore.store import open_store
from tests.commands import ROOT
from zoo.heads.catalog import HEADS

POSITIVE = st.floats(0.01, 1e4)
MACHINE = {
    "processor": "a processor",
    "cores": 2,
    "memory_gib": 8.0,
    "versions": {"histostore": "0.1.0"},
}


def row(name="load", ratio=4.0, target=None, baseline="files"):
    return Ratio(
        name=name, ours_s=1.0, theirs_s=ratio, ratio=ratio, target=target, baseline=baseline
    )


def quality(head="abmil", value=0.9, attention=None, low=0.8, high=0.95):
    score = {"value": value, "low": low, "high": high}
    scores = dict.fromkeys(("macro_f1", "accuracy", "auroc"), score)
    return Quality(
        head=head, settings="", **scores, seed_sd=None, attention_auroc=attention, seconds=1.5
    )


def document(*rows):
    """What a run writes, as it is read again."""
    facts = {
        "date": "2026-01-02",
        "machine": MACHINE,
        "smoke": True,
        "load": [[0.5, 0.4, 0.3], [1.5, 1, 0.5]],
        "seconds": {"read": 7.0},
        **{
            table: [one.to_json() for one in rows if isinstance(one, kind)]
            for kind, table in TABLES.items()
        },
    }
    return json.loads(json.dumps(facts))


def cells(text):
    """The table's rows below its header, each as its cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@given(POSITIVE, st.none() | POSITIVE)
def test_a_target_is_met_from_its_own_value_on(ratio, target):
    met = row(ratio=ratio, target=target).met
    assert met is None if target is None else met == (ratio >= target)


@given(st.none() | POSITIVE)
def test_what_was_not_run_counts_neither_as_met_nor_as_zero(target):
    skipped = Ratio.skipped("load", baseline="one Lance table", reason="no pylance", target=target)
    assert skipped.met is None
    assert skipped.ratio is None
    text = markdown(document(skipped))
    assert "not run: no pylance" in text
    assert "0.00" not in text
    assert "yes" not in text
    assert f"0 met, 0 missed, {0 if target is None else 1} not run" in text
    assert "not run: no pylance" in skipped.line


def test_a_table_has_the_same_number_of_cells_in_every_row_and_counts_the_targets():
    rows = [
        row("a", 4.0, 3.0),
        row("b", 4.0, 5.0),
        row("c"),
        Ratio.skipped("d", baseline="x", reason="y", target=1.0),
    ]
    text = markdown(document(*rows))
    assert [len(line) for line in cells(text)] == [7] * 4
    assert [line[5] for line in cells(text)] == ["yes", "**no**", "–", "not run: y"]
    assert "Targets: 1 met, 1 missed, 1 not run." in text
    assert "2026-01-02, small sizes, load 0.5 before and 1.5 after" in text


@given(POSITIVE, POSITIVE)
def test_a_move_has_no_direction_and_nothing_moves_by_itself(before, now):
    assert moved(before, now) == moved(now, before)
    assert not moved(before, before)


def test_a_comparison_marks_the_ratio_that_moved_and_no_other():
    before = document(row("load", 10.0), row("write", 1.0))
    now = document(row("load", 5.0), row("write", 1.1))
    assert cells(comparison(before, now)) == [
        ["load: files", "10.00", "5.00", "**-50%**"],
        ["write: files", "1.00", "1.10", "+10%"],
    ]


def test_a_comparison_looks_past_remarks_and_lists_what_only_one_run_has():
    skipped = Ratio.skipped("load", baseline="Lance", reason="no pylance")
    before = document(row("epoch", 10.0, baseline="loop; accuracy 0.9"), row(baseline="Lance"))
    now = document(row("epoch", 10.0, baseline="loop; accuracy 0.8"), skipped, row("new"))
    text = comparison(before, now)
    assert cells(text) == [["epoch: loop", "10.00", "10.00", "+0%"]]
    assert "Only before: load; Lance" in text
    assert "Only now: new; files" in text


def test_what_may_be_noise_goes_by_the_two_machines_and_their_load():
    quiet = document()
    busy = quiet | {"load": [[1.8, 1, 1], [2, 2, 2]]}
    elsewhere = quiet | {"machine": MACHINE | {"processor": "another"}}
    wider = quiet | {"machine": MACHINE | {"cores": 16}}
    factors = [noise(quiet, other)[0] for other in (quiet, busy, elsewhere, wider)]
    assert factors == [QUIET, BUSY, ELSEWHERE, ELSEWHERE]
    assert noise(busy, quiet)[0] == BUSY
    before, now = document(row(ratio=3.0)), document(row(ratio=4.5))
    assert "1 of 1 ratios moved by more than a factor of 1.25" in comparison(before, now)
    assert "0 of 1 ratios moved by more than a factor of 1.6" in comparison(
        before, busy | now | {"load": busy["load"]}
    )


@given(st.lists(POSITIVE, min_size=1, max_size=6), st.lists(POSITIVE, min_size=1, max_size=6))
def test_what_moved_stands_before_what_did_not(before, now):
    rows = cells(
        comparison(
            document(*(row(str(n), ratio) for n, ratio in enumerate(before))),
            document(*(row(str(n), ratio) for n, ratio in enumerate(now))),
        )
    )
    assert len(rows) == min(len(before), len(now))
    told = [line[3].startswith("**") for line in rows]
    assert told == sorted(told, reverse=True)
    assert sum(told) == sum(map(moved, before, now))


def test_a_head_that_left_its_interval_is_named_and_no_other():
    before = document(quality("abmil", 0.9), quality("clam-sb", 0.9), quality("gone", 0.1))
    now = document(quality("abmil", 0.7), quality("clam-sb", 0.85), quality("new", 0.1))
    text = comparison(before, now)
    assert "outside its interval of before: abmil 0.900 → **0.700**." in text
    assert not any(name in text for name in ("clam-sb", "gone", "new"))


@given(st.integers(0, 9), st.integers(0, 9), st.booleans())
def test_a_count_is_missed_where_it_is_not_as_wanted_and_noise_is_no_excuse(seen, wanted, at_most):
    count = Count(name="rows", seen=seen, wanted=wanted, at_most=at_most)
    held = seen <= wanted if at_most else seen == wanted
    assert count.held == held
    problems = missed(document(count, row(ratio=0.01, target=10.0)))
    assert len(problems) == (not held)
    assert ("**no**" in markdown(document(count))) == (not held)


def test_tables_of_heads_and_counts_have_a_row_for_each():
    skipped = Quality(
        head="torchmil", settings="", macro_f1={}, accuracy={}, auroc={}, seed_sd=None,
        attention_auroc=None, seconds=0.0, not_run="no torchmil here",
    )  # fmt: skip
    text = markdown(
        document(row(), Count(name="n", seen=1, wanted=1), quality(attention=0.75), skipped)
    )
    heads = text.partition("## Heads")[2]
    assert [line[0] for line in cells(heads)] == ["abmil", "torchmil"]
    assert cells(heads)[0][4] == "0.750"
    assert "not run: no torchmil here" in heads
    assert "| n | 1 | 1 | yes |" in text


def test_every_layout_gives_back_what_was_written(tmp_path):
    data = Data(Case(n_images=3, n_patches=5, n_features=4, dtype="float16"))
    write_store(tmp_path / "ours", data)
    layouts = [kind(tmp_path / kind.__name__, data.ids) for kind in RIVALS if missing(kind) is None]
    for layout in layouts:
        layout.write(data)
    if CANNOT_EVICT is None:
        evict(tmp_path)
    loaded = open_store(str(tmp_path / "ours")).feature_set().load()
    np.testing.assert_array_equal(loaded.embedding, data.embedding)
    for layout in layouts:
        np.testing.assert_array_equal(layout.all(), data.embedding)
        np.testing.assert_array_equal(layout.bag(2), data.embedding[data.rows(2)])


def test_two_reports_are_compared_without_measuring(tmp_path, capsys):
    earlier = tmp_path / "earlier.json"
    earlier.write_text(json.dumps(document(row(ratio=2.0))))
    (tmp_path / "report.json").write_text(json.dumps(document(row(ratio=4.0))))
    main(["--compare", str(earlier), "--out", str(tmp_path)])
    assert cells(capsys.readouterr().out) == [["load: files", "2.00", "4.00", "**+100%**"]]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--only", "read,nothing"), "no question nothing; there are counts"),
        (("--compare", "absent.json"), "absent.json"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", str(tmp_path)])
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_question_is_a_module_that_answers():
    kinds = "|".join(kind.__name__ for kind in TABLES)
    for name in QUESTIONS:
        text = (ROOT / "benchmarks" / f"bench_{name}.py").read_text(encoding="utf-8")
        assert re.search(rf"def run\(\*, smoke: bool.*\) -> list\[({kinds})\]:", text), name


def test_the_counts_hold():
    counts = bench_counts.run(smoke=True)
    assert not missed(document(*counts))
    assert len(counts) > 5


def test_a_run_is_compared_with_the_committed_one_and_ends_with_1_where_a_count_is_missed(
    tmp_path, capsys, monkeypatch
):
    known = tmp_path / "smoke.json"
    known.write_text(json.dumps(document(row(ratio=2.0))))
    monkeypatch.setattr("benchmarks.__main__.COMMITTED", known)
    monkeypatch.setattr(bench_counts, "run", lambda *, smoke: [Count(name="n", seen=1, wanted=2)])
    with pytest.raises(SystemExit) as end:
        main(["--smoke", "--only", "counts", "--out", str(tmp_path / "out")])
    assert end.value.code == 1
    told = capsys.readouterr()
    assert told.err == "missed: n: 1, wanted 2\n"
    # all is written all the same, and the comparison with it
    assert "## Against the committed run" in (tmp_path / "out/report.md").read_text("utf-8")
    assert json.loads((tmp_path / "out/report.json").read_text("utf-8"))["counts"][0]["seen"] == 1
    assert "Only before: load; files" in told.out
    assert "Against" not in written(document(row()), None)


def test_quality_is_measured_for_heads_with_and_without_attention():
    cards = tuple(HEADS[name] for name in ("logistic", "abmil"))
    plain, weighing = bench_quality.run(smoke=True, heads=cards)
    assert plain.attention_auroc is None
    for one in (plain, weighing):
        # three classes: guessing is 1/3
        assert one.macro_f1["low"] > 1 / 3
        assert one.macro_f1["low"] <= one.macro_f1["value"] <= one.macro_f1["high"]
    assert weighing.attention_auroc > 0.9


def test_the_numbers_of_the_readme_are_those_of_committed_results():
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    fresh = readme.filled(text, readme.load())
    if os.environ.get("WRITE_DOCS"):
        page.write_text(fresh, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == fresh, "run: python -m benchmarks.readme"


def test_the_readme_says_nothing_of_what_was_not_measured():
    skipped = Ratio.skipped("load", baseline="one HDF5 per image", reason="x")
    known = {"smoke.json": document(skipped)}
    assert "not measured" in readme.table(known)
    with pytest.raises(ValueError, match="benchmarks:start"):
        readme.filled("no marks", known)


def test_committed_results_say_when_where_and_under_which_load_they_were_measured():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        assert known["machine"]["versions"]["histostore"], path.name
        if "seconds" not in known:
            continue  # of a script of its own: what it measures has a shape of its own
        assert len(known["load"]) == 2
        assert known["date"]
        tables = [known.get(name, ()) for name in TABLES.values()]
        assert markdown(known).count("\n| ") == sum(len(rows) + bool(rows) for rows in tables)
