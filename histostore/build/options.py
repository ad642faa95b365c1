"""What to build, as plain values that travel to workers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from histostore.encoders.catalog import load_encoder
from histostore.grid import PatchGrid
from histostore.images.quality import QualityFilter
from histostore.images.tissue import TissueFilter

if TYPE_CHECKING:
    from histostore.encoders.base import Encoder
    from histostore.images.stain import StainTarget

__all__ = ["BuildOptions", "EncoderOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderOptions:
    """Which encoder, and how it runs here."""

    name: str = "texture"
    weights: str | None = None
    """Path of the weights, where they are not to be downloaded."""
    device: str = "auto"
    batch_size: int | None = None
    """Patches a call; None leaves it to the encoder."""
    threads: int | None = None
    """Threads of the encoder; None takes all cores."""
    precision: str = "float32"

    def load(self) -> Encoder:
        """Load the encoder; slow for large ones."""
        return load_encoder(
            self.name,
            weights=self.weights,
            device=self.device,
            batch_size=self.batch_size,
            threads=self.threads,
            precision=self.precision,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What to embed, and how."""

    encoder: EncoderOptions = field(default_factory=EncoderOptions)
    grid: PatchGrid = field(default_factory=PatchGrid)
    tissue: TissueFilter = field(default_factory=TissueFilter)
    quality: QualityFilter = field(default_factory=QualityFilter)
    stain: StainTarget | str = "none"
    """What the colours are made to look like; or a method, whose target is that of the same
    feature set in the store, or where there is none is measured of the cohort."""
    views: tuple[str, ...] = ("identity",)
    dtype: str = "float32"
    """What is stored: ``float32`` or ``float16``."""
