"""What decides a vector: the specification of a feature set, and its digest."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from histostore.encoders.base import EncoderIdentity
from histostore.errors import FormatError, OptionError, summarise
from histostore.grid import PatchGrid
from histostore.images.quality import QualityFilter
from histostore.images.stain import StainTarget
from histostore.images.tissue import TissueFilter

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["DTYPES", "FeatureSpec"]

DTYPES = ("float16", "float32")
"""The element types in which embeddings may be stored."""

_KEYS = frozenset({"encoder", "n_features", "grid", "tissue", "stain", "dtype"})
_OPTIONAL_KEYS = frozenset({"quality"})
"""Written only where they are set: what was there before has kept its digest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSpec:
    """Everything that decides a vector; two specifications never mix in one feature set.

    Equal specifications have equal digests, whatever the order in which mappings inside
    them were filled.

    Raises
    ------
    OptionError
        If ``n_features`` is not positive or ``dtype`` is not one of :data:`DTYPES`.

    Examples
    --------
    >>> spec = FeatureSpec(
    ...     encoder=EncoderIdentity(name="timm:resnet18"),
    ...     n_features=512,
    ...     grid=PatchGrid(patch_size=256),
    ...     tissue=TissueFilter(),
    ... )
    >>> spec.name.startswith("timm-resnet18-"), len(spec.digest)
    (True, 64)
    >>> FeatureSpec.from_json(spec.to_json()) == spec
    True
    """

    encoder: EncoderIdentity
    """Name, weights, preprocessing and precision of the encoder."""

    n_features: int
    """Width of a vector."""

    grid: PatchGrid
    """Where patches lie."""

    tissue: TissueFilter
    """Which of them are kept."""

    stain: StainTarget | str = "none"
    """What the colours were made to look like; ``none``. Another word is a normalisation of
    which the target is not known."""

    dtype: str = "float32"
    """Element type in the store."""

    quality: QualityFilter = field(default_factory=QualityFilter)
    """How good a patch must be to be kept."""

    def __post_init__(self) -> None:
        if self.n_features < 1:
            raise OptionError(f"n_features={self.n_features}: a vector has at least one feature")
        if self.dtype not in DTYPES:
            raise OptionError(f"dtype={self.dtype!r} cannot be stored; use {' or '.join(DTYPES)}")

    def to_json(self) -> dict[str, Any]:
        """Give the specification as JSON values."""
        document = {
            "encoder": self.encoder.to_json(),
            "n_features": self.n_features,
            "grid": self.grid.to_json(),
            "tissue": self.tissue.to_json(),
            "stain": self.stain if isinstance(self.stain, str) else self.stain.to_json(),
            "dtype": self.dtype,
        }
        return {**document, "quality": self.quality.to_json()} if self.quality else document

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> FeatureSpec:
        """Invert :meth:`to_json`.

        Raises
        ------
        FormatError
            If a key is missing or unknown, or a value does not make sense; all at once.
        """
        problems = [f"{key!r} is missing" for key in sorted(_KEYS - document.keys())]
        problems += [
            f"{key!r} is unknown" for key in sorted(document.keys() - _KEYS - _OPTIONAL_KEYS)
        ]
        if problems:
            raise FormatError(summarise("feature specification", problems), problems=problems)
        try:
            stain = document["stain"]
            return cls(
                encoder=EncoderIdentity.from_json(document["encoder"]),
                n_features=document["n_features"],
                grid=PatchGrid.from_json(document["grid"]),
                tissue=TissueFilter.from_json(document["tissue"]),
                stain=stain if isinstance(stain, str) else StainTarget.from_json(stain),
                dtype=document["dtype"],
                quality=QualityFilter.from_json(document.get("quality", {})),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise FormatError(f"feature specification: {error}") from error

    def canonical(self) -> str:
        """Give the one text that stands for this specification: sorted, compact JSON."""
        return json.dumps(
            self.to_json(),
            sort_keys=True,
            separators=(",", ":"),
            ensure_ascii=False,
            allow_nan=False,
        )

    @property
    def digest(self) -> str:
        """SHA-256 of :meth:`canonical`, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical().encode()).hexdigest()

    @property
    def name(self) -> str:
        """Name of the feature set in a store: the encoder, and eight digits of the digest."""
        slug = re.sub(r"[^a-z0-9._]+", "-", self.encoder.name.lower()).strip("-.") or "encoder"
        return f"{slug[:80]}-{self.digest[:8]}"
