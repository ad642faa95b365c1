"""How a store and what is in it show themselves in a notebook: one compact table of HTML.

Every text is escaped; nothing is loaded and no script runs. Colours are the notebook's own where
it says what they are (Jupyter's variables), else light or dark as the reader's system is.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["html_card", "html_table"]

MOST_ROWS = 20
"""Rows that a table shows; the rest is counted."""

_STYLE = """\
<style>
.histostore{--ink:#1b1b1f;--quiet:#5c5f66;--line:#d5d7db;--head:#f2f3f5;font-size:13px;line-height:1.5;
color:var(--jp-ui-font-color1,var(--ink));max-width:900px;overflow-x:auto}
@media(prefers-color-scheme:dark){.histostore{--ink:#e8e8ea;--quiet:#a2a5ad;--line:#45474d;--head:#2a2b30}}
.histostore .title{padding:.3em .5em;border-bottom:1px solid var(--jp-border-color1,var(--line));
background:var(--jp-layout-color2,var(--head))}
.histostore .title b{margin-right:.6em}
.histostore .title span,.histostore dt,.histostore .more{color:var(--jp-ui-font-color2,var(--quiet))}
.histostore dl{display:grid;grid-template-columns:max-content 1fr;gap:.1em 1em;margin:.4em .5em}
.histostore dt{font-weight:normal}.histostore dd{margin:0;overflow-wrap:anywhere}
.histostore table{border-collapse:collapse;margin:.3em .5em;font-variant-numeric:tabular-nums}
.histostore th,.histostore td{padding:.15em .7em .15em 0;text-align:left;background:none;
border:0;border-bottom:1px solid var(--jp-border-color2,var(--line));color:inherit}
.histostore .number{text-align:right}
</style>"""


def html_card(kind: str, title: str, facts: Mapping[str, Any], tables: Sequence[str] = ()) -> str:
    """Draw one object.

    Parameters
    ----------
    kind
        What it is, as ``FeatureSet``.
    title
        What it is called.
    facts
        What there is to be said of it; None is left out.
    tables
        Made by :func:`html_table`.

    Examples
    --------
    >>> card = html_card("Store", "<mine>", {"images": 1200})
    >>> "&lt;mine&gt;" in card, "<dt>images</dt><dd>1,200</dd>" in card
    (True, True)
    """
    lines = "".join(
        f"<dt>{escape(str(key))}</dt><dd>{escape(_text(value))}</dd>"
        for key, value in facts.items()
        if value is not None
    )
    drawn = f"<dl>{lines}</dl>" if lines else ""
    heading = f'<div class="title"><b>{escape(kind)}</b><span>{escape(title)}</span></div>'
    return f'{_STYLE}<div class="histostore">{heading}{drawn}{"".join(tables)}</div>'


def html_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Draw rows under the names of their columns, numbers to the right.

    Parameters
    ----------
    rows
        One mapping per row, of the same keys; the first :data:`MOST_ROWS` are drawn.

    Examples
    --------
    >>> html_table([{"name": "a&b", "n": 7}]).count("<td"), "a&amp;b" in html_table([{"name": "a&b"}])
    (2, True)
    """
    if not rows:
        return ""
    shown = rows[:MOST_ROWS]
    number = {
        key: all(isinstance(row[key], int | float | None) for row in shown) for key in rows[0]
    }
    head = "".join(_cell("th", key, right=number[key]) for key in number)
    body = "".join(
        f"<tr>{''.join(_cell('td', row[key], right=number[key]) for key in number)}</tr>"
        for row in shown
    )
    more = len(rows) - len(shown)
    rest = f'<div class="more">… and {more:,} more</div>' if more else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{rest}"


def _cell(tag: str, value: Any, *, right: bool) -> str:
    scope = ' scope="col"' if tag == "th" else ""
    kind = ' class="number"' if right else ""
    return f"<{tag}{scope}{kind}>{escape(_text(value))}</{tag}>"


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
