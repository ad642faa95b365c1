"""Cohort tables from folders of images, as public data sets are laid out.

Each function looks at file names alone, never at pixels, and gives a data frame with
``image_id``, ``path`` (absolute), ``label`` and what else the names tell; rows are in natural
order (2 before 10). A layout that is not the expected one is a
:class:`~histostore.errors.CohortError` that lists everything found. Hidden files and what is
no image (``Thumbs.db``, notes, tables) are passed over; links are followed.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import CohortError, summarise
from histostore.files import driver_errors, filesystem, local_path, public_url, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd

__all__ = ["bach", "breakhis", "folder", "lymphoma", "write_cohort"]

_IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jp2", ".tif", ".tiff", ".bmp", ".webp"),
    *(".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".dcm", ".qptiff"),
)
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
_LYMPHOMA_CLASSES = ("CLL", "FL", "MCL")


def folder(directory: str | os.PathLike[str]) -> pd.DataFrame:
    """Take the folder's sub-folders as classes: ``CLASS/image.png``, or deeper inside.

    Parameters
    ----------
    directory
        Local folder, or a URL that fsspec can list.

    Returns
    -------
    frame
        ``image_id`` (the path below ``directory`` without its ending; with it, where two
        images differ in nothing else), ``path``, ``label`` (name of the sub-folder).

    Raises
    ------
    CohortError
        If there are no sub-folders, images beside them, or a sub-folder without an image.
    StorageError
        If the folder cannot be listed.
    """
    root, files = _list(directory)
    images, problems = _by_class(files)
    if problems:
        raise _refusal(directory, problems)
    names = [_stem(image).strip() for image in images]
    if len(set(names)) < len(names):
        names = images
    return _frame(
        {"image_id": name, "path": root + image, "label": image.split("/", 1)[0]}
        for name, image in zip(names, images, strict=True)
    )


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
        raise _refusal(directory, [f"expected folders CLL, FL, MCL; found {', '.join(found)}"])
    return frame


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
    root, files = _list(directory)
    images = [name for name in files if _is_image(name)]
    rows = [_breakhis_row(root, image) for image in images]
    problems = [
        f"{image}: not a BreaKHis name such as SOB_B_A-14-22549AB-40-001.png"
        for image, row in zip(images, rows, strict=True)
        if row is None
    ]
    if problems or not images:
        raise _refusal(directory, problems or [_nothing(files)])
    return _frame(row for row in rows if row is not None)


def _breakhis_row(root: str, image: str) -> dict[str, str] | None:
    name = posixpath.basename(_stem(image))
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
    root, files = _list(directory)
    photos = [name.removeprefix("Photos/") for name in files if name.startswith("Photos/")]
    if photos:
        root, files = f"{root}Photos/", photos
    truth = {
        posixpath.basename(name): label
        for table in files
        if "/" not in table and table.lower().endswith("ground_truth.csv")
        for name, label in _truth_rows(root + table)
    }
    images = [name for name in files if _is_image(name)]
    rows, problems = _bach_rows(root, images, truth)
    if problems or not rows:
        raise _refusal(directory, problems or [_nothing(files)])
    return _frame(rows)


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
            name = posixpath.basename(_stem(image))
            rows.append({"image_id": name, "path": root + image, "label": label, "mpp": _BACH_MPP})
    return rows, problems


def write_cohort(frame: pd.DataFrame, out: str | os.PathLike[str]) -> str:
    """Write a table of images as CSV: whole or not at all.

    Parameters
    ----------
    frame
        Columns as the functions here give them; missing values become empty cells.
    out
        Where to; paths inside its folder are written relative to it, others as they are.

    Returns
    -------
    out
        The same, as text.

    Raises
    ------
    CohortError
        If the frame has no column ``path``.
    StorageError
        If it cannot be written.
    """
    out = os.fspath(out)
    here = local_path(out)
    base = (str(Path(here).resolve().parent) if here is not None else _parent(out)) + "/"
    if "path" not in frame:
        raise _refusal(
            out, [f"column 'path' is missing; there are: {', '.join(map(str, frame.columns))}"]
        )
    columns = [
        ["" if absent else str(cell) for cell, absent in zip(column, column.isna(), strict=True)]
        for _, column in frame.assign(path=frame["path"].str.removeprefix(base)).items()
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([frame.columns, *zip(*columns, strict=True)])
    _replace(out, text.getvalue().encode())
    return out


def _replace(url: str, content: bytes) -> None:
    """Put a file in place in one step: a rename on disk, one object elsewhere."""
    here = local_path(url)
    with driver_errors(url):
        if here is None:
            fs, path = filesystem(url)
            fs.pipe_file(path, content)
            return
        draft = Path(here).with_name(f".{Path(here).name}.{os.getpid()}.part")
        try:
            draft.write_bytes(content)
            draft.replace(here)
        finally:
            draft.unlink(missing_ok=True)


def _parent(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('/')[0]}".removesuffix("/")


def _list(directory: str | os.PathLike[str]) -> tuple[str, list[str]]:
    """List a folder with all below it: its URL ending in a slash, and the files' paths in it."""
    directory = os.fspath(directory)
    here = local_path(directory)
    root = str(Path(here).resolve()) if here is not None else directory
    root = root.rstrip("/") + "/"
    fs, path = filesystem(root)
    with driver_errors(directory):
        if not fs.isdir(path):
            raise _refusal(directory, ["there is no such folder"])
        found = fs.find(path) if here is None else _walk(path)
        names = (str(name)[len(path.rstrip("/")) :].lstrip("/") for name in found)
        seen = [name for name in names if not any(part[0] == "." for part in name.split("/"))]
    return root, sorted(seen, key=_natural)


