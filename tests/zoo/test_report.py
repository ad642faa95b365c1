"""The report: right numbers, safe text, readable page; whatever the runs are called."""

from __future__ import annotations

import dataclasses
import html.parser
import itertools
import json
import math
import re
import shutil
import subprocess
from pathlib import Path  # noqa: TC003 (fixtures are annotated at run time)
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from histostore.errors import StorageError
from zoo.errors import RunError
from zoo.predictions import measure
from zoo.report import collect, write_report
from zoo.report.figures import Axis, curve_chart, histogram, ticks, whisker
from zoo.report.images import choose_examples, patch_bins
from zoo.report.learning import learning
from zoo.report.markdown import escaped
from zoo.report.model import Curve, Interval, PatchCounts
from zoo.report.scores import classification_report, majority

CLASSES = ("CLL", "FL", "MCL")
EVIL = '<script>alert("x")</script>'
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


# -- runs made of seeded random numbers ------------------------------------------------------


def fake_run(
    path: Path,
    *,
    name: str = "gated-mil",
    classes: tuple[str, ...] = CLASSES,
    n_images: int = 45,
    n_folds: int = 3,
    seeds: tuple[int, ...] = (0, 1, 2),
    n_epochs: int = 12,
    skill: float = 1.2,
    ensemble: bool = False,
    seed: int = 0,
    id_prefix: str = "image",
    **document: Any,
) -> Path:
    """Write a run directory as ``zoo fit`` leaves it."""
    rng = np.random.default_rng(seed)
    path.mkdir(parents=True)
    y = np.arange(n_images) % len(classes)
    frame = pd.concat(
        [
            _fold_rows(rng, y, classes, k, s, n_folds, skill, id_prefix)
            for k, s in itertools.product(range(n_folds), seeds)
        ],
        ignore_index=True,
    )
    frame.to_parquet(path / "predictions.parquet", index=False)
    _history(rng, n_folds, seeds, 0 if ensemble else n_epochs).to_parquet(
        path / "history.parquet", index=False
    )
    (path / "heads").mkdir()
    run = {
        "format": 1,
        "kind": "ensemble" if ensemble else "run",
        "name": name,
        "head": {"name": "mean", "settings": {"rule": "mean"}}
        if ensemble
        else {"name": "gated-mil", "settings": {"hidden": 160, "dropout": 0.4}},
        "recipe": {"name": "r-drop", "epochs": n_epochs, "lr": 0.0005, "r_drop": 1.0},
        "target": "label",
        "classes": list(classes),
        "augmentation": "identity",
        "split": {
            "digest": "5f" * 32,
            "method": "k-fold",
            "n_folds": n_folds,
            "repeats": 1,
            "seed": 0,
            "validation_share": 0.125,
        },
        "seeds": [0] if ensemble else list(seeds),
        "store": {
            "url": "store-is-not-there",
            "feature_set": "texture-1a2b3c4d",
            "snapshot": "ab" * 32,
            "spec": {},
        },
        "cohort": {
            "url": "cohort-is-not-there.csv",
            "digest": "cd" * 32,
            "n_images": n_images,
            "n_unlabelled": 2,
        },
        "members": [{"name": "a", "path": "runs/a", "digest": "ef" * 32}] if ensemble else [],
        "versions": {
            "python": "3.11.9",
            "numpy": "2.4.0",
            "torch": "2.13.0",
            "histostore": "0.1.0",
        },
        "seconds": 12.5 + 100 * seed,
        "created": f"2026-01-0{1 + seed % 9}T10:00:00+00:00",
        "metrics": measure(frame, classes),
    } | document
    (path / "run.json").write_text(json.dumps(run), encoding="utf-8")
    return path


def _fold_rows(rng, y, classes, fold, seed, n_folds, skill, id_prefix):
    rows = np.arange(len(y))
    part = rows // len(classes) % n_folds
    role = np.where(
        part == fold, "test", np.where(rows % 8 == (fold + 1) % 8, "validation", "train")
    )
    logits = rng.normal(size=(len(y), len(classes)))
    logits[rows, y] += skill
    prob = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    frame = {
        "image_id": [f"{id_prefix}-{i:03d}" for i in rows],
        "patient_id": [f"patient-{i // 2:03d}" for i in rows],
        "fold": fold,
        "seed": seed,
        "role": role,
        "target": [classes[k] for k in y],
    }
    return pd.DataFrame(frame | {f"prob_{c}": prob[:, k] for k, c in enumerate(classes)})


def _history(rng, n_folds, seeds, n_epochs):
    rows = []
    for fold, seed, epoch in itertools.product(range(n_folds), seeds, range(n_epochs)):
        share = 1 - math.exp(-4 * epoch / max(n_epochs, 1))
        train = 0.35 + 0.6 * share + rng.normal(0, 0.012)
        validation = 0.33 + 0.3 * share + rng.normal(0, 0.03)
        rows.append(
            (fold, seed, epoch, 1.1 - share, train, train, 1.1 - 0.5 * share, validation,
             validation, train - validation)
        )  # fmt: skip
    names = "fold seed epoch train_loss train_macro_f1 train_accuracy validation_loss validation_macro_f1 validation_accuracy overfit_gap"
    return pd.DataFrame(rows, columns=names.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        fake_run(root / "abmil", name="gated-mil", seed=1, skill=1.2),
        fake_run(root / "gbm", name="lightgbm", seed=2, skill=2.0, n_epochs=1),
        fake_run(root / "both", name="mean of all", seed=3, skill=2.4, ensemble=True, seeds=(0,)),
    ]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    return write_report(runs, tmp_path_factory.mktemp("report"))


