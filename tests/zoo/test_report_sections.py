"""What a report draws of predictions: curves, calibration, agreement, survival, ranks, costs."""

from __future__ import annotations

import dataclasses
import html
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.zoo.reports import Page, fake_run
from zoo.metrics import evaluate
from zoo.predictions import Predictions
from zoo.report import collect, write_report
from zoo.report.cost import n_parameters
from zoo.report.curves import class_curves, pr_points, roc_points
from zoo.report.html import to_html
from zoo.report.judging import agreement, losses, risk_groups
from zoo.report.overview import overview_chart
from zoo.report.plots import curves_chart, rank_chart, reliability_chart, survival_chart
from zoo.report.sections import Ranks
from zoo.tasks import Task


def sample(seed, n=60):
    """Scores with ties, and what they are of; two images per patient."""
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(n) % 3 == 0)
    score = np.round(1 / (1 + np.exp(-(rng.normal(size=n) + 1.5 * positive))), 1)
    return positive, score, np.array([f"p{i // 2}" for i in range(n)], dtype=object)


@given(st.integers(0, 10**6))
@settings(max_examples=10, deadline=None)
def test_curves_are_those_of_scikit_learn(seed):
    from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

    positive, score, patients = sample(seed)
    one = np.ones((1, len(score)))
    false, true = roc_points(positive, score, one)
    theirs = roc_curve(positive, score, drop_intermediate=False)
    np.testing.assert_allclose(false[0], theirs[0])
    np.testing.assert_allclose(true[0], theirs[1])
    recall, precision = pr_points(positive, score, one)
    p, r, _ = precision_recall_curve(positive, score)
    np.testing.assert_allclose(precision[0], p[-2::-1])
    np.testing.assert_allclose(recall[0], r[-2::-1])
    (curve,) = class_curves(positive[:, None], score[:, None], patients, ["a"])
    assert curve.auroc.value == pytest.approx(auc(*theirs[:2]))
    assert curve.average_precision.value == pytest.approx(average_precision_score(positive, score))
    for area in (curve.auroc, curve.average_precision):
        assert area.low <= area.value <= area.high


def test_bands_hold_the_curve_and_are_wider_with_fewer_patients():
    widths = []
    for n in (60, 600):
        positive, score, patients = sample(0, n)
        (curve,) = class_curves(positive[:, None], score[:, None], patients, ["a"])
        low, high = np.array(curve.roc.band_low), np.array(curve.roc.band_high)
        seen = np.interp(curve.roc.band_x, curve.roc.x, curve.roc.y)
        assert (low <= high).all()
        assert ((low - 0.02 <= seen) & (seen <= high + 0.02)).mean() > 0.9
        widths.append((high - low).mean())
    assert widths[1] < 0.6 * widths[0]


def test_a_class_that_nobody_or_everybody_has_gets_no_curve():
    positive, score, patients = sample(0)
    three = np.stack([positive, np.zeros_like(positive), np.ones_like(positive)], axis=1)
    found = class_curves(three, np.repeat(score[:, None], 3, axis=1), patients, ["a", "b", "c"])
    assert [curve.name for curve in found] == ["a"]
    assert class_curves(three[:, 1:], three[:, 1:] * 1.0, patients, ["b", "c"]) == ()


def predictions(truth, told):
    ids = np.array([f"i{k}" for k in range(len(told))], dtype=object)
    return Predictions(image_ids=ids, patient_ids=ids, y_true=truth, prob=told)


def test_limits_of_agreement_hold_most_errors():
    rng = np.random.default_rng(0)
    truth = rng.normal(50, 10, (2000, 1))
    found = agreement(predictions(truth, truth + rng.normal(2, 3, truth.shape)), "age")
    assert found.bias == pytest.approx(2, abs=0.3)
    assert found.limits == pytest.approx((2 - 5.88, 2 + 5.88), abs=0.6)
    assert len(found.truth) <= 600
    assert found.n_images == 2000


