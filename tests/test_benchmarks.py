"""The harness of the benchmarks: what it says of numbers. How large they are is not tested."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.__main__ import QUESTIONS, main
from benchmarks.layouts import CANNOT_EVICT, RIVALS, Case, Data, evict, missing, write_store
from benchmarks.measure import Ratio
from benchmarks.report import comparison, markdown, moved
from histostore.store import open_store
from tests.commands import ROOT

POSITIVE = st.floats(0.01, 1e4)
MACHINE = {"processor": "a processor", "cores": 2, "memory_gib": 8.0}


def row(name="load", ratio=4.0, target=None, baseline="files"):
    return Ratio(
        name=name, ours_s=1.0, theirs_s=ratio, ratio=ratio, target=target, baseline=baseline
    )


def document(*rows):
    """What a run writes, as it is read again."""
    facts = {
        "date": "2026-01-02",
        "machine": MACHINE,
        "smoke": True,
        "load": [[0.5, 0.4, 0.3], [1.5, 1, 0.5]],
        "seconds": {"read": 7.0},
        "rows": [one.to_json() for one in rows],
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
        (("--only", "read,nothing"), "no question nothing; there are build"),
        (("--compare", "absent.json"), "absent.json"),
    ],
)
def test_what_is_not_there_is_refused(tmp_path, capsys, arguments, reason):
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--out", str(tmp_path)])
    assert end.value.code == 2
    assert reason in capsys.readouterr().err


def test_every_question_is_a_module_that_answers():
    for name in QUESTIONS:
        text = (ROOT / "benchmarks" / f"bench_{name}.py").read_text(encoding="utf-8")
        assert "def run(*, smoke: bool) -> list[Ratio]:" in text


def test_committed_results_say_when_where_and_under_which_load_they_were_measured():
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        known = json.loads(path.read_text(encoding="utf-8"))
        assert known["machine"]["versions"]["histostore"]
        assert len(known["load"]) == 2
        assert known["date"]
        assert markdown(known).count("\n| ") == len(known["rows"]) + 1
