"""Where a network looks: Grad-CAM++ of its last feature maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from histostore.encoders.torchvision_guard import import_guarded
from histostore.errors import MissingExtra
from zoo.errors import NotSupported
from zoo.finetune.amil import SmallCnn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from zoo.finetune.networks import Network

    Reshape = Callable[[Tensor], Tensor]

__all__ = ["cam_layer", "grad_cam"]


def grad_cam(net: Network, images: NDArray[np.uint8], target: Sequence[int]) -> NDArray[np.float32]:
    """Weigh the pixels of images by what they add to the score of a class.

    Parameters
    ----------
    net
        Sees whole images; it is left in evaluation mode.
    images
        ``(image, px, px, 3)`` uint8, of the size of the network's input.
    target
        ``(image,)``, number of the class each is asked about.

    Returns
    -------
    maps
        ``(image, px, px)`` float32; 0 where nothing speaks for the class, 1 at the largest value
        of each map. A map in which nothing speaks for it is 0 everywhere.

    Raises
    ------
    NotSupported
        If the network sees bags, or has no feature maps.
    MissingExtra
        If pytorch-grad-cam is not installed.

    **Reference**: Chattopadhay et al. 2018, WACV, equations 10 and 19; by pytorch-grad-cam.
    """
    layer, reshape = cam_layer(net)
    try:
        library = import_guarded("pytorch_grad_cam")
    except MissingExtra as error:
        raise MissingExtra.named("grad-cam", extra="finetune") from error
    targets = import_guarded("pytorch_grad_cam.utils.model_targets")
    asked = [targets.ClassifierOutputTarget(number) for number in target]
    place = next(net.module.parameters()).device
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).to(place)
    mean, std = (torch.tensor(x, device=place).view(1, 3, 1, 1) for x in (net.mean, net.std))
    # Frozen networks have no gradient of their own: that of the pixels makes it flow.
    seen = ((pixels.float() / 255 - mean) / std).requires_grad_()
    with library.GradCAMPlusPlus(net.module, [layer], reshape_transform=reshape) as cam:
        maps: NDArray[np.float32] = np.asarray(cam(input_tensor=seen, targets=asked), np.float32)
    net.module.zero_grad()
    most = maps.max(axis=(1, 2), keepdims=True)
    np.divide(maps, most, out=maps, where=most > 1e-6)
    maps[(most <= 1e-6)[:, 0, 0]] = 0.0
    return maps


def cam_layer(net: Network) -> tuple[nn.Module, Reshape | None]:
    """Choose the layer whose maps are weighed: the last that still has places in it.

    Of a transformer it is the norm before the last attention, whose tokens, without those that
    stand for no place, are laid out as a map. Of a hybrid it is that of the first branch.

    Returns
    -------
    layer
        A module of the network.
    reshape
        Makes maps of its output; ``None`` where it gives maps.

    Raises
    ------
    NotSupported
        If the network sees bags, or no layer has places in it.
    """
    if net.bag:
        raise NotSupported(f"{net.name} weighs patches itself: draw its attention instead")
    if isinstance(net.module, SmallCnn):
        last = net.module.stages[-1]
        assert isinstance(last, nn.Sequential)  # noqa: S101 (for the type checker)
        return last[1], None  # before its last pooling
    path = net.parts[0].path if net.parts else ""
    body = net.module.get_submodule(path)
    outputs = _outputs(body, net.px)
    tokens = [m for m, shape in outputs if len(shape) == 3 and isinstance(m, nn.LayerNorm)]
    if len(tokens) >= 3:  # two in each block and a closing one
        layer = tokens[-3]
        n_tokens = next(shape[1] for module, shape in outputs if module is layer)
        return layer, _laid_out(n_tokens)
    maps = [m for m, shape in outputs if len(shape) == 4 and min(shape[2:]) > 1]
    if not maps:
        raise NotSupported(f"{net.name} has no feature maps to weigh")
    return maps[-1], None


def _laid_out(n_tokens: int) -> Reshape:
    """Make a function that lays tokens out as a square, without class token and registers."""
    side = int(n_tokens**0.5)

    def reshape(tokens: Tensor) -> Tensor:
        places = tokens[:, n_tokens - side * side :]
        return places.reshape(len(tokens), side, side, -1).permute(0, 3, 1, 2)

    return reshape


def _outputs(body: nn.Module, px: int) -> list[tuple[nn.Module, tuple[int, ...]]]:
    """List modules as they finish, with the shapes they give, on the meta device."""
    found: list[tuple[nn.Module, tuple[int, ...]]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            found.append((module, tuple(output.shape)))

    hooks = [module.register_forward_hook(note) for module in body.modules()]
    state = {name: value.to("meta") for name, value in body.state_dict().items()}
    state |= {name: value.to("meta") for name, value in body.named_buffers()}
    try:
        with torch.no_grad():
            pixels = torch.zeros((1, 3, px, px), device="meta")
            torch.func.functional_call(body.eval(), state, (pixels,))
    finally:
        for hook in hooks:
            hook.remove()
    return found
