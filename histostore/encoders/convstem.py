"""The convolutional stem of CTransPath, which takes the place of Swin's patch embedding."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ConvStem"]


class ConvStem(nn.Module):
    """Two strided convolutions and a projection: a quarter of the size, ``embed_dim`` channels.

    It stands where timm's Swin transformer has its ``PatchEmbed``, and takes the same keywords;
    parameters are named as CTransPath names them.

    **Shape**: ``(patch, 3, y, x)`` → ``(patch, y / 4, x / 4, embed_dim)``.

    **Reference**: Wang et al. 2022, Medical Image Analysis 81:102559 (CTransPath), after Xiao
    et al. 2021, arXiv:2106.14881.
    """

    def __init__(
        self,
        *,
        img_size: tuple[int, int] = (224, 224),
        patch_size: int = 4,
        in_chans: int = 3,
        embed_dim: int = 96,
        norm_layer: Callable[[int], nn.Module] | None = None,
        **_: Any,
    ) -> None:
        super().__init__()
        self.patch_size = (patch_size, patch_size)
        self.grid_size = (img_size[0] // patch_size, img_size[1] // patch_size)
        widths = (in_chans, embed_dim // 8, embed_dim // 4)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [
                nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.Conv2d(widths[-1], embed_dim, kernel_size=1))
        self.proj = nn.Sequential(*layers)
        self.norm = nn.Identity() if norm_layer is None else norm_layer(embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        cells: Tensor = self.norm(self.proj(x).permute(0, 2, 3, 1))
        return cells