def test_survival_of_risk_groups_is_that_of_the_textbook():
    # Twelve patients, by hand: of the six with low risk two had an event, at 5 (six watched) and
    # at 8 (four watched); 1 − 1/6 = 0.833, then × (1 − 1/4) = 0.625.
    time = np.array([5, 6, 8, 9, 10, 11, 1, 2, 3, 4, 5, 6.0])
    event = np.array([1, 0, 1, 0, 0, 0, 1, 1, 1, 0, 1, 1.0])
    risk = np.r_[np.zeros(6), np.ones(6)]
    found = risk_groups(predictions(np.stack([time, event], 1), risk[:, None]), "months")
    low, high = found.groups
    assert dict(zip(low.time, low.share, strict=True))[5] == pytest.approx(5 / 6, abs=1e-4)
    assert low.share[-1] == pytest.approx(0.625)
    assert np.isnan(low.median)
    assert high.median == 3
    assert (low.at_risk[0], high.at_risk[0]) == (6, 6)
    assert found.logrank_p < 0.05
    assert "Kaplan-Meier" in survival_chart(found, "a run")
    assert risk_groups(predictions(np.stack([time, event], 1), np.ones((12, 1))), "months") is None


def test_the_share_of_wrong_order_averages_to_what_the_c_index_lacks():
    rng = np.random.default_rng(1)
    truth = np.stack([rng.exponential(size=40), rng.integers(0, 2, 40)], axis=1)
    images = predictions(truth, rng.normal(size=(40, 1)))
    wrong, name = losses(images, Task.of("survival", "t,e"))
    assert name == "share of wrong order"
    time, event = truth.T
    pairs = (time[:, None] < time) & (event[:, None] > 0)
    n_pairs = pairs.sum(axis=0) + pairs.sum(axis=1)
    lost = (wrong * n_pairs).sum() / 2 / pairs.sum()
    score = evaluate(truth, images.prob, Task.of("survival", "t,e"))["c_index"]
    assert 1 - lost == pytest.approx(score)


