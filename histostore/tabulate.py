"""From a folder of images to a cohort table, as ``histostore cohort`` makes it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from histostore import datasets
from histostore.labels import map_labels, parse_label_map

if TYPE_CHECKING:
    import os

__all__ = ["Tabulated", "tabulate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tabulated:
    """A cohort table that was written."""

    path: str
    n_images: int
    labels: dict[str, int]
    """Images of each label."""

    def to_json(self) -> dict[str, Any]:
        """Give all of it as JSON values."""
        return asdict(self)

    def to_text(self) -> str:
        """Say in one line what the table holds."""
        counts = ", ".join(f"{label} {n:,}" for label, n in self.labels.items())
        return f"{self.path}: {self.n_images:,} images; {counts}"


def tabulate(
    layout: str, folder: str | os.PathLike[str], out: str, label_map: str | None = None
) -> Tabulated:
    """List the images of a folder, and write the table.

    Parameters
    ----------
    layout
        A function of :mod:`histostore.datasets`, with ``-`` for ``_``.
    folder
        Where the images are.
    out
        As of :func:`~histostore.datasets.write_cohort`.
    label_map
        As of :func:`~histostore.labels.parse_label_map`.

    Raises
    ------
    CohortError
        If the folder is laid out otherwise.
    OptionError
        If the map makes no sense, or lacks a label.
    StorageError
        If the table cannot be written.
    """
    mapping = None if label_map is None else parse_label_map(label_map)
    frame = getattr(datasets, layout.replace("-", "_"))(folder)
    frame = frame if mapping is None else map_labels(frame, mapping)
    datasets.write_cohort(frame, out)
    counts = {str(label): int(n) for label, n in frame["label"].value_counts().items()}
    return Tabulated(path=out, n_images=len(frame), labels=counts)
