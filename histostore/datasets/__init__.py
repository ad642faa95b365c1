"""Cohort tables from folders of images, as public data sets are laid out.

Each function looks at file names alone, never at pixels, and gives a data frame with
``image_id``, ``path`` (absolute), ``label`` and what else the names tell; rows are in natural
order (2 before 10). A layout that is not the expected one is a
:class:`~histostore.errors.CohortError` that lists everything found. Hidden files and what is
no image (``Thumbs.db``, notes, tables) are passed over; links are followed.
"""

from __future__ import annotations

from histostore.datasets.breast import bach, breakhis
from histostore.datasets.colon import nct_crc
from histostore.datasets.folders import folder, lymphoma
from histostore.datasets.writing import write_cohort

__all__ = ["bach", "breakhis", "folder", "lymphoma", "nct_crc", "write_cohort"]
