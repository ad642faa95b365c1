"""Heads on set kernels and Fisher vectors: what they compute, against others' computation of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import rbf_kernel

from zoo.bags import Bags
from zoo.errors import RunError, SplitError
from zoo.heads import load_head, spec, storage
from zoo.heads.base import Standardiser
from zoo.heads.fisher import Mixture
from zoo.heads.margins import Calibration, choose_machines, draw_patches
from zoo.heads.set_kernel import _lengths
from zoo.recipes import Recipe
from zoo.testing import toy_bags

KERNEL = {"width": 0.5, "penalty": 10}
FISHER = {"variance": 1, "components": 2, "penalty": 10}
FIXED = [("set-kernel", KERNEL), ("fisher", FISHER)]


def decisions_of(head, bags):
    """Read the second class's decision values back from the probabilities of two."""
    odds = np.diff(np.log(head.predict_proba(bags)), axis=1)[:, 0]
    calibration = head.machines.calibration
    slopes = np.diff(calibration.slopes, axis=0)[0]  # of decisions that are each other's opposite
    return (odds - np.diff(calibration.intercepts)) / (slopes[1] - slopes[0])


def test_the_set_kernel_is_the_mean_over_all_pairs_scaled():
    from sklearn.svm import SVC

    bags = toy_bags(30, apart=0.8)
    head = spec("set-kernel", **KERNEL).fit(bags)
    rows = np.split(head.standardiser(bags.embedding).astype(np.float64), bags.offset[1:-1])
    kernel = np.array([[rbf_kernel(a, b, gamma=head.gamma).mean() for b in rows] for a in rows])
    size = np.sqrt(np.diag(kernel))
    others = toy_bags(20, seed=5, apart=0.8)
    fresh = np.split(head.standardiser(others.embedding).astype(np.float64), others.offset[1:-1])
    across = np.array([[rbf_kernel(a, b, gamma=head.gamma).mean() for b in rows] for a in fresh])
    own = np.sqrt([rbf_kernel(a, gamma=head.gamma).mean() for a in fresh])
    model = SVC(kernel="precomputed", C=10, tol=1e-6).fit(
        kernel / np.outer(size, size), bags.labels
    )
    wanted = model.decision_function(kernel / np.outer(size, size))
    assert decisions_of(head, bags) == pytest.approx(wanted, abs=0.01)
    unseen = model.decision_function(across / np.outer(own, size))
    assert decisions_of(head, others) == pytest.approx(unseen, abs=0.01)


def test_the_length_of_a_bag_with_many_patches_is_estimated_whatever_their_order():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(3000, 4)).astype(np.float32)
    idle = Standardiser.idle(4)
    bags = [
        Bags.from_arrays(rows[order], [0, 3000])
        for order in (np.arange(3000), rng.permutation(3000))
    ]
    one, other = (_lengths(idle, bag, [0.1, 1.0]).ravel() for bag in bags)
    assert one == pytest.approx(other, rel=1e-12)
    whole = [np.sqrt(rbf_kernel(rows, gamma=gamma).mean()) for gamma in (0.1, 1.0)]
    assert one == pytest.approx(whole, rel=0.02)


def test_the_width_is_in_median_distances():
    from scipy.spatial.distance import pdist

    bags = toy_bags(30)
    head = spec("set-kernel", width=2, penalty=1).fit(bags)
    median = np.median(pdist(head.standardiser(bags.embedding), "sqeuclidean"))
    assert head.gamma == pytest.approx(1 / (2 * 4 * median), rel=1e-5)


@pytest.mark.parametrize("n_components", [1, 3])
def test_a_fisher_vector_is_the_gradient_of_the_log_likelihood(n_components):
    from sklearn.mixture import GaussianMixture

    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)) * [1, 2, 0.5] + rng.integers(0, 3, (300, 1))
    mixture = Mixture.fit(x, n_components, seed=1)
    bag, step = x[:9] + 0.3, 1e-5

    def likelihood(means, sds):
        model = GaussianMixture(n_components, covariance_type="diag")
        model.weights_, model.means_, model.covariances_ = mixture.shares, means, sds**2
        model.precisions_cholesky_ = 1 / sds
        return model.score_samples(bag).sum()

    sds = np.sqrt(mixture.variances)
    found = mixture.gradient(bag)
    for k in range(n_components):
        for d in range(3):
            nudge = np.zeros_like(sds)
            nudge[k, d] = step
            by_mean = likelihood(mixture.means + nudge, sds) - likelihood(
                mixture.means - nudge, sds
            )
            by_sd = likelihood(mixture.means, sds + nudge) - likelihood(mixture.means, sds - nudge)
            unit = sds[k, d] / np.sqrt(mixture.shares[k]) / (2 * step)
            assert found[0, k, d] == pytest.approx(by_mean * unit, rel=1e-4, abs=1e-5)
            assert found[1, k, d] == pytest.approx(by_sd * unit / np.sqrt(2), rel=1e-4, abs=1e-5)


def test_products_with_patches_are_those_with_their_sum():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(80, 4))
    mixture = Mixture.fit(x, 3, seed=0)
    on = rng.normal(size=(2, 2 * 3 * 4))
    alone = [mixture.gradient(row[None]).ravel() @ on.T for row in x]
    assert mixture.project(x, on) == pytest.approx(np.array(alone))
    assert mixture.project(x, on).sum(axis=0) == pytest.approx(on @ mixture.gradient(x).ravel())


