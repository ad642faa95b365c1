"""Progress on standard error: a bar on a terminal; elsewhere a line, now and then."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Show", "shown"]

SECONDS_BETWEEN_LINES = 30.0
"""How often progress is told where there is no terminal to draw a bar on."""


class Show(Protocol):
    """What progress is told to."""

    def __call__(self, done: int, total: int, message: str = "", /) -> None:
        """Show steps done, of how many, and what else there is to say."""


@contextmanager
def shown(what: str) -> Iterator[Show]:
    """Show how far something is while it lasts.

    Parameters
    ----------
    what
        What is done, as ``fitting``.
    """
    from rich import progress as rich
    from rich.console import Console

    console = Console(stderr=True)
    columns = (
        rich.TextColumn(what),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TextColumn("{task.fields[message]}", markup=False),
        rich.TimeElapsedColumn(),
        rich.TextColumn("·"),
        rich.TimeRemainingColumn(),
    )
    told = time.monotonic()

    def line(done: int, total: int, message: str = "") -> None:
        nonlocal told
        if time.monotonic() - told >= SECONDS_BETWEEN_LINES:
            told = time.monotonic()
            console.out(f"{what} {done:,}/{total:,}, {message}", highlight=False)

    with rich.Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None, message="")

        def draw(done: int, total: int, message: str = "") -> None:
            bar.update(task, completed=done, total=total, message=message)

        yield draw if console.is_terminal else line
