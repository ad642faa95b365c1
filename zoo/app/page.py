"""The page: a place for an image, and what a run says of it."""

from __future__ import annotations

import logging
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histostore.errors import HistostoreError, MissingExtra
from zoo.app.drawing import illustrate
from zoo.app.rendering import answer_html, card_html, message_html

if TYPE_CHECKING:
    from gradio import Blocks

    from zoo.app.inference import Predictor

__all__ = ["analyse", "make_page", "style", "theme"]

FORGOTTEN_AFTER = 1800
"""Seconds after which an upload is deleted that nobody asked about."""

MOST_WAITING = 8
"""Images that may wait for the one that is being read."""

_SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_DISCLAIMER = (
    '<p class="zoo-disclaimer"><strong>Research use only.</strong> Not a medical device: nothing '
    "here may guide the care of a patient.</p>"
)

_ON_LOAD = """() => {
  document.documentElement.lang = "en";
  const answer = document.querySelector("#zoo-answer");
  if (answer) { answer.setAttribute("aria-live", "polite"); answer.setAttribute("role", "region");
    answer.setAttribute("aria-label", "Result"); }
}"""
"""What assistive technology is told."""

_ON_ANSWER = """() => { setTimeout(() => {
  const found = document.querySelector("#zoo-answer h2, #zoo-answer .zoo-message");
  if (found) { found.setAttribute("tabindex", "-1"); found.focus({preventScroll: true});
    if (found.getBoundingClientRect().top > innerHeight * 0.6) found.scrollIntoView(); }
}, 60); }"""
"""To the answer, wherever on the page it stands."""

_log = logging.getLogger(__name__)


def analyse(predictor: Predictor, path: str | None, mpp: str = "") -> tuple[str, bool]:
    """Read an uploaded image, say what the run makes of it, and delete it.

    Parameters
    ----------
    predictor
        Whom to ask.
    path
        Of the upload; None where there is none.
    mpp
        Micrometres per pixel as it was typed; empty where it was not.

    Returns
    -------
    html, is_kept
        The answer, or why there is none; and whether the file stays, as it does where only its
        scale is missing.
    """
    if not path:
        return message_html("Choose an image first."), True
    file, is_kept = Path(path), False
    if not file.is_file():  # it waited too long, or somebody else had uploaded the same
        return message_html("The upload is gone: choose the image again.", is_error=True), False
    try:
        scale = _number(mpp)
    except ValueError:
        words = f"{mpp.strip()!r} is no number of micrometres per pixel: write one such as 0.5."
        return message_html(words, is_error=True), True
    try:
        answer = predictor.predict(file, mpp=scale)
        return answer_html(answer, illustrate(answer, file), predictor), False
    except HistostoreError as error:
        if scale is None and predictor.needs_mpp and "does not say its own" in str(error):
            is_kept = True
            return message_html(
                "The file does not say its scale, and this run needs it: give micrometres per "
                "pixel, then analyse again.",
                is_error=True,
            ), True
        reason = str(error).replace(str(file), file.name)
        return message_html(f"This image cannot be analysed: {reason}", is_error=True), False
    finally:
        if not is_kept:
            _delete(file)


def make_page(predictor: Predictor, *, max_mb: float) -> Blocks:
    """Build the page of a run; who serves it hands in :func:`style` and :func:`theme`.

    Parameters
    ----------
    predictor
        Whom to ask.
    max_mb
        Largest upload, megabytes; the server enforces it.

    Raises
    ------
    MissingExtra
        If Gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError as error:
        raise MissingExtra.named("gradio", extra="app") from error

    def on_click(path: str | None, mpp: str) -> tuple[str, Any]:
        html, is_kept = analyse(predictor, path, mpp)
        return html, gr.skip() if is_kept else None

    run = predictor.run
    page = gr.Blocks(
        title=f"{run.name} · histology classifier",
        analytics_enabled=False,
        delete_cache=(FORGOTTEN_AFTER // 3, FORGOTTEN_AFTER),
        fill_width=True,
    )
    with page:
        classes = ", ".join(run.classes)
        gr.HTML(_head(run.name, classes), elem_id="zoo-head", padding=False)
        with gr.Row(elem_id="zoo-body"):
            with gr.Column(scale=1, min_width=300, elem_id="zoo-form"):
                upload = gr.File(
                    label="Image (PNG, JPEG, TIFF, SVS)", type="filepath", elem_id="zoo-file"
                )
                mpp = gr.Textbox(
                    label="Micrometres per pixel",
                    info=_mpp_words(predictor),
                    max_lines=1,
                    placeholder="such as 0.5",
                    elem_id="zoo-mpp",
                )
                button = gr.Button("Analyse", variant="primary", elem_id="zoo-analyse")
                gr.HTML(_small_print(max_mb), elem_id="zoo-small", padding=False)
            with gr.Column(scale=3, min_width=320):
                answer = gr.HTML(
                    message_html(_welcome(predictor)), elem_id="zoo-answer", padding=False
                )
        with gr.Accordion("About this run", open=False, elem_id="zoo-about"):
            gr.HTML(card_html(predictor), padding=False)
        asked = button.click(
            on_click,
            inputs=[upload, mpp],
            outputs=[answer, upload],
            concurrency_limit=1,
            show_progress_on=answer,
            api_visibility="private",
        )
        asked.then(None, js=_ON_ANSWER, api_visibility="private")
        page.load(None, js=_ON_LOAD, api_visibility="private")
    page.queue(max_size=MOST_WAITING, default_concurrency_limit=1)
    return page


def style() -> str:
    """Give the style sheet."""
    return (files("zoo.app") / "app.css").read_text(encoding="utf-8")


def theme() -> Any:
    """Give a theme of fonts that are on every machine, so that none is fetched."""
    import gradio as gr

    return gr.themes.Base(
        primary_hue="blue", neutral_hue="slate", radius_size="sm", font=_SANS, font_mono=_MONO
    ).set(
        button_primary_background_fill="#1c5d99",
        button_primary_background_fill_hover="#174d80",
        button_primary_background_fill_dark="#2f6fb0",
        button_primary_background_fill_hover_dark="#3a7dc2",
    )


def _head(name: str, classes: str) -> str:
    return (
        f'<header><p class="zoo-eyebrow">{escape(name)}</p>'
        f'<h1 class="zoo-title">Which of {escape(classes)}?</h1>{_DISCLAIMER}</header>'
    )


def _welcome(predictor: Predictor) -> str:
    n = predictor.n_heads
    heads = "one head answers" if n == 1 else f"{n} heads answer"
    return (
        f"Choose an image and press Analyse: {heads}, and the result stands here. The image is "
        "prepared as those of the training were."
    )


def _mpp_words(predictor: Predictor) -> str:
    if predictor.needs_mpp:
        return "Needed where the file does not say it."
    return "Optional: for the scale bar, where the file does not say it."


def _small_print(max_mb: float) -> str:
    return (
        f'<p class="zoo-soft">Up to {max_mb:g} MB. The image stays on this machine, and is deleted '
        "as soon as it has been read.</p>"
    )


def _number(text: str) -> float | None:
    """Read a number above 0; None of an empty text."""
    if not text.strip():
        return None
    value = float(text.strip().replace(",", "."))
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _delete(path: Path) -> None:
    """Delete an upload, and the folder that was made for it."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("cannot delete %s: %s", path, error.strerror)
    with suppress(OSError):  # others may have uploaded the same
        path.parent.rmdir()
