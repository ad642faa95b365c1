"""Image ids as file names, and back.

An id may hold what a file name may not: slashes, control characters, quotes. Such characters
are written as ``%`` and two hexadecimal digits per UTF-8 byte, as in URLs; letters of any
script stay readable.
"""

from __future__ import annotations

import unicodedata
from urllib.parse import unquote

from histostore.errors import OptionError

__all__ = ["escape", "unescape"]

_PLAIN = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.,+=@~()[] ")
_ENDS = frozenset(". ")
_MOST_BYTES = 240


def escape(image_id: str) -> str:
    """Give an id as the stem of a file name; different ids give different stems.

    Raises
    ------
    OptionError
        If it is too long for a file name.

    Examples
    --------
    >>> escape("case 7/slide-ü.1"), escape(".."), escape("100%")
    ('case 7%2Fslide-ü.1', '%2E%2E', '100%25')
    """
    # File systems may recompose what is not normalised: then only ASCII is safe.
    letters = unicodedata.is_normalized("NFC", image_id)
    last = len(image_id) - 1
    stem = "".join(
        character
        if (character in _PLAIN and not (character in _ENDS and at in {0, last}))
        or (letters and not character.isascii() and character.isalpha())
        else "".join(f"%{byte:02X}" for byte in character.encode())
        for at, character in enumerate(image_id)
    )
    if len(stem.encode()) > _MOST_BYTES:
        raise OptionError(
            f"image id {image_id[:40]!r}… takes {len(stem.encode())} bytes as a file name, more"
            f" than {_MOST_BYTES}; export to npz or parquet"
        )
    return stem


def unescape(stem: str) -> str:
    """Invert :func:`escape`; a stem that it cannot have made is taken as it is.

    Examples
    --------
    >>> unescape("case 7%2Fslide-ü.1"), unescape("50%20grey")
    ('case 7/slide-ü.1', '50%20grey')
    """
    try:
        image_id = unquote(stem, errors="strict")
        return image_id if escape(image_id) == stem else stem
    except (UnicodeError, OptionError):
        return stem
