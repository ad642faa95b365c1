"""Two drawings of statistics as SVG files of their own: mean ranks, and reliability."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from histostore.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zoo.calibration import Reliability
    from zoo.significance import Friedman

__all__ = ["rank_diagram", "reliability_diagram", "undivided"]

_INK, _FAINT, _ACCENT = "#1b1b1b", "#b5b5b5", "#0b6e4f"


def rank_diagram(names: Sequence[str], found: Friedman) -> str:
    """Draw mean ranks on a line, with a bar over runs that do not lie apart (Demšar 2006, fig. 1).

    Parameters
    ----------
    names
        What the runs are called, in the order of ``found.ranks``.
    found
        Their ranks.

    Returns
    -------
    svg
        A drawing that needs no style sheet.

    Raises
    ------
    OptionError
        If there is not one name per run.
    """
    if len(names) != len(found.ranks):
        raise OptionError(f"{len(names)} names for {len(found.ranks)} runs: give one for each")
    k = len(names)
    width, side, top = 640.0, 170.0, 70.0
    unit = (width - 2 * side) / (k - 1)

    def at(rank: float) -> float:
        return side + (rank - 1) * unit

    ranked = sorted(zip(found.ranks, names, strict=True))
    groups = undivided([rank for rank, _ in ranked], found.critical_difference)
    first = top + 14 + 9 * len(groups)
    half = (k + 1) // 2
    height = first + 20 * max(half, k - half) + 12
    parts = [_line(at(1), top, at(k), top)]
    for tick in range(1, k + 1):
        parts += [_line(at(tick), top - 5, at(tick), top), _text(at(tick), top - 10, str(tick))]
    reach = min(found.critical_difference, k - 1) * unit
    told = f"critical difference {found.critical_difference:.2f}, {found.n_blocks} folds"
    parts += [_line(side, 26, side + reach, 26, thick=True), _text(side, 18, told, "start")]
    for i, (low, high) in enumerate(groups, start=1):
        bar = top + 9 * i
        parts.append(_line(at(low) - 4, bar, at(high) + 4, bar, thick=True))
    for i, (rank, name) in enumerate(ranked):
        left = i < half
        y = first + 20 * (i if left else k - 1 - i)
        end = side - 14 if left else width - side + 14
        told = f"{name} {rank:.2f}"
        parts += [_line(at(rank), top, at(rank), y), _line(at(rank), y, end, y)]
        parts.append(_text(end - 4 if left else end + 4, y + 4, told, "end" if left else "start"))
    ranks = ", ".join(f"{name} {rank:.2f}" for rank, name in ranked)
    return _svg(width, height, parts, f"Mean ranks: {ranks}")


def undivided(ranks: Sequence[float], reach: float) -> list[tuple[float, float]]:
    """Find the longest stretches of sorted ranks that are within reach.

    Examples
    --------
    >>> undivided([1.0, 1.5, 2.75, 3.5], 1.3)
    [(1.0, 1.5), (1.5, 2.75), (2.75, 3.5)]
    """
    found: list[tuple[float, float]] = []
    for low in ranks:
        high = max(rank for rank in ranks if low <= rank <= low + reach)
        if high > low and (not found or high > found[-1][1]):
            found.append((low, high))
    return found


def reliability_diagram(found: Reliability) -> str:
    """Draw what came true against what was predicted, with intervals and how many images.

    Parameters
    ----------
    found
        The bins.

    Returns
    -------
    svg
        A drawing that needs no style sheet.
    """
    side, left, top = 300.0, 56.0, 20.0

    def x(share: float) -> float:
        return left + share * side

    def y(share: float) -> float:
        return top + (1 - share) * side

    parts = [_line(x(0), y(0), x(1), y(1), colour=_FAINT)]
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [_text(x(tick), y(0) + 16, f"{tick:g}"), _text(left - 6, y(tick) + 4, f"{tick:g}", "end")]  # fmt: skip
    parts += [_line(x(0), y(0), x(1), y(0)), _line(x(0), y(0), x(0), y(1))]
    for part in found.bins:
        ends = (part.predicted, part.observed, part.observed_low, part.observed_high)
        said, seen, low, high = ends
        if said is None or seen is None or low is None or high is None:
            continue
        parts.append(_line(x(said), y(low), x(said), y(high), colour=_ACCENT))
        parts.append(
            f'<circle cx="{x(said):.1f}" cy="{y(seen):.1f}" r="4" fill="{_ACCENT}">'
            f"<title>{part.n} images: predicted {said:.3f}, observed {seen:.3f}</title></circle>"
        )
    parts.append(_text(x(0.5), y(0) + 36, "predicted probability"))
    parts.append(_text(x(0) + 8, y(1) + 8, f"observed share; ECE {found.ece:.3f}", "start"))
    return _svg(left + side + 20, top + side + 48, parts, f"Reliability, ECE {found.ece:.3f}")


def _svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" '
        f'aria-label="{escape(label)}" font-family="sans-serif" font-size="12" fill="{_INK}">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _line(
    x1: float, y1: float, x2: float, y2: float, *, thick: bool = False, colour: str = _INK
) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{4 if thick else 1}"/>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
