"""Bridges to and from the layouts in which others keep patch features.

>>> from histostore.bridges import EXPORTS, IMPORTS
>>> sorted(IMPORTS)
['clam', 'npz', 'raw2features', 'slide2vec', 'stamp', 'trident']
>>> sorted(EXPORTS)
['anndata', 'clam', 'npz', 'parquet', 'trident']
"""

from __future__ import annotations

from histostore.bridges.catalog import EXPORTS, IMPORTS
from histostore.bridges.exporting import export_layout
from histostore.bridges.importing import import_layout
from histostore.bridges.report import ExportReport, ImportReport

__all__ = [
    "EXPORTS",
    "IMPORTS",
    "ExportReport",
    "ImportReport",
    "export_layout",
    "import_layout",
]
