"""How well attention finds the patches that carry the class, where the truth is known."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

from zoo.errors import RunError

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.run import Run

__all__ = ["attention_auroc", "out_of_fold_attention"]


def out_of_fold_attention(run: Run, bags: Bags) -> dict[str, NDArray[np.float64]]:
    """Give each image's attention by the heads that did not see it, averaged over seeds.

    Parameters
    ----------
    run
        A finished run of a head that has attention.
    bags
        Bags of the images that the run tested.

    Returns
    -------
    attention
        Image id to ``(patch,)`` float64, summing to 1.

    Raises
    ------
    NotSupported
        If the head has no attention.
    """
    row_of = {image_id: row for row, image_id in enumerate(bags.image_ids)}
    tested = run.predictions[run.predictions["role"] == "test"]
    sums: dict[str, NDArray[np.float64]] = {}
    times: dict[str, int] = defaultdict(int)
    heads = run.load_heads()
    for (fold, seed), head in heads.items():
        rows = tested[(tested["fold"] == fold) & (tested["seed"] == seed)]
        ids = [image_id for image_id in rows["image_id"] if image_id in row_of]
        found = head.attention(bags[[row_of[name] for name in ids]])
        for image_id, weights in zip(ids, found, strict=True):
            sums[image_id] = sums.get(image_id, 0.0) + weights
            times[image_id] += 1
    return {image_id: total / times[image_id] for image_id, total in sums.items()}


def attention_auroc(run: Run, bags: Bags, truth: pd.DataFrame) -> float:
    """Score attention against known patches.

    Parameters
    ----------
    run
        A finished run of a head that has attention.
    bags
        Bags of the images that the run tested.
    truth
        ``image_id``, ``x``, ``y`` (level-0 px) and ``planted`` (bool), one row a patch.

    Returns
    -------
    auroc
        Mean over images of the area under the ROC curve of out-of-fold attention against
        ``planted``; images with patches of one kind only do not count.

    Raises
    ------
    RunError
        If no image has patches of both kinds.
    """
    from sklearn.metrics import roc_auc_score

    planted = {
        (image_id, int(x), int(y)): bool(value)
        for image_id, x, y, value in truth[["image_id", "x", "y", "planted"]].itertuples(
            index=False
        )
    }
    attention = out_of_fold_attention(run, bags)
    areas = []
    for bag in bags:
        keys = [(bag.image_id, int(x), int(y)) for x, y in bag.coords]
        known = np.array([planted.get(key, False) for key in keys])
        if bag.image_id in attention and known.any() and not known.all():
            areas.append(roc_auc_score(known, attention[bag.image_id]))
    if not areas:
        raise RunError(f"{run.path}: no tested image has both planted and other patches")
    return float(np.mean(areas))
