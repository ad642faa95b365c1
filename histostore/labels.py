"""Labels of one data set as those of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from histostore.errors import CohortError, OptionError, summarise

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

__all__ = ["LABEL_MAPS", "map_labels", "parse_label_map"]

LABEL_MAPS: Mapping[str, Mapping[str, str]] = {
    "bach-to-breakhis": {
        "Normal": "benign",
        "Benign": "benign",
        "InSitu": "malignant",
        "Invasive": "malignant",
    },
}
"""Maps that have a name. BACH's four classes to the two of BreaKHis, to test heads of one on the
other: normal tissue is benign there, carcinoma in situ malignant."""


def parse_label_map(text: str) -> dict[str, str]:
    """Read ``OLD=NEW,OLD=NEW``, or the name of one of :data:`LABEL_MAPS`.

    Raises
    ------
    OptionError
        If it is neither, or names a label twice.

    Examples
    --------
    >>> parse_label_map("CLL=CLL, FL=other,MCL=other")
    {'CLL': 'CLL', 'FL': 'other', 'MCL': 'other'}
    """
    if text in LABEL_MAPS:
        return dict(LABEL_MAPS[text])
    cells = [[cell.strip() for cell in pair.split("=")] for pair in text.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in cells):
        known = ", ".join(LABEL_MAPS)
        raise OptionError(f"label map {text!r}: give OLD=NEW,OLD=NEW,… or one of {known}")
    found = {pair[0]: pair[1] for pair in cells}
    if len(found) < len(cells):
        raise OptionError(f"label map {text!r}: a label is there twice")
    return found


def map_labels(frame: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """Give images other labels.

    Parameters
    ----------
    frame
        With a column ``label``, as the functions of :mod:`histostore.datasets` give it.
    labels
        Old label to new one, of every label that there is; it may name more.

    Returns
    -------
    frame
        A copy with the new ``label``, and the old one as ``original_label``.

    Raises
    ------
    CohortError
        If there is a label that the map does not name; ``problems`` lists all.

    Examples
    --------
    >>> import pandas as pd
    >>> frame = pd.DataFrame({"image_id": ["a", "b"], "label": ["Normal", "InSitu"]})
    >>> mapped = map_labels(frame, LABEL_MAPS["bach-to-breakhis"])
    >>> mapped["label"].tolist(), mapped["original_label"].tolist()
    (['benign', 'malignant'], ['Normal', 'InSitu'])
    """
    there = dict.fromkeys(frame["label"].dropna())
    problems = [
        f"label {label!r} is not among {', '.join(labels)}"
        for label in there
        if label not in labels
    ]
    if problems:
        raise CohortError(summarise("the label map", problems), problems=problems)
    return frame.assign(label=frame["label"].map(dict(labels)), original_label=frame["label"])
