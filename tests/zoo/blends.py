"""Members drawn at random, for the tests of what combines them."""

from __future__ import annotations

import numpy as np

from zoo.blending import Members
from zoo.metrics import evaluate
from zoo.tasks import Task

TASKS = {
    "classification": Task(),
    "multi-label": Task.of("multi-label", "er,pr,her2"),
    "regression": Task.of("regression", "age"),
    "survival": Task.of("survival", "months,dead"),
}
METRIC = {
    "classification": "accuracy",
    "multi-label": "auroc",
    "regression": "pearson",
    "survival": "c_index",
}
"""By which members that know nothing are worth :data:`CHANCE`."""
CHANCE = {"classification": 0.5, "multi-label": 0.5, "regression": 0.0, "survival": 0.5}


def softmax(scores):
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def draw(rng, n, skills, *, k=2, scale=1.0, shared=0.5):
    """Draw classes, and members that know them as well as their skill says.

    Scores are the truth times skill plus noise, part of it shared by all members; with scale 1
    probabilities are about as sure as they may be.
    """
    y = rng.permutation(np.arange(n) % k)
    noise = np.sqrt(1 - shared**2) * rng.normal(size=(len(skills), n, k))
    noise += shared * rng.normal(size=(n, k))
    skill = np.asarray(skills, dtype=float)[:, None, None]
    return softmax(scale * np.maximum(skill, 1) * (skill * np.eye(k)[y] + noise)), y


def draw_of(kind, rng, n, skills, **options):
    """Draw truth of a kind of task, and what members predict who know it by their skill."""
    if kind in ("classification", "ordinal"):
        return draw(rng, n, skills, **options)
    if kind == "multi-label":
        labels = [draw(rng, n, skills, **options) for _ in range(3)]
        return (
            np.stack([prob[:, :, 1] for prob, _ in labels], axis=2),
            np.stack([y for _, y in labels], axis=1).astype(float),
        )
    hidden, skill = rng.normal(size=n), np.asarray(skills, dtype=float)[:, None]
    said = (skill * hidden + rng.normal(size=(len(skills), n))) / np.sqrt(skill**2 + 1)
    if kind == "regression":
        return (60 + 10 * said)[:, :, None], 60 + 10 * hidden[:, None]
    death, leaves = rng.exponential(np.exp(-1.5 * hidden)), rng.exponential(2.0, size=n)
    units = np.exp(rng.normal(size=(len(skills), 1)))  # each has a scale of its own
    truth = np.stack([np.minimum(death, leaves), death <= leaves], axis=1)
    return (units * (said + 3))[:, :, None], truth


def score(kind, prob, y):
    """Judge predictions by the metric in :data:`METRIC`."""
    return evaluate(y, prob, TASKS[kind])[METRIC[kind]]


def cohort(
    rng, n, skills, *, folds=4, repeats=1, validation=True, kind="classification", **options
):
    """Draw members' tables over stratified folds, two images per patient."""
    prob, y = draw_of(kind, rng, n, skills, **options)
    parts = []
    for repeat in range(repeats):
        dealt = rng.permutation(np.arange(n // 2) % folds)[np.arange(n) // 2]
        for fold in range(folds):
            parts.append((dealt == fold, repeat * folds + fold, "test"))
            if validation:
                parts.append((dealt == (fold + 1) % folds, repeat * folds + fold, "validation"))
    rows = np.concatenate([np.flatnonzero(chosen) for chosen, _, _ in parts])
    sizes = [chosen.sum() for chosen, _, _ in parts]
    return Members(
        prob=prob[:, rows],
        y_true=y[rows],
        patient_ids=np.array([f"patient {row // 2}" for row in rows], dtype=object),
        fold=np.repeat([fold for _, fold, _ in parts], sizes),
        role=np.repeat(np.array([role for _, _, role in parts], dtype=object), sizes),
        n_folds=folds,
        kind=kind,
    )


def log_loss(prob, y):
    return -np.log(np.maximum(prob[np.arange(len(y)), y], 1e-12)).mean()


def right(prob, y):
    return (prob.argmax(axis=-1) == y).mean()
