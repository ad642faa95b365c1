"""Self-attention in linear time, through landmarks (Nyström's method)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.heads.layers import Dropout

__all__ = ["NystromAttention", "pseudo_inverse"]

_ITERATIONS = 6
_KERNEL = 33


class NystromAttention(nn.Module):
    """softmax(q k̃ᵀ) · softmax(q̃ k̃ᵀ)⁺ · softmax(q̃ kᵀ) v, plus a convolution of v.

    Landmarks q̃, k̃ are means over stretches of the sequence. With no more tokens than
    landmarks it is plain softmax attention.

    **Shape**: ``(bag, token, width)`` → the same; no padding.

    **Reference**: Xiong et al. 2021, eq. 14 to 16 and figure 2.
    """

    def __init__(self, width: int, *, n_heads: int, n_landmarks: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.n_landmarks = n_landmarks
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.around = nn.Conv2d(
            n_heads, n_heads, (_KERNEL, 1), padding=(_KERNEL // 2, 0), groups=n_heads, bias=False
        )
        self.out = nn.Sequential(nn.Linear(width, width), Dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        """Attend."""
        heads = self.qkv(x).view(*x.shape[:2], 3, self.n_heads, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (bag, head, token, channel)
        if x.shape[1] <= self.n_landmarks:
            attended = functional.scaled_dot_product_attention(q, k, v)
        else:
            attended = self._through_landmarks(q * q.shape[-1] ** -0.5, k, v)
        joined = (attended + self.around(v)).transpose(1, 2).flatten(2)
        result: Tensor = self.out(joined)
        return result

    def _through_landmarks(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        few_q, few_k = self._landmarks(q), self._landmarks(k)
        spread = (q @ few_k.transpose(-1, -2)).softmax(dim=-1)
        middle = (few_q @ few_k.transpose(-1, -2)).softmax(dim=-1)
        gathered = (few_q @ k.transpose(-1, -2)).softmax(dim=-1) @ v
        return (spread @ pseudo_inverse(middle)) @ gathered

    def _landmarks(self, tokens: Tensor) -> Tensor:
        flat = tokens.flatten(0, 1).transpose(1, 2)
        means = functional.adaptive_avg_pool1d(flat, self.n_landmarks)
        return means.transpose(1, 2).reshape(*tokens.shape[:2], self.n_landmarks, -1)


def pseudo_inverse(matrices: Tensor) -> Tensor:
    """Approximate the Moore-Penrose inverse of each matrix by six iterations.

    **Shape**: ``(…, n, n)`` → the same.

    **Reference**: Razavi et al. 2014, as in Xiong et al. 2021, eq. 11, with a start for each
    matrix from its own largest row and column sum.

    Examples
    --------
    >>> a = torch.tensor([[0.8, 0.2], [0.3, 0.7]])
    >>> bool(torch.allclose(pseudo_inverse(a) @ a, torch.eye(2), atol=1e-4))
    True
    """
    size = matrices.abs()
    scale = size.sum(dim=-1).amax(dim=-1) * size.sum(dim=-2).amax(dim=-1)
    z = matrices.transpose(-1, -2) / scale[..., None, None]
    one = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    for _ in range(_ITERATIONS):
        az = matrices @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z
