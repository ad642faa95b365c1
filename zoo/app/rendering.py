"""An answer, a run's card and a message as HTML; every text from outside is escaped."""

from __future__ import annotations

import math
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

from histostore.errors import MissingExtra
from histostore.images.patches import NO_TISSUE, SMALL_IMAGE
from histostore.images.stain import NO_STAIN, StainTarget
from zoo.metrics import metric_heading, metric_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import jinja2

    from zoo.app.answers import Answer
    from zoo.app.drawing import Illustration
    from zoo.app.inference import Predictor
    from zoo.app.reliability import Reliability

__all__ = ["answer_html", "card_html", "message_html"]

_FIRST_TILES = 12
_FLAGS = {
    NO_TISSUE: "No tissue was found: one patch was taken all the same, and what is said of it "
    "means little.",
    SMALL_IMAGE: "The image is smaller than a patch: it was mirrored at its borders.",
    NO_STAIN: "There is too little stain to measure: the colours were left as they are, unlike "
    "those of the training.",
}


def message_html(text: str, *, is_error: bool = False) -> str:
    """Say one thing in place of an answer."""
    kind, role = ("zoo-message is-error", "alert") if is_error else ("zoo-message", "note")
    return f'<div class="{kind}" role="{role}">{escape(text)}</div>'


def answer_html(answer: Answer, drawn: Illustration, predictor: Predictor) -> str:
    """Show an answer with its pictures."""
    heads = _count(len(answer.opinions), "head")
    has_spread = len(answer.opinions) > 1
    return (
        _environment()
        .get_template("answer.html.j2")
        .render(
            answer=answer,
            drawn=drawn,
            confidence=_with_sd(answer.confidence, float(answer.sd[answer.prob.argmax()])),
            favour=_favour(answer),
            trust=_trust(answer, predictor.reliability),
            warnings=list(_warnings(answer)),
            heads=heads,
            spread=has_spread,
            rows=[_row(answer, k) for k in answer.prob.argsort(kind="stable")[::-1].tolist()],
            first=_FIRST_TILES,
            tiles_words=_tiles_words(answer, drawn),
            facts=list(_facts(answer, predictor)),
            **_captions(answer, drawn),
        )
    )


