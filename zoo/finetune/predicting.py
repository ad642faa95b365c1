"""What a trained network says of images: logits, predictions, attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from zoo.errors import NotSupported
from zoo.finetune.loader import Draw

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from zoo.finetune.loader import PixelLoader
    from zoo.finetune.networks import Network
    from zoo.tasks import Task

__all__ = ["attention_of", "logits_of", "predict_rows", "shifted"]


def shifted(pixels: Tensor, net: Network) -> Tensor:
    """Turn pixels into what a network wants, on its device.

    Parameters
    ----------
    pixels
        ``(image, 3, px, px)`` uint8.
    net
        The network.

    Returns
    -------
    pixels
        ``(image, 3, px, px)`` float32, scaled to 0..1, shifted and scaled by channel.
    """
    device = next(net.module.parameters()).device
    scaled = pixels.to(device, non_blocking=True).float() / 255
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (net.mean, net.std))
    return (scaled - mean) / std


@torch.inference_mode()
def logits_of(
    net: Network,
    loader: PixelLoader,
    rows: Sequence[int],
    *,
    size: int = 16,
    view: str = "identity",
) -> Tensor:
    """Give the logits of images, ``(image, output)`` float32, on the network's device.

    Parameters
    ----------
    net
        The network; it is put into evaluation mode.
    loader
        Gives the pixels.
    rows
        Which images, one at least.
    size
        Images at once; networks that see bags take one.
    view
        How they are looked at.
    """
    net.module.eval()
    draws = [Draw(int(row), view=view) for row in rows]
    step = 1 if net.bag else size
    batches = [draws[at : at + step] for at in range(0, len(draws), step)]
    return torch.cat(
        [net.module(shifted(pixels, net)).float() for pixels in loader.batches(batches)]
    )


def predict_rows(
    net: Network,
    loader: PixelLoader,
    rows: Sequence[int],
    *,
    task: Task,
    views: Sequence[str] = ("identity",),
    size: int = 16,
) -> NDArray[np.float64]:
    """Predict images, averaged over views.

    Parameters
    ----------
    net, loader, rows, size
        As of :func:`logits_of`.
    task
        What was learned.
    views
        How images are looked at.

    Returns
    -------
    values
        ``(image, column)``: probabilities, or what else the task predicts.
    """
    found = [
        task.decode(logits_of(net, loader, rows, size=size, view=view).double().cpu().numpy())
        for view in views
    ]
    mean: NDArray[np.float64] = np.mean(found, axis=0)
    return mean


@torch.inference_mode()
def attention_of(net: Network, pixels: torch.Tensor) -> NDArray[np.float64]:
    """Weigh the patches of one image as a bag network does, ``(patch,)``; they sum to 1.

    Parameters
    ----------
    net
        Sees bags.
    pixels
        All patches of the image, uint8 ``(patch, 3, px, px)``. Where they lie,
        :meth:`zoo.finetune.pixels.Pixels.boxes_of` says.

    Raises
    ------
    NotSupported
        If the network sees whole images.
    """
    attention = getattr(net.module, "attention", None)
    if attention is None:
        raise NotSupported(f"{net.name} has no attention over patches: it sees whole images")
    net.module.eval()
    weights = attention(shifted(pixels, net)).double().cpu().numpy()
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares
