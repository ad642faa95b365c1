"""Make the pictures of the README and of the site, from the demonstration: ``make pictures``.

Runs ``zoo demo`` into a temporary folder (or takes a finished one), draws an attention map, and takes
pictures of the report and of the application in headless Chromium.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from contextlib import closing, contextmanager
from pathlib import Path
from socket import socket
from time import monotonic, sleep
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
WINDOW = {"width": 1280, "height": 960}


def main() -> None:
    """Make all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, help="a folder that zoo demo has filled")
    parser.add_argument("--only", default="attention,report,app", help="pictures, by commas")
    parser.add_argument("--out", type=Path, default=HERE)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, browser() as chromium:
        demo = chosen.demo or Path(folder) / "demo"
        if not chosen.demo:
            zoo("demo", "-o", demo)
        picture = planted(demo)
        for name in chosen.only.split(","):
            MAKERS[name](chromium, demo, picture, Path(folder), chosen.out)


def attention(_: Browser, demo: Path, picture: str, folder: Path, out: Path) -> None:
    """Draw the attention map of one image."""
    run = demo / "runs" / "gated-mil"
    zoo("explain", run, demo / "store", "--image", picture, "-o", folder / "map.png")
    small(folder / "map.png", out / "attention.webp")


def report(chromium: Browser, demo: Path, _: str, folder: Path, out: Path) -> None:
    """Take the leaderboard of the report, and what is below it, light and dark."""
    page = (demo / "report" / "index.html").resolve().as_uri()
    for scheme, name in (("light", "report.png"), ("dark", "report-dark.png")):
        sheet = chromium.new_page(viewport=WINDOW, color_scheme=scheme)
        sheet.goto(page)
        top = sheet.get_by_role("heading", name="Leaderboard").first.bounding_box()["y"] - 24
        whole = {"x": 0, "y": top, "width": 1280, "height": 640}
        sheet.screenshot(path=folder / name, clip=whole, full_page=True)
        small(folder / name, (out / name).with_suffix(".webp"))


def zoo(*words: object) -> None:
    """Run a command of the zoo."""
    subprocess.run(zoo_words(*words), cwd=ROOT, check=True)


def zoo_words(*words: object) -> list[str]:
    return [sys.executable, "-c", "import cli; cli.zoo_main()", *map(str, words)]


def planted(demo: Path) -> str:
    """Name an image in which a class was planted."""
    import pandas as pd

    truth = pd.read_csv(demo / "truth.csv")
    return str(truth.groupby("image_id")["planted"].sum().idxmax())


@contextmanager
def browser() -> Iterator[Browser]:
    """Start headless Chromium."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as known:
        found = known.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        with closing(found):
            yield found


def application(chromium: Browser, demo: Path, picture: str, folder: Path, out: Path) -> None:
    """Ask the application about one image, and take its answer."""
    with closing(socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    run = demo.resolve() / "runs" / "ensemble"
    words = zoo_words("app", run, "--port", port, "--no-open")
    # An ensemble of relative paths is understood where it was made.
    process = subprocess.Popen(words, cwd=demo.resolve().parent, stdout=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}/"
        wait(url)
        sheet = chromium.new_page(viewport=WINDOW)
        sheet.goto(url)
        sheet.set_input_files("input[type=file]", demo / "images" / f"{picture}.png")
        sheet.locator("#zoo-analyse").click()
        sheet.wait_for_selector("article.zoo-answer", timeout=120_000)
        sheet.wait_for_timeout(1_000)
        sheet.screenshot(path=folder / "app.png", full_page=True)
    finally:
        process.terminate()
        process.wait()
    small(folder / "app.png", out / "app.webp", height=1_100)


def wait(url: str, *, seconds: float = 120) -> None:
    """Wait until a page answers."""
    end = monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # loopback
        except (urllib.error.URLError, OSError):
            if monotonic() > end:
                raise
            sleep(0.5)
        else:
            return


def small(source: Path, target: Path, *, width: int = 1280, height: int = 1_170) -> None:
    """Write a picture, no wider than that and cut at the height."""
    picture = Image.open(source).convert("RGB")
    if picture.width > width:
        picture = picture.resize((width, round(picture.height * width / picture.width)))
    picture.crop((0, 0, picture.width, min(height, picture.height))).save(
        target, quality=88, method=6
    )
    print(json.dumps({"picture": target.name, "bytes": target.stat().st_size}))


MAKERS = {"attention": attention, "report": report, "app": application}


if __name__ == "__main__":
    main()
