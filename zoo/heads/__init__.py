"""Heads, one file per paper."""
