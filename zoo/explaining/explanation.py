"""What a run made of one image: the prediction, and the weight of every patch."""

from __future__ import annotations

import difflib
import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.atomic import atomic
from histostore.errors import ImageError, NotFound, OptionError
from histostore.files import public_url
from histostore.images.readers import open_image
from histostore.store import open_store
from zoo.bags import Bags
from zoo.blending.temperature import cooled
from zoo.errors import RunError
from zoo.explaining.importance import ATTENTION, Voice, Weighed, boxes_of, map_auroc, weigh
from zoo.panel import open_panel, weighted_mean, weighted_sd
from zoo.targets import cohort_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from histostore.cohort import Cohort
    from histostore.images.readers import Reader
    from zoo.panel import Member, Panel
    from zoo.run import Run

__all__ = ["SUFFIXES", "Explanation", "check_outputs", "explain"]

SUFFIXES = (".png", ".geojson", ".csv")
"""What an explanation can be written as."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Explanation:
    """The prediction of one image, and what each of its patches had to do with it."""

    image_id: str
    url: str
    """Where the image lies."""
    run_name: str
    head_name: str
    feature_set: str
    method: str
    """``attention``: times the number of patches, so that 1 is uniform; or ``leave-one-out``:
    how much the patch adds to the log odds of the predicted class."""
    coords: NDArray[np.int32]
    """``(patch, 2)``, x and y, level-0 pixels."""
    edge_px: int
    """Edge of a patch in level-0 pixels."""
    value: NDArray[np.float64]
    """``(patch,)``, mean over heads."""
    sd: NDArray[np.float64]
    """``(patch,)``, standard deviation over heads; NaN of one head."""
    agreement: float | None
    """Mean Spearman correlation of pairs of heads; None where it is undefined."""
    n_heads: int
    """Heads that predicted."""
    n_weighing: int
    """Heads that weighed the patches."""
    n_trained: int
    """Heads that were fitted with this image among what they learned or watched."""
    classes: tuple[str, ...]
    prob: NDArray[np.float64]
    """``(class,)``, mean over heads."""
    prob_sd: NDArray[np.float64]
    """``(class,)``, standard deviation over heads; NaN of one head."""
    width_px: int
    height_px: int
    """Size of the image, level-0 pixels."""
    mpp: float | None
    """Micrometres per level-0 pixel."""
    target: str | None = None
    """Its class, where that is known."""
    notes: tuple[str, ...] = ()
    """What is worth knowing, one line each."""
    storage_options: Mapping[str, Any] | None = field(default=None, repr=False)
    """For the image's storage."""

    @property
    def prediction(self) -> str:
        """The most likely class."""
        return self.classes[int(self.prob.argmax())]

    def boxes(self) -> NDArray[np.int64]:
        """Give left, top, right, bottom of all patches inside the image, ``(patch, 4)``."""
        return boxes_of(self.coords, self.edge_px, self.width_px, self.height_px)

    def auroc(self, truth: pd.DataFrame) -> float:
        """Score the weights against patches that are known to carry the class.

        Parameters
        ----------
        truth
            As :func:`histostore.synthetic.load_truth` gives it.

        Raises
        ------
        RunError
            If the image has patches of one kind only.
        """
        return map_auroc(self.coords, self.value, self.image_id, truth)

    def to_json(self) -> dict[str, Any]:
        """Give all but the patches as JSON values."""
        prob = dict(zip(self.classes, self.prob.tolist(), strict=True))
        sd = zip(self.classes, self.prob_sd.tolist(), strict=True)
        return {
            "image_id": self.image_id,
            "url": public_url(self.url),
            "run": self.run_name,
            "head": self.head_name,
            "feature_set": self.feature_set,
            "method": self.method,
            "n_patches": len(self.value),
            "edge_px": self.edge_px,
            "agreement": self.agreement,
            "n_heads": self.n_heads,
            "n_weighing": self.n_weighing,
            "n_trained": self.n_trained,
            "prediction": self.prediction,
            "target": self.target,
            "prob": prob,
            "prob_sd": {name: None if np.isnan(value) else value for name, value in sd},
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Say in a few lines what was found."""
        k = int(self.prob.argmax())
        spread = "" if np.isnan(self.prob_sd[k]) else f" ± {self.prob_sd[k]:.2f}"
        truth = f" (is {self.target})" if self.target else ""
        what = f"attention up to {self.value.max():.1f} times uniform"
        if self.method != ATTENTION:
            what = f"leaving one out changes log odds by {np.abs(self.value).max():.2f} at most"
        agreed = "" if self.agreement is None else f", agreement {self.agreement:.2f}"
        return (
            f"{self.image_id}: {self.prediction} {self.prob[k]:.2f}{spread}{truth}\n"
            f"{len(self.value):,} patches by {self.n_weighing} of {self.n_heads} heads: "
            f"{what}{agreed}"
        )

    def write(self, *paths: str | os.PathLike[str]) -> tuple[Path, ...]:
        """Write the picture, the polygons, the table: as the names end in :data:`SUFFIXES`.

        Raises
        ------
        OptionError
            If a name ends in anything else.
        ImageError
            If pixels cannot be read.
        StorageError
            If a file cannot be written.
        """
        check_outputs(paths)
        return tuple(_written(self, Path(path)) for path in paths)


def check_outputs(paths: Iterable[str | os.PathLike[str]]) -> None:
    """Refuse names that do not say how to write, before anything is computed."""
    for path in paths:
        if Path(path).suffix.lower() not in SUFFIXES:
            raise OptionError(f"{path}: give a name that ends in {', '.join(SUFFIXES)}")


def explain(
    run: str | os.PathLike[str] | Run,
    store: str | os.PathLike[str],
    image_id: str,
    *,
    cohort: str | os.PathLike[str] | Cohort | None = None,
    feature_set: str | None = None,
    unseen: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Explanation:
    """Ask all heads of a run what they saw in one image.

    Parameters
    ----------
    run
        Directory of a run, or of an ensemble.
    store
        URL of the store that holds the image's patches.
    image_id
        The image.
    cohort
        Table that says where the image lies, and its class; where left out, the place that the
        store recorded.
    feature_set
        The one to read; the one that fits the run where left out.
    unseen
        Ask only the heads that neither learned nor watched the image.
    storage_options
        For the storage of store, cohort and image.

    Raises
    ------
    NotFound
        If the store or the cohort does not hold the image; names what is near.
    NotSupported
        If the run is not one of classification, or its heads have no attention and the image
        has too many patches to leave out each.
    RunError
        If ``unseen``, and all heads have seen it.
    ImageError
        If the image cannot be read, or is another one by now.

    Examples
    --------
    ::

        zoo.explain("runs/mil", "store", "CLL/7").write("CLL-7.png", "CLL-7.geojson")
    """
    store = os.fspath(store)
    panel = open_panel(run, open_store(store, storage_options=storage_options), feature_set)
    table = None if cohort is None else cohort_of(cohort, storage_options)
    url, mpp, target = _place(panel, store, image_id, table)
    with closing(_opened(url, mpp, storage_options, given=table is not None)) as reader:
        size, mpp = (reader.width_px, reader.height_px), reader.mpp
    voices, n_trained = _voices(panel, image_id, mpp, store=store, unseen=unseen)
    weights = np.array([voice.weight for voice in voices])
    weights = weights / weights.sum()
    every = np.array([voice.prob() for voice in voices])
    prob = cooled(weighted_mean(every, weights)[None], panel.temperature)[0]
    weighed = weigh(voices, int(prob.argmax()))
    _check_places(weighed, size, url)
    return Explanation(
        image_id=image_id,
        url=url,
        run_name=panel.run.name,
        head_name=str((panel.run.document.get("head") or {}).get("name", "")),
        feature_set=", ".join(dict.fromkeys(member.features.name for member in panel.members)),
        method=weighed.method,
        coords=weighed.coords,
        edge_px=weighed.edge_px,
        value=weighed.value,
        sd=weighed.sd,
        agreement=weighed.agreement,
        n_heads=len(voices),
        n_weighing=weighed.n_heads,
        n_trained=n_trained,
        classes=panel.run.classes,
        prob=prob,
        prob_sd=weighted_sd(every, weights),
        width_px=size[0],
        height_px=size[1],
        mpp=mpp,
        target=target,
        notes=panel.notes,
        storage_options=storage_options,
    )


def _place(
    panel: Panel, store: str, image_id: str, table: Cohort | None
) -> tuple[str, float | None, str | None]:
    """Tell where an image lies, its scale if a table says so, and its class if that is known."""
    features = panel.members[0].features
    features.bag(image_id, augmentation=panel.members[0].views[0])  # says what is near
    if table is None:
        target = _recorded_target(panel, store, image_id)
        return features.sources[image_id].url, None, target
    if image_id not in table.image_ids:
        close = difflib.get_close_matches(image_id, table.image_ids, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(map(repr, close))}" if close else f"it has {len(table)}"
        raise NotFound(f"{table.url} has no image {image_id!r}; {hint}")
    row = table.image_ids.index(image_id)
    column = str(panel.run.document.get("target", "label"))
    return table.urls[row], table.mpp[row], table.column(column)[row] if table.has(column) else None


def _recorded_target(panel: Panel, store: str, image_id: str) -> str | None:
    """Give the class that the run knew, where it learned from this very store."""
    if not any(_same_store(member, store) for member in panel.members):
        return None
    rows = panel.run.predictions
    found = rows.loc[rows["image_id"] == image_id, "target"]
    return str(found.iloc[0]) if len(found) else None


def _same_store(member: Member, store: str) -> bool:
    """Say whether a run learned from this store: at this place, or moved here as it was."""
    told = member.run.document.get("store") or {}
    return public_url(store) == told.get("url") or member.features.snapshot == told.get("snapshot")


def _opened(
    url: str, mpp: float | None, storage_options: Mapping[str, Any] | None, *, given: bool
) -> Reader:
    try:
        return open_image(url, storage_options, mpp=mpp)
    except ImageError as error:
        hint = "" if given else "; if it has moved, give its cohort"
        raise ImageError(f"{public_url(url)}: {error}{hint}") from error


def _voices(
    panel: Panel, image_id: str, mpp: float | None, *, store: str, unseen: bool
) -> tuple[list[Voice], int]:
    """Put every head before the image; count those that know it."""
    voices, n_trained = [], 0
    for member in panel.members:
        # Who asks for heads that have not seen it, gets none that saw an image of its name.
        of_it = unseen or _same_store(member, store)
        known = _trained_on(member, image_id) if of_it else set()
        views = tuple(
            Bags.unlabelled(
                member.features, [image_id], classes=panel.run.classes, augmentation=view
            )
            for view in member.views
        )
        edge_px = member.features.spec.grid.edge_px(mpp)
        for seat in member.seats():
            has_seen = (seat.fold, seat.seed) in known
            if not (unseen and has_seen):
                n_trained += has_seen
                voices.append(
                    Voice(head=seat.head, weight=seat.weight, views=views, edge_px=edge_px)
                )
    if not voices:
        raise RunError(f"all heads of {panel.run.path} have seen {image_id}: ask all of them")
    return voices, n_trained


def _trained_on(member: Member, image_id: str) -> set[tuple[int, int]]:
    """Name the heads, by fold and seed, that learned or watched an image."""
    rows = member.run.predictions
    mine = rows[(rows["image_id"] == image_id) & (rows["role"] != "test")]
    return {(int(fold), int(seed)) for fold, seed in mine[["fold", "seed"]].to_numpy()}


def _check_places(weighed: Weighed, size: tuple[int, int], url: str) -> None:
    outside = int((weighed.coords >= np.array(size)).any(axis=1).sum())
    if outside:
        raise ImageError(
            f"{public_url(url)}: {outside} of its {len(weighed.coords)} stored patches lie outside "
            "the image as it is now; it was changed after the build"
        )


def _written(told: Explanation, path: Path) -> Path:
    """Write one file, of the kind that its name tells."""
    from zoo.explaining.geojson import to_frame, to_geojson
    from zoo.explaining.maps import draw

    kind = path.suffix.lower()
    with atomic(path) as hidden:
        if kind == ".png":
            with closing(_opened(told.url, told.mpp, told.storage_options, given=True)) as reader:
                draw(told, reader).save(hidden, format="PNG")
        elif kind == ".csv":
            to_frame(told).to_csv(hidden, index=False, float_format="%.6g")
        else:
            hidden.write_text(to_geojson(told), encoding="utf-8")
    return path
