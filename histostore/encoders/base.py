"""What an encoder is: a frozen model, patch to vector, with an identity."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from histostore.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["Encoder", "EncoderIdentity", "check_patches"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderIdentity:
    """Everything about an encoder that decides a vector.

    Two encoders with equal identities give equal vectors, to the precision named.
    """

    name: str
    """As given to ``--encoder``: ``texture``, ``timm:resnet18``, …"""

    weights: str = "none"
    """``sha256:<hex>`` of the weights, or ``none`` where there are none to have."""

    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    """JSON values: input size in px, resampling filter, mean, standard deviation, …"""

    precision: str = "float32"
    """Arithmetic of the forward pass: ``float32``, ``bfloat16``, ``float16``."""

    def to_json(self) -> dict[str, Any]:
        """Give the identity as JSON values; equal identities give equal values."""
        return {
            "name": self.name,
            "weights": self.weights,
            "preprocessing": json.loads(json.dumps(dict(self.preprocessing), sort_keys=True)),
            "precision": self.precision,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> EncoderIdentity:
        """Invert :meth:`to_json`."""
        return cls(
            name=document["name"],
            weights=document["weights"],
            preprocessing=dict(document["preprocessing"]),
            precision=document["precision"],
        )


@runtime_checkable
class Encoder(Protocol):
    """A frozen model, patch to vector.

    An encoder may use several threads inside :meth:`encode`, as many as it was told when it
    was loaded; it is called from one thread at a time.
    """

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors."""

    @property
    def n_features(self) -> int:
        """Width of its vectors."""

    @property
    def batch_size(self) -> int:
        """How many patches it likes to see at once."""

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors.

        Parameters
        ----------
        patches
            ``(patch, y, x, channel)``, uint8 RGB, any square size: the encoder resizes to
            the input it needs.

        Returns
        -------
        embedding
            ``(patch, feature)``, float32, finite; row *i* depends on patch *i* alone.
        """


def check_patches(patches: NDArray[np.uint8]) -> None:
    """Refuse what is not a batch of square 8-bit RGB patches.

    Raises
    ------
    EncoderError
        Saying what was given.
    """
    shape: tuple[int, ...] = getattr(patches, "shape", ())
    dtype = getattr(patches, "dtype", None)
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3
    if dtype != np.uint8 or not square:
        raise EncoderError(
            f"patches are {dtype} {shape}; an encoder wants uint8 (patch, y, x, 3), square"
        )
