"""Heads: interchangeable models from bags of embeddings to classes."""

from __future__ import annotations

from zoo.heads.base import Head, HeadSpec
from zoo.heads.catalog import HEADS, HeadCard, known_heads, load_head, spec

__all__ = ["HEADS", "Head", "HeadCard", "HeadSpec", "known_heads", "load_head", "spec"]
