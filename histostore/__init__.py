"""A store of patch embeddings: computed once, kept for good."""

from __future__ import annotations
