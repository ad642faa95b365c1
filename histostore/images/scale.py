"""Micrometres per pixel, as TIFF files tell them.

Only what was meant as a scale counts: Aperio's ``MPP``, OME's ``PhysicalSizeX``, and the
resolution tags where their unit is the centimetre. A resolution in inches is the habit of
printing software (72, 96, 300 dpi) and says nothing about the specimen.
"""

from __future__ import annotations

import html
import re

__all__ = ["mpp_from_description", "mpp_from_resolution"]

_APERIO = re.compile(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)")
_OME_PIXELS = re.compile(r"<(?:\w+:)?Pixels\b[^>]*>")
_OME_SIZE = re.compile(r"\bPhysicalSizeX\s*=\s*[\"']([^\"']*)[\"']")
_OME_UNIT = re.compile(r"\bPhysicalSizeXUnit\s*=\s*[\"']([^\"']*)[\"']")
_MICROMETRES = {"µm": 1.0, "μm": 1.0, "um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6}
_PLAUSIBLE = (0.02, 50.0)


def mpp_from_description(description: str) -> float | None:
    """Read the scale from Aperio's or OME's image description.

    Examples
    --------
    >>> mpp_from_description("Aperio Image Library v11|AppMag = 20|MPP = 0.4990")
    0.499
    >>> mpp_from_description('<OME><Pixels PhysicalSizeX="250" PhysicalSizeXUnit="nm"/></OME>')
    0.25
    """
    if description.startswith("Aperio"):
        found = _APERIO.search(description)
        return plausible_mpp(found.group(1)) if found else None
    pixels = _OME_PIXELS.search(description) if "<OME" in description else None
    size = _OME_SIZE.search(pixels.group()) if pixels else None
    if pixels is None or size is None:
        return None
    unit = _OME_UNIT.search(pixels.group())
    # OME's schema: micrometres where no unit is given.
    factor = _MICROMETRES.get(html.unescape(unit.group(1))) if unit else 1.0
    return None if factor is None else plausible_mpp(size.group(1), factor)


def mpp_from_resolution(numerator: int, denominator: int, unit: int) -> float | None:
    """Read the scale from the resolution tags of TIFF.

    Parameters
    ----------
    numerator, denominator
        Of XResolution, pixels per unit.
    unit
        ResolutionUnit: 3 is the centimetre; others are not a scale.

    Examples
    --------
    >>> mpp_from_resolution(40_000, 1, 3)
    0.25
    >>> mpp_from_resolution(300, 1, 2) is None
    True
    """
    if unit != 3 or numerator <= 0 or denominator <= 0:
        return None
    return plausible_mpp(str(1e4 * denominator / numerator))


def plausible_mpp(text: str, factor: float = 1.0) -> float | None:
    """Give the number if a microscope could have meant it: 72 pixels per cm is a default, too."""
    try:
        mpp = float(text) * factor
    except ValueError:
        return None
    return mpp if _PLAUSIBLE[0] <= mpp <= _PLAUSIBLE[1] else None
