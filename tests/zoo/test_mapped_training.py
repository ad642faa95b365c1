"""Training from a mapped file: the numbers of memory, in bounded memory."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import zoo
from histostore.cohort import Cohort
from histostore.store import open_store
from histostore.testing import fragment_of, spec_of
from zoo.heads.base import Standardiser
from zoo.heads.neural import AttentionModule, TorchSpec
from zoo.jobs import Execution
from zoo.training.batches import (
    PackedBatches,
    PaddedBatches,
    StoredPaddedBatches,
    StoredRows,
    arrange,
    arrange_stored,
)

CPU = torch.device("cpu")
LENGTHS = {"padded": (4, 5, 5, 4), "packed": (3, 1, 9, 4, 2, 7, 30, 5)}
ESTIMATORS = ("logistic", "set-kernel", "fisher")
SMALL = {"gated-mil": {"hidden": 16, "attention": 8, "bottleneck": 4}}


def bags_of(folder, lengths, n=24):
    features = open_store(str(folder / "store"), mode="a").create_feature_set(spec_of(n_features=8))
    ids = [f"i{k:02}" for k in range(n)]
    counts = tuple(np.resize(lengths, n).tolist())
    features.commit(fragment_of(ids, counts=counts, n_features=8), {})
    frame = pd.DataFrame({"image_id": ids, "path": ids, "label": ["a", "b"] * (n // 2)})
    cohort = Cohort.from_frame(frame, check_files=False)
    here = zoo.Bags(features, cohort, memory_limit=2**30)
    there = zoo.Bags(features, cohort, memory_limit=0, cache=folder / "cache")
    assert here.folder is None
    assert there.folder is not None
    return here, there


@pytest.fixture(scope="module", params=LENGTHS)
def both(request, tmp_path_factory):
    return bags_of(tmp_path_factory.mktemp(request.param), LENGTHS[request.param])


@pytest.mark.parametrize("name", ["gated-mil", "mlp-simple", "patch-mean", *ESTIMATORS])
def test_a_mapped_set_trains_to_the_very_same_head(both, name, monkeypatch):
    monkeypatch.setattr("zoo.bags.Bags.blocks.__defaults__", (200,))
    train, test = np.random.default_rng(0).permutation(24)[:16], np.arange(16, 24)
    steps = {"epochs": 2, "batch_size": 6, "patch_dropout": 0.3, "embedding_noise": 0.1}
    heads = [
        zoo.spec(name, **SMALL.get(name, {})).fit(
            bags[train], bags[test], recipe=zoo.recipe(**({} if name in ESTIMATORS else steps))
        )
        for bags in both
    ]
    one, other = (head.predict_proba(bags) for head, bags in zip(heads, both, strict=True))
    assert np.array_equal(one, other)
    assert [row["train_loss"] for row in heads[0].history] == [
        row["train_loss"] for row in heads[1].history
    ]


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    seed=st.integers(0, 99),
    dropout=st.sampled_from([0.0, 0.4]),
    noise=st.sampled_from([0.0, 0.2]),
)
def test_a_batch_from_a_file_is_the_batch_from_memory(lengths, seed, dropout, noise):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    coords = rng.integers(0, 10**6, (n, 2)).astype(np.int32)
    counts, labels = np.array(lengths), np.zeros(len(lengths), np.int64)
    starts = np.cumsum(counts) - counts
    memory = arrange(rows, counts, labels, device=CPU, coords=coords)
    stored = arrange_stored(
        StoredRows(rows, device=CPU),
        starts,
        counts,
        labels,
        coords=StoredRows(coords, device=CPU),
    )
    assert isinstance(stored, StoredPaddedBatches) == isinstance(memory, PaddedBatches)
    index = torch.from_numpy(rng.permutation(len(lengths))[: rng.integers(1, len(lengths) + 1)])
    recipe = zoo.recipe(patch_dropout=dropout, min_patches=1, embedding_noise=noise)
    found = []
    for batches in (memory, stored):
        torch.manual_seed(seed)
        found.append(batches.take(index, recipe=recipe))
    (x, one), (y, other) = found
    assert torch.equal(x, y)
    assert torch.equal(one.coords, other.coords)
    if isinstance(memory, PaddedBatches):
        assert torch.equal(one.mask, other.mask)
    else:
        assert torch.equal(one.lengths, other.lengths)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    dropout=st.sampled_from([0.0, 0.5]),
    kind=st.sampled_from([PackedBatches, PaddedBatches]),
)
def test_places_stand_in_the_order_of_the_rows(lengths, dropout, kind):
    n, counts = sum(lengths), torch.tensor(lengths)
    rows = torch.arange(n, dtype=torch.float32).unsqueeze(1)
    labels = torch.zeros(len(lengths), dtype=torch.int64)
    coords = torch.cat([rows, 2 * rows], dim=1)
    index = torch.randperm(len(lengths))
    recipe = zoo.recipe(patch_dropout=dropout, min_patches=1)
    x, layout = kind(rows, counts, labels, coords).take(index, recipe=recipe)
    assert layout.coords.shape == (*x.shape[:-1], 2)
    assert torch.equal(layout.coords, torch.cat([x, 2 * x], dim=-1))
    assert kind(rows, counts, labels).take(index, recipe=recipe)[1].coords is None


@given(
    cuts=st.lists(st.integers(1, 1500), max_size=4),
    seed=st.integers(0, 9),
)
def test_how_rows_are_cut_does_not_matter_to_the_standardiser(cuts, seed):
    rows = np.random.default_rng(seed).normal(3, 2, size=(1500, 3)).astype(np.float32)
    parts = [part for part in np.split(rows, sorted(cuts)) if len(part)]
    whole, cut = Standardiser.learn(rows), Standardiser.learn_parts(lambda: iter(parts))
    np.testing.assert_array_equal(whole.mean, cut.mean)
    np.testing.assert_array_equal(whole.scale, cut.scale)
    np.testing.assert_allclose(whole.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(whole.scale, rows.std(axis=0, dtype=np.float64), rtol=1e-6)


class FarPatches(AttentionModule):
    """Looks at nothing but where patches lie."""

    uses_coords = True

    def __init__(self, n_classes):
        super().__init__()
        self.cls = torch.nn.Linear(2, n_classes)

    def logits(self, rows, layout):
        assert layout.coords.shape == (*rows.shape[:-1], 2)
        assert layout.coords.dtype == torch.float32
        return self.cls(layout.mean(layout.coords))

    def weights(self, rows, layout):
        return layout.softmax(layout.coords.sum(dim=-1) / 1e6)


class FarSpec(TorchSpec):
    name = "far"

    def build(self, n_features, n_classes):
        return FarPatches(n_classes)


def test_a_head_that_asks_for_places_gets_them_wherever_the_rows_lie(both):
    found = []
    for bags in both:
        head = FarSpec().fit(bags[4:20], bags[:4], recipe=zoo.recipe(epochs=1))
        found.append((head.predict_proba(bags), head.attention(bags)))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(map(np.array_equal, found[0][1], found[1][1]))


def test_worker_processes_map_the_file_too(tmp_path):
    both = bags_of(tmp_path, LENGTHS["packed"])
    split = zoo.make_split(both[0], folds=2)
    runs = [
        zoo.fit_run(
            bags,
            head=zoo.spec("logistic"),
            split=split,
            out=tmp_path / str(n),
            execution=Execution(workers=workers),
        )
        for n, (bags, workers) in enumerate([(both[0], 1), (both[1], 2)])
    ]
    columns = ["prob_a", "prob_b"]
    assert runs[0].predictions[columns].equals(runs[1].predictions[columns])


PEAK = """
import json, sys, threading
import pandas as pd
import zoo
from histostore.cohort import Cohort
from histostore.store import open_store

