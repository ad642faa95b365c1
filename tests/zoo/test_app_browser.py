"""The application as one sees it: a real server, a real browser, an upload, an answer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.commands import start
from tests.zoo.apps import make_app_world

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
MAX_MB = 1
PATIENCE = 60_000  # ms, on a machine that does other things too

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_app_world(tmp_path_factory.mktemp("app"), names=("plain",))


@pytest.fixture(scope="module")
def uploads(tmp_path_factory):
    """Where the server makes its folder for uploads."""
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def server(world, uploads):
    """The address of a server, which is interrupted in the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = start(
        "zoo",
        "app",
        world.runs / "plain",
        "--no-open",
        "--max-mb",
        MAX_MB,
        "--port",
        port,
        env={**os.environ, "TMPDIR": str(uploads), "OMP_NUM_THREADS": "1"},
    )
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), process.stderr.read()
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "", "")
    assert list(uploads.iterdir()) == []


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as known:
        options = ["--no-sandbox", "--disable-gpu"]
        with known.chromium.launch(executable_path=CHROMIUM, args=options) as browser:
            yield browser


class Visit:
    """A page, what it asked for and what it complained of."""

    def __init__(self, browser, url, *, width=1280, scheme="light"):
        self.asked, self.errors = [], []
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on(
            "console",
            lambda told: self.errors.append(told.text) if told.type == "error" else None,
        )
        self.page.goto(url)
        self.page.wait_for_selector("#zoo-answer[aria-live]")  # what runs on load has run

    def upload(self, path):
        self.page.set_input_files("#zoo-file input[type=file]", str(path))
        self.page.wait_for_selector("#zoo-file .file-preview", timeout=PATIENCE)

    def answer(self):
        self.page.wait_for_selector("#zoo-answer :is(.zoo-answer, .is-error)", timeout=PATIENCE)
        return self.page.inner_text("#zoo-answer")


def files_in(folder):
    return [path for path in Path(folder).rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_upload_and_see_an_answer(server, browser, world, uploads, tmp_path, width, scheme):
    visit = Visit(browser, server, width=width, scheme=scheme)
    visit.upload(world.fresh.urls[0])
    visit.page.click("#zoo-analyse")
    told = visit.answer()
    assert re.search(r"Confidence 0\.\d\d ± 0\.\d\d|No clear answer", told)
    assert "Research use only" in visit.page.inner_text("body")
    for words in ("What the heads looked at", "Patches used", "128 × 128 px", "2 of 2"):
        assert words in told
    visit.page.wait_for_function("document.activeElement.closest('#zoo-answer') !== null")
    shown = "[...document.images].filter(i => i.closest('#zoo-answer')).every(i => i.naturalWidth)"
    assert visit.page.evaluate(shown)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    assert visit.page.locator(".dark").count() == (scheme == "dark")
    assert visit.page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert visit.errors == []
    outside = [u for u in visit.asked if not u.startswith((server, "data:", "blob:"))]
    assert outside == []
    assert len(visit.asked) > 10
    assert files_in(uploads) == []
    visit.page.close()


def test_with_the_keyboard_alone_and_by_name(server, browser, world):
    visit = Visit(browser, server)
    page = visit.page
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#zoo-file') !== null"):
            break
    chosen = []
    page.on("filechooser", lambda chooser: chosen.append(chooser))  # noqa: PLW0108
    for _ in range(30):  # the button is drawn a moment before it listens
        page.keyboard.press("Enter")
        page.wait_for_timeout(1000)
        if chosen:
            break
    chosen[0].set_files(world.cohort.urls[1])
    page.wait_for_selector("#zoo-file .file-preview", timeout=PATIENCE)
    page.get_by_label("Micrometres per pixel").fill("0.5")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Analyse"
    page.keyboard.press("Enter")
    assert "image of the training" in visit.answer()
    assert page.get_by_role("region", name="Result").get_attribute("aria-live") == "polite"
    assert page.get_by_role("row", name=re.compile(r"0\.\d\d")).count() == 2
    page.get_by_role("button", name="About this run").press("Enter")
    page.get_by_text("How good it was on held-out images").wait_for()
    assert page.locator("img:not([alt])").count() == 0
    assert page.evaluate("document.documentElement.lang") == "en"
    assert visit.errors == []
    page.close()


def test_broken_and_oversized_uploads_are_messages(server, browser, world, uploads, tmp_path):
    visit = Visit(browser, server)
    broken = tmp_path / "broken.png"
    broken.write_bytes(Path(world.fresh.urls[0]).read_bytes()[:2000])
    visit.upload(broken)
    visit.page.click("#zoo-analyse")
    assert "This image cannot be analysed: broken.png" in visit.answer()
    assert visit.errors == []
    large = tmp_path / "large.png"
    large.write_bytes(broken.read_bytes() + b"\0" * (MAX_MB * 2**20))
    visit.page.set_input_files("#zoo-file input[type=file]", str(large))
    visit.page.get_by_text("exceed the maximum allowed size").wait_for(timeout=PATIENCE)
    assert files_in(uploads) == []
    visit.page.close()
