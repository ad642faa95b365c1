"""Networks put together from blueprints: what a training starts from, and what it leaves behind.

The same modules, with the same names of parameters, stand in a network that is trained and in
the encoder that is read from it later.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from histostore.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from histostore.encoders.blueprints import Blueprint

__all__ = ["Backbone", "SideBySide", "describe_layers", "layers_from", "rgb"]

Triple = tuple[float, float, float]


class Backbone(nn.Module):
    """A network without its classifier: pixels in, one vector per image out.

    **Shape**: ``(image, 3, px, px)``, RGB, shifted and scaled → ``(image, feature)``.
    """

    def __init__(self, plan: Blueprint) -> None:
        super().__init__()
        self.module = plan.module
        self._apply_module = plan.forward
        self._flips = plan.channels == "BGR"

    def forward(self, pixels: Tensor) -> Tensor:
        """Apply the module."""
        return self._apply_module(self.module, pixels.flip(1) if self._flips else pixels)


def rgb(plan: Blueprint) -> tuple[Triple, Triple]:
    """Give the mean and the deviation of a blueprint's pixels, red first."""
    order = slice(None, None, -1 if plan.channels == "BGR" else 1)
    (m0, m1, m2), (s0, s1, s2) = plan.mean[order], plan.std[order]
    return (m0, m1, m2), (s0, s1, s2)


class SideBySide(nn.Module):
    """Backbones that see the same pixels; their vectors stand side by side.

    Pixels come shifted and scaled as the first member wants them; for the others this is taken
    back and done as they want it, so that each sees what it sees as an encoder.

    **Shape**: ``(image, 3, px, px)`` → ``(image, feature)``.
    """

    def __init__(self, plans: Mapping[str, Blueprint]) -> None:
        super().__init__()
        first_mean, first_std = rgb(next(iter(plans.values())))
        for branch, plan in plans.items():
            self.add_module(branch, Backbone(plan))
            mean, std = rgb(plan)
            shift = [(a - b) / c for a, b, c in zip(first_mean, mean, std, strict=True)]
            scale = [a / b for a, b in zip(first_std, std, strict=True)]
            for kind, values in (("shift", shift), ("scale", scale)):
                column = torch.tensor(values, dtype=torch.float64).to(torch.float32)
                name = f"{branch}_{kind}"
                self.register_buffer(name, column.reshape(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Apply every member."""
        vectors = []
        for branch, member in self.named_children():
            shift, scale = (self.get_buffer(f"{branch}_{kind}") for kind in ("shift", "scale"))
            vectors.append(member(torch.addcmul(shift, pixels, scale)))
        return torch.cat(vectors, dim=1)


# -- layers one after the other -----------------------------------------------------------------

# What each kind of layer is made with; whole numbers all, and none of them large.
_LAYERS: Mapping[str, tuple[type[nn.Module], tuple[str, ...]]] = {
    "conv2d": (nn.Conv2d, ("in_channels", "out_channels", "kernel_size", "stride", "padding")),
    "linear": (nn.Linear, ("in_features", "out_features")),
    "relu": (nn.ReLU, ()),
    "max-pool": (nn.MaxPool2d, ("kernel_size", "stride")),
    "adaptive-max-pool": (nn.AdaptiveMaxPool2d, ("output_size",)),
    "flatten": (nn.Flatten, ()),
}
_LARGEST = 1 << 16


def describe_layers(layers: Sequence[nn.Module]) -> list[dict[str, Any]]:
    """Describe layers that follow each other as JSON values; :func:`layers_from` builds them.

    Raises
    ------
    EncoderError
        If a layer is of another kind than those known, or was made with more than its sizes.

    Examples
    --------
    >>> describe_layers([nn.Linear(3, 2), nn.ReLU()])
    [{'kind': 'linear', 'in_features': 3, 'out_features': 2}, {'kind': 'relu'}]
    """
    told = []
    for layer in layers:
        kinds = [kind for kind, (made, _) in _LAYERS.items() if type(layer) is made]
        if not kinds:
            raise EncoderError(f"a layer of kind {type(layer).__name__} cannot be described")
        sizes = {key: _one(getattr(layer, key)) for key in _LAYERS[kinds[0]][1]}
        told.append({"kind": kinds[0], **sizes})
        whole = all(type(size) is int for size in sizes.values())
        if not whole or repr(layers_from(told[-1:], device="meta")[0]) != repr(layer):
            raise EncoderError(f"a layer {layer} has settings that cannot be described")
    return told


def _one(size: Any) -> Any:
    """Give the one size of a square."""
    return size[0] if isinstance(size, tuple) and len(set(size)) == 1 else size


def layers_from(told: Sequence[Any], *, device: str = "cpu") -> nn.Sequential:
    """Build what :func:`describe_layers` described.

    Raises
    ------
    EncoderError
        If it describes no layers.
    """
    layers: list[nn.Module] = []
    for row in told:
        kind = str(row.get("kind")) if isinstance(row, dict) else ""
        if kind not in _LAYERS:
            raise EncoderError(f"no layer is {kind!r}; known: {', '.join(_LAYERS)}")
        made, keys = _LAYERS[kind]
        sizes = {key: value for key, value in row.items() if key != "kind"}
        if set(sizes) != set(keys) or not all(
            type(size) is int and 0 <= size < _LARGEST for size in sizes.values()
        ):
            raise EncoderError(f"a layer {kind} needs {', '.join(keys) or 'no sizes'}: {sizes}")
        with torch.device(device):
            layers.append(made(**sizes))
    if not layers:
        raise EncoderError("it describes no layers")
    return nn.Sequential(*layers)
