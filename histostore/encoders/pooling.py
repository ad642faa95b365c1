"""From the tokens of a transformer to one vector per patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from histostore.errors import EncoderError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

__all__ = ["POOLINGS", "pool", "pooled_forward"]

POOLINGS = ("token", "patches", "token+patches")
"""What :func:`pool` knows."""


def pool(tokens: Tensor, n_prefix: int, pooling: str) -> Tensor:
    """Turn tokens into vectors.

    Parameters
    ----------
    tokens
        ``(patch, token, feature)``, after the last norm: the class token, then registers, then
        one token per square of the patch.
    n_prefix
        How many come before the squares: the class token and the registers.
    pooling
        ``token``: the class token; ``patches``: the mean over the squares; ``token+patches``:
        both, side by side.

    Returns
    -------
    vectors
        ``(patch, feature)``, or twice as wide for ``token+patches``.

    Examples
    --------
    >>> tokens = torch.tensor([[[1.0], [9.0], [2.0], [4.0]]])  # class, register, two squares
    >>> pool(tokens, 2, "token+patches")
    tensor([[1., 3.]])
    """
    if pooling == "token":
        return tokens[:, 0]
    squares = tokens[:, n_prefix:].mean(dim=1)
    return squares if pooling == "patches" else torch.cat([tokens[:, 0], squares], dim=-1)


def pooled_forward(module: nn.Module, pooling: str) -> Callable[[nn.Module, Tensor], Tensor]:
    """Make the forward pass of a transformer of timm with a pooling of one's own.

    Parameters
    ----------
    module
        Has ``forward_features`` and ``num_prefix_tokens``.
    pooling
        One of :data:`POOLINGS`.

    Raises
    ------
    EncoderError
        If the module has no tokens.
    """
    n_prefix = getattr(module, "num_prefix_tokens", None)
    if not isinstance(n_prefix, int) or n_prefix < 1:
        raise EncoderError(f"{type(module).__name__} has no class token to pool by {pooling!r}")

    def forward(transformer: Any, x: Tensor) -> Tensor:
        return pool(transformer.forward_features(x), n_prefix, pooling)

    return forward
