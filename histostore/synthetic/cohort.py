"""A cohort of synthetic pictures with its table and its truth."""

from __future__ import annotations

import csv
import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError
from histostore.files import driver_errors
from histostore.synthetic.painting import (
    LESIONS,
    Stain,
    grow_lesion,
    paint_lesion,
    paint_tissue,
    to_rgb,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import pandas as pd
    from numpy.typing import NDArray

__all__ = ["Recipe", "SyntheticImage", "load_truth", "make_cohort"]

_TISSUE, _LESION, _STAIN, _LABEL = range(4)
"""Streams of random numbers: tissue and light of a picture never see its class."""

_TRUTH_COLUMNS = ("image_id", "x", "y", "edge_px", "planted")


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticImage:
    """One picture and the truth about it."""

    image_id: str
    """``image-0007``."""

    patient_id: str
    """``patient-001``: who shares a stain."""

    label: str
    """Which lesion is planted."""

    rgb: NDArray[np.uint8]
    """``(y, x, 3)``."""

    planted: NDArray[np.bool_]
    """``(row, column)`` of grid cells, numbered from the top-left corner."""

    nuclei: NDArray[np.float64]
    """``(nucleus, 2)``: x and y of the centre of every nucleus in sight, px."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What decides a synthetic cohort.

    Examples
    --------
    >>> image = Recipe(image_px=(192, 128), patch_px=64).draw(3)
    >>> image.image_id, image.rgb.shape, image.planted.shape
    ('image-0003', (128, 192, 3), (2, 3))
    """

    n_classes: int = 2
    """2 to 4; class *k* shows lesion *k* of :data:`LESIONS`."""

    image_px: tuple[int, int] = (512, 512)
    """Width and height."""

    patch_px: int = 64
    """Edge of the cells in which lesions are planted."""

    images_per_patient: int = 4
    """Images in a row that share patient and stain."""

    planted_share: float = 0.15
    """Share of an image's cells that show its class, on average; at least one does."""

    seed: int = 0
    """Decides everything, together with an image's number."""

    def __post_init__(self) -> None:
        problems = [
            text
            for wrong, text in (
                (
                    not 2 <= self.n_classes <= len(LESIONS),
                    f"n_classes {self.n_classes}: give 2 to {len(LESIONS)}",
                ),
                (self.patch_px < 16, f"patch_px {self.patch_px}: give 16 or more"),
                (
                    min(self.image_px) < self.patch_px,
                    f"an image of {self.image_px} px holds no patch of {self.patch_px} px: give a larger one",
                ),
                (
                    self.images_per_patient < 1,
                    f"images_per_patient {self.images_per_patient}: give 1 or more",
                ),
                (
                    not 0 < self.planted_share <= 0.9,
                    f"planted_share {self.planted_share}: give more than 0, at most 0.9",
                ),
                (self.seed < 0, f"seed {self.seed}: give 0 or more"),
            )
            if wrong
        ]
        if problems:
            raise OptionError("; ".join(problems), problems=problems)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(LESIONS)[: self.n_classes]

    def class_of(self, index: int) -> int:
        """Give the class of one image.

        Classes take turns within a patient, in an order of the patient's own: they are
        balanced, and who the patient is, and so the stain, tells nothing of the class.
        """
        patient, place = divmod(index, self.images_per_patient)
        turns = (np.arange(self.images_per_patient) + patient) % self.n_classes
        return int(self._stream(_LABEL, patient).permutation(turns)[place])

    def draw(self, index: int) -> SyntheticImage:
        """Draw one picture; it depends on this recipe and on ``index`` alone."""
        patient = index // self.images_per_patient
        label = self.classes[self.class_of(index)]
        tissue_rng, lesion_rng = self._stream(_TISSUE, index), self._stream(_LESION, index)
        width, height = self.image_px
        tissue = paint_tissue((height, width), tissue_rng)
        glass = _cell_means(tissue.glass, self.patch_px)
        n_cells = round(self.planted_share * glass.size * tissue_rng.uniform(0.6, 1.4))
        planted = grow_lesion(glass, max(1, n_cells), tissue_rng)
        paint_lesion(tissue, label, planted, self.patch_px, lesion_rng)
        return SyntheticImage(
            image_id=f"image-{index:04d}",
            patient_id=f"patient-{patient:03d}",
            label=label,
            rgb=to_rgb(tissue, Stain.drawn(self._stream(_STAIN, patient)), tissue_rng),
            planted=planted,
            nuclei=np.concatenate(tissue.nuclei),
        )

    def _stream(self, purpose: int, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, purpose, number])


