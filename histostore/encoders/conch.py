"""The image side of CONCH 1.5, in plain torch around a vision transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own users expect
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["AttentionalPooler", "ConchImages"]


class AttentionalPooler(nn.Module):
    """Learned queries attend over all tokens of an image.

    **Shape**: ``(patch, token, n_context)`` → ``(patch, query, n_features)``.

    **Reference**: Yu et al. 2022, arXiv:2205.01917 (CoCa), section 3.2, attentional poolers.
    """

    def __init__(self, n_features: int, n_context: int, *, n_heads: int, n_queries: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Parameter(torch.randn(n_queries, n_features))
        self.ln_k = nn.LayerNorm(n_context)
        self.ln_q = nn.LayerNorm(n_features)
        self.to_q = nn.Linear(n_features, n_features, bias=False)
        self.to_kv = nn.Linear(n_context, 2 * n_features, bias=False)
        self.to_out = nn.Linear(n_features, n_features, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Apply the module."""
        n_patches = tokens.shape[0]
        query = self._heads(self.to_q(self.ln_q(self.query)).expand(n_patches, -1, -1))
        key, value = self.to_kv(self.ln_k(tokens)).chunk(2, dim=-1)
        seen = F.scaled_dot_product_attention(query, self._heads(key), self._heads(value))
        pooled: Tensor = self.to_out(seen.transpose(1, 2).flatten(2))
        return pooled

    def _heads(self, x: Tensor) -> Tensor:
        """Split features: ``(patch, token, feature)`` → ``(patch, head, token, part)``."""
        n_patches, n_tokens, _ = x.shape
        return x.reshape(n_patches, n_tokens, self.n_heads, -1).transpose(1, 2)


class ConchImages(nn.Module):
    """A vision transformer, one attentional query over its tokens, and a norm.

    Parameters are named as CONCH 1.5 names them (``trunk.…``, ``attn_pool_contrast.…``,
    ``ln_contrast.…``), so that its checkpoint fits.

    **Shape**: ``(patch, 3, 448, 448)`` → ``(patch, 768)``.

    **Reference**: Ding et al. 2025 (TITAN), CONCH 1.5; Lu et al. 2024 (CONCH).

    Parameters
    ----------
    make_trunk
        Makes the transformer, of width 1024, with ``forward_features``.
    """

    n_features = 768

    def __init__(self, make_trunk: Callable[[], Any]) -> None:
        super().__init__()
        self.trunk = make_trunk()
        self.attn_pool_contrast = AttentionalPooler(self.n_features, 1024, n_heads=8, n_queries=1)
        self.ln_contrast = nn.LayerNorm(self.n_features)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the module."""
        vectors: Tensor = self.ln_contrast(
            self.attn_pool_contrast(self.trunk.forward_features(x))[:, 0]
        )
        return vectors
