"""Encoders: frozen models, patch to vector."""
