"""Experiments: a grid of heads, recipes, feature sets and settings in one TOML file.

:func:`read_experiment` reads the file, :func:`plan` says what it asks for (both pure, and both
list everything that is wrong at once), :func:`run_experiment` does it: all runs, then all
ensembles of them, then the report. What is finished is not done again.
"""

from __future__ import annotations

from zoo.experiments.outcome import Outcome
from zoo.experiments.planning import Blending, Cell, Plan, plan
from zoo.experiments.reading import Experiment, read_experiment
from zoo.experiments.running import conduct, run_experiment

__all__ = [
    "Blending",
    "Cell",
    "Experiment",
    "Outcome",
    "Plan",
    "conduct",
    "plan",
    "read_experiment",
    "run_experiment",
]
