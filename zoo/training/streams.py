"""Random numbers of several trainings that run as one, each from a stream of its own.

A training alone draws from torch's own random state. Where several are computed together, each
has a state of its own, and what is drawn for all of them at once is drawn part by part: every
training sees the numbers that it would see alone.
"""

from __future__ import annotations

import contextlib
import math
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator

    Fill = Callable[[Tensor, torch.Generator | None], object]
    Into = Callable[[Tensor, Fill], None]
    Kind = Callable[[Tensor, tuple[int, ...], Into], Tensor]

__all__ = ["Streams", "dropout_mask", "normal_like", "uniform"]

_LEVELS = 1 << 16

_now: list[Streams] = []
"""The streams that draws are taken from, innermost last; torch's own state where empty."""


class _Draw(NamedTuple):
    """What one draw asks for."""

    like: Tensor
    shape: tuple[int, ...]
    kind: Kind


class Streams:
    """The random states of several trainings, called members.

    Parameters
    ----------
    device
        Where the members lie; on a GPU, named by its number, each has a state there too.
    """

    def __init__(self, device: torch.device) -> None:
        self._defaults = {"cpu": torch.default_generator}
        if device.type == "cuda":
            self._defaults["cuda"] = torch.cuda.default_generators[device.index or 0]
        self._members: list[dict[str, torch.Generator]] = []
        self._plans: dict[Hashable, list[_Draw]] = {}
        self._learned: list[_Draw] | None = None
        self._ahead: Iterator[Tensor] | None = None

    def __len__(self) -> int:
        return len(self._members)

    def add(self) -> None:
        """Add a member whose states are torch's own of this moment."""
        own = {}
        for kind, default in self._defaults.items():
            own[kind] = torch.Generator(default.device)
            own[kind].set_state(default.get_state())
        self._members.append(own)

    @contextlib.contextmanager
    def own(self, member: int) -> Iterator[None]:
        """Make torch's own state that of one member, which draws on from there."""
        before = {kind: default.get_state() for kind, default in self._defaults.items()}
        for kind, default in self._defaults.items():
            default.set_state(self._members[member][kind].get_state())
        try:
            yield
        finally:
            for kind, default in self._defaults.items():
                self._members[member][kind].set_state(default.get_state())
                default.set_state(before[kind])

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Take what the functions of this module draw from all members, each its part.

        Outside of :func:`torch.vmap` the first axis holds the members one after the other, in
        parts of like size. Inside, every member gets the whole shape.
        """
        _now.append(self)
        try:
            yield
        finally:
            _now.pop()

    def ahead(self, key: Hashable) -> tuple[Tensor, ...]:
        """Draw what a mapped function is about to draw, each with the members in front.

        Inside of :func:`torch.vmap` every draw costs a detour through Python. ``key`` is whatever
        decides which draws the function makes: the first time it is seen, nothing is drawn, and
        :meth:`using` learns what will be.
        """
        n_members = len(self)
        return tuple(
            draw.kind(draw.like, (n_members, *draw.shape), self.fill)
            for draw in self._plans.get(key, ())
        )

    @contextlib.contextmanager
    def using(self, key: Hashable, ahead: tuple[Tensor, ...]) -> Iterator[None]:
        """Use what was drawn ahead, now inside of the mapped function, in its order."""
        known = key in self._plans
        self._ahead = iter(ahead) if known else None
        self._learned = None if known else []
        try:
            yield
            if self._learned is not None:
                self._plans[key] = self._learned
        finally:
            self._ahead = self._learned = None

    def draw(self, like: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
        """Draw for all members, or take what was drawn ahead."""
        if self._ahead is not None:
            return next(self._ahead)
        if self._learned is not None:
            empty = torch.empty(0, dtype=like.dtype, device=like.device)
            self._learned.append(_Draw(empty, tuple(shape), kind))
        drawn: Tensor = _Drawn.apply(like, tuple(shape), kind)  # type: ignore[no-untyped-call]
        return drawn

    def fill(self, parts: Tensor, fill: Fill) -> None:
        """Fill ``parts (member, …)``, each from its own state."""
        for part, own in zip(parts, self._members, strict=True):
            fill(part, own[parts.device.type])


def uniform(like: Tensor, *shape: int) -> Tensor:
    """Draw from [0, 1), float32, in the given shape or that of ``like``, on its device."""
    return _draw(like, shape or tuple(like.shape), _uniform)


def normal_like(like: Tensor) -> Tensor:
    """Draw from the standard normal distribution, in the shape and type of ``like``."""
    return _draw(like, tuple(like.shape), _normal)


def dropout_mask(like: Tensor, chance: float) -> Tensor:
    """Draw what to multiply with: 0 with ``chance``, else 1 / (1 − chance).

    On a CPU torch draws one float per element on one thread, which costs as much as the linear
    layers around it; here one 64-bit draw decides four elements, to a chance of p ± 1/131072.

    Parameters
    ----------
    like
        Of the shape, type and device wanted.
    chance
        ``0 <= chance < 1``.
    """
    if like.device.type != "cpu":
        return _draw(like, tuple(like.shape), partial(_kept, 1.0 - chance)).div_(1.0 - chance)
    dropped = min(round(chance * _LEVELS), _LEVELS - 1)
    kept = _draw(like, tuple(like.shape), _bits) >= dropped - _LEVELS // 2
    return kept.to(like.dtype).mul_(_LEVELS / (_LEVELS - dropped))


def _draw(like: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
    """Draw from torch's own state, or from those of all members."""
    if not _now:
        return kind(like, (1, *shape), _alone)[0]
    return _now[-1].draw(like, shape, kind)


