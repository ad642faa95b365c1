"""Finding the one bit of a document that has flipped, by the digest that the document carries.

Memory and disks flip single bits; a digest says when the right one has been turned back.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from histostore.store.record import BLANK_DIGEST, DIGEST_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_sealed", "unflip"]

MAX_BYTES = 64 * 2**10
"""Longer documents would take a minute."""

_KEY = f'"{DIGEST_NAME}": "'.encode()


def is_sealed(content: bytes) -> bool:
    """Say whether a document is what its own digest says."""
    start = content.find(_KEY) + len(_KEY)
    stop = start + len(BLANK_DIGEST)
    blanked = content[:start] + BLANK_DIGEST.encode() + content[stop:]
    return hashlib.sha256(blanked).hexdigest().encode() == content[start:stop]


def unflip(content: bytes, is_right: Callable[[bytes], bool] = is_sealed) -> bytes | None:
    """Turn one bit after the other, until the document is right again.

    Parameters
    ----------
    content
        The damaged document.
    is_right
        Says whether a document is what was written, beyond doubt.

    Returns
    -------
    restored
        The document as it was written; None if more than one bit is wrong.

    Examples
    --------
    >>> from histostore.store.record import seal
    >>> document = seal(b'{"record_sha256": "' + b"0" * 64 + b'", "failed": []}')
    >>> unflip(document.replace(b"failed", b"fbiled")) is None  # two bits
    True
    >>> unflip(document.replace(b"failed", b"gailed")) == document
    True
    """
    candidate = bytearray(content[:MAX_BYTES])
    for at in range(len(content) if len(content) <= MAX_BYTES else 0):
        for bit in range(8):
            candidate[at] ^= 1 << bit
            if is_right(bytes(candidate)):
                return bytes(candidate)
            candidate[at] ^= 1 << bit
    return None
