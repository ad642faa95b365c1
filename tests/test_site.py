"""The documentation as a site: it builds without a warning, is whole, and loads nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import urlsplit

import pytest
import yaml

import histostore
import zoo
from tests.commands import ROOT

pytest.importorskip("material", reason="needs the extra docs")

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DOCS = ROOT / "docs"
LOADED = {"link": "href", "script": "src", "img": "src", "iframe": "src", "source": "src"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site as ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site") / "site"
    words = ["-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def navigation(item):
    """Give the pages that a part of the navigation names."""
    if isinstance(item, str):
        return [item]
    parts = item.values() if isinstance(item, dict) else item
    return [page for part in parts for page in navigation(part)]


def test_every_page_stands_in_the_navigation_once():
    known = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = navigation(known["nav"])
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_every_public_name_is_in_the_reference():
    for package in (histostore, zoo):
        text = (DOCS / "reference" / f"{package.__name__}.md").read_text(encoding="utf-8")
        documented = set(re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE))
        for name in package.__all__:
            value = getattr(package, name)
            assert f"{value.__module__}.{value.__qualname__}" in documented, name


class Loads(HTMLParser):
    """What a page loads by itself."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        known = dict(attrs)
        if tag in LOADED and known.get(LOADED[tag]) and known.get("rel") != "canonical":
            self.found.append(known[LOADED[tag]])


def test_no_page_loads_anything_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loads = Loads()
        loads.feed(page.read_text(encoding="utf-8"))
        assert loads.found
        for url in loads.found:
            parts = urlsplit(url)
            assert not parts.netloc, f"{page.name} loads {url}"
            # the page of what was not found is served at any depth, so its paths begin at the root
            if page.name != "404.html" and parts.scheme != "data":
                assert (page.parent / parts.path).exists(), f"{page.name}: {url} is missing"
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert not re.search(r"""(?:url\(|@import)\s*["']?(?:https?:)?//""", text), sheet.name


def test_roles_and_snippets_leave_no_trace(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(class|func|meth|mod|attr|data):<", text), page.name
        assert "--8<--" not in text
    assert "Keep a Changelog" in (site / "changelog.html").read_text(encoding="utf-8")
    assert "<svg" in (site / "concepts.html").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_in_a_browser_pages_fit_a_phone_ask_nobody_else_and_have_no_complaints(site):
    from playwright.sync_api import sync_playwright

    handler = functools.partial(Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_port}/"
        asked, complaints = [], []
        with sync_playwright() as known:
            options = ["--no-sandbox", "--disable-gpu"]
            with known.chromium.launch(executable_path=CHROMIUM, args=options) as browser:
                for scheme, width in (("light", 1280), ("dark", 390)):
                    view = {"width": width, "height": 900}
                    page = browser.new_page(viewport=view, color_scheme=scheme)
                    page.on("request", lambda request: asked.append(request.url))
                    page.on("console", lambda message: complaints.append(message.text))
                    for name in ("index", "heads", "reference/zoo", "comparison", "concepts"):
                        page.goto(f"{home}{name}.html", wait_until="networkidle")
                        wide = page.evaluate("document.documentElement.scrollWidth")
                        assert wide <= width, f"{name} is {wide} px wide"
                    assert page.locator("body").get_attribute("data-md-color-scheme") == (
                        "slate" if scheme == "dark" else "default"
                    )
        server.shutdown()
    assert len(asked) > 20
    assert [url for url in asked if not url.startswith((home, "data:", "blob:"))] == []
    assert complaints == []


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A file server that says nothing."""

    def log_message(self, *_):
        pass