class _Drawn(torch.autograd.Function):
    """Numbers for all members; this class is how :func:`torch.vmap` is told what it draws."""

    @staticmethod
    def forward(like: Tensor, shape: tuple[int, ...], kind: Kind) -> Tensor:
        """Draw ``shape``, whose first axis holds the members one after the other."""
        streams = _now[-1]
        parts = (len(streams), shape[0] // len(streams), *shape[1:])
        return kind(like, parts, streams.fill).reshape(shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep nothing: random numbers have no slope."""
        del inputs
        ctx.mark_non_differentiable(output)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], like: Tensor, shape: tuple[int, ...], kind: Kind
    ) -> tuple[Tensor, int]:
        """Draw ``shape`` for each member."""
        del in_dims
        return kind(like, (info.batch_size, *shape), _now[-1].fill), 0


def _alone(parts: Tensor, fill: Fill) -> None:
    fill(parts[0], None)


def _uniform(like: Tensor, parts: tuple[int, ...], into: Into) -> Tensor:
    drawn = torch.empty(parts, device=like.device)
    into(drawn, lambda part, own: part.uniform_(generator=own))
    return drawn


def _normal(like: Tensor, parts: tuple[int, ...], into: Into) -> Tensor:
    drawn = torch.empty(parts, dtype=like.dtype, device=like.device)
    into(drawn, lambda part, own: part.normal_(generator=own))
    return drawn


def _kept(chance: float, like: Tensor, parts: tuple[int, ...], into: Into) -> Tensor:
    """Draw 1 with ``chance``, else 0."""
    drawn = torch.empty(parts, dtype=like.dtype, device=like.device)
    into(drawn, lambda part, own: part.bernoulli_(chance, generator=own))
    return drawn


def _bits(like: Tensor, parts: tuple[int, ...], into: Into) -> Tensor:
    """Draw int16 of any value."""
    count = math.prod(parts[1:])
    drawn = torch.empty((parts[0], (count + 3) // 4), dtype=torch.int64, device=like.device)
    into(drawn, lambda part, own: part.random_(-(2**63), None, generator=own))
    return drawn.view(torch.int16)[:, :count].reshape(parts)
