"""How long does one training epoch take, against a bag-by-bag loop over files?

Baseline: the loop of CLAM and its descendants: a data loader with batch size 1 whose every
access loads one .pt file, one Adam step per bag, training error counted bag by bag. Same head
(plain torch layers, as the report prints them), same data, same loss, same process, warm page
cache. Both sides are one whole epoch, scores included, without validation.

What would change our mind: a ratio below 10 on equal bags of 12, or below 3 on uneven bags of
30 to 1,000 patches. Quality is compared by ``accuracy``, on bags of which both see the same.

Uneven bags are timed twice, in single precision and with products in bfloat16. In single
precision the baseline's matrix products alone take more than a third of its time, and ours are
the same, so 3 is out of reach there: products are half of our time already, and what is left is
passes over memory.

torchmil's trainer is a third baseline, on its own model of attention pooling, with one bag a
step as its examples have it, and with 32. There is no promise about it.

Another question: do ten seeds as one computation take at most 1.5 times as long as one seed, on
a GPU? On a CPU they are timed beside it, without a promise.

A third: how much slower is an epoch on a store ten times the memory budget, whose
rows stay in a mapped file, than on the same rows in memory? Its file is in the page cache here;
where it is not, the disk decides.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import tempfile
import threading
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import nn

from benchmarks.measure import Ratio, medians
from benchmarks.trainers import against_torchmil
from histostore.cohort import Cohort
from histostore.store import FeatureSet, open_store
from histostore.testing import fragment_of, spec_of
from zoo.bags import Bags
from zoo.heads.base import Standardiser
from zoo.heads.catalog import spec
from zoo.recipes import recipe
from zoo.training.batches import StoredRows, arrange, arrange_stored
from zoo.training.loop import train
from zoo.training.threads import limited

_CPU = torch.device("cpu")
_CLASSES = ("a", "b", "c")


def make_bags(
    n_bags: int,
    shortest: int,
    longest: int,
    n_features: int,
    seed: int,
    *,
    classes: tuple[str, ...] = _CLASSES,
) -> Bags:
    """Draw bags in which a third of the patches carry the class, in 16 features of its own."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(shortest, longest + 1, n_bags)
    labels = rng.integers(0, len(classes), n_bags)
    rows = rng.normal(size=(int(lengths.sum()), n_features)).astype(np.float32)
    telling = np.flatnonzero(rng.random(len(rows)) < 1 / 3)
    own = 16 * np.repeat(labels, lengths)[telling][:, None] + np.arange(16)
    rows[telling[:, None], own] += 1.5
    return Bags.from_arrays(
        rows, np.concatenate([[0], np.cumsum(lengths)]), labels=labels, classes=classes
    )


