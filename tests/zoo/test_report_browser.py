"""Reports in a real browser: nothing complained of, nothing asked for, nothing over the edge."""

import re

import pytest

from tests.zoo.reports import CHROMIUM, chromium, fake_run
from tests.zoo.runs import make_run
from tests.zoo.tasks import drawn
from zoo.recipes import recipe
from zoo.report import write_report

SHORT = recipe(epochs=3)


@pytest.fixture(scope="module")
def page(embedded, runs, tmp_path_factory):
    """A report of runs with long names and many classes among others, with pictures."""
    root = tmp_path_factory.mktemp("long")
    _, run, _ = embedded
    long = fake_run(root / "l", name="a-very-long-name" * 6, classes=("n" * 50, *"abcdefgh"))
    return write_report([run, long, *runs], root / "out")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [360, 390, 1280])
def test_nothing_hangs_over_the_edge_of_the_window(page, tmp_path, width):
    # The page forbids scripts, so the probe goes into a copy without that rule; a window cannot
    # be narrower than 500 px, so the copy stands in a frame.
    probe = """<script>addEventListener("load", () => parent.postMessage([innerWidth,
        document.documentElement.scrollWidth, document.querySelectorAll("svg").length].join(), "*"))
        </script></body>"""
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text("utf-8"))
    (tmp_path / "probe.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"""<script>addEventListener("message", e => {{ document.title = e.data }})</script>
        <iframe src="probe.html" width="{width}" height="900" style="border: 0"></iframe>""",
        encoding="utf-8",
    )
    told = chromium(tmp_path, frame, "--dump-dom", "--virtual-time-budget=3000").stdout
    found = re.search(r"<title>([\d,]+)</title>", told).group(1)
    inner, scroll, figures = map(int, found.split(","))
    assert inner == width
    assert scroll <= width
    assert figures > 10


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_the_browser_has_nothing_to_complain_about(page, tmp_path):
    told = chromium(tmp_path, page, f"--screenshot={tmp_path / 'page.png'}")
    # blocked requests, scripts and styles are all told on the console
    assert "CONSOLE" not in told.stderr
    assert (tmp_path / "page.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def open_page():
    """A real browser in which pages cannot run scripts; what they ask for and complain of is kept."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )

        def visit(path, *, width=390, scheme="dark"):
            context = browser.new_context(
                viewport={"width": width, "height": 800},
                color_scheme=scheme,
                java_script_enabled=False,
            )
            page = context.new_page()
            page.told = []
            page.on("console", lambda message: page.told.append(message.text))
            page.on("pageerror", lambda error: page.told.append(str(error)))
            page.on(
                "request",
                lambda r: r.url.startswith(("file:", "data:")) or page.told.append(r.url),
            )
            page.goto(path.as_uri())
            return page

        yield visit
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Reports of several runs over three feature sets, of numbers, and of survival."""
    root = tmp_path_factory.mktemp("reports")
    names = ["a-very-long-feature-set-name-1a2b3c4d", "uni-2", "conch-3"]
    runs = [
        fake_run(
            root / "runs" / str(i), name=f"gated-mil.r-drop.lr-{i}", seed=i, n_folds=5, n_epochs=4,
            seeds=(0,), store={"url": "nowhere", "feature_set": names[i % 3], "spec": {}},
        )
        for i in range(8)
    ]  # fmt: skip
    found = {"several": write_report(runs, root / "several", n_full=2)}
    for kind in ("regression", "survival"):
        run = make_run(root / kind, bags=drawn(kind, 60, 0), head="mlp-simple", recipe=SHORT)
        found[kind] = write_report([run.path], root / f"{kind}-report")
    return found


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("kind", ["several", "regression", "survival"])
def test_every_kind_of_report_reads_on_a_phone_with_everything_unfolded(reports, open_page, kind):
    for width, scheme in ((390, "dark"), (1280, "light")):
        page = open_page(reports[kind], width=width, scheme=scheme)
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # What is wider than the window scrolls by itself, and a keyboard can get there.
        assert page.evaluate(
            "[...document.querySelectorAll('table')].every(t => t.closest('[tabindex]'))"
        )
        assert page.evaluate("document.querySelectorAll('svg[role=img] > title').length") > 2
        assert page.told == []


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_groups_open_by_keyboard_and_names_stay_in_sight(reports, open_page):
    page = open_page(reports["several"])
    group = page.locator("details.group").first
    assert group.evaluate("d => d.open") is False
    group.locator("summary").focus()
    page.keyboard.press("Enter")
    assert group.evaluate("d => d.open") is True
    region = group.locator(".scroll").first
    name = region.locator("tbody th").first
    before = name.bounding_box()["x"]
    region.evaluate("r => r.scrollLeft = 300")
    assert region.evaluate("r => r.scrollLeft") > 100
    assert name.bounding_box()["x"] >= region.bounding_box()["x"] - 1
    assert name.bounding_box()["x"] <= before
