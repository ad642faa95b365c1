"""The cells of a patch as graphs: 119 measures of its nuclei, no weights needed.

Nuclei are found in the haematoxylin of a patch (:mod:`._cells_nuclei`), and what pathologists
call architecture is measured on graphs between their centres: the list of Doyle et al. (2008),
*Automated grading of breast cancer histopathology using spectral clustering with textural and
architectural image features*, and Basavanhally et al. (2010). It is also the scale inside
patches of graph methods such as ABiG-Net (arXiv 2510.13188). A patch gives, in this order (see
:data:`FEATURE_NAMES`):

===========  ===========================================================================
present      10: which of the following there was enough of, 0 or 1
count        4: nuclei; nuclei per 10⁴ px²; share of pixels; share cut by the patch's edge
shape        25: mean, sd, percentiles 10, 50, 90 of area, axes, eccentricity, solidity
stain        19: the same of mean, sd and sum of haematoxylin in a nucleus; haematoxylin
             outside, eosin inside and outside of nuclei
orientation  3: share of elongated nuclei, their alignment, entropy of their directions
pairs        5: co-occurrence of the directions of Delaunay neighbours (after Lee et al.
             2013, cell orientation entropy)
voronoi      14: area, perimeter, chord of cells: mean, sd, least by greatest, disorder;
             roundness: mean, sd
delaunay     8: sides and areas of triangles: mean, sd, least by greatest, disorder
tree         4: edges of the minimum spanning tree, the same
near         27: distance to the 1st, 3rd, 5th, 7th nearest nucleus and number of nuclei
             within 10, 20, 30, 40, 50 px: mean, sd, disorder
===========  ===========================================================================

Disorder is 1 − 1 / (1 + sd / mean): 0 for a lattice. Lengths are in pixels and areas in square
pixels of the patch: only patches of one resolution (``--mpp``) compare, best such that nuclei
are 8 to 20 px across.

NOTE[DIFF]: a chord is the longest distance between two corners of a Voronoi cell, and not each
of them: corners coincide in regular patterns. The distance to the k nearest is that to the
k-th. Triangles and cells count only if nothing outside the patch could change them.

All measures are the same for a patch turned by 90 degrees or flipped, but for ties: between two
nuclei that touch, pixels of equal height may go to either.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._cells_features import FEATURE_NAMES, describe
from histostore.encoders._cells_nuclei import SETTINGS, Nuclei, find_nuclei
from histostore.encoders.base import EncoderIdentity
from histostore.encoders.weightless import BATCH_SIZE, check_patches, settle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.encoders.base import Encoder

__all__ = ["FEATURE_NAMES", "CellGraphEncoder", "Nuclei", "find_nuclei", "load"]

_VERSION = 2
"""Of the algorithm: another one gives another feature set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CellGraphEncoder:
    """Nuclei of patches and the graphs between them; see the module for what is measured.

    It holds no state: copies and threads may share it.
    """

    batch_size: int = BATCH_SIZE
    """Patches it likes to see at once."""

    threads: int = 1
    """How many patches it works on at the same time; no bit of the result depends on it."""

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors."""
        return EncoderIdentity(
            name="cell-graph", preprocessing={"version": _VERSION, "nuclei": SETTINGS}
        )

    @property
    def n_features(self) -> int:
        """Width of its vectors."""
        return len(FEATURE_NAMES)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors.

        Parameters
        ----------
        patches
            ``(patch, y, x, 3)``, uint8 RGB, square, any strides; a few dozen nuclei in a
            patch fill all features with meaning, fewer work.

        Returns
        -------
        embedding
            ``(patch, feature)``, float32, finite; row *i* depends on patch *i* alone.

        Raises
        ------
        OptionError
            If the array is of another type or shape.
        """
        check_patches("cell-graph", patches)
        out = np.empty((len(patches), self.n_features), np.float32)

        def fill(row: int) -> None:
            out[row] = describe(find_nuclei(patches[row]))

        if self.threads == 1 or len(patches) < 2:
            for row in range(len(patches)):
                fill(row)
            return out
        with ThreadPoolExecutor(min(self.threads, len(patches))) as pool:
            for _ in pool.map(fill, range(len(patches))):
                pass  # so that an error in a thread is raised here
        return out


def load(
    *,
    weights: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    threads: int | None = None,
    precision: str = "float32",
) -> Encoder:
    """Give the cell-graph encoder.

    Parameters
    ----------
    weights
        Must be left out: there are none.
    device
        ``auto`` or ``cpu``.
    batch_size
        Patches per call of ``encode``; default 128.
    threads
        Patches worked on at the same time; default as many as this process may use cores.
    precision
        ``float32`` only: of the result; sums are in double precision or in integers.

    Returns
    -------
    encoder
        Its machine code is compiled at the first use on a machine, in some ten seconds, then read
        from disk.

    Raises
    ------
    EncoderError
        If weights, another device or another precision are asked for.
    OptionError
        If ``batch_size`` or ``threads`` is below one.

    Examples
    --------
    >>> encoder = load(threads=1)
    >>> encoder.n_features, FEATURE_NAMES[-3]
    (119, 'near.r50.mean')
    """
    size, n_threads = settle(
        "cell-graph",
        weights=weights,
        device=device,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
    )
    return CellGraphEncoder(batch_size=size, threads=n_threads)
