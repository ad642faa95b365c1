"""Heads on frozen patch embeddings, with one evaluation for all of them."""

from __future__ import annotations
