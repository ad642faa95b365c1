"""Folders as classes, and as the parts of a split."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.datasets.colon import NCT_CLASSES, NCT_NAME
from histostore.datasets.listing import (
    endings_in,
    frame_of,
    is_image,
    list_files,
    nothing_in,
    refusal,
    stem,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence
    from collections.abc import Set as AbstractSet

    import pandas as pd

__all__ = ["folder", "lymphoma"]

_LYMPHOMA_CLASSES = ("CLL", "FL", "MCL")
_SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

_PUBLISHED: Mapping[str, tuple[AbstractSet[str], str]] = {
    "NCT-CRC-HE": (NCT_CLASSES, "histostore cohort nct-crc reads it"),
    "Kather 2016": (
        {
            *("01_TUMOR", "02_STROMA", "03_COMPLEX", "04_LYMPHO"),
            *("05_DEBRIS", "06_MUCOSA", "07_ADIPOSE", "08_EMPTY"),
        },
        "give the folder that holds them",
    ),
}
"""Classes of sets that are often given from a folder too far above."""


def folder(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Take the folder's sub-folders as classes: ``CLASS/image.png``, or deeper inside.

    Folders called ``train``, ``val`` or ``validation``, and ``test`` are no classes: they may lie
    above the classes or directly below, and become the column ``split``.

    Parameters
    ----------
    directory
        Local folder, or a URL that fsspec can list.

    Returns
    -------
    frame
        ``image_id`` (the path below ``directory`` without its ending; with it, where two
        images differ in nothing else), ``path``, ``label`` (name of the sub-folder), and, where
        folders are called so, ``split`` (train, validation, test).

    Raises
    ------
    CohortError
        If there are no sub-folders, images beside them, or a sub-folder without an image; or
        if its sub-folders cannot be the classes: parts of a split beside other folders, or
        folders above the classes of a set that is known.
    StorageError
        If the folder cannot be listed.
    """
    root, files = list_files(directory)
    images = [name for name in files if is_image(name)]
    if not images:
        raise refusal(directory, [nothing_in(files)])
    at = _split_at(images)
    problems = _misplaced(files, images, 1 if at is None else 2) or _no_classes(images, at)
    if problems:
        raise refusal(directory, problems)
    names = [stem(image).strip() for image in images]
    if len(set(names)) < len(names):
        names = images
    rows = []
    for name, image in zip(names, images, strict=True):
        row = {"image_id": name, "path": root + image}
        *folders, _ = image.split("/")
        if at is not None:
            row["split"] = _SPLITS[folders.pop(at).lower()]
        rows.append({**row, "label": folders[0]})
    columns = ["image_id", "path", "label", *(["split"] if at is not None else [])]
    return frame_of(rows)[columns]


def _split_at(images: Sequence[str]) -> int | None:
    """Find at which depth every image lies in a part of a split: 0 or 1; None if at none."""
    for depth in (0, 1):
        found = [image.split("/")[:-1][depth : depth + 1] for image in images]
        if all(names and names[0].lower() in _SPLITS for names in found):
            return depth
    return None


def _misplaced(files: Sequence[str], images: Sequence[str], depth: int) -> list[str]:
    """List images that do not lie so deep, and folders of that depth without one."""
    beside = [name for name in images if name.count("/") < depth]
    if beside and all(NCT_NAME.fullmatch(stem(name)) for name in beside):
        name, (_, advice) = next(iter(_PUBLISHED.items()))
        return [f"{beside[0]} lies in no class folder, but is called as in {name}; {advice}"]
    problems = [f"{name} lies in no class folder" for name in beside]
    there, filled = (
        dict.fromkeys(
            "/".join(name.split("/")[:depth]) for name in some if name.count("/") >= depth
        )
        for some in (files, images)
    )
    return problems + [
        f"folder {name!r} holds no image, but {endings_in(files, name)}"
        for name in there
        if name not in filled
    ]


def _no_classes(images: Sequence[str], at: int | None) -> list[str]:
    """Say why the folders that would be classes are none."""
    below: dict[str, set[str]] = {}
    for image in images:
        folders = [name for depth, name in enumerate(image.split("/")[:-1]) if depth != at]
        below.setdefault(folders[0], set()).update(folders[1:2])
    parts = [name for name in below if name.lower() in _SPLITS]
    if len({_SPLITS[name.lower()] for name in parts}) > 1:
        others = ", ".join(name for name in below if name not in parts)
        return [f"folders {', '.join(parts)} lie beside {others}: move those elsewhere"]
    inside = sorted(set().union(*below.values()))
    for name, (classes, advice) in _PUBLISHED.items():
        if len(inside) > 1 and classes >= set(inside):
            found = f"{', '.join(below)}: in it lie {', '.join(inside)}"
            return [f"{found}, which are the classes of {name}; {advice}"]
    return []


def lymphoma(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the IICBU-2008 lymphoma set: folders ``CLL``, ``FL`` and ``MCL``.

    The set names no patients, so there is no ``patient_id``: images of one patient may then
    fall on both sides of a random split, and scores be too good.

    Returns
    -------
    frame
        As :func:`folder` gives it.

    Raises
    ------
    CohortError
        If the three folders are not there, or something is wrong inside.
    StorageError
        If the folder cannot be listed.

    References
    ----------
    Shamir et al., "IICBU 2008: a proposed benchmark suite for biological image analysis",
    Medical & Biological Engineering & Computing 46, 2008.
    """
    frame = folder(directory)
    found = sorted(set(frame["label"]))
    if found != list(_LYMPHOMA_CLASSES):
        raise refusal(directory, [f"expected folders CLL, FL, MCL; found {', '.join(found)}"])
    return frame
