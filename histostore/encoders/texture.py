"""The default encoder: 275 classical measures of colour and texture, no weights needed.

Kather et al. (2016), *Multi-class texture analysis in colorectal cancer histology*, told
tissues apart with a set of the same kind. A patch gives, in this order (see
:data:`FEATURE_NAMES`):

=======  ==============================================================================
colour   63: mean, sd, skewness, excess kurtosis and percentiles 5, 25, 50, 75, 95 of
         haematoxylin, eosin, DAB (Ruifrok and Johnston 2001), L, a, b, and grey
lbp      108: uniform local binary patterns (Ojala et al. 2002) on circles (8, 1), (16, 2),
         (24, 4), on the two images
glcm     80: mean and sd over four angles of five properties of the grey-level
         co-occurrence (Haralick et al. 1973), 16 levels, distances 1, 2, 4, 8 px
power    24: log power density in 12 rings of spatial frequency up to Nyquist
=======  ==============================================================================

The two images are grey, and haematoxylin stretched between its 1st and 99th percentile, both
in 8 bits. Radii and distances are in pixels and rings in cycles per pixel: patches of one
physical resolution compare whatever their size, but for what lies at their border (black
outside, for lbp) and rings that small patches leave empty (below 24 px). Patches that differ
in µm per px do not compare.

All measures are the same for a patch turned by 90 degrees or flipped, to rounding.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders._texture_names import FEATURE_NAMES, PREPROCESSING
from histostore.encoders.base import EncoderIdentity
from histostore.encoders.weightless import BATCH_SIZE, check_patches, settle

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from histostore.encoders.base import Encoder

__all__ = ["FEATURE_NAMES", "TextureEncoder", "load"]

_LARGEST_TASK = 8  # patches handed to a thread at once


@dataclass(frozen=True, kw_only=True, slots=True)
class TextureEncoder:
    """Colour and texture of patches; see the module for what is measured.

    It holds no state: copies and threads may share it.
    """

    batch_size: int = BATCH_SIZE
    """Patches it likes to see at once."""

    threads: int = 1
    """How many patches it works on at the same time; no bit of the result depends on it."""

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors."""
        return EncoderIdentity(name="texture", preprocessing=PREPROCESSING)

    @property
    def n_features(self) -> int:
        """Width of its vectors, 275."""
        return len(FEATURE_NAMES)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors.

        Parameters
        ----------
        patches
            ``(patch, y, x, 3)``, uint8 RGB, square, any strides; 24 px and more fill all
            features with meaning, smaller ones work.

        Returns
        -------
        embedding
            ``(patch, 275)``, float32, finite; row *i* depends on patch *i* alone.

        Raises
        ------
        OptionError
            If the array is of another type or shape.
        """
        check_patches("texture", patches)
        # Only here: the compiler behind it takes a second to load, and a build that has nothing
        # to do needs no more than the identity.
        from histostore.encoders._texture_patch import encode_some

        out = np.empty((len(patches), self.n_features), np.float32)
        # Several tasks per thread, so that the last ones end at about the same time.
        step = min(max(len(patches) // (4 * self.threads), 1), _LARGEST_TASK)
        parts = [slice(start, start + step) for start in range(0, len(patches), step)]
        if self.threads == 1 or len(parts) < 2:
            encode_some(patches, out)
            return out
        with ThreadPoolExecutor(min(self.threads, len(parts))) as pool:
            for _ in pool.map(lambda part: encode_some(patches[part], out[part]), parts):
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
    """Give the texture encoder.

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
        Its machine code is compiled at the first use on a machine, in some seconds, then read
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
    >>> encoder.n_features, FEATURE_NAMES[0]
    (275, 'colour.H.mean')
    """
    size, n_threads = settle(
        "texture",
        weights=weights,
        device=device,
        batch_size=batch_size,
        threads=threads,
        precision=precision,
    )
    return TextureEncoder(batch_size=size, threads=n_threads)
