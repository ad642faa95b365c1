"""Upright pixels: what the orientation tag of EXIF and TIFF asks for.

The tag (number 274 in both) tells how the stored rows and columns lie in the scene. Values
1 to 8 are the eight views of the square; all others count as 1, as in other software.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Orientation", "read_exif", "split_jpeg_exif"]

_TAG = 274
_EXIF = b"Exif\0\0"

# Tag: (exchange y and x?, then reverse y?, then reverse x?), TIFF 6.0, page 36.
_STEPS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pixels become upright ones.

    Examples
    --------
    >>> import numpy as np
    >>> Orientation(6).apply(np.array([[1, 2]])).tolist()
    [[1], [2]]
    >>> Orientation(6).stored_box(0, 1, 1, 1, upright=(1, 2))
    (1, 0, 1, 1)
    """

    tag: int = 1
    """Value of the tag, 1 to 8."""

    @property
    def exchanges(self) -> bool:
        """Whether width and height change places."""
        return _STEPS.get(self.tag, (False,))[0]

    def apply(self, pixels: NDArray[np.generic]) -> NDArray[np.generic]:
        """Turn stored pixels upright; a view of the argument, axes ``(y, x, …)``."""
        exchange, reverse_y, reverse_x = _STEPS.get(self.tag, (False, False, False))
        turned = pixels.swapaxes(0, 1) if exchange else pixels
        return turned[:: -1 if reverse_y else 1, :: -1 if reverse_x else 1]

    def stored_box(
        self, x: int, y: int, width: int, height: int, *, upright: tuple[int, int]
    ) -> tuple[int, int, int, int]:
        """Find a box of the upright image among the stored pixels.

        Parameters
        ----------
        x, y, width, height
            The box, in pixels of the upright image.
        upright
            ``(width, height)`` of the upright image.

        Returns
        -------
        (x, y, width, height)
            The same pixels as they are stored.
        """
        exchange, reverse_y, reverse_x = _STEPS.get(self.tag, (False, False, False))
        if reverse_x:
            x = upright[0] - x - width
        if reverse_y:
            y = upright[1] - y - height
        return (y, x, height, width) if exchange else (x, y, width, height)


def read_exif(exif: bytes) -> Orientation:
    """Read the orientation from an EXIF block; damaged or absent, it asks for nothing.

    Read here because Pillow warns where an EXIF block is damaged, and warnings cannot be
    held back in one thread alone.

    Examples
    --------
    >>> read_exif(b"Exif")
    Orientation(tag=1)
    """
    body = exif.removeprefix(_EXIF)
    order = {b"II": "<", b"MM": ">"}.get(body[:2])
    if order is None:
        return Orientation()
    try:
        (start,) = struct.unpack_from(f"{order}I", body, 4)
        (count,) = struct.unpack_from(f"{order}H", body, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", body, entry)
            if tag == _TAG and kind == 3 and value in _STEPS:
                return Orientation(value)
    except struct.error:
        pass
    return Orientation()


def split_jpeg_exif(data: bytes) -> tuple[bytes, bytes]:
    """Take the EXIF blocks out of a JPEG file.

    Returns
    -------
    (data, exif)
        The file without them, and the first of them, empty if there is none.
    """
    exif, kept, at, start = b"", [], 2, 0
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, length = struct.unpack_from(">BH", data, at + 1)
        # Start of scan: no markers from here on, only pixels.
        if marker == 0xDA or length < 2:
            break
        end = at + 2 + length
        if marker == 0xE1 and data.startswith(_EXIF, at + 4):
            exif = exif or data[at + 4 : end]
            kept.append(data[start:at])
            start = end
        at = end
    return (b"".join([*kept, data[start:]]) if kept else data), exif
