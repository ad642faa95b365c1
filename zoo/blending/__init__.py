"""Blending: one prediction out of several members', learned where nothing is given away.

:mod:`~zoo.blending.pools`, :mod:`~zoo.blending.selection` and :mod:`~zoo.blending.numbers` learn
weights, :mod:`~zoo.blending.ranks` and :mod:`~zoo.blending.temperature` reshape predictions,
:mod:`~zoo.blending.mixing` says which of them belongs to which task, and
:mod:`~zoo.blending.nested` decides which images each fold may learn from. All of it is arrays in,
arrays out.
"""

from __future__ import annotations

from zoo.blending.mixing import CALIBRATIONS, LEARNED, RULES, Mix, Pool, check_rule
from zoo.blending.nested import Blend, Members, blend

__all__ = [
    "CALIBRATIONS",
    "LEARNED",
    "RULES",
    "Blend",
    "Members",
    "Mix",
    "Pool",
    "blend",
    "check_rule",
]
