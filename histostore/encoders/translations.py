"""Names of parameters: from those of a checkpoint's authors to those of the architecture.

Every translation is a list of explicit rules. What no rule knows keeps its name, so that the
strict loading which follows finds it left over and refuses it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - the name that torch's own users expect

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from histostore.encoders.weights import State

__all__ = ["DROPPABLE", "TRANSLATIONS"]

_LAYER = r"^encoder\.layer\.(\d+)\."
_ATTENTION = re.compile(_LAYER + r"attention\.attention\.(query|key|value)\.(weight|bias)$")
# In the order in which they are tried; ViT and DINOv2 of the library transformers together.
_TRANSFORMERS = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (_LAYER + r"attention\.output\.dense\.", r"blocks.\1.attn.proj."),
        (_LAYER + r"layernorm_before\.", r"blocks.\1.norm1."),
        (_LAYER + r"layernorm_after\.", r"blocks.\1.norm2."),
        (_LAYER + r"(norm[12])\.", r"blocks.\1.\2."),
        (_LAYER + r"layer_scale([12])\.lambda1$", r"blocks.\1.ls\2.gamma"),
        (_LAYER + r"intermediate\.dense\.", r"blocks.\1.mlp.fc1."),
        (_LAYER + r"output\.dense\.", r"blocks.\1.mlp.fc2."),
        (_LAYER + r"mlp\.weights_in\.", r"blocks.\1.mlp.fc1."),
        (_LAYER + r"mlp\.weights_out\.", r"blocks.\1.mlp.fc2."),
        (_LAYER + r"mlp\.(fc[12])\.", r"blocks.\1.mlp.\2."),
        (r"^layernorm\.", "norm."),
    )
]


def _from_transformers(state: State) -> State:
    """Rename a ``ViTModel`` or ``Dinov2Model`` of transformers to what DINOv2 itself uses.

    Query, key and value are three layers there and one here, stacked in this order.
    """
    renamed: State = {}
    stacks: dict[str, dict[str, torch.Tensor]] = {}
    for given, value in state.items():
        name = re.sub(r"^(vit|dinov2|model)\.", "", given)
        if part := _ATTENTION.match(name):
            block, role, kind = part.groups()
            stacks.setdefault(f"blocks.{block}.attn.qkv.{kind}", {})[role] = value
            continue
        for pattern, replacement in _TRANSFORMERS:
            if pattern.match(name):
                name = pattern.sub(replacement, name)
                break
        renamed[name] = value
    for name, roles in stacks.items():
        if roles.keys() == {"query", "key", "value"}:
            renamed[name] = torch.cat([roles[role] for role in ("query", "key", "value")])
    return renamed


def _from_kimianet(state: State) -> State:
    """Rename KimiaNet's: a sequence whose first member is DenseNet-121's body.

    The prefix ``module.`` of parallel training is off already.
    """
    return {re.sub(r"^model\.0\.", "features.", name): value for name, value in state.items()}


def _from_gpfm(state: State) -> State:
    """Rename GPFM's: a teacher of DINOv2, its blocks in chunks (``blocks.CHUNK.BLOCK.``)."""
    plain = {name.removeprefix("backbone."): value for name, value in state.items()}
    return {re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name): v for name, v in plain.items()}


def _from_conch(state: State) -> State:
    """Resample CONCH 1.5's table of positions once, as its authors do at every pass.

    14 × 14 squares were trained, 28 × 28 are asked for; the factor is 28.1 / 14, the tenth
    being DINO's guard against rounding, and it enters the sampling positions.
    """
    name, side, wanted = "trunk.pos_embed", 14, 28
    table = state.get(name)
    if table is None or table.ndim != 3 or table.shape[1] != 1 + side**2:
        return state
    width = table.shape[2]
    grid = table[:, 1:].to(torch.float32).reshape(1, side, side, width).permute(0, 3, 1, 2)
    factor = (wanted + 0.1) / side
    grid = F.interpolate(grid, scale_factor=(factor, factor), mode="bicubic")
    squares = grid.permute(0, 2, 3, 1).reshape(1, wanted**2, width).to(table.dtype)
    return {**state, name: torch.cat([table[:, :1], squares], dim=1)}


TRANSLATIONS: Mapping[str, Callable[[State], State]] = {
    "conch": _from_conch,
    "gpfm": _from_gpfm,
    "kimianet": _from_kimianet,
    "transformers": _from_transformers,
}
"""By the name that a card gives in ``keys``."""

DROPPABLE: Mapping[str, tuple[str, ...]] = {
    "conch": ("trunk.head.",),
    "gpfm": ("dino_head.", "ibot_head."),
    "kimianet": ("fc_4.",),
    "transformers": ("pooler.",),
}
"""Heads that such a checkpoint may bring along in vain."""
