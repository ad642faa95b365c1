"""Parts of reports: tables, learning curves and figures, each for itself."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.reports import make_history
from zoo.report.figures import Axis, curve_chart, histogram, ticks, whisker
from zoo.report.images import patch_bins
from zoo.report.learning import learning
from zoo.report.model import Curve, Interval, PatchCounts
from zoo.report.scores import classification_report, majority


@st.composite
def judged(draw) -> tuple[np.ndarray, np.ndarray]:
    n_classes = draw(st.integers(2, 5))
    n_images = draw(st.integers(1, 40))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    prob = rng.dirichlet(np.ones(n_classes), size=n_images)
    return rng.integers(0, n_classes, size=n_images), prob


@given(judged())
def test_the_classification_report_is_that_of_scikit_learn(judged):
    from sklearn import metrics

    y, prob = judged
    n = prob.shape[1]
    told = metrics.classification_report(y, prob.argmax(1), output_dict=True, zero_division=0)
    rows = {row.name: row for row in classification_report(y, prob, [str(k) for k in range(n)])}
    for name, theirs in told.items():
        if name == "accuracy":
            assert rows[name].f1 == pytest.approx(theirs)
            continue
        row = rows[name]
        mine = (row.precision, row.recall, row.f1, row.support)
        assert mine == pytest.approx(tuple(theirs[k] for k in ("precision", "recall", "f1-score", "support")))  # fmt: skip


def test_the_published_report_of_the_focal_lion_ensemble_comes_out_digit_by_digit():
    # Model D of the AN2DL report (Backprop. Brothers 2025, figure 8): supports 26, 33, 40, 13;
    # hits and predicted totals follow from its recalls and precisions. Any matrix with these
    # margins gives the same table; only the report itself may change these numbers.
    counts = [[10, 5, 10, 1], [6, 16, 10, 1], [10, 7, 20, 3], [2, 2, 4, 5]]
    assert [sum(c) for c in zip(*counts, strict=True)] == [28, 30, 44, 10]
    cells = [(t, p) for t, row in enumerate(counts) for p, n in enumerate(row) for _ in range(n)]
    y, predicted = np.array(cells).T
    rows = classification_report(
        y, np.eye(4)[predicted], ("HER2(+)", "Luminal A", "Luminal B", "Triple negative")
    )
    assert [tuple(f"{v:.4f}" for v in (r.precision or 0, r.recall or 0, r.f1)) for r in rows] == [
        ("0.3571", "0.3846", "0.3704"),
        ("0.5333", "0.4848", "0.5079"),
        ("0.4545", "0.5000", "0.4762"),
        ("0.5000", "0.3846", "0.4348"),
        ("0.0000", "0.0000", "0.4554"),
        ("0.4613", "0.4385", "0.4473"),
        ("0.4604", "0.4554", "0.4562"),
    ]
    assert [r.support for r in rows] == [26, 33, 40, 13, 112, 112, 112]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_guessing_the_largest_class_scores_as_computed(labels):
    from sklearn.metrics import accuracy_score, f1_score

    y = np.array(labels)
    guess = np.full(len(y), np.bincount(y).argmax())
    truth = accuracy_score(y, guess), f1_score(y, guess, average="macro")
    assert majority(y) == pytest.approx(truth)


# Learning curves ---------------------------------------------------------------------------


def test_curves_average_over_fits_and_mark_the_peak():
    history = make_history(np.random.default_rng(0), 2, (0, 1), 10)
    told = learning(history, is_ensemble=False)
    mean = history.groupby("epoch")["validation_macro_f1"].mean()
    assert told.validation.mean == pytest.approx(tuple(mean))
    assert told.peak == (int(mean.idxmax()), pytest.approx(mean.max()))
    gap = np.subtract(told.train.mean, told.validation.mean)
    assert told.gap.mean == pytest.approx(tuple(gap))


def test_curves_end_where_most_fits_have_stopped():
    history = make_history(np.random.default_rng(0), 1, (0, 1, 2), 10)
    early = history[(history["seed"] == 0) | (history["epoch"] < 4)]
    told = learning(early, is_ensemble=False)
    assert told.train.epoch == (0, 1, 2, 3)
    assert "end at epoch 3" in told.note


@pytest.mark.parametrize(
    ("n_epochs", "is_ensemble", "words"),
    [
        pytest.param(1, False, "no epochs", id="an estimator says so"),
        pytest.param(0, True, "trains nothing", id="an ensemble says so"),
        pytest.param(0, False, "no training history", id="nothing at all"),
    ],
)
def test_no_empty_plot(n_epochs, is_ensemble, words):
    history = make_history(np.random.default_rng(0), 2, (0,), n_epochs)
    told = learning(history, is_ensemble=is_ensemble)
    assert told.train is None
    assert words in told.note


# Figures -----------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(2, 8))
def test_ticks_enclose_and_are_few(low, span, most):
    told = ticks(low, low + span, most)
    slack = 1e-6 + 1e-7 * span  # nobody sees a millionth of a tick
    assert told[0] <= low + slack
    assert told[-1] >= low + span - slack
    assert 2 <= len(told) <= most + 2
    assert list(told) == sorted(set(told))


@given(st.lists(st.integers(1, 40_000), min_size=1, max_size=60))
def test_every_image_is_in_one_bar(sizes):
    bins = patch_bins(np.array(sizes))
    assert len(bins) <= 26
    for first, last, n in bins:
        assert n == sum(first <= size <= last for size in sizes)
    assert sum(n for *_, n in bins) == len(sizes)


def test_figures_stay_in_their_frames_and_survive_what_is_undefined():
    nan = float("nan")
    axis = Axis(ticks=(0.0, 0.5, 1.0), start=0, stop=100)
    assert (axis(-3), axis(0.5), axis(3)) == (0, 50, 100)
    undefined = Interval(value=0.5, low=nan, high=nan, seed_mean=nan, seed_sd=nan, seeds=())
    assert 'class="whisker"' not in whisker(undefined, axis)
    assert "nan" not in whisker(dataclasses.replace(undefined, value=nan), axis, leader=undefined)
    assert curve_chart([("a", "train", None)], label="none", y_title="", bounds=(0, 1)) == ""
    flat = Curve(epoch=(0, 1), mean=(0.5, 0.5), sd=(0.0, 0.0))
    assert "nan" not in curve_chart(
        [("a", "train", flat)], label="flat", y_title="F1", bounds=(0, 1)
    )
    one = PatchCounts(
        feature_set="x", n_images=1, n_patches=3, smallest=3, median=3, largest=3, bins=((3, 3, 1),)
    )
    assert histogram(one).count("<rect") == 1
