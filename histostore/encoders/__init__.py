"""Encoders: frozen models, patch to vector."""

from __future__ import annotations

from histostore.encoders.base import Encoder, EncoderIdentity
from histostore.encoders.catalog import EncoderCard, known_encoders, load_encoder

__all__ = ["Encoder", "EncoderCard", "EncoderIdentity", "known_encoders", "load_encoder"]