# -- a real store of real images -------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A cohort of small pictures, half tissue, a store of them, and a run on both."""
    from PIL import Image

    from histostore.encoders.base import EncoderIdentity
    from histostore.files import Source
    from histostore.grid import PatchGrid
    from histostore.images.patches import select_patches
    from histostore.images.readers import open_image
    from histostore.images.tissue import TissueFilter
    from histostore.spec import FeatureSpec
    from histostore.store import Fragment, open_store

    root = tmp_path_factory.mktemp("embedded")
    rng = np.random.default_rng(0)
    grid, tissue = PatchGrid(patch_size=64), TissueFilter(min_tissue=0.3)
    selections, ids = [], [f"image-{i:03d}" for i in range(18)]
    for i, image_id in enumerate(ids):
        pixels = np.full((160, 256, 3), 250, dtype=np.uint8)
        width = 60 + 10 * i
        pixels[:, :width] = rng.integers([120, 30, 120], [200, 110, 200], size=(160, width, 3))
        Image.fromarray(pixels).save(root / f"{image_id}.png")
        reader = open_image(str(root / f"{image_id}.png"))
        selections.append(select_patches(reader, grid, tissue))
        reader.close()
    table = pd.DataFrame({"image_id": ids, "path": [f"{i}.png" for i in ids]})
    table.to_csv(root / "cohort.csv", index=False)
    spec = FeatureSpec(
        encoder=EncoderIdentity(name="texture"), n_features=4, grid=grid, tissue=tissue
    )
    offset = np.cumsum([0, *(len(s.kept) for s in selections)]).astype(np.int64)
    features = open_store(str(root / "store"), mode="a").create_feature_set(spec)
    features.commit(
        Fragment(
            embedding=rng.normal(size=(1, offset[-1], 4)).astype(np.float32),
            augmentations=("identity",),
            image_ids=tuple(ids),
            offset=offset,
            y=np.concatenate([s.placement.y[s.kept] for s in selections]),
            x=np.concatenate([s.placement.x[s.kept] for s in selections]),
            tissue=np.concatenate([s.tissue[s.kept] for s in selections]),
            sources=tuple(Source(url=f"{i}.png", size=1, version=None) for i in ids),
            flags=((),) * len(ids),
        ),
        {},
    )
    store = {
        "url": str(root / "store"),
        "feature_set": features.name,
        "snapshot": features.snapshot,
        "spec": spec.to_json(),
    }
    cohort = {"url": str(root / "cohort.csv"), "digest": "cd" * 32, "n_images": 18}
    run = fake_run(root / "run", n_images=18, store=store, cohort=cohort)
    return root, run, root / "cohort.csv"


def test_kept_and_rejected_patches_are_those_of_the_store(embedded, tmp_path):
    _, run, _ = embedded
    data = collect([run])
    (counts,) = data.patches
    assert (counts.n_images, data.image_notes) == (18, ())
    assert sum(n for *_, n in counts.bins) == 18
    assert len(data.examples) == 6
    for example in data.examples:
        picture = example.picture
        assert picture is not None
        assert (len(picture.kept), len(picture.rejected)) == (example.n_kept, example.n_rejected)
        assert example.n_kept + example.n_rejected == 4 * 3  # 256 x 160 px in 64 px patches
        assert not set(picture.kept) & set(picture.rejected)
        # tissue stands on the left, so no rejected patch lies left of all kept ones
        assert min(x for x, _ in picture.kept) == 0
    html = write_report([run], tmp_path).read_text("utf-8")
    assert html.count("data:image/jpeg;base64,") == 6
    assert len(html) < 3_000_000


def test_missing_images_are_named_and_the_rest_is_drawn(embedded, tmp_path):
    root, run, _ = embedded
    shown = collect([run]).examples
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    (moved / f"{shown[0].image_id}.png").unlink()
    (moved / f"{shown[1].image_id}.png").write_bytes(b"")
    data = collect([run], cohort=moved / "cohort.csv")
    assert [e.picture is None for e in data.examples] == [True, True, False, False, False, False]
    assert [note.split()[0] for note in data.image_notes] == [e.image_id for e in shown[:2]]
    html = write_report([run], tmp_path / "out", cohort=moved / "cohort.csv").read_text("utf-8")
    assert html.count("image not available") == 2
    assert f"{shown[0].image_id} is not shown" in html


