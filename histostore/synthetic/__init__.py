"""A seeded synthetic H&E cohort with planted lesions, for tests, demonstration and benchmarks.

The pictures look like haematoxylin-eosin sections and are none: what a method scores on them
says that it works, not how well it does on patients.
"""

from __future__ import annotations

from histostore.synthetic.cohort import Recipe, SyntheticImage, load_truth, make_cohort

__all__ = ["Recipe", "SyntheticImage", "load_truth", "make_cohort"]
