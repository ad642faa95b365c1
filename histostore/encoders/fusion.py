"""Several encoders as one: each sees every patch once, and their features stand side by side.

The name is ``a+b``, with any number of members, and features come in the order given. How
large one member's features are beside another's is left as it is: heads standardise.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING

import numpy as np

from histostore.encoders.base import EncoderIdentity
from histostore.errors import EncoderError, HistostoreError, OptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from histostore.encoders.base import Encoder
    from histostore.encoders.cards import EncoderCard

__all__ = ["SEPARATOR", "FusedEncoder", "fuse", "members", "weights_of"]

SEPARATOR = "+"


class FusedEncoder:
    """Encoders whose features stand side by side.

    Parameters
    ----------
    encoders
        The members, in order.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = tuple(encoders)

    @property
    def identity(self) -> EncoderIdentity:
        """What decides its vectors: the identities of all members, in order."""
        identities = [encoder.identity for encoder in self._encoders]
        weights = [identity.weights for identity in identities]
        return EncoderIdentity(
            name=SEPARATOR.join(identity.name for identity in identities),
            weights="none" if set(weights) == {"none"} else _digest(weights),
            preprocessing={
                "members": [
                    {**identity.to_json(), "n_features": encoder.n_features}
                    for identity, encoder in zip(identities, self._encoders, strict=True)
                ]
            },
            precision=identities[0].precision,
        )

    @property
    def n_features(self) -> int:
        """Width of its vectors: the sum over its members."""
        return sum(encoder.n_features for encoder in self._encoders)

    @property
    def batch_size(self) -> int:
        """What the hungriest member likes; the others get it in turns of what they like."""
        return max(encoder.batch_size for encoder in self._encoders)

    def encode(self, patches: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turn patches into vectors, one member after the other.

        Parameters
        ----------
        patches
            ``(patch, y, x, channel)``, uint8 RGB, any square size that all members take.

        Returns
        -------
        embedding
            ``(patch, feature)``, float32: the first member's features, then the second's, ….

        Raises
        ------
        EncoderError
            What a member raises.
        """
        embedding = np.empty((len(patches), self.n_features), np.float32)
        at = 0
        for encoder in self._encoders:
            columns = slice(at, at + encoder.n_features)
            for start in range(0, len(patches), encoder.batch_size):
                rows = slice(start, start + encoder.batch_size)
                embedding[rows, columns] = encoder.encode(patches[rows])
            at = columns.stop
        return embedding

    def close(self) -> None:
        """Close the members that hold anything to be closed, as a process of their own."""
        _close(self._encoders)


def _digest(weights: Sequence[str]) -> str:
    """Digest the members' digests; they stand in the preprocessing one by one."""
    return f"sha256:{hashlib.sha256(json.dumps(list(weights)).encode()).hexdigest()}"


def _close(encoders: Sequence[Encoder]) -> None:
    for encoder in encoders:
        close: Callable[[], None] | None = getattr(encoder, "close", None)
        if close is not None:
            close()


def members(name: str) -> tuple[str, ...]:
    """Split a name into those of its members; one that is not fused has one.

    Raises
    ------
    EncoderError
        If a member is empty or stands there twice.

    Examples
    --------
    >>> members("texture+timm:resnet18")
    ('texture', 'timm:resnet18')
    >>> members("texture")
    ('texture',)
    """
    names = tuple(name.split(SEPARATOR))
    if len(names) > 1 and "" in names:
        raise EncoderError(f"encoder {name!r}: give a name on both sides of every {SEPARATOR}")
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        raise EncoderError(f"encoder {name!r} names {twice[0]} twice: once is enough")
    return names


def weights_of(cards: Sequence[EncoderCard], weights: str | None) -> dict[str, str | None]:
    """Give every member its weights.

    Parameters
    ----------
    cards
        Of the members.
    weights
        ``NAME=PATH``, several with commas between; or a path alone, where one member needs
        weights, or, if none needs them, one member takes them.

    Returns
    -------
    weights
        Name to path, or to ``None`` where nothing was given.

    Raises
    ------
    OptionError
        If it is not clear which member weights are for, or one is given weights twice.

    Examples
    --------
    >>> from histostore.encoders.catalog import card
    >>> weights_of([card("texture"), card("squeezenet1_1")], "w.npz")
    {'texture': None, 'squeezenet1_1': 'w.npz'}
    >>> weights_of([card("timm:a"), card("timm:b")], "timm:b=b.npz,timm:a=a.npz")
    {'timm:a': 'a.npz', 'timm:b': 'b.npz'}
    """
    found: dict[str, str | None] = {row.name: None for row in cards}
    if weights is None:
        return found
    for text in _split(weights, found):
        name, equals, path = text.partition("=")
        if not equals or name not in found:
            name, path = _in_need(cards), text
        if found[name] is not None:
            raise OptionError(f"weights of {name} are given twice: {found[name]} and {path}")
        found[name] = path
    return found


def _split(weights: str, names: Mapping[str, object]) -> list[str]:
    """Split at commas, but only where a member's name follows: a path may hold commas."""
    following = "|".join(re.escape(name) for name in names)
    return re.split(rf",(?=(?:{following})=)", weights)


def _in_need(cards: Sequence[EncoderCard]) -> str:
    """Find the one member that weights without a name can be for."""
    if len(cards) == 1:
        return cards[0].name
    needing = [row.name for row in cards if row.needs_weights]
    taking = [row.name for row in cards if row.architecture is not None]
    names = needing or taking
    if len(names) == 1:
        return names[0]
    if not names:
        raise OptionError("weights are given, but none of the encoders takes any; leave them out")
    example = ",".join(f"{name}=PATH" for name in names)
    raise OptionError(f"weights for which of {', '.join(names)}? Say --weights {example}")


def fuse(cards: Sequence[EncoderCard], load: Callable[[EncoderCard], Encoder]) -> FusedEncoder:
    """Load the members of a fusion, in order.

    Parameters
    ----------
    cards
        Of the members.
    load
        Loads one of them.

    Raises
    ------
    HistostoreError
        What a member raises, with its name in front.
    """
    name = SEPARATOR.join(row.name for row in cards)
    loaded: list[Encoder] = []
    for row in cards:
        try:
            loaded.append(load(row))
        except HistostoreError as error:
            _close(loaded)
            message = f"member {row.name} of {name}: {error}"
            raise type(error)(message, problems=error.problems) from error
    return FusedEncoder(loaded)