def test_an_image_that_changed_after_the_build_is_not_drawn(embedded, tmp_path):
    from PIL import Image

    root, run, _ = embedded
    moved = tmp_path / "moved"
    shutil.copytree(root, moved)
    first = next(e for e in collect([run]).examples if e.n_kept > 4)
    Image.new("RGB", (64, 64), "purple").save(moved / f"{first.image_id}.png")
    notes = collect([run], cohort=moved / "cohort.csv").image_notes
    assert len(notes) == 1
    assert "changed after the build" in notes[0]


@pytest.mark.parametrize(
    ("cohort", "words"),
    [
        pytest.param("nowhere.csv", "the cohort cannot be read", id="cohort gone"),
        pytest.param(None, "", id="all there"),
    ],
)
def test_a_lost_cohort_is_said(embedded, cohort, words):
    _, run, _ = embedded
    data = collect([run], cohort=cohort)
    assert any(words in note for note in data.image_notes) == bool(words)
    assert data.patches


def test_a_lost_store_is_said(page):
    assert "the store cannot be read" in page.read_text("utf-8")
    assert "the store cannot be read" in (page.parent / "report.md").read_text("utf-8")


def test_too_many_patches_are_bleached_instead_of_outlined(embedded, monkeypatch):
    _, run, _ = embedded
    monkeypatch.setattr("zoo.report.images.MOST_OUTLINES", 3)
    pictures = [e.picture for e in collect([run]).examples]
    assert all(p.is_shaded and not p.kept and not p.rejected for p in pictures)


# -- numbers ---------------------------------------------------------------------------------


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


def test_the_three_files_agree(page, runs):
    document = json.loads((page.parent / "report.json").read_text("utf-8"))
    assert (document["format"], document["kind"]) == (1, "report")
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


def test_hard_images_are_those_with_the_largest_loss(runs):
    from zoo.run import Run

    run = Run.load(runs[0])
    examples = choose_examples(run)
    assert [e.why for e in examples[:3]] == [f"typical {c}" for c in CLASSES]
    assert all(e.target == e.predicted for e in examples[:3])
    hardest = [e.log_loss for e in examples[3:]]
    _, _, y, prob = run.test_probabilities()
    assert hardest == pytest.approx(sorted(-np.log(prob[np.arange(len(y)), y]))[::-1][:3])


# -- learning curves -------------------------------------------------------------------------


def test_curves_average_over_fits_and_mark_the_peak():
    history = _history(np.random.default_rng(0), 2, (0, 1), 10)
    told = learning(history, is_ensemble=False)
    mean = history.groupby("epoch")["validation_macro_f1"].mean()
    assert told.validation.mean == pytest.approx(tuple(mean))
    assert told.peak == (int(mean.idxmax()), pytest.approx(mean.max()))
    gap = np.subtract(told.train.mean, told.validation.mean)
    assert told.gap.mean == pytest.approx(tuple(gap))


def test_curves_end_where_most_fits_have_stopped():
    history = _history(np.random.default_rng(0), 1, (0, 1, 2), 10)
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
    history = _history(np.random.default_rng(0), 2, (0,), n_epochs)
    told = learning(history, is_ensemble=is_ensemble)
    assert told.train is None
    assert words in told.note


# -- figures ---------------------------------------------------------------------------------


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


# -- the page --------------------------------------------------------------------------------

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks nesting while reading, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def values(self, attribute: str) -> list[str]:
        return [a[attribute] for _, a in self.elements if a.get(attribute)]


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
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} <= {5, 6}


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


# -- in a browser ----------------------------------------------------------------------------


def _chromium(tmp_path: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_hangs_over_the_edge_of_the_window(embedded, runs, tmp_path, width):
    _, run, _ = embedded
    long = fake_run(tmp_path / "l", name="a-very-long-name" * 6, classes=("n" * 50, *"abcdefgh"))
    page = write_report([run, long, *runs], tmp_path / "out")
    # The page forbids scripts, so the probe goes into a copy without that rule; a window cannot
    # be narrower than 500 px, so the copy stands in a frame.
    probe = """<script>addEventListener("load", () => parent.postMessage([innerWidth,
        document.documentElement.scrollWidth, document.querySelectorAll("svg").length].join(), "*"))
        </script></body>"""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text("utf-8"))
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<script>addEventListener("message", e => {{ document.title = e.data }})</script>
        <iframe src="probe.html" width="{width}" height="900" style="border: 0"></iframe>""",
        encoding="utf-8",
    )
    told = _chromium(tmp_path, frame, "--dump-dom", "--virtual-time-budget=3000").stdout
    found = re.search(r"<title>([\d,]+)</title>", told).group(1)
    inner, scroll, figures = map(int, found.split(","))
    assert inner == width
    assert scroll <= width
    assert figures > 10


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_browser_has_nothing_to_complain_about(embedded, tmp_path):
    _, run, _ = embedded
    page = write_report([run], tmp_path / "out")
    told = _chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}")
    # blocked requests, scripts and styles are all told on the console
    assert "CONSOLE" not in told.stderr
    assert (tmp_path / "page.png").stat().st_size > 10_000


# -- what was compared, and what is refused --------------------------------------------------


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
    with pytest.raises(StorageError, match="cannot write the report"):
        write_report(runs[:1], tmp_path / "file")