def _walk(folder: str) -> Iterator[str]:
    """Yield the files below a local folder, through links; one that leads back up, is left out."""
    real = os.path.realpath(folder)
    above = {folder: {real}}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_refuse):
        seen = above.pop(parent)
        for name in list(folders):
            path = os.path.join(parent, name)  # noqa: PTH118 - as os.walk names it
            real = os.path.realpath(path)
            if real in seen:
                folders.remove(name)
            else:
                above[path] = {*seen, real}
        for name in files:
            yield posixpath.join(parent.replace(os.sep, "/"), name)


def _refuse(error: OSError) -> None:
    raise error


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Give a sorting key by which 2 comes before 10.

    Examples
    --------
    >>> sorted(["b10.png", "b2.png", "a/1.png"], key=_natural)
    ['a/1.png', 'b2.png', 'b10.png']
    """
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts] + [
        (1, 0, name)
    ]


def _by_class(files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Choose the images in sub-folders, and list what does not fit that layout."""
    images = [name for name in files if _is_image(name)]
    beside = [name for name in images if "/" not in name]
    classes = dict.fromkeys(name.split("/", 1)[0] for name in files if "/" in name)
    with_images = {name.split("/", 1)[0] for name in images if "/" in name}
    if not images:
        return [], [_nothing(files)]
    problems = [f"{name} lies in no class folder" for name in beside]
    problems += [
        f"folder {name!r} holds no image, but {_endings(files, name)}"
        for name in classes
        if name not in with_images
    ]
    return images, problems


def _endings(files: Iterable[str], folder_name: str = "") -> str:
    """Say in few words what kinds of files there are."""
    inside = [name for name in files if name.startswith(f"{folder_name}/" if folder_name else "")]
    endings = sorted({posixpath.splitext(name)[1] or "files without an ending" for name in inside})
    return ", ".join(endings) or "nothing"


def _nothing(files: Iterable[str]) -> str:
    return f"no image in it (found: {_endings(files)})"


def _is_image(name: str) -> bool:
    return name.lower().endswith(_IMAGE_SUFFIXES)


def _stem(name: str) -> str:
    stem, ending = posixpath.splitext(name)
    return stem.removesuffix(".ome") if ending.lower() in {".tif", ".tiff"} else stem


def _frame(rows: Iterable[dict[str, str]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(list(rows), dtype=object)


def _refusal(directory: str | os.PathLike[str], problems: list[Any]) -> CohortError:
    return CohortError(summarise(public_url(os.fspath(directory)), problems), problems=problems)
