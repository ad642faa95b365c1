"""What is known of each encoder before it is loaded: a table, as data.

An encoder is a row of ``cards.toml``, beside this file. A new one that is an architecture of
timm or torchvision with weights of its own (a pathology foundation model, say) is a new row,
not new code.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["EncoderCard", "read_cards", "table"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderCard:
    """What is known of an encoder before it is loaded.

    ``None`` in ``input_px``, ``mean``, ``std`` or ``interpolation`` means that the
    architecture's own configuration decides.
    """

    name: str
    """As given to ``--encoder``; a name that ends in ``:NAME`` is an open pattern."""

    loader: str = "histostore.encoders.torch:load"
    """``module:function``, called with the keywords of :func:`load_encoder`."""

    summary: str
    """One line for ``histostore encoders``."""

    licence: str
    """Terms of the weights, or of the code where there are no weights."""

    n_features: int | None = None
    """Width of its vectors; ``None`` where the architecture decides."""

    input_px: int | None = None
    """Side of the square input it resizes patches to, px."""

    mpp: float | None = None
    """Resolution it was trained at, micrometres per pixel; ``None`` where unknown."""

    needs_weights: bool = False
    """Whether ``--weights`` must be given, as there is nothing to download."""

    architecture: str | None = None
    """``timm:NAME``, ``torchvision:NAME`` or ``histostore:NAME``; ``None`` if not a torch module.
    Where it is set, the loader is handed this card as well, by the keyword ``card``."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keywords for the architecture, JSON values, as ``{"init_values": 1e-5}``."""

    hub: str | None = None
    """Hugging Face repository of the weights, instead of the architecture's own."""

    hub_file: str | None = None
    """File in that repository, where it has no usual name."""

    keys: str | None = None
    """How the authors' names of parameters become the architecture's: a name of
    :data:`histostore.encoders.translations.TRANSLATIONS`; ``None`` if they are the same."""

    pooling: str | None = None
    """What becomes the vector: ``token`` (class token), ``patches`` (mean of the patch tokens),
    ``token+patches`` (both, side by side), ``average`` (of the last feature map) or
    ``attentional``; ``None`` where the architecture decides."""

    mean: tuple[float, float, float] | None = None
    """Mean per channel, of pixels scaled to 0..1."""

    std: tuple[float, float, float] | None = None
    """Standard deviation per channel, of pixels scaled to 0..1."""

    interpolation: str | None = None
    """``bilinear`` or ``bicubic``, both antialiased."""

    gated: bool = False
    """Whether the weights are handed out on request only."""

    url: str | None = None
    """Page of the model: its card, its terms, its weights."""

    source: str = ""
    """Where these facts were read; ``NOT CONFIRMED`` in it names what was not found anywhere."""

    verified: str = "card"
    """What was tried here: ``architecture``, a tested forward pass of the right width with
    weights drawn at random; or ``card``, nothing but the reading. It never means that the
    published weights were loaded."""

    precision: str = "float32"
    """Arithmetic that its authors used, for information; the caller's choice is what counts."""

    batch_size: int = 32
    """Patches at once on a CPU."""

    batch_size_cuda: int = 256
    """Patches at once on a GPU."""

    @property
    def is_pattern(self) -> bool:
        """Whether this card stands for a whole family of names."""
        return self.name.endswith(":NAME")


def read_cards() -> tuple[EncoderCard, ...]:
    """Read the table, in its order.

    Examples
    --------
    >>> read_cards()[0].name
    'texture'
    """
    text = resources.files("histostore.encoders").joinpath("cards.toml").read_text("utf-8")
    rows: list[dict[str, Any]] = tomllib.loads(text)["encoder"]
    for row in rows:
        row.update({key: tuple(row[key]) for key in ("mean", "std") if key in row})
    return tuple(EncoderCard(**row) for row in rows)


def table(rows: Iterable[EncoderCard]) -> str:
    """Set the cards out in Markdown: a line of a table each, then where their facts are from.

    Examples
    --------
    >>> print(table(read_cards()[:1]).splitlines()[2][:59])
    | `texture` | colour and texture statistics; no weights, no
    """
    cards = list(rows)
    head = (
        "| name | model | width | input, px | µm/px | pooling | authors' precision "
        "| weights | terms | tried |\n|---|---|--:|--:|--:|---|---|---|---|---|"
    )
    sources = [f"- `{row.name}`: {row.source}" for row in cards if row.source]
    return "\n".join([head, *map(_line, cards), "", "Where the facts are from:", "", *sources])


def _line(row: EncoderCard) -> str:
    place = row.hub or row.url
    weights = "–" if place is None else f"[{place.rpartition('/')[2]}]({row.url})"
    how = ["gated"] * row.gated + ["`--weights`"] * row.needs_weights
    numbers = (row.n_features, row.input_px, row.mpp)
    cells = [
        f"`{row.name}`",
        row.summary,
        *("–" if number is None else f"{number:g}" for number in numbers),
        row.pooling or "–",
        row.precision,
        " ".join([weights, *how]),
        row.licence,
        row.verified,
    ]
    return f"| {' | '.join(cells)} |"
