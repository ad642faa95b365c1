"""A graph over the patches of an image whose sparse edges are learned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from zoo.errors import NotSupported
from zoo.heads.layers import Dropout, GatedAttention
from zoo.heads.neural import AttentionModule, TorchHead, TorchSpec
from zoo.settings import flag, number, whole
from zoo.training.layout import Padded

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    from numpy.typing import NDArray

    from zoo.bags import Bags
    from zoo.training.layout import Layout

__all__ = ["Edges", "Graph", "GraphModule", "Neighbours", "edges", "nearest", "sparsemax"]

_ROWS_AT_ONCE = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph(TorchSpec):
    """Messages between patches along learned edges, then gated attention.

    It starts from the graph of nearest neighbours by coordinates. Each edge has a logit from
    its length and from the two patches it joins; a sparsemax over the candidates of a patch
    turns logits into weights, most of them exactly 0. The classifier's weights learn on most
    of the training bags (inner level), the edges' weights on the others (outer level), by
    alternating first-order steps. ``learned=false`` keeps the starting graph: the ablation.

    **Reference**: ABiG-Net (arXiv 2510.13188), of which the abstract is public; the
    first-order approximation is that of Liu et al. 2019 (DARTS, eq. 5 and 7 with ξ = 0);
    sparsemax: Martins & Astudillo 2016.

    **Differences**

    - NOTE[DIFF] The abstract gives no sizes: two layers of 128 over 8 neighbours, 16
      candidates, a quarter of the training bags for the outer level.
    - NOTE[DIFF] Edge parameters must mean something on an image that was never seen, so they
      are weights of a function of an edge, not one number per edge.
    - NOTE[DIFF] Features are standardised first (``standardise``), as they may be of any scale.
    - NOTE[DIFF] After messages a telling patch speaks through all that listen to it, and
      attention may look at these instead: with learned edges it does. So what is shown is
      attention carried back along the edges, round by round (rollout; Abnar & Zuidema 2020, §3),
      to each neighbour by the length of what it said (Kobayashi et al. 2020, §3).
    """

    name: ClassVar[str] = "graph"

    hidden: int = whole(128, "width of a patch in the graph", low=1, high=65_536)
    depth: int = whole(2, "rounds of messages", low=1, high=64)
    n_neighbours: int = whole(8, "nearest patches in the starting graph", low=1, high=1024)
    n_candidates: int = whole(
        16, "nearest patches among which learned edges are chosen", low=1, high=1024
    )
    learned: bool = flag(default=True, meaning="learn edges, or keep the nearest neighbours")
    held_out: float = number(
        0.25, "share of the training bags on which edges learn", positive=True, high=0.9
    )
    edge_rate: float = number(
        1.0, "learning rate of edges, as a multiple of the recipe's", positive=True, high=1000
    )
    attention: int = whole(64, "width of the attention network", low=1, high=65_536)
    dropout: float = number(0.25, "dropout of patches after each round", high=0.99)

    def build(self, n_features: int, n_classes: int) -> GraphModule:
        """Make the network with fresh weights."""
        return GraphModule(self, n_features, n_classes)


class GraphModule(AttentionModule):
    """h ← norm(h + GELU(A h + B Σ_j w_ij h_j)); z = Σ a(h) h; logits = C z.

    **Shape**: ``x (bag, patch, feature)``, ``mask (bag, patch)`` bool, ``coords (bag, patch, 2)``
    → ``(bag, class)``.
    """

    uses_coords = True

    def __init__(self, spec: Graph, n_features: int, n_classes: int) -> None:
        super().__init__()
        self._spec = spec
        self.held_out = spec.held_out
        self.outer_rate = spec.edge_rate
        self.project = nn.Sequential(
            nn.Linear(n_features, spec.hidden), nn.GELU(), Dropout(spec.dropout)
        )
        self.rounds = nn.ModuleList(_Round(spec.hidden, spec.dropout) for _ in range(spec.depth))
        self.attend = GatedAttention(spec.hidden, spec.attention)
        self.classify = nn.Linear(spec.hidden, n_classes)
        if spec.learned:
            self.edge = _EdgeScore(n_features, spec.hidden)

    @property
    def outer_parameters(self) -> list[nn.Parameter]:
        """What learns on held-out bags."""
        return list(self.edge.parameters()) if self._spec.learned else []

    def logits(self, rows: Tensor, layout: Layout) -> Tensor:
        """Classify bags."""
        h, padded = self._messages(rows, layout)
        logits: Tensor = self.classify(padded.sum(self.attend(h, padded), h))
        return logits

    def weights(self, rows: Tensor, layout: Layout) -> Tensor:
        """Give the attention of each patch, carried back along the edges to who spoke."""
        near, edges = self.graph(rows, layout)
        h, mask = layout.pad(self.project(rows))
        heard = []
        for one in cast("Iterable[_Round]", self.rounds):
            heard.append(one.shares(h, near.which, edges))
            h = one(h, near.which, edges)
        share = self.attend(h, Padded(mask))  # (bag, patch)
        for shares in reversed(heard):
            back = share.unsqueeze(-1) * shares  # (bag, patch, k)
            share = share - back.sum(dim=-1)
            share = share.scatter_add(1, near.which.flatten(1), back.flatten(1))
        return layout.unpad(share)

    def graph(self, rows: Tensor, layout: Layout) -> tuple[Neighbours, Tensor]:
        """Find the candidates of each patch and the weight of each edge, ``(bag, patch, k)``."""
        if layout.coords is None:
            raise NotSupported("head graph needs the coordinates of patches; these bags have none")
        x, mask = layout.pad(rows)
        coords, _ = layout.pad(layout.coords)
        if mask.shape[1] > 1 and not bool(coords.any()):
            raise NotSupported(
                "head graph needs the coordinates of patches; in these bags all lie at 0, 0"
            )
        spec = self._spec
        near = nearest(coords, mask, spec.n_candidates if spec.learned else spec.n_neighbours)
        if spec.learned:
            start = torch.arange(near.which.shape[-1], device=x.device) < spec.n_neighbours
            scores = self.edge(x, near) + start.to(x.dtype)
            return near, sparsemax(scores.masked_fill(~near.real, -torch.inf))
        real = near.real.to(x.dtype)
        return near, real / real.sum(dim=-1, keepdim=True).clamp_min(1)

    def _messages(self, rows: Tensor, layout: Layout) -> tuple[Tensor, Padded]:
        near, weights = self.graph(rows, layout)
        h, mask = layout.pad(self.project(rows))
        for one in self.rounds:
            h = one(h, near.which, weights)
        return h, Padded(mask)


class _Round(nn.Module):
    """One round of messages.

    **Shape**: ``h (bag, patch, hidden)``, ``index`` and ``weights (bag, patch, k)`` → as ``h``.
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.own = nn.Linear(width, width)
        self.others = nn.Linear(width, width, bias=False)
        self.drop = Dropout(dropout)
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Take in what the neighbours say."""
        said = (weights.unsqueeze(-1) * _gather(self.others(h), index)).sum(dim=2)
        heard: Tensor = self.norm(h + self.drop(functional.gelu(self.own(h) + said)))
        return heard

    def shares(self, h: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Give each neighbour's share in what a patch becomes, by the length of what it says.

        **Shape**: as of :meth:`forward`, → ``(bag, patch, k)``; the rest to 1 is the patch's own.

        **Reference**: Kobayashi et al. 2020, §3 (norms of weighted vectors, not weights alone).
        """
        spoken = self.others(h).norm(dim=-1, keepdim=True)
        said = weights * _gather(spoken, index).squeeze(-1)
        own = h.norm(dim=-1) + self.own(h).norm(dim=-1)
        shares: Tensor = said / (own + said.sum(dim=-1)).clamp_min(1e-12).unsqueeze(-1)
        return shares


