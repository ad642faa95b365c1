"""Products in half the width, where a recipe asks for that."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from zoo.recipes import Recipe

__all__ = ["autocast"]


def autocast(recipe: Recipe, device: torch.device) -> AbstractContextManager[object]:
    """Give the context for training passes, the loss included, not for backward or steps.

    With ``precision`` ``bfloat16``, torch multiplies matrices in bfloat16 and adds them up in
    single precision. Weights, their gradients, the optimiser's state and sums over a bag stay in
    single precision. bfloat16 has the range of single precision, so the loss needs no scaling.

    Parameters
    ----------
    recipe
        Whose ``precision`` counts.
    device
        Where the module lies.
    """
    if recipe.precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)
