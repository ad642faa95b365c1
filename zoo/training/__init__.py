"""How torch heads learn: batches, losses, steps, and the loop that joins them.

The modules here import torch, so they are loaded only when something is trained or predicted.
"""

from __future__ import annotations
