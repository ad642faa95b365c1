"""Bags of one store in several views, and heads fitted to them, for the tests of training views."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch

import zoo
from histostore.cohort import Cohort
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of

VIEWS = ("identity", "rot90", "flip-h")
LENGTHS = {"padded": (4, 5, 5, 4), "packed": (3, 1, 9, 4, 2, 7, 30, 5)}
SMALL = {"gated-mil": {"hidden": 16, "attention": 8, "bottleneck": 4}}
STEPS = {"epochs": 2, "batch_size": 6, "patch_dropout": 0.3, "embedding_noise": 0.1}
N = 24


def cohort_of(folder, ids):
    frame = pd.DataFrame({"image_id": ids, "path": ids})
    frame["label"] = ["ab"[number % 2] for number in range(len(ids))]
    frame.to_csv(folder / "cohort.csv", index=False)
    return Cohort.from_frame(frame, check_files=False)


def two_bags(folder, lengths):
    """The same images in memory and mapped, read in their own view alone."""
    features = open_store(str(folder / "store"), mode="a").create_feature_set(spec_of(n_features=8))
    ids = [f"i{k:02}" for k in range(N)]
    counts = tuple(np.resize(lengths, N).tolist())
    fragment = fragment_of(ids, counts=counts, n_features=8, augmentations=VIEWS)
    features.commit(fragment, {})
    cohort = cohort_of(folder, ids)
    here = zoo.Bags(features, cohort, memory_limit=2**30)
    there = zoo.Bags(features, cohort, memory_limit=0, cache=folder / "cache")
    return features, here, there


def fitted(bags, name="gated-mil", seed=0, **steps):
    estimator = name in ("logistic", "svm")
    train = np.random.default_rng(0).permutation(N)[:16]
    return zoo.spec(name, **SMALL.get(name, {})).fit(
        bags[train],
        bags[16:],
        recipe=zoo.recipe(**({} if estimator else {**STEPS, **steps})),
        seed=seed,
    )


def same(one, other):
    """Whether two heads are alike to the last bit."""
    if hasattr(one, "module"):
        weights = zip(one.module.parameters(), other.module.parameters(), strict=True)
        return all(torch.equal(x, y) for x, y in weights)
    return np.array_equal(one.coefficients, other.coefficients)
