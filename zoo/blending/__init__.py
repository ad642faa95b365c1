"""Blending: one prediction out of several members', learned where nothing is given away.

:mod:`~zoo.blending.pools` learns weights, :mod:`~zoo.blending.ranks` and
:mod:`~zoo.blending.temperature` reshape probabilities, and :mod:`~zoo.blending.nested` decides
which images each fold may learn from. All of it is arrays in, arrays out.
"""

from __future__ import annotations

from zoo.blending.nested import CALIBRATIONS, LEARNED, RULES, Blend, Members, blend, check_rule

__all__ = ["CALIBRATIONS", "LEARNED", "RULES", "Blend", "Members", "blend", "check_rule"]
