"""What can go wrong in the zoo: children of :class:`histostore.errors.HistostoreError`.

Every leaf also has a built-in parent::

    HistostoreError
    ├── UnknownHead (KeyError)      no head of that name; lists the known ones
    ├── RecipeError (ValueError)    a recipe or a head's settings make no sense; .problems
    ├── SplitError (ValueError)     the cohort cannot be split as asked; gives the counts
    ├── LeakError (ValueError)      one patient stands on two sides of a split
    ├── EmptyBag (ValueError)       an image without a patch
    ├── RunError (ValueError)       a file or directory is not ours, or not whole
    └── NotSupported (ValueError)   this head or run cannot do that; says which can
"""

from __future__ import annotations

from histostore.errors import HistostoreError

__all__ = [
    "EmptyBag",
    "LeakError",
    "NotSupported",
    "RecipeError",
    "RunError",
    "SplitError",
    "UnknownHead",
]


class UnknownHead(HistostoreError, KeyError):
    """No head has this name; the message lists the known ones."""


class RecipeError(HistostoreError, ValueError):
    """A recipe, or a head's settings, make no sense; ``problems`` lists everything found."""


class SplitError(HistostoreError, ValueError):
    """The cohort cannot be split as asked; the message gives the counts."""


class LeakError(HistostoreError, ValueError):
    """One patient stands on two sides of a split."""


class EmptyBag(HistostoreError, ValueError):
    """A bag holds no patch, so there is nothing to predict from."""


class RunError(HistostoreError, ValueError):
    """A file or directory is not ours, is damaged, or was written by a newer format."""


class NotSupported(HistostoreError, ValueError):
    """A head or run cannot do what was asked; the message says which can."""