folder, budget = sys.argv[1], int(sys.argv[2])

def anonymous():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

features = open_store(folder + "/store").feature_set()
ids = list(features.image_ids)
frame = pd.DataFrame({"image_id": ids, "path": ids, "label": ["a", "b"] * (len(ids) // 2)})
cohort = Cohort.from_frame(frame, check_files=False)
tiny = zoo.Bags.from_arrays([[0.0], [1.0]] * 8, range(17), labels=["a", "b"] * 8)

def fit(bags):
    zoo.spec("gated-mil").fit(bags, recipe=zoo.recipe(epochs=1, batch_size=4)).predict_proba(bags)
    zoo.spec("logistic").fit(bags).predict_proba(bags)

fit(tiny)  # loads libraries
assert "torch._dynamo" not in sys.modules, "fitting loads a compiler that it does not use"
before, most, done = anonymous(), 0, threading.Event()

def watch():
    global most
    while not done.wait(0.005):
        most = max(most, anonymous())

thread = threading.Thread(target=watch)
thread.start()
zoo.bags.Bags.blocks.__defaults__ = (budget // 4,)
bags = zoo.Bags(features, cohort, memory_limit=budget, cache=folder + "/cache")
assert bags.folder is not None
held = 4 * bags.n_features * int(bags.lengths.sum())
fit(bags)
done.set()
thread.join()
print(json.dumps({"peak": most - before, "cohort": held}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_training_on_ten_times_the_budget_holds_batches_not_the_cohort(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store = open_store(str(tmp_path / "store"), mode="a")
    features = store.create_feature_set(spec_of(n_features=1024))
    for at in range(8):
        ids = [f"i{at}-{n:02}" for n in range(16)]
        features.commit(fragment_of(ids, counts=512, n_features=1024, seed=at), {})
    budget = 16 * 2**20
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path), str(budget)],
        check=True,
        capture_output=True,
        text=True,
    )
    seen = json.loads(done.stdout)
    assert seen["cohort"] >= 10 * budget
    # A batch of some bags and its activations take as much whatever the cohort's size. Held whole, standardised once more and
    # padded, the cohort would take more than twice its size.
    assert seen["peak"] < 0.6 * seen["cohort"], seen
