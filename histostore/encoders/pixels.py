"""From uint8 patches to what a network wants: resize, scale, shift; on the tensor side.

The resampling is Pillow's: a separable antialiased filter, horizontally and then vertically,
rounded to whole levels after each pass. On a CPU torch has it for uint8 tensors, four times
faster than for floats; elsewhere the same two passes run in floats with the same rounding,
and agree to one level.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own users expect
from torch import Tensor

__all__ = ["affine", "resize", "resize_in_floats"]


def resize(pixels: Tensor, size_px: int, mode: str) -> Tensor:
    """Resize square patches.

    Parameters
    ----------
    pixels
        ``(patch, channel, y, x)`` uint8, in channels-last order in memory.
    size_px
        Side of the result, px; patches that have it already are returned as they are.
    mode
        ``bilinear`` or ``bicubic``, both antialiased.

    Returns
    -------
    resized
        ``(patch, channel, size_px, size_px)``, uint8 on a CPU, else whole levels in float32.
    """
    if pixels.shape[-1] == size_px:
        return pixels
    if pixels.device.type == "cpu":
        size = (size_px, size_px)
        return F.interpolate(pixels, size=size, mode=mode, antialias=True, align_corners=False)
    return resize_in_floats(pixels, size_px, mode)


def resize_in_floats(pixels: Tensor, size_px: int, mode: str) -> Tensor:
    """Do what :func:`resize` does on a CPU, in floats, on any device."""
    levels = pixels.to(torch.float32)
    for size in ((pixels.shape[-2], size_px), (size_px, size_px)):
        levels = F.interpolate(levels, size=size, mode=mode, antialias=True, align_corners=False)
        levels = levels.round_().clamp_(0, 255)
    return levels


def affine(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Fold the division by 255, the mean and the deviation into one scale and one shift.

    Returns
    -------
    (scale, shift)
        ``(1, channel, 1, 1)`` float32 each: ``x · scale + shift = (x / 255 − mean) / std``.
    """
    means = torch.tensor(mean, dtype=torch.float64)
    deviations = torch.tensor(std, dtype=torch.float64)
    scale, shift = 1 / (255 * deviations), -means / deviations
    return tuple(v.to(device, torch.float32).reshape(1, -1, 1, 1) for v in (scale, shift))  # type: ignore[return-value]
