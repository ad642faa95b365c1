"""Colon: NCT-CRC-HE-100K and CRC-VAL-HE-7K."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from histostore.datasets.listing import frame_of, is_image, list_files, nothing_in, refusal, stem

if TYPE_CHECKING:
    import os

    import pandas as pd

__all__ = ["NCT_CLASSES", "NCT_NAME", "nct_crc"]

NCT_CLASSES = frozenset({"ADI", "BACK", "DEB", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"})
"""Adipose, background, debris, lymphocytes, mucus, smooth muscle, normal mucosa, cancer-associated
stroma, adenocarcinoma epithelium."""

NCT_NAME = re.compile(rf"(?P<label>{'|'.join(sorted(NCT_CLASSES))})-(TCGA-)?[A-Z]{{8}}")
"""``ADI-AAAMHQMK``, and ``ADI-TCGA-AAICEQFN`` of the smaller set."""

_PARTS = {"NCT-CRC-HE-100K": "train", "NCT-CRC-HE-100K-NONORM": "train", "CRC-VAL-HE-7K": "test"}
_MPP = "0.5"


def nct_crc(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Read NCT-CRC-HE-100K, CRC-VAL-HE-7K, or both beside each other, by their images' names.

    ``ADI-AAAMHQMK.tif`` is adipose tissue, in whatever folder it lies; a folder with the name of
    another class is a contradiction, and refused. The sets name no patients; no patient of the
    smaller one is in the larger one.

    Returns
    -------
    frame
        ``image_id`` (the path below ``directory`` without its ending), ``path``, ``label`` (ADI,
        BACK, DEB, LYM, MUC, MUS, NORM, STR, TUM), ``mpp`` (0.5, as published), and, where the
        images lie in folders called as the sets are, ``split``: ``train`` for the larger set,
        ``test`` for the smaller.

    Raises
    ------
    CohortError
        If there is no image, one with another kind of name, or the larger set twice, with its
        colours normalised and not.
    StorageError
        If the folder cannot be listed.

    References
    ----------
    Kather et al., "Predicting survival from colorectal cancer histology slides using deep
    learning", PLOS Medicine 16, 2019; the sets are doi:10.5281/zenodo.1214456.
    """
    root, files = list_files(directory)
    rows, problems = [], []
    parts = set()
    for image in filter(is_image, files):
        *folders, name = stem(image).split("/")
        seen = NCT_NAME.fullmatch(name)
        if seen is None:
            problems.append(f"{image}: not a name such as ADI-AAAMHQMK.tif")
            continue
        label = seen["label"]
        if folders and folders[-1] in NCT_CLASSES - {label}:
            problems.append(f"{image}: called {label}, in a folder {folders[-1]}")
        part = next((folder for folder in folders if folder in _PARTS), None)
        parts.add(part)
        rows.append(
            {
                "image_id": stem(image),
                "path": root + image,
                "label": label,
                "mpp": _MPP,
                **({} if part is None else {"split": _PARTS[part]}),
            }
        )
    if {"NCT-CRC-HE-100K", "NCT-CRC-HE-100K-NONORM"} <= parts:
        problems.append("NCT-CRC-HE-100K with and without -NONORM: the same images; keep one")
    if problems or not rows:
        raise refusal(directory, problems or [nothing_in(files)])
    return frame_of(rows)