class PlainGatedMIL(nn.Module):
    """The report's head in plain torch layers, for one bag at a time."""

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.patch_proj = nn.Sequential(
            nn.LayerNorm(n_features),
            nn.Linear(n_features, 160),
            nn.GELU(),
            nn.Dropout(0.4),
            nn.LayerNorm(160),
        )
        self.excitation = nn.Sequential(
            nn.Linear(160, 20, bias=False), nn.ReLU(), nn.Linear(20, 160, bias=False), nn.Sigmoid()
        )
        self.V, self.U, self.w = nn.Linear(160, 96), nn.Linear(160, 96), nn.Linear(96, 1)
        self.bag_drop, self.cls = nn.Dropout(0.5), nn.Linear(160, n_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.patch_proj(x)
        h = h * self.excitation(h.mean(dim=0, keepdim=True))
        scores = self.w(torch.tanh(self.V(h)) * torch.sigmoid(self.U(h)))
        z = torch.softmax(scores.T, dim=1) @ h
        return self.cls(self.bag_drop(z))


class Files(torch.utils.data.Dataset):
    """One .pt file per bag, loaded at each access."""

    def __init__(self, folder: Path, bags: Bags) -> None:
        self.paths = []
        for bag in bags:
            self.paths.append(folder / f"{bag.image_id}.pt")
            torch.save(torch.from_numpy(bag.embedding.copy()), self.paths[-1])
        self.labels = bags.labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        features = torch.load(self.paths[index], weights_only=True)  # noqa: TID251 (the baseline)
        return features, int(self.labels[index])


def their_epoch(model: nn.Module, loader: object, optimiser: torch.optim.Optimizer) -> None:
    """Step once per bag, as CLAM's train_loop does."""
    model.train()
    total = error = 0.0
    for data, label in loader:
        logits = model(data)
        loss = nn.functional.cross_entropy(logits, label)
        total += loss.item()
        error += 1.0 - float(logits.argmax(dim=1).eq(label).float().mean().item())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()


def _first(batch: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    return batch[0][0], torch.tensor([batch[0][1]])


def compare(
    name: str, bags: Bags, test: Bags, *, target: float, epochs: int, precision: str = "float32"
) -> Ratio:
    """Time whole epochs in turn, so that both meet the same noise; medians."""
    head = spec("gated-mil", standardise=False)
    batches = arrange(bags.embedding, bags.lengths, bags.labels, device=_CPU)
    once = recipe(epochs=1, lr=2e-4, precision=precision)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        module = head.build(bags.n_features, len(bags.classes))
        plain = PlainGatedMIL(bags.n_features, len(bags.classes))
        optimiser = torch.optim.Adam(plain.parameters(), lr=2e-4, weight_decay=1e-5)
        loader = torch.utils.data.DataLoader(
            Files(Path(folder), bags), batch_size=1, shuffle=True, collate_fn=_first
        )
        mine, other = medians(
            epochs,
            lambda: train(module, batches, None, recipe=once, n_classes=len(bags.classes)),
            lambda: their_epoch(plain, loader, optimiser),
            unused=1,
        )
    plain.eval()
    with torch.inference_mode():
        guess = [int(plain(torch.from_numpy(bag.embedding.copy())).argmax()) for bag in test]
    ours_epochs = max(30, epochs)
    fitted = head.fit(bags, recipe=recipe(epochs=ours_epochs, precision=precision))
    right = float(np.mean(fitted.predict_proba(test).argmax(1) == test.labels))
    theirs_right = float(np.mean(np.array(guess) == test.labels))
    return Ratio(
        name=name,
        ours_s=mine,
        theirs_s=other,
        ratio=other / mine,
        target=target,
        baseline=(
            f"CLAM-style loop, one .pt per step, {torch.get_num_threads()} threads; accuracy "
            f"{right:.2f} (ours, {type(batches).__name__}, {ours_epochs} epochs) and "
            f"{theirs_right:.2f} ({epochs + 1} epochs of more steps)"
        ),
    )


class _Peak:
    """Memory that a block takes for itself, beyond what was taken before; 0 but on Linux."""

    def __enter__(self) -> Self:
        self._before, self.n_bytes = self._own(), 0
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._done.wait(0.01):
            self.n_bytes = max(self.n_bytes, self._own() - self._before)

    @staticmethod
    def _own() -> int:
        with contextlib.suppress(OSError):
            lines = Path("/proc/self/status").read_text("utf-8").splitlines()
            return 1024 * next((int(x.split()[1]) for x in lines if x.startswith("RssAnon")), 0)
        return 0


def _stored(
    folder: Path, *, n_bags: int, n_patches: int, n_features: int
) -> tuple[FeatureSet, Cohort]:
    """Make a store of equal bags, some in each fragment, and its cohort."""
    store = open_store(str(folder / "store"), mode="a")
    features = store.create_feature_set(spec_of(n_features=n_features))
    names = [f"i{n:04}" for n in range(n_bags)]
    for start in range(0, n_bags, 16):
        some = names[start : start + 16]
        features.commit(fragment_of(some, counts=n_patches, n_features=n_features, seed=start), {})
    labels = [_CLASSES[n % len(_CLASSES)] for n in range(n_bags)]
    frame = pd.DataFrame({"image_id": names, "path": names, "label": labels})
    return features, Cohort.from_frame(frame, check_files=False)


def beyond_memory(*, n_bags: int, n_patches: int, n_features: int, epochs: int) -> Ratio:
    """Time epochs on a mapped cohort of ten times the memory budget, and on one in memory."""
    once = recipe(epochs=1, batch_size=8)
    budget = n_bags * n_patches * n_features * 4 // 10
    with tempfile.TemporaryDirectory() as folder:
        features, cohort = _stored(
            Path(folder), n_bags=n_bags, n_patches=n_patches, n_features=n_features
        )
        module = spec("gated-mil").build(n_features, len(_CLASSES))
        with _Peak() as peak:
            bags = Bags(features, cohort, memory_limit=budget, cache=Path(folder) / "cache")
            learnt = Standardiser.learn_parts(lambda: (part.embedding for part in bags.blocks()))
            rows = StoredRows(bags.table.embedding, device=_CPU, prepare=learnt)
            stored = arrange_stored(rows, bags.starts, bags.lengths, bags.labels)
            train(module, stored, None, recipe=once, n_classes=len(_CLASSES))
        held = arrange(learnt(bags.embedding), bags.lengths, bags.labels, device=_CPU)
        mine, other = medians(
            epochs,
            lambda: train(module, stored, None, recipe=once, n_classes=len(_CLASSES)),
            lambda: train(module, held, None, recipe=once, n_classes=len(_CLASSES)),
        )
    return Ratio(
        name="epoch on a store ten times the memory budget",
        ours_s=mine,
        theirs_s=other,
        ratio=other / mine,
        target=0.5,
        baseline=(
            f"the same in memory; budget {budget / 2**20:.0f} MiB, filling the file, "
            f"standardising and an epoch took {peak.n_bytes / 2**20:.0f} MiB of its own"
        ),
    )


def seeds_together(bags: Bags, kind: str, *, n_seeds: int, epochs: int, repeats: int) -> Ratio:
    """Time one seed, several seeds as one computation, and several one by one, in turn."""
    name = f"one seed against {n_seeds} together, 12-patch bags, {kind}"
    target = 1 / 1.5 if kind == "cuda" else None
    told = f"one seed of gated-mil, {epochs} epochs"
    if kind == "cuda" and not torch.cuda.is_available():
        return Ratio.skipped(name, baseline=told, reason="torch sees no GPU", target=target)
    head, recipe_ = spec("gated-mil"), recipe(epochs=epochs)

    def fit(count: int, together: str) -> None:
        # A fit ends with its weights on the CPU, so the GPU is done by then.
        head.fit_many(bags, None, recipe_, range(count), device=kind, together=together)

    one, stacked, apart = medians(
        repeats,
        lambda: fit(1, "never"),
        lambda: fit(n_seeds, "always"),
        lambda: fit(n_seeds, "never"),
        unused=1,
    )
    return Ratio(
        name=name,
        ours_s=stacked,
        theirs_s=one,
        ratio=one / stacked,
        target=target,
        baseline=f"{told}; {n_seeds} one by one took {apart:.2f} s",
    )


def run(*, smoke: bool) -> list[Ratio]:
    """Run all comparisons.

    Parameters
    ----------
    smoke
        Small sizes: shows that the benchmark works, says nothing about speed.
    """
    n_equal, n_uneven, longest, epochs = (40, 8, 60, 1) if smoke else (300, 78, 1000, 7)
    n_bags, n_patches = (24, 50) if smoke else (200, 500)
    with limited():
        return [
            # First: what others leave behind would hide the memory that it takes.
            beyond_memory(n_bags=n_bags, n_patches=n_patches, n_features=1024, epochs=epochs),
            compare(
                "epoch, equal bags of 12 patches",
                make_bags(n_equal, 12, 12, 512, seed=0),
                make_bags(n_equal, 12, 12, 512, seed=1),
                target=10.0,
                epochs=epochs,
            ),
            compare(
                "epoch, uneven bags of 30 to 1,000 patches",
                make_bags(n_uneven, 30, longest, 512, seed=2),
                make_bags(n_uneven, 30, longest, 512, seed=3),
                target=3.0,
                epochs=epochs,
            ),
            compare(
                "epoch, uneven bags of 30 to 1,000 patches, products in bfloat16",
                make_bags(n_uneven, 30, longest, 512, seed=2),
                make_bags(n_uneven, 30, longest, 512, seed=3),
                target=3.0,
                epochs=epochs,
                precision="bfloat16",
            ),
            *(
                against_torchmil(
                    f"epoch of abmil against torchmil's trainer, equal bags of 12, batch {size}",
                    make_bags(n_equal, 12, 12, 512, seed=0, classes=_CLASSES[:2]),
                    make_bags(n_equal, 12, 12, 512, seed=1, classes=_CLASSES[:2]),
                    batch_size=size,
                    epochs=epochs,
                )
                for size in (1, 32)
            ),
            *(
                seeds_together(
                    make_bags(n_equal, 12, 12, 512, seed=0),
                    kind,
                    n_seeds=10,
                    epochs=1 if smoke else 10,
                    repeats=min(epochs, 3),
                )
                for kind in ("cpu", "cuda")
            ),
        ]


def main() -> None:
    """Print the comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="small sizes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = run(smoke=options.smoke)
    if options.json:
        print(json.dumps([row.to_json() for row in rows], indent=1))
        return
    for row in rows:
        if row.ratio is None or row.target is None:
            print(row.line)
            continue
        print(
            f"{row.name}: {row.ours_s * 1e3:.0f} ms against {row.theirs_s * 1e3:.0f} ms, "
            f"{row.ratio:.1f} times (target {row.target:g}); {row.baseline}"
        )


if __name__ == "__main__":
    main()
