"""Members drawn at random, for the tests of what combines them."""

from __future__ import annotations

import numpy as np

from zoo.blending import Members


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


def cohort(rng, n, skills, *, folds=4, repeats=1, validation=True, **options):
    """Draw members' tables over stratified folds, two images per patient."""
    prob, y = draw(rng, n, skills, **options)
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
    )


def log_loss(prob, y):
    return -np.log(np.maximum(prob[np.arange(len(y)), y], 1e-12)).mean()


def right(prob, y):
    return (prob.argmax(axis=-1) == y).mean()