def _cell_means(values: NDArray[np.float32], edge: int) -> NDArray[np.float32]:
    """Average over the whole cells of a picture: ``(row, column)``."""
    rows, columns = values.shape[0] // edge, values.shape[1] // edge
    cells = values[: rows * edge, : columns * edge].reshape(rows, edge, columns, edge)
    means: NDArray[np.float32] = cells.mean(axis=(1, 3))
    return means


def make_cohort(
    out_dir: str | os.PathLike[str],
    *,
    n_images: int = 64,
    n_classes: int = 2,
    image_px: int | tuple[int, int] = 512,
    patch_px: int = 64,
    images_per_patient: int = 4,
    planted_share: float = 0.15,
    seed: int = 0,
    threads: int = 1,
) -> str:
    """Draw a synthetic H&E cohort on disk: pictures, their table, and the truth.

    Every picture is stroma with glands, stray lymphocytes and bare glass, alike in all
    classes; in some connected grid cells a lesion of its class replaces them. All images of
    a patient share one stain, and hold all classes in turn, so that colour tells nothing of
    the class. Image *i* depends on ``seed``, *i* and the other settings, not on
    ``n_images`` or ``threads``: a larger cohort begins with the smaller one.

    Parameters
    ----------
    out_dir
        Folder to write ``cohort.csv``, ``truth.csv`` and ``images/*.png`` to; made if need
        be. Files of the same names are replaced; the table comes last.
    n_images
        How many, 1 or more.
    n_classes, patch_px, images_per_patient, planted_share, seed
        See :class:`Recipe`.
    image_px
        Edge of square images, or (width, height). Cells that are not whole stay unplanted.
    threads
        How many pictures are drawn at once.

    Returns
    -------
    cohort
        Path of ``cohort.csv``: ``image_id, path, label, patient_id``.

    Raises
    ------
    OptionError
        If a setting makes no sense.
    StorageError
        If the folder cannot be written.
    """
    size = (image_px, image_px) if isinstance(image_px, int) else image_px
    recipe = Recipe(
        n_classes=n_classes,
        image_px=size,
        patch_px=patch_px,
        images_per_patient=images_per_patient,
        planted_share=planted_share,
        seed=seed,
    )
    if n_images < 1 or threads < 1:
        raise OptionError(f"{n_images=}, {threads=}: give 1 or more of each")
    folder = Path(out_dir)

    def save(index: int) -> tuple[list[str], list[tuple[object, ...]]]:
        image = recipe.draw(index)
        path = f"images/{image.image_id}.png"
        _write_png(folder / path, image.rgb)
        return [image.image_id, path, image.label, image.patient_id], _truth_rows(image, patch_px)

    with driver_errors(str(folder)):
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(threads) as pool:
            rows, truth = zip(*pool.map(save, range(n_images)), strict=True)
        _write_csv(folder / "truth.csv", _TRUTH_COLUMNS, (row for image in truth for row in image))
        _write_csv(folder / "cohort.csv", ("image_id", "path", "label", "patient_id"), rows)
    return str(folder / "cohort.csv")


def load_truth(out_dir: str | os.PathLike[str]) -> pd.DataFrame:
    """Read which cells of a synthetic cohort show its classes.

    Parameters
    ----------
    out_dir
        Folder that :func:`make_cohort` wrote, or its ``cohort.csv``.

    Returns
    -------
    truth
        One row per whole grid cell, images in order, cells row by row: ``image_id`` (str),
        ``x`` and ``y`` (int32, top-left corner, px), ``edge_px`` (int32), ``planted``
        (bool).

    Raises
    ------
    StorageError
        If there is no truth table.
    """
    import pandas as pd

    folder = Path(out_dir)
    folder = folder.parent if folder.suffix == ".csv" else folder
    with driver_errors(str(folder / "truth.csv")):
        return pd.read_csv(
            folder / "truth.csv",
            dtype={
                "image_id": str,
                "x": np.int32,
                "y": np.int32,
                "edge_px": np.int32,
                "planted": bool,
            },
        )


def _truth_rows(image: SyntheticImage, edge: int) -> list[tuple[object, ...]]:
    cells = np.ndenumerate(image.planted)
    return [(image.image_id, x * edge, y * edge, edge, bool(value)) for (y, x), value in cells]


def _write_png(path: Path, rgb: NDArray[np.uint8]) -> None:
    from PIL import Image

    # Noise hardly compresses: level 1 is 4 times faster than the default and 3 % larger.
    Image.fromarray(rgb).save(path, compress_level=1)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    draft.write_text(text.getvalue(), encoding="utf-8")
    draft.replace(path)
