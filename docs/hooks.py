"""What the site needs beyond Markdown: Sphinx roles of the docstrings become links."""

from __future__ import annotations

import re

ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<code>(~?)([\w.]+)</code>")


def _link(found: re.Match[str]) -> str:
    """Give a role as a link, where the name is documented, else as code."""
    short, path = found.groups()
    shown = path.rpartition(".")[2] if short else path
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def on_page_content(html: str, **_: object) -> str:
    """Replace the roles in a page, before links are looked up."""
    return ROLE.sub(_link, html)
