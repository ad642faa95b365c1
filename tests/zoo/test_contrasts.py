"""Runs against the best, and over folds: corrected, complete, silent where nothing can be said."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from zoo.comparison import Comparison, Row
from zoo.contrasts import against_best, over_folds
from zoo.predictions import Predictions, predictions_frame
from zoo.significance import delong, friedman, mcnemar
from zoo.tasks import Task

CLASSES = ("benign", "malignant")
N, FOLDS = 60, 6


def probabilities(skill, seed=0):
    rng = np.random.default_rng([seed, int(10 * skill)])
    score = rng.normal(size=N) + skill * (np.arange(N) % 2 - 0.5)
    return np.c_[1 / (1 + np.exp(score)), 1 / (1 + np.exp(-score))]


def images_of(skill):
    return Predictions(
        image_ids=np.array([f"i{k:02}" for k in range(N)], dtype=object),
        patient_ids=np.array([f"p{k // 2}" for k in range(N)], dtype=object),
        y_true=np.arange(N) % 2,
        prob=probabilities(skill),
    )


def table(skill, *, folds=FOLDS, repeats=1):
    images = images_of(skill)
    parts = []
    for fold in range(folds * repeats):
        mine = np.arange(N) % folds == fold % folds
        mine = np.roll(mine, fold // folds) if fold >= folds else mine
        mine |= np.roll(mine, 1)  # both classes in every fold
        parts.append(
            predictions_frame(
                image_ids=images.image_ids[mine],
                patient_ids=images.patient_ids[mine],
                fold=fold,
                seed=0,
                role="test",
                target=np.array(CLASSES)[images.y_true[mine]],
                prob=images.prob[mine],
                classes=CLASSES,
            )
        )
    return pd.concat(parts)


def test_every_test_is_told_with_its_correction():
    best, others = images_of(4), [images_of(2), images_of(1), images_of(0)]
    found = against_best(best, others, Task())
    for run, contrast in zip(others, found, strict=True):
        calls = run.prob.argmax(axis=1), best.prob.argmax(axis=1)
        assert contrast.mcnemar == mcnemar(best.y_true, *calls, best.patient_ids)
        assert contrast.delong == delong(best.y_true, run.prob, best.prob, best.patient_ids)
        assert contrast.difference.p <= contrast.holm_p <= 3 * contrast.difference.p
        told = json.loads(json.dumps(contrast.to_json(), allow_nan=False))
        assert told["mcnemar"]["mid_p"] <= told["mcnemar"]["holm_p"]
        assert told["delong"]["p"] <= told["delong"]["holm_p"]
        assert told["bootstrap"]["value"] < 0
    assert min(contrast.mcnemar_holm_p for contrast in found) == pytest.approx(
        3 * min(contrast.mcnemar.mid_p for contrast in found)
    )


def test_tasks_without_classes_have_the_bootstrap_alone():
    y = np.arange(20.0)[:, None]
    runs = [
        images_of(0)._replace(
            y_true=y, prob=y + shift, patient_ids=np.array([f"p{k}" for k in range(20)])
        )
        for shift in (0.1, 0.5)
    ]
    (found,) = against_best(runs[0], runs[1:], Task.of("regression", "age"))
    assert found.mcnemar is found.delong is None
    assert set(found.to_json()) == {"bootstrap"}


def test_ranks_over_folds_are_those_of_the_scores_in_each():
    tables = [table(skill) for skill in (4, 2, 0)]
    found = over_folds(tables, CLASSES, Task())
    assert found.n_blocks == FOLDS
    assert found.ranks[0] < found.ranks[1] < found.ranks[2]
    assert found.p < 0.05
    again = over_folds([table(skill, repeats=2) for skill in (4, 2, 0)], CLASSES, Task(), n_folds=FOLDS)  # fmt: skip
    assert again == found


def test_too_little_or_other_folds_say_nothing():
    tables = [table(skill) for skill in (4, 2, 0)]
    assert over_folds(tables[:2], CLASSES, Task()) is None
    assert over_folds([t[t["fold"] < 4] for t in tables], CLASSES, Task()) is None
    assert over_folds([*tables[:2], table(0, folds=5)], CLASSES, Task()) is None


def test_a_comparison_tells_ranks_in_one_line():
    whole = {"value": 0.5, "low": 0.4, "high": 0.6, "seed_sd": None}
    rows = tuple(
        Row(
            name=name,
            path=name,
            head="logistic",
            recipe="",
            feature_set="",
            n_images=N,
            n_seeds=1,
            metrics=dict.fromkeys(("macro_f1", "accuracy", "auroc"), whole),
            to_best=None,
        )
        for name in "abc"
    )
    folds = friedman(np.tile([3.0, 2.0, 1.0], (6, 1)))
    shown = Comparison(rows=rows, warnings=("careful",), folds=folds)
    line = shown.to_text().splitlines()[4]
    assert line == (
        "mean ranks over 6 folds: a 1.0, b 2.0, c 3.0; Friedman p=0.002, 1.4 apart differ (Nemenyi)"
    )
    assert shown.to_markdown().endswith(f"> {line}\n\n> careful")
    assert shown.to_json()["folds"]["ranks"] == (1.0, 2.0, 3.0)
