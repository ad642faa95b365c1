"""What made a result: versions of what computed it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]

_LIBRARIES = (
    "histostore",
    "numpy",
    "numba",
    "scipy",
    "pillow",
    "tifffile",
    "zarr",
    "torch",
    "timm",
    "tensorflow-cpu",
    "tensorflow",
    "openslide-bin",
    "scikit-learn",
    "lightgbm",
)


def versions() -> dict[str, str]:
    """Give the versions of Python, the platform and the libraries that decide numbers.

    Nothing is imported for it, and what is not installed is left out.
    """
    found = {"python": platform.python_version(), "platform": platform.platform(terse=True)}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
