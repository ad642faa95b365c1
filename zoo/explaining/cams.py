"""Where networks that were trained on pixels look: Grad-CAM++ and attention, side by side."""

from __future__ import annotations

import difflib
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.cohort import Cohort
from histostore.errors import NotFound, OptionError
from histostore.images.preview import plain_letters
from histostore.images.readers import open_image
from zoo.errors import NotSupported
from zoo.explaining.colours import Scale
from zoo.explaining.importance import ATTENTION
from zoo.explaining.maps import PANEL_PX, value_map
from zoo.explaining.page import FAINT, GAP, MARGIN, Page
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from PIL import Image

    from histostore.images.readers import Reader
    from zoo.finetune.networks import Network

__all__ = ["Look", "SideBySide", "check_output", "draw_looks", "look_at"]

CAM = "Grad-CAM++"

_OPACITY = 0.55
_LEAST_SHOWN = 2.0
_SCALE = Scale(low=0.0, high=1.0, diverging=False)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Look:
    """Where one run looked in an image."""

    name: str
    """Of the network."""
    method: str
    """``Grad-CAM++`` or ``attention``."""
    heat: NDArray[np.float64]
    """``(y, x)`` over the whole image, 0 to 1; NaN where no patch lies. 1 is the largest value of
    the map; of attention it is twice the even share at least."""
    classes: tuple[str, ...]
    prob: NDArray[np.float64]
    """``(class,)``, mean over the networks of the run that were asked."""
    n_networks: int
    """How many were."""
    unseen: bool
    """Whether none of them was trained with this image."""

    @property
    def prediction(self) -> str:
        """The class that is most probable."""
        return self.classes[int(self.prob.argmax())]

    def to_json(self) -> dict[str, Any]:
        """Give what was found as JSON values, without the map."""
        return {
            "name": self.name,
            "method": self.method,
            "prediction": self.prediction,
            "probabilities": dict(zip(self.classes, self.prob.tolist(), strict=True)),
            "n_networks": self.n_networks,
            "unseen": self.unseen,
        }


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SideBySide:
    """Several looks at one image."""

    image_id: str
    asked: str | None
    """Class that Grad-CAM++ was asked about; ``None``: what each run predicts."""
    label: str | None
    looks: tuple[Look, ...]
    picture: Image.Image

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as PNG, whole or not at all.

        Raises
        ------
        StorageError
            If it cannot be written.
        """
        with atomic(Path(path)) as hidden:
            self.picture.save(hidden, format="PNG")

    def to_json(self) -> dict[str, Any]:
        """Give what was found as JSON values."""
        return {
            "image_id": self.image_id,
            "label": self.label,
            "asked": self.asked,
            "looks": [look.to_json() for look in self.looks],
        }

    def to_text(self) -> str:
        """Give one line per run."""
        label = f", labelled {self.label}" if self.label is not None else ""
        lines = [f"{self.image_id}{label}"]
        for look in self.looks:
            told = "" if look.unseen else "; trained with this image"
            lines.append(
                f"  {look.name}: {look.prediction}, probability {look.prob.max():.2f} "
                f"({look.method}, {_networks(look.n_networks)}{told})"
            )
        return "\n".join(lines)


def check_output(path: str | os.PathLike[str]) -> None:
    """Refuse a name that does not say PNG, before anything is computed."""
    if Path(path).suffix.lower() != ".png":
        raise OptionError(f"{path}: give a name that ends in .png")


def look_at(
    runs: Sequence[str | os.PathLike[str]],
    cohort: str | os.PathLike[str],
    image_id: str,
    *,
    asked: str | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> SideBySide:
    """Draw where runs of ``zoo finetune`` look in an image.

    Networks that see whole images are asked by Grad-CAM++, those that see bags show their
    attention. Of each run those networks are asked that were not trained with the image; all,
    where there is none.

    Parameters
    ----------
    runs
        Directories.
    cohort
        Table in which the image stands.
    image_id
        Which one.
    asked
        Class that Grad-CAM++ is asked about; what each run predicts where left out.
    storage_options
        Of the driver that reads the image.

    Raises
    ------
    NotFound
        If the cohort has no such image, or a run no such class.
    NotSupported
        If a run holds no networks.
    RunError, ImageError
        If a run or the image is damaged.
    """
    table = Cohort.read(cohort, storage_options=storage_options)
    if image_id not in table.image_ids:
        nearest = difflib.get_close_matches(image_id, table.image_ids, n=1)
        hint = f" (did you mean {nearest[0]!r}?)" if nearest else ""
        raise NotFound(f"{cohort} has no image {image_id!r}{hint}")
    row = table.image_ids.index(image_id)
    opened = [Run.load(run) for run in runs]
    label = _label(table, row, opened[0])
    reader = open_image(table.urls[row], storage_options, table.mpp[row])
    with closing(reader):
        looks = tuple(_look(run, reader, image_id, asked) for run in opened)
        pixels = _panel(reader)
    picture = draw_looks(pixels, looks, image_id=image_id, label=label, asked=asked)
    return SideBySide(image_id=image_id, asked=asked, label=label, looks=looks, picture=picture)


def _label(table: Cohort, row: int, run: Run) -> str | None:
    """Read what the cohort says of an image, in the column that the run learned."""
    column = str(run.document.get("target", "label"))
    value = table.column(column)[row] if table.has(column) else None
    return None if value is None else str(value)


def _look(run: Run, reader: Reader, image_id: str, asked: str | None) -> Look:
    from zoo.finetune.checkpoint import load_network

    paths = run.head_paths()
    if not paths or not run.document.get("trained_on") or run.task.kind != "classification":
        raise NotSupported(f"{run.path} holds no networks that see pixels: use zoo explain")
    if asked is not None and asked not in run.classes:
        raise NotFound(f"{run.path} knows no class {asked!r}; it has {', '.join(run.classes)}")
    mine = run.predictions[run.predictions["image_id"] == image_id]
    tested = mine[mine["role"] == "test"]
    asked_for = set(zip(tested["fold"].tolist(), tested["seed"].tolist(), strict=True))
    chosen = sorted(asked_for & set(paths)) or sorted(paths)
    number = None if asked is None else run.classes.index(asked)
    heats, probs, name, method = [], [], "", ""
    for key in chosen:
        net, told = load_network(paths[key])
        heat, prob = _one(net, told, reader, number)
        name, method = net.name, ATTENTION if net.bag else CAM
        heats.append(heat)
        probs.append(prob)
    heat = np.mean(heats, axis=0)
    if method == CAM and heat.max() > 0:
        heat = heat / heat.max()
    return Look(
        name=name,
        method=method,
        heat=heat,
        classes=run.classes,
        prob=np.mean(probs, axis=0),
        n_networks=len(chosen),
        unseen=bool(asked_for) or not len(mine),
    )


def _one(
    net: Network, told: Mapping[str, Any], reader: Reader, asked: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ask one network: a map over the image, and probabilities."""
    import torch

    from zoo.finetune.gradcam import grad_cam
    from zoo.finetune.pixels import PixelPlan
    from zoo.finetune.predicting import attention_of, shifted

    pixels, boxes = PixelPlan(**told["pixels"]).read(reader)
    seen = torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)
    with torch.inference_mode():
        prob = net.module(shifted(seen, net)).double().softmax(dim=1).numpy()[0]
    if not net.bag:
        target = int(prob.argmax()) if asked is None else asked
        return grad_cam(net, pixels, [target])[0].astype(np.float64), prob
    weights = attention_of(net, seen)
    width, height = _fitted(reader.width_px, reader.height_px)
    share = np.array([width / reader.width_px, height / reader.height_px] * 2)
    placed = np.rint(boxes * share).astype(np.int64)
    # Twice the even share is the top of the scale at least, so that even weights look even.
    shown = weights / max(weights.max(), _LEAST_SHOWN / len(weights))
    return value_map(placed, shown, width, height), prob


