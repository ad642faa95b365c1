"""Serving the page of a run: on this machine alone, unless it is told otherwise."""

from __future__ import annotations

import os
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from histostore.errors import OptionError, StorageError
from zoo.app.page import analyse, make_page, style, theme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from zoo.app.inference import Predictor

__all__ = ["Server", "serve"]

_ENVIRONMENT = {
    "GRADIO_ANALYTICS_ENABLED": "False",  # nothing is told to anybody
    "GRADIO_SHARE": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Server:
    """Where a page is served, and to what bounds.

    Raises
    ------
    OptionError
        If the port is taken, or a value makes no sense.
    """

    host: str = "127.0.0.1"
    """Who can reach it; the default is this machine alone."""
    port: int = 7860
    max_mb: float = 500
    """Largest upload, megabytes."""
    open_browser: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_mb < float("inf"):
            raise OptionError(f"max_mb={self.max_mb:g}: give a number of megabytes above 0")
        if not 1 <= self.port <= 65535:
            raise OptionError(f"port={self.port}: give a number from 1 to 65535")
        _check_free(self.host, self.port)


def serve(
    predictor: Predictor,
    server: Server,
    *,
    ready: Callable[[str], None] = lambda _url: None,
) -> None:
    """Serve a page on which an image is uploaded and a run's answer is seen, until interrupted.

    Uploads lie in a folder of their own, each until it has been read; the folder goes with the
    server. Images are read one at a time.

    Parameters
    ----------
    predictor
        Whom to ask.
    server
        Where to serve.
    ready
        Told the address once the page is there.

    Raises
    ------
    MissingExtra
        If Gradio is not installed.
    StorageError
        If the server does not start.

    Examples
    --------
    ::

        from zoo.app import Predictor, Server, serve

        serve(Predictor.open("runs/ensemble"), Server(open_browser=True))
    """
    with _surroundings():
        _rehearse(predictor)
        page = make_page(predictor, max_mb=server.max_mb)
        try:
            _, url, _ = page.launch(
                server_name=server.host,
                server_port=server.port,
                inbrowser=server.open_browser,
                max_file_size=round(server.max_mb * 2**20),
                theme=theme(),
                css=style(),
                prevent_thread_lock=True,
                quiet=True,
                share=False,
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                run_history=False,
                enable_monitoring=False,
                footer_links=[],
            )
        except OSError as error:
            raise StorageError(f"cannot serve on {server.host}:{server.port}: {error}") from error
        try:
            ready(url)
            while True:
                time.sleep(1)
        except KeyboardInterrupt:  # how one ends a server
            return
        finally:
            page.close(verbose=False)


def _rehearse(predictor: Predictor) -> None:
    """Read a made-up image: what is compiled or loaded at first use, while nobody waits for it."""
    from PIL import Image

    grids = [using.spec.grid for using in predictor.using]
    scale = next((grid.mpp for grid in grids if grid.mpp is not None), None)
    edge = 2 * max(grid.patch_size for grid in grids)
    noise = np.random.default_rng(0).normal((205, 130, 190), 25, (edge, edge, 3))
    with TemporaryDirectory(prefix="zoo-app-") as folder:
        path = Path(folder) / "rehearsal.png"
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(path)
        analyse(predictor, str(path), f"{scale:g}" if scale else "")


def _check_free(host: str, port: int) -> None:
    """Refuse a port that is taken."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise OptionError(
            f"cannot listen on {host}:{port} ({error.strerror or error}): give another --port"
        ) from error


@contextmanager
def _surroundings() -> Iterator[None]:
    """Give the server a folder for uploads, and forbid it to call home."""
    before = {key: os.environ.get(key) for key in (*_ENVIRONMENT, "GRADIO_TEMP_DIR")}
    with TemporaryDirectory(prefix="zoo-app-uploads-") as folder:
        os.environ.update({**_ENVIRONMENT, "GRADIO_TEMP_DIR": folder})
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    os.environ.pop(key, None)
                else:
                    os.environ[key] = value
