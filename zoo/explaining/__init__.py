"""What a run looked at in an image: patches by attention or importance, drawn and as data.

:mod:`~zoo.explaining.importance` weighs the patches, :mod:`~zoo.explaining.maps` draws them over
the image, :mod:`~zoo.explaining.patches` shows the patches that stand out,
:mod:`~zoo.explaining.geojson` writes them for QuPath and as a table.
"""

from __future__ import annotations

from zoo.explaining.explanation import Explanation, check_outputs, explain

__all__ = ["Explanation", "check_outputs", "explain"]