class _EdgeScore(nn.Module):
    """Logit of an edge: the shorter and the more fitting its ends, the higher.

    Both ends count alike, so an edge has one logit whichever way it is read.

    **Shape**: ``x (bag, patch, feature)`` → ``(bag, patch, k)``.
    """

    def __init__(self, n_features: int, hidden: int) -> None:
        super().__init__()
        self.end = nn.Linear(n_features, hidden)
        self.score = nn.Sequential(nn.Linear(2 * hidden, hidden), nn.GELU(), nn.Linear(hidden, 1))
        self.reach = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, near: Neighbours) -> Tensor:
        """Score every candidate."""
        end = self.end(x)
        mine, theirs = end.unsqueeze(2), _gather(end, near.which)
        fit = self.score(torch.cat([mine * theirs, (mine - theirs).abs()], dim=-1)).squeeze(-1)
        scores: Tensor = fit - functional.softplus(self.reach) * near.distance
        return scores


def _gather(h: Tensor, index: Tensor) -> Tensor:
    """Take rows ``(bag, patch, k, hidden)`` of ``h (bag, patch, hidden)``."""
    flat = index.flatten(1).unsqueeze(-1).expand(-1, -1, h.shape[-1])
    return h.gather(1, flat).view(*index.shape, h.shape[-1])


