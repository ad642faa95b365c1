"""From a file to patches: readers, tissue filter, patches."""

from __future__ import annotations
