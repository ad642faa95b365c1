"""Weighed patches for other programs: GeoJSON as QuPath reads it, and a table.

QuPath (Bankhead et al. 2017) takes a FeatureCollection whose geometries are in level-0 pixels;
``objectType``, ``name``, ``color``, ``classification`` and ``measurements`` of a feature's
properties become those of the object. Measurements as a mapping are read since version 0.4.
"""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

import numpy as np

from zoo.explaining.colours import choose_scale
from zoo.explaining.importance import ATTENTION

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

    from zoo.explaining.explanation import Explanation

__all__ = ["to_frame", "to_geojson"]

_NAMES = {True: "attention x patches", False: "change of log odds"}


def to_geojson(told: Explanation) -> str:
    """Write one polygon per patch, coloured as in the picture.

    Patches that hang over the image's border are cut there. Objects keep their identity: the
    same run and image give the same ids.
    """
    is_attention = told.method == ATTENTION
    scale = choose_scale(told.value, diverging=not is_attention)
    colours = scale.colours(told.value)
    ranks = rank(told.value)
    space = uuid.uuid5(uuid.NAMESPACE_URL, f"{told.run_name}\n{told.image_id}\n{told.method}")
    features = []
    for k, (left, top, right, bottom) in enumerate(told.boxes().tolist()):
        ring = [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
        measurements = {_NAMES[is_attention]: float(told.value[k]), "rank": int(ranks[k])}
        if np.isfinite(told.sd[k]):
            measurements["sd over heads"] = float(told.sd[k])
        properties: dict[str, Any] = {
            "objectType": "tile",
            "name": f"patch {ranks[k]}",
            "color": colours[k].tolist(),
            "classification": _classification(told, float(told.value[k])),
            "measurements": measurements,
        }
        features.append(
            {
                "type": "Feature",
                "id": str(uuid.uuid5(space, f"{left},{top}")),
                "geometry": {"type": "Polygon", "coordinates": [ring]},
                "properties": properties,
            }
        )
    document = {"type": "FeatureCollection", "features": features, "histostore": told.to_json()}
    return json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"


def to_frame(told: Explanation) -> pd.DataFrame:
    """Give one row per patch, the heaviest first.

    ``image_id``, ``x``, ``y``, ``edge_px`` (level-0 pixels), ``rank``, the value (``attention``
    and ``attention_x_patches``, or ``log_odds_change``), and its ``sd`` over heads.
    """
    import pandas as pd

    columns: dict[str, Any] = {
        "image_id": told.image_id,
        "x": told.coords[:, 0],
        "y": told.coords[:, 1],
        "edge_px": told.edge_px,
        "rank": rank(told.value),
    }
    if told.method == ATTENTION:
        columns["attention"] = told.value / len(told.value)
        columns["attention_x_patches"] = told.value
    else:
        columns["log_odds_change"] = told.value
    frame = pd.DataFrame({**columns, "sd": told.sd})
    return frame.sort_values("rank", kind="stable", ignore_index=True)


def rank(value: NDArray[np.float64]) -> NDArray[np.int64]:
    """Count patches from the heaviest, from 1; equal ones in their order.

    Examples
    --------
    >>> rank(np.array([0.1, 0.7, 0.2])).tolist()
    [3, 1, 2]
    """
    ranks = np.empty(len(value), np.int64)
    ranks[np.argsort(-value, kind="stable")] = np.arange(1, len(value) + 1)
    return ranks


def _classification(told: Explanation, value: float) -> dict[str, Any]:
    """Say on which side of indifference a patch lies: above uniform, or for the class."""
    if told.method == ATTENTION:
        name, colour = ("attended", [253, 231, 37]) if value > 1 else ("unattended", [68, 1, 84])
    elif value > 0:
        name, colour = f"for {told.prediction}", [180, 4, 38]
    else:
        name, colour = f"against {told.prediction}", [59, 76, 192]
    return {"name": name, "color": colour}
