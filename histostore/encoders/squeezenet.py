"""SqueezeNet 1.1 up to its last feature map, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["SqueezeNetFeatures"]


class Fire(nn.Module):
    """Squeeze to few channels by 1 × 1, expand by 1 × 1 and 3 × 3 side by side.

    **Shape**: ``(patch, n_in, y, x)`` → ``(patch, 2 n_expand, y, x)``.
    """

    def __init__(self, n_in: int, n_squeeze: int, n_expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(n_in, n_squeeze, kernel_size=1)
        self.expand1x1 = nn.Conv2d(n_squeeze, n_expand, kernel_size=1)
        self.expand3x3 = nn.Conv2d(n_squeeze, n_expand, kernel_size=3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        x = torch.relu(self.squeeze(x))
        return torch.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNetFeatures(nn.Module):
    """SqueezeNet 1.1 without its classifier: the mean of the last feature map.

    Parameters are named as torchvision names them (``features.N…``), so its checkpoints fit.
    Version 1.1 moves the pooling earlier than the paper does, at equal accuracy and 2.4 times
    less work.

    **Shape**: ``(patch, 3, y, x)``, at least 17 px → ``(patch, 512)``.

    **Reference**: Iandola et al. 2016, arXiv:1602.07360, section 3 (fire modules); version
    1.1 is the authors' own revision of it.
    """

    n_features = 512

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, kernel_size=3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(64, 16, 64),
            Fire(128, 16, 64),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(128, 32, 128),
            Fire(256, 32, 128),
            nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True),
            Fire(256, 48, 192),
            Fire(384, 48, 192),
            Fire(384, 64, 256),
            Fire(512, 64, 256),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        return torch.as_tensor(self.features(x)).mean(dim=(2, 3))