@pytest.mark.parametrize(("name", "fixed"), FIXED)
@given(seed=st.integers(0, 100))
@settings(max_examples=5, deadline=None)
def test_attention_is_each_patch_s_part_of_the_decision(name, fixed, seed):
    """What patches add, found by attention alone, makes up the log odds of the bag."""
    bags = toy_bags(24, seed=seed, apart=1.0)
    head = spec(name, **fixed).fit(bags)
    told = []
    original = Calibration.attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Calibration, "attention", lambda self, d: told.append(d) or original(self, d))
        head.attention(bags)
    mean = head.machines.calibration.probabilities(np.array([d.mean(axis=0) for d in told]), 2)
    assert mean == pytest.approx(head.predict_proba(bags), abs=1e-6)


@pytest.mark.parametrize(("name", "fixed"), [("set-kernel", {"width": 2}), ("fisher", FISHER)])
def test_attention_finds_the_patch_that_carries_the_class(name, fixed):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(80, 10, 6)).astype(np.float32)
    labels = np.arange(80) % 2
    rows[labels == 1, 3, 0] += 6
    bags = Bags.from_arrays(
        rows.reshape(-1, 6), np.arange(0, 801, 10), labels=labels, classes=("a", "b")
    )
    head = spec(name, **fixed).fit(bags[:60])
    ill = [w for w, label in zip(head.attention(bags[60:]), labels[60:], strict=True) if label]
    assert np.mean([w.argmax() == 3 for w in ill]) > 0.8


@pytest.mark.parametrize("name", ["set-kernel", "fisher"])
def test_patches_that_are_all_alike_teach_the_shares_of_classes(name):
    labels = np.repeat([0, 1], [20, 10])
    bags = Bags.from_arrays(
        np.ones((60, 3)), np.arange(0, 61, 2), labels=labels, classes=("a", "b")
    )
    head = spec(name).fit(bags)
    assert head.predict_proba(bags)[:, 0] == pytest.approx(2 / 3, abs=0.02)
    assert np.concatenate(head.attention(bags)) == pytest.approx(0.5)


@pytest.mark.parametrize(("name", "fixed"), FIXED)
def test_a_bag_far_from_all_training_has_a_prediction(name, fixed):
    head = spec(name, **fixed).fit(toy_bags())
    far = Bags.from_arrays(np.full((3, 8), 1e6), [0, 1, 3], classes=head.classes)
    assert np.isfinite(head.predict_proba(far)).all()
    assert np.isfinite(np.concatenate(head.attention(far))).all()


# ---------------------------------------------------------------------- what they share


def common_of(name, **fixed):
    return {"spec": spec(name, **fixed), "recipe": Recipe(), "seed": 0}


def test_inner_folds_choose_the_description_that_says_something():
    bags = toy_bags(40)
    rng = np.random.default_rng(0)
    noise, truth = rng.normal(size=(40, 5)), np.eye(2)[bags.labels]
    for order, wanted in (([noise, truth], 1), ([truth, noise], 0), ([truth, truth], 0)):
        chosen, machines = choose_machines(order, bags, common_of("fisher"), None)
        assert chosen == wanted
        assert (machines.decide(truth).argmax(axis=1) == bags.labels).all()


def test_every_bag_has_its_part_in_the_patches_drawn():
    lengths = np.array([1000, 10, 10, 10])
    rows = np.repeat(np.arange(4.0), lengths)[:, None]
    bags = Bags.from_arrays(rows, np.r_[0, lengths.cumsum()])
    assert np.array_equal(draw_patches(bags, 2000, 0), rows)
    drawn = np.concatenate([draw_patches(bags, 4, seed) for seed in range(200)])
    assert 120 < (drawn == 0).sum() < 400  # 776 were patches drawn whatever their bag
    assert len(draw_patches(bags, 4, 0)) == 4


@pytest.mark.parametrize("name", ["svm", "set-kernel", "fisher"])
def test_a_class_of_one_patient_is_refused(name):
    toy = toy_bags(20)
    bags = Bags.from_arrays(
        toy.embedding,
        toy.offset,
        labels=toy.labels,
        classes=toy.classes,
        patient_ids=[f"p{k}" if label else "one" for k, label in enumerate(toy.labels)],
    )
    with pytest.raises(SplitError, match=rf"head {name} needs training bags of two patients"):
        spec(name).fit(bags)


@pytest.mark.parametrize(
    ("name", "fixed", "array", "value"),
    [
        ("fisher", FISHER, "variances", 0.0),
        ("fisher", FISHER, "shares", -1.0),
        ("set-kernel", KERNEL, "gamma", -1.0),
        ("set-kernel", KERNEL, "present", 7.0),
        ("set-kernel", KERNEL, "root", None),
    ],
)
def test_files_that_make_no_sense_are_refused(name, fixed, array, value, tmp_path):
    path = tmp_path / "head.safetensors"
    spec(name, **fixed).fit(toy_bags(20)).save(path)
    document, arrays = storage.read_arrays(path)
    arrays[array] = np.float64(0) if value is None else np.full_like(arrays[array], value)
    storage.write_arrays(path, document, arrays)
    with pytest.raises(RunError):
        load_head(path)
