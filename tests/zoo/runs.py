"""Small runs of a real head, for the tests of what works on runs."""

from __future__ import annotations

import numpy as np

from zoo.bags import Bags
from zoo.fit import fit_run, make_split
from zoo.heads import spec


def make_bags(skill=1.0, *, n=60, seed=0, k=2, n_features=4):
    """Bags of one to three patches whose mean tells the class as far as ``skill`` goes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % k
    lengths = rng.integers(1, 4, size=n)
    centre = np.repeat(np.eye(k, n_features)[labels], lengths, axis=0)
    return Bags.from_arrays(
        skill * 5 * centre + rng.normal(size=centre.shape),
        np.cumsum([0, *lengths]),
        labels=[f"class {code}" for code in labels],
        image_ids=[f"image {i}" for i in range(n)],
        patient_ids=[f"patient {i // 2 if i % 3 else i}" for i in range(n)],
    )


def make_run(out, *, skill=1.0, head="logistic", folds=3, bags=None, split_seed=0, **options):
    """Fit a quick head."""
    bags = make_bags(skill) if bags is None else bags
    split = make_split(bags, folds=folds, split_seed=split_seed)
    return fit_run(bags, spec(head), out=out, split=split, **options)