def test_parameters_are_counted_without_reading_them(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros((3, 4), np.float32), "b": np.zeros(5, np.float32)}, tmp_path / "h.safetensors")  # fmt: skip
    assert n_parameters(tmp_path / "h.safetensors") == 17
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    assert n_parameters(tmp_path / "broken.safetensors") is None
    assert n_parameters(tmp_path / "h.json") is None


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Twelve runs over two feature sets and five folds, and an ensemble of both."""
    root = tmp_path_factory.mktemp("many")
    paths = []
    for i in range(12):
        store = {"url": "nowhere", "feature_set": f"set-{i % 2}", "spec": {}}
        paths.append(
            fake_run(
                root / f"run-{i}", name=f"head-{i}", seed=i, skill=0.3 * (i // 2),
                seeds=(0,), n_folds=5, n_epochs=5, store=store,
            )
        )  # fmt: skip
    members = [{"run": f"head-{i}", "path": str(paths[i]), "digest": "00"} for i in (0, 1)]
    paths.append(
        fake_run(root / "both", name="both", seed=40, ensemble=True, seeds=(0,), n_folds=5,
                 members=members, store=store)
    )  # fmt: skip
    return paths


@pytest.fixture(scope="module")
def data(many):
    return collect(many, n_full=3)


def test_runs_stand_with_their_feature_set_best_first(data):
    names = {group.name: group.numbers for group in data.groups}
    assert set(names) == {"set-0", "set-1", "several feature sets"}
    assert sorted(n for numbers in names.values() for n in numbers) == list(range(1, 14))
    assert all(list(numbers) == sorted(numbers) for numbers in names.values())
    assert data.groups[0].numbers[0] == 1
    assert [run.name for run in data.runs if run.feature_set == "several feature sets"] == ["both"]


def test_only_the_best_are_drawn_and_all_are_told(data, many, tmp_path):
    assert [run.judged is not None for run in data.runs] == [True] * 3 + [False] * 10
    page = write_report(many, tmp_path, n_full=3)
    document = Page(page.read_text("utf-8"))
    shown = [a["id"] for tag, a in document.elements if a.get("class") == "target"]
    assert shown == ["run-1", "run-2", "run-3"]
    assert len([tag for tag, _ in document.elements if tag == "article"]) == 3
    words = "".join(document.texts)
    assert all(run.name in words for run in data.runs)
    assert page.stat().st_size < 60_000 * 13  # sixty runs stay below 8 MB
    markdown = (tmp_path / "report.md").read_text("utf-8")
    assert "### set-0" in markdown
    assert "### several feature sets" in markdown


def test_no_two_parts_of_the_page_have_the_same_name(data):
    # Who hears the page chooses among its regions by name alone.
    page = to_html(data)
    labelled = re.findall(r'role="region" tabindex="0" aria-labelledby="([^"]+)"', page)
    named = dict(re.findall(r'<caption id="([^"]+)">(.*?)</caption>', page, re.DOTALL))
    names = [re.sub(r"<[^>]+>|\s+", " ", named[label]) for label in labelled]
    assert len(names) > 20
    assert sorted(set(names)) == sorted(names)


def test_all_runs_are_seen_at_a_glance(data):
    drawn = str(overview_chart(data))
    assert all(f"<title>{html.escape(run.name)}, " in drawn for run in data.runs)
    assert drawn in to_html(data)
    few = dataclasses.replace(data, runs=data.runs[:5])
    assert not overview_chart(few)
    nowhere = [dataclasses.replace(run, test={}) for run in data.runs]
    assert not overview_chart(dataclasses.replace(data, runs=tuple(nowhere)))


def test_pairs_are_those_of_the_paired_bootstrap(data, many):
    from zoo.run import Run
    from zoo.significance import holm
    from zoo.statistics import paired_bootstrap

    assert len(data.pairs) == 45
    known = {str(path): Run.load(path).test_probabilities() for path in many}
    p = []
    for pair in data.pairs:
        a, b = (known[data.runs[n - 1].path] for n in (pair.first, pair.second))
        told = paired_bootstrap(a.y_true, a.prob, b.prob, a.patient_ids)["macro_f1"]
        p.append(told.p)
        if len(p) <= 3:
            assert (pair.value, pair.low, pair.high) == (told.value, told.low, told.high)
        if len(p) == 3:
            break
    # Holm over more pairs never lowers a p.
    assert all(pair.p >= own for pair, own in zip(data.pairs, holm(p), strict=False))


def test_the_metric_decides_the_order(many):
    found = collect(many[:4], metric="log_loss")
    values = [run.test["log_loss"].value for run in found.runs]
    assert values == sorted(values)
    assert found.runs[1].difference.value >= 0
    assert "log loss" in found.summary


def test_ranks_join_what_cannot_be_told_apart(data):
    ranks = data.ranks
    assert ranks.n_folds == 5
    assert list(ranks.ranks) == sorted(ranks.ranks)
    for low, high in ranks.groups:
        assert high - low <= ranks.critical_difference
    assert "critical difference" in rank_chart(ranks)


def test_few_folds_are_not_ranked_and_the_report_says_why(tmp_path):
    paths = [fake_run(tmp_path / str(i), name=str(i), seed=i, n_folds=3) for i in range(3)]
    data = collect(paths)
    assert data.ranks is None
    assert "need 5 folds or more" in data.ranks_note


def test_every_figure_says_what_it_shows(data):
    run = data.runs[0]
    drawn = [
        curves_chart(run.judged.curves, "roc", run.name),
        curves_chart(run.judged.curves, "pr", run.name),
        reliability_chart(run.judged.calibration, run.name),
        rank_chart(
            Ranks(runs=("a", "<b>", "c"), ranks=(1.0, 2.0, 3.0), n_folds=5, p=0.01,
                  critical_difference=1.4, groups=((1.0, 2.0), (2.0, 3.0)))
        ),
    ]  # fmt: skip
    for svg in drawn:
        document = Page(svg)
        tags = [tag for tag, _ in document.elements]
        assert tags[:3] == ["svg", "title", "desc"]
        assert "nan" not in svg
        assert "<b>" not in svg


def test_thresholds_come_from_validation_and_are_told_per_class(data):
    points = data.runs[0].operating
    assert [(p.positive, p.rule) for p in points[:2]] == [("CLL", "youden"), ("CLL", "sensitivity")]
    assert len(points) == 6
    for point in points:
        for share in (point.sensitivity, point.specificity, point.ppv, point.npv):
            assert share.low <= share.value <= share.high
