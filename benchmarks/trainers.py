"""Training loops of other libraries, as baselines of ``bench_train``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from benchmarks.measure import Ratio, medians
from histostore.encoders.torchvision_guard import declare_missing_operators
from zoo.heads.catalog import spec
from zoo.recipes import recipe
from zoo.training.batches import arrange
from zoo.training.loop import train

if TYPE_CHECKING:
    from zoo.bags import Bags

_WIDTH, _ATTENTION, _DROPOUT = 500, 128, 0.25
"""Sizes of ``abmil``, for both sides."""


def against_torchmil(name: str, bags: Bags, test: Bags, *, batch_size: int, epochs: int) -> Ratio:
    """Time an epoch of ``abmil`` against torchmil's trainer on its own model, in turn; medians.

    Theirs reads one .npy per bag and part, as its data set does by default, and validates on a
    single bag: without any it would go through all training bags a second time.

    Parameters
    ----------
    bags, test
        Of two classes.
    batch_size
        Bags per step of their loop.
    """
    told = f"torchmil's Trainer and ABMIL, .npy per access, batch {batch_size}"
    declare_missing_operators()  # torchmil imports torchvision
    try:
        from torchmil.data import collate_fn
        from torchmil.datasets import ProcessedMILDataset
        from torchmil.models import ABMIL
        from torchmil.utils import Trainer
    except ImportError:
        return Ratio.skipped(name, baseline=told, reason="torchmil is not installed")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        project = nn.Sequential(nn.Linear(bags.n_features, _WIDTH), nn.ReLU(), nn.Dropout(_DROPOUT))
        model = ABMIL((bags.n_features,), att_dim=_ATTENTION, gated=True, feat_ext=project)
        optimiser = torch.optim.Adam(model.parameters(), lr=2e-4, weight_decay=1e-5)
        trainer = Trainer(model, optimiser, device="cpu", disable_pbar=True, verbose=False)
        features, labels = _written(Path(folder), bags)
        data = ProcessedMILDataset(features, labels, bag_keys=["X", "Y"], verbose=False)
        loader = torch.utils.data.DataLoader(data, batch_size, shuffle=True, collate_fn=collate_fn)
        one = torch.utils.data.DataLoader(
            torch.utils.data.Subset(data, [0]), 1, collate_fn=collate_fn
        )
        head = spec("abmil", hidden=_WIDTH, attention=_ATTENTION, standardise=False)
        module = head.build(bags.n_features, 2)
        batches = arrange(bags.embedding, bags.lengths, bags.labels, device=torch.device("cpu"))
        once = recipe(epochs=1, lr=2e-4)
        mine, other = medians(
            epochs,
            lambda: train(module, batches, None, recipe=once, n_classes=2),
            lambda: trainer.train(1, loader, one),
            unused=1,
        )
    right = float(np.mean(head.fit(bags).predict_proba(test).argmax(1) == test.labels))
    model.eval()
    with torch.inference_mode():
        risen = [float(model(torch.from_numpy(bag.embedding.copy())[None])) > 0 for bag in test]
    theirs_right = float(np.mean(np.array(risen) == test.labels))
    return Ratio(
        name=name,
        ours_s=mine,
        theirs_s=other,
        ratio=other / mine,
        target=None,
        baseline=(
            f"{told}; accuracy {right:.2f} (ours, {recipe().epochs} epochs) and "
            f"{theirs_right:.2f} ({epochs + 1} epochs)"
        ),
    )


def _written(folder: Path, bags: Bags) -> tuple[str, str]:
    """Write bags as torchmil's data set reads them."""
    features, labels = folder / "features", folder / "labels"
    features.mkdir()
    labels.mkdir()
    for bag, label in zip(bags, bags.labels, strict=True):
        np.save(features / f"{bag.image_id}.npy", bag.embedding, allow_pickle=False)
        np.save(labels / f"{bag.image_id}.npy", np.array(label), allow_pickle=False)
    return str(features), str(labels)
