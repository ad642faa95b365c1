"""Tuning: settings searched by cross-validation inside every training part.

The run that results is as honest as that of ``zoo fit``: what a fold is tested on has no part in
choosing the settings that predict it.
"""

from __future__ import annotations

from zoo.tuning.search import Search, Trial
from zoo.tuning.space import Choice, Range, default_space, read_space
from zoo.tuning.tuned import tune

__all__ = ["Choice", "Range", "Search", "Trial", "default_space", "read_space", "tune"]
