"""Breast: BreaKHis, and the photographs of BACH."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from typing import TYPE_CHECKING

from histostore.datasets.listing import frame_of, is_image, list_files, nothing_in, refusal, stem
from histostore.files import read_bytes

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

__all__ = ["bach", "breakhis"]

_BREAKHIS_NAME = re.compile(
    r"SOB_(?P<kind>[BM])_(?P<code>[A-Z]+)-(?P<year>\d\d)-(?P<slide>[0-9A-Za-z]+)"
    r"-(?P<magnification>\d+)-(?P<sequence>\d+)"
)
_BREAKHIS_SUBTYPES = {
    "A": ("benign", "adenosis"),
    "F": ("benign", "fibroadenoma"),
    "PT": ("benign", "phyllodes-tumor"),
    "TA": ("benign", "tubular-adenoma"),
    "DC": ("malignant", "ductal-carcinoma"),
    "LC": ("malignant", "lobular-carcinoma"),
    "MC": ("malignant", "mucinous-carcinoma"),
    "PC": ("malignant", "papillary-carcinoma"),
}
_BACH_CLASSES = ("Benign", "InSitu", "Invasive", "Normal")
_BACH_MPP = "0.42"


def breakhis(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Read BreaKHis, from the names of its images, in whatever folders they lie.

    ``SOB_B_A-14-22549AB-40-001.png`` is a benign adenosis, year 2014, slide 22549AB, 40×,
    image 1. The authors count each year and slide as one patient (82 in all), and so do we.

    Returns
    -------
    frame
        ``image_id``, ``path``, ``label`` (benign, malignant), ``patient_id``
        (``14-22549AB``), ``subtype``, ``magnification`` (40, 100, 200, 400), ``year``,
        ``sequence``; all text.

    Raises
    ------
    CohortError
        If there is no image, or one with another kind of name.
    StorageError
        If the folder cannot be listed.

    References
    ----------
    Spanhol et al., "A dataset for breast cancer histopathological image classification",
    IEEE Transactions on Biomedical Engineering 63, 2016.
    """
    root, files = list_files(directory)
    images = [name for name in files if is_image(name)]
    rows = [_breakhis_row(root, image) for image in images]
    problems = [
        f"{image}: not a BreaKHis name such as SOB_B_A-14-22549AB-40-001.png"
        for image, row in zip(images, rows, strict=True)
        if row is None
    ]
    if problems or not images:
        raise refusal(directory, problems or [nothing_in(files)])
    return frame_of(row for row in rows if row is not None)


def _breakhis_row(root: str, image: str) -> dict[str, str] | None:
    name = posixpath.basename(stem(image))
    seen = _BREAKHIS_NAME.fullmatch(name)
    if seen is None or seen["code"] not in _BREAKHIS_SUBTYPES:
        return None
    label, subtype = _BREAKHIS_SUBTYPES[seen["code"]]
    if label[0].upper() != seen["kind"]:
        return None
    return {
        "image_id": name,
        "path": root + image,
        "label": label,
        "patient_id": f"{seen['year']}-{seen['slide']}",
        "subtype": subtype,
        "magnification": seen["magnification"],
        "year": f"20{seen['year']}",
        "sequence": seen["sequence"],
    }


def bach(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Read the photographs of BACH (ICIAR 2018), part A of the challenge.

    Either the folders ``Benign``, ``InSitu``, ``Invasive`` and ``Normal``, or images beside a
    table ``*ground_truth.csv`` (``b001.tif,Benign`` per row); given both, they must agree. The
    folder may be the one above (with ``Photos`` inside). Patients are not public.

    Returns
    -------
    frame
        ``image_id`` (``b001``), ``path``, ``label``, ``mpp`` (0.42, as published).

    Raises
    ------
    CohortError
        If neither is there, or they disagree.
    StorageError
        If the folder cannot be listed, or the table not be read.

    References
    ----------
    Aresta et al., "BACH: grand challenge on breast cancer histology images", Medical Image
    Analysis 56, 2019.
    """
    root, files = list_files(directory)
    photos = [name.removeprefix("Photos/") for name in files if name.startswith("Photos/")]
    if photos:
        root, files = f"{root}Photos/", photos
    truth = {
        posixpath.basename(name): label
        for table in files
        if "/" not in table and table.lower().endswith("ground_truth.csv")
        for name, label in _truth_rows(root + table)
    }
    images = [name for name in files if is_image(name)]
    rows, problems = _bach_rows(root, images, truth)
    if problems or not rows:
        raise refusal(directory, problems or [nothing_in(files)])
    return frame_of(rows)


def _truth_rows(url: str) -> Iterable[tuple[str, str]]:
    text = read_bytes(url).decode("utf-8-sig", errors="replace")
    records = ([cell.strip() for cell in record] for record in csv.reader(io.StringIO(text)))
    return ((record[0], record[1]) for record in records if len(record) > 1)


def _bach_rows(
    root: str, images: Sequence[str], truth: Mapping[str, str]
) -> tuple[list[dict[str, str]], list[str]]:
    rows, problems = [], []
    for image in images:
        by_folder = image.split("/", 1)[0] if "/" in image else None
        by_table = truth.get(posixpath.basename(image))
        label = by_folder or by_table
        if by_folder and by_table and by_folder != by_table:
            problems.append(f"{image}: the table says {by_table}")
        elif label is None:
            problems.append(f"{image}: in no class folder, and in no *ground_truth.csv")
        elif label not in _BACH_CLASSES:
            problems.append(f"{image}: class {label}; expected {', '.join(_BACH_CLASSES)}")
        else:
            name = posixpath.basename(stem(image))
            rows.append({"image_id": name, "path": root + image, "label": label, "mpp": _BACH_MPP})
    return rows, problems