class Neighbours(NamedTuple):
    """The nearest patches of each patch, the nearest first, itself left out."""

    which: Tensor
    """``(bag, patch, k)`` int64."""
    distance: Tensor
    """``(bag, patch, k)``, in steps: 1 is the median distance to the nearest patch."""
    real: Tensor
    """``(bag, patch, k)`` bool: both patches exist and are two."""


@torch.no_grad()
def nearest(coords: Tensor, mask: Tensor, k: int) -> Neighbours:
    """Find the ``k`` nearest patches of each patch of a bag.

    Parameters
    ----------
    coords
        ``(bag, patch, 2)``.
    mask
        ``(bag, patch)`` bool, True where a patch is real.
    k
        How many at most; fewer where no bag has more.
    """
    k = min(k, max(mask.shape[1] - 1, 1))
    places = coords.masked_fill(~mask.unsqueeze(-1), torch.inf)
    own = torch.arange(mask.shape[1], device=mask.device)
    parts = []
    for start in range(0, mask.shape[1], _ROWS_AT_ONCE):
        some = slice(start, start + _ROWS_AT_ONCE)
        # Differences, not matrix products: equal distances must come out equal.
        apart = (places[:, some, None, :] - places[:, None, :, :]).square().sum(dim=-1)
        apart = apart.masked_fill(own[some, None] == own, torch.inf)
        apart = apart.nan_to_num(nan=torch.inf, posinf=torch.inf)
        parts.append(apart.topk(k, dim=-1, largest=False, sorted=True))
    distance = torch.cat([part.values for part in parts], dim=1).sqrt()
    index = torch.cat([part.indices for part in parts], dim=1)
    real = distance.isfinite() & mask.unsqueeze(-1)
    steps = distance[..., 0].masked_fill(~real[..., 0], torch.nan).nanmedian(dim=1).values
    steps = torch.where(steps > 0, steps, torch.ones_like(steps)).view(-1, 1, 1)
    return Neighbours(index, (distance / steps).masked_fill(~real, 0.0), real)


def sparsemax(scores: Tensor) -> Tensor:
    """Project scores onto the simplex: weights that sum to 1, most of them exactly 0.

    A row of −∞ alone, a patch without neighbours, gets zeros.

    **Shape**: ``(…, k)`` → the same.

    **Reference**: Martins & Astudillo 2016, algorithm 1.

    Examples
    --------
    >>> sparsemax(torch.tensor([[1.0, 0.5, -2.0], [0.0, 0.0, 0.0]])).tolist()
    [[0.75, 0.25, 0.0], [0.3333333432674408, 0.3333333432674408, 0.3333333432674408]]
    """
    hidden = scores == -torch.inf
    alone = hidden.all(dim=-1, keepdim=True)
    top = scores.masked_fill(hidden, -1e9)
    top = top - top.detach().amax(dim=-1, keepdim=True)
    ordered = top.sort(dim=-1, descending=True).values
    total = ordered.cumsum(dim=-1)
    rank = torch.arange(1, scores.shape[-1] + 1, device=scores.device, dtype=scores.dtype)
    support = 1 + rank * ordered > total
    count = support.sum(dim=-1, keepdim=True)
    threshold = (total.gather(-1, count - 1) - 1) / count
    return (top - threshold).clamp_min(0.0).masked_fill(alone | hidden, 0.0)


class Edges(NamedTuple):
    """The edges of one bag."""

    first: NDArray[np.int64]
    """``(edge,)``, the patch that listens."""
    second: NDArray[np.int64]
    """``(edge,)``, the patch that is heard."""
    weight: NDArray[np.float64]
    """``(edge,)``, above 0; those of one listener sum to 1."""


@torch.inference_mode()
def edges(head: TorchHead, bags: Bags) -> list[Edges]:
    """Give the graph of each bag, to be drawn at the patches' coordinates.

    Raises
    ------
    NotSupported
        If the head has no graph, or the bags no coordinates.
    """
    module = head.module
    if not isinstance(module, GraphModule):
        raise NotSupported(f"head {head.spec.name} has no edges; graph does")
    found = []
    for rows, layout in head.steps(bags):
        near, weights = module.graph(rows, layout)
        for index, weight in zip(near.which, weights, strict=True):
            first, place = weight.nonzero(as_tuple=True)
            found.append(
                Edges(
                    first.numpy(),
                    index[first, place].numpy(),
                    weight[first, place].double().numpy(),
                )
            )
    return found