def _fitted(width: int, height: int) -> tuple[int, int]:
    """Give the size of a panel that holds an image of this size."""
    share = PANEL_PX / max(width, height)
    return max(1, round(width * share)), max(1, round(height * share))


def _panel(reader: Reader) -> NDArray[np.uint8]:
    from PIL import Image

    size = _fitted(reader.width_px, reader.height_px)
    thumbnail = Image.fromarray(np.ascontiguousarray(reader.thumbnail(PANEL_PX)))
    return np.asarray(thumbnail.convert("RGB").resize(size, Image.Resampling.BICUBIC))


# -- the picture --------------------------------------------------------------------------------


def draw_looks(
    pixels: NDArray[np.uint8],
    looks: Sequence[Look],
    *,
    image_id: str,
    label: str | None = None,
    asked: str | None = None,
) -> Image.Image:
    """Draw an image, and beside it every look at it, with one colour bar.

    Parameters
    ----------
    pixels
        ``(y, x, 3)`` uint8, the image as it is to be shown.
    looks
        One at least.
    image_id, label, asked
        For the heading.

    Returns
    -------
    picture
        RGB.

    Raises
    ------
    OptionError
        If there is no look.
    """
    if not looks:
        raise OptionError("there is nothing to draw: give one run at least")
    height, width = pixels.shape[:2]
    n_columns = min(1 + len(looks), 3)
    n_rows = -(-(1 + len(looks)) // n_columns)
    head, title, foot, bar = 44, 48, 56, 120
    page = Page(
        2 * MARGIN + n_columns * (width + GAP) + bar - GAP,
        2 * MARGIN + head + n_rows * (title + height + GAP) - GAP + foot,
    )
    page.text(MARGIN, MARGIN, plain_letters(image_id), size=24)
    panels = [(("the image", _labelled(label)), pixels)]
    panels += [(_title(look), _overlay(pixels, look.heat)) for look in looks]
    for number, ((first, second), panel) in enumerate(panels):
        row, column = divmod(number, n_columns)
        x = MARGIN + column * (width + GAP)
        y = MARGIN + head + row * (title + height + GAP)
        page.text(x, y, plain_letters(first), size=17)
        page.text(x, y + 23, plain_letters(second), colour=FAINT)
        page.pixels(panel.astype(np.float64), x, y + title)
    _draw_bar(page, pixels, top=MARGIN + head + title, height=height)
    about = f"class {asked}" if asked else "the class that each network predicts"
    lines = [
        f"Grad-CAM++ of the last feature maps, for {about}. Attention: weight of a patch; the top "
        "of the scale is twice the even share at least.",
        "Every map has a scale of its own: colours tell where a network looks, not how much one "
        "looks beside another.",
    ]
    for number, text in enumerate(lines):
        page.text(MARGIN, page.image.height - MARGIN - 18 * (len(lines) - number), plain_letters(text), colour=FAINT)  # fmt: skip
    return page.image


def _labelled(label: str | None) -> str:
    return "no label" if label is None else f"labelled {label}"


def _networks(count: int) -> str:
    return f"mean of {count} networks" if count > 1 else "one network"


def _title(look: Look) -> tuple[str, str]:
    seen = "" if look.unseen else ", trained with this image"
    first = f"{look.name}: {look.prediction}, {look.prob.max():.2f}"
    return first, f"{look.method}, {_networks(look.n_networks)}{seen}"


def _overlay(pixels: NDArray[np.uint8], heat: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Lay a map over an image in grey."""
    from PIL import Image

    height, width = pixels.shape[:2]
    if heat.shape != (height, width):
        small = Image.fromarray(heat.astype(np.float32))
        heat = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR), np.float64)
    grey = pixels.astype(np.float64) @ (0.299, 0.587, 0.114)
    shown = np.repeat((255 - (255 - grey) * 0.45)[..., None], 3, axis=2)
    covered = np.isfinite(heat)
    shown[covered] = _OPACITY * _SCALE.colours(heat[covered]) + (1 - _OPACITY) * grey[covered, None]
    return np.rint(shown).astype(np.uint8)


def _draw_bar(page: Page, pixels: NDArray[np.uint8], *, top: int, height: int) -> None:
    """Draw the colour bar at the right, in the colours as they look over the mean grey."""
    left = page.width - MARGIN - 96
    grey = float((pixels.astype(np.float64) @ (0.299, 0.587, 0.114)).mean())
    values = np.linspace(1.0, 0.0, height)
    column = _OPACITY * _SCALE.colours(values).astype(np.float64) + (1 - _OPACITY) * grey
    page.pixels(np.repeat(column[:, None], 18, axis=1), left, top)
    page.frame(left, top, left + 18, top + height)
    for value, text in ((1.0, "most"), (0.5, "half"), (0.0, "none")):
        page.text(left + 26, top + round((1 - value) * (height - 1)), text, anchor="lm")