def card_html(predictor: Predictor) -> str:
    """Show what a run is, and how good it was."""
    run = predictor.run
    test = run.document["metrics"].get("test", {})
    metrics = [
        (
            metric_heading(name),
            _number(test[name].get("value")),
            f"{_number(test[name].get('low'))} to {_number(test[name].get('high'))}",
        )
        for name in metric_names(run.task)
        if name in test
    ]
    return (
        _environment()
        .get_template("card.html.j2")
        .render(
            metrics=metrics,
            judged=_judged(predictor),
            abstains=_abstains(predictor.reliability),
            facts=list(_card_facts(predictor)),
        )
    )


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    try:
        import jinja2
    except ImportError as error:
        raise MissingExtra.named("jinja2", extra="zoo") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("zoo.app", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _row(answer: Answer, k: int) -> dict[str, Any]:
    """Give one class as a row of the table, with a dot for each head."""
    p, n = float(answer.prob[k]), len(answer.opinions)
    dots = []
    if n > 1:
        # Dots that lie on each other are told apart by their height: the golden ratio spreads any
        # number of them evenly.
        golden = (math.sqrt(5) - 1) / 2
        dots = [
            {"left": f"{100 * one.prob[k]:.2f}", "top": f"{18 + 64 * (i * golden % 1):.1f}"}
            for i, one in enumerate(answer.opinions)
        ]
    text = _with_sd(p, float(answer.sd[k]))
    return {
        "name": answer.classes[k],
        "text": text,
        "alt": f"{answer.classes[k]}: {text}",
        "share": f"{100 * p:.2f}",
        "is_likeliest": k == int(answer.prob.argmax()),
        "dots": dots,
    }


def _favour(answer: Answer) -> str:
    n = len(answer.opinions)
    if n == 1:
        return "one head was asked, so there is no spread"
    favour = sum(one.prob.argmax() == answer.prob.argmax() for one in answer.opinions)
    return f"{'all' if favour == n else favour} of {n} heads favour it"


def _trust(answer: Answer, reliability: Reliability) -> str:
    if answer.novel_to:
        return ""  # what held for images of the training, says nothing of this one
    near = reliability.near(answer.confidence)
    if near is None:
        return (
            "Too few held-out images had a confidence like this one to say how often it is right."
        )
    right, n, low, high = near
    return (
        f"Of {n} held-out images with a confidence like this one ({low:.2f} to {high:.2f}), "
        f"{right} ({_percent(right, n)}) were classified correctly."
    )


def _warnings(answer: Answer) -> Iterator[str]:
    if answer.twin is not None:
        asked, n = len(answer.opinions), answer.n_heads
        what = f"This is {answer.twin.image_id}, an image of the training."
        if asked < n:
            yield f"{what} Only the {_count(asked, 'head')} of {n} that had not seen it answered."
        elif any(answer.twin.seen):
            yield f"{what} Every head has seen it, so this answer flatters them."
        else:
            yield f"{what} No head has learned from it."
    yield from (_FLAGS[flag] for flag in answer.flags if flag in _FLAGS)
    yield from (f"{note[:1].upper()}{note[1:]}." for note in answer.notes)


def _captions(answer: Answer, drawn: Illustration) -> dict[str, str]:
    image = f"{answer.name}, {answer.width_px} by {answer.height_px} pixels"
    if answer.weighed is None or drawn.legend is None:
        return {
            "image_alt": image,
            "image_caption": "The image.",
            "overlay_alt": "",
            "overlay_caption": "",
            "legend_alt": "",
        }
    weighed, low, high = answer.weighed, drawn.legend.ticks[0][1], drawn.legend.ticks[-1][1]
    by = _by(weighed.n_heads, len(answer.opinions), is_attention=drawn.legend.is_attention)
    agreed = ""
    if weighed.agreement is not None:
        agreed = f" Heads agree with a mean rank correlation of {weighed.agreement:.2f}."
    if drawn.legend.is_attention:
        what = f"Attention times the number of patches ({by}): 1 is an even share."
        alt = f"The attention of each patch in colour, {weighed.value.max():.1f} times even at most"
        framed = (
            "Framed and numbered: the patches with the most attention; without a number, the least."
        )
    else:
        what = (
            f"How much each patch adds to the log odds of {answer.likeliest} ({by}), found by "
            "leaving it out: these heads have no attention. Red speaks for it, blue against."
        )
        alt = f"What each patch adds to the log odds of {answer.likeliest} in colour"
        framed = (
            f"Framed and numbered: the patches that speak most for {answer.likeliest}; without a "
            "number, those that speak least for it."
        )
    return {
        "image_alt": f"{image}, with frames around the patches that stand out",
        "image_caption": framed,
        "overlay_alt": alt,
        "overlay_caption": what + agreed,
        "legend_alt": f"Colour scale from {low} to {high}",
    }


def _by(n_weighing: int, n_heads: int, *, is_attention: bool) -> str:
    """Say whose weights are shown."""
    if n_heads == 1:
        return "one head"
    if n_weighing == n_heads:
        return f"mean over {n_heads} heads"
    which = "those with attention" if is_attention else "those that read these patches"
    return f"{n_weighing} of {n_heads} heads, {which}"


def _tiles_words(answer: Answer, drawn: Illustration) -> str:
    n = len(answer.coords)
    if answer.weighed is None:
        shown = "" if not drawn.n_left_out else f"; {len(drawn.tiles)} are shown"
        return f"{_count(n, 'patch')}, in reading order{shown}."
    first = "the most attended first"
    if drawn.legend and not drawn.legend.is_attention:
        first = f"those that speak most for {answer.likeliest} first"
    left = f"; {drawn.n_left_out:,} in between are not shown" if drawn.n_left_out else ""
    return f"{_count(n, 'patch')}, {first}{left}."


def _facts(answer: Answer, predictor: Predictor) -> Iterator[tuple[str, str]]:
    yield "Size", f"{answer.width_px:,} × {answer.height_px:,} px"
    yield "Scale", f"{answer.mpp:g} µm per pixel" if answer.mpp else "the file does not say"
    for using in predictor.using:
        used, places = answer.n_patches[using.spec.name]
        spec = using.spec
        grid = f"{spec.grid.patch_size} px"
        if spec.grid.mpp is not None:
            grid += f" at {spec.grid.mpp:g} µm per pixel"
        stain = spec.stain.method if isinstance(spec.stain, StainTarget) else spec.stain
        yield (
            "Patches",
            f"{used:,} of {places:,} places, {grid}, tissue by {spec.tissue.method}",
        )
        if stain != "none":
            yield "Stain", f"{stain}, to the colours of the training"
        yield "Encoder", spec.encoder.name
        if using.views != ("identity",):
            yield "Views", ", ".join(using.views)
        yield "Feature set", spec.name
    yield "Heads asked", f"{len(answer.opinions)} of {answer.n_heads}"


def _judged(predictor: Predictor) -> str:
    run = predictor.run
    test = run.test_probabilities()
    n_patients = len(set(test.patient_ids.tolist()))
    words = f"{_count(len(test.image_ids), 'image')} of {_count(n_patients, 'patient')}"
    return f"{words}, each judged by heads that had not seen it; intervals are over patients"


def _abstains(told: Reliability) -> str:
    if told.threshold is None:
        why = (
            "it has no validation images to choose one on"
            if not told.n_validation
            else ("at no confidence was it right on nine in ten of ten validation images or more")
        )
        return f"There is no confidence from which on an answer counts as clear: {why}."
    right, n, every = told.named()
    how = (
        "as was asked"
        if told.is_given
        else (f"chosen on {told.n_validation} validation images so that nine in ten are right")
    )
    share = f"{right} ({_percent(right, n)}) were right" if n else "none were there"
    return (
        f"A class is named from a confidence of {told.threshold:.2f} on, {how}. Of {every} held-out "
        f"images, {n} reached it, and of these {share}."
    )


def _card_facts(predictor: Predictor) -> Iterator[tuple[str, str]]:
    run = predictor.run
    yield "Run", run.name
    yield "Classes", ", ".join(run.classes)
    if run.is_ensemble:
        yield "Ensemble", f"{run.document.get('rule', 'mean')} of {len(predictor.members)} runs"
    heads = dict.fromkeys(
        str((one.document.get("head") or {}).get("name", one.name)) for one in predictor.members
    )
    yield ("Head" if len(heads) == 1 else "Heads"), ", ".join(heads)
    yield "Fitted", f"{predictor.n_heads} times, over folds and seeds"
    for using in predictor.using:
        yield "Encoder", using.spec.encoder.name
    created = str(run.document.get("created", ""))
    if created:
        yield "Made", created[:10]


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"


def _with_sd(p: float, sd: float) -> str:
    return f"{p:.2f}" if math.isnan(sd) else f"{p:.2f} ± {sd:.2f}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _count(n: int, noun: str) -> str:
    """Count something.

    Examples
    --------
    >>> _count(1, "head"), _count(2, "patch")
    ('1 head', '2 patches')
    """
    plural = f"{noun}es" if noun.endswith("ch") else f"{noun}s"
    return f"{n:,} {noun if n == 1 else plural}"
