"""What a run says of one new image: every head's word, and the weight of every patch.

The image is embedded into a store of its own, as a build does it, and read from there, as
:func:`zoo.predict` and :func:`zoo.explain` do it; the store is gone with the answer.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from histostore.errors import HistostoreError, OptionError
from histostore.files import public_url
from histostore.images.readers import open_image
from histostore.store import open_store
from zoo.app.answers import Answer, Opinion
from zoo.app.novelty import KnownImages
from zoo.app.preprocessing import UPLOAD, Embedded, embed, preprocessings, spec_of_run
from zoo.app.reliability import Reliability
from zoo.app.twins import Twin, find_twin
from zoo.bags import Bags
from zoo.errors import EmptyBag, NotSupported
from zoo.explaining.importance import Voice, Weighed, weigh
from zoo.panel import Panel, on_pixels, open_panel, runs_of, weighted_sd
from zoo.run import Run

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from histostore.store import FeatureSet
    from zoo.app.preprocessing import Preprocessing
    from zoo.panel import Member, Seat

__all__ = ["Predictor"]


class Predictor:
    """A run with its heads and encoders in memory, ready for images; see :meth:`open`."""

    def __init__(
        self,
        panel: Panel,
        seats: Sequence[Sequence[Seat]],
        using: Sequence[Preprocessing],
        *,
        reliability: Reliability,
        known: Mapping[str, FeatureSet],
        known_images: Mapping[str, KnownImages],
        notes: Sequence[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        self.run = panel.run
        self.members = tuple(member.run for member in panel.members)
        """The run, or the runs that an ensemble combines."""
        self.using = tuple(using)
        """One for each feature set."""
        self.reliability = reliability
        self.notes = tuple(notes)
        """What is worth knowing of all answers, one line each."""
        self._panel, self._seats, self._known = panel, seats, known
        self._known_images, self._storage_options = known_images, storage_options

    @classmethod
    def open(
        cls,
        run: str | os.PathLike[str] | Run,
        *,
        store: str | None = None,
        weights: str | None = None,
        device: str = "auto",
        abstain_below: float | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> Predictor:
        """Load the heads of a run, and the encoders that made what they were trained on.

        Parameters
        ----------
        run
            Directory of a run or of an ensemble of classification.
        store
            Where the vectors of the training are, to recognise its images; where the run says,
            if left out.
        weights
            Weights of the encoders on disk, where they are not to be downloaded: a path, or
            ``NAME=PATH`` with commas between.
        device
            Where encoders run.
        abstain_below
            Confidence below which no class is named; chosen on the run's validation images if
            left out (:class:`~zoo.app.reliability.Reliability`).
        storage_options
            For the storage of the store.

        Raises
        ------
        RunError, NotSupported
            If the run cannot predict new images.
        EncoderError
            If an encoder cannot be had here, or is another than that of the training.
        NotFound
            If a store is given that does not hold what the run was trained on.
        """
        if abstain_below is not None and not 0 <= abstain_below <= 1:
            raise OptionError(f"{abstain_below=}: a confidence lies between 0 and 1")
        asked = run if isinstance(run, Run) else Run.load(run)
        if on_pixels(asked):
            raise NotSupported(
                f"{asked.path} was trained on pixels, not on stored vectors: use zoo predict"
            )
        with TemporaryDirectory(prefix="zoo-app-") as folder:
            empty = open_store(folder, mode="a")
            if asked.task.kind == "classification":
                for one, _ in runs_of(asked, is_pooled=True):
                    empty.create_feature_set(spec_of_run(one))
            panel = open_panel(asked, empty, averages_only=False)
        needed = [(spec_of_run(member.run), member.views) for member in panel.members]
        using = preprocessings(needed, weights=weights, device=device)
        known, note = _training_vectors(panel, store, storage_options)
        return cls(
            panel,
            [member.seats() for member in panel.members],
            using,
            reliability=Reliability.of(asked, abstain_below),
            known=known,
            known_images=_known_images(panel, known),
            notes=(*panel.notes, *note),
            storage_options=storage_options,
        )

    @property
    def n_heads(self) -> int:
        """How many heads there are."""
        return sum(map(len, self._seats))

    @property
    def needs_mpp(self) -> bool:
        """Whether an image must have a scale, its own or one that is given."""
        return any(one.spec.grid.mpp is not None for one in self.using)

    def predict(
        self, path: str | os.PathLike[str], *, mpp: float | None = None, name: str | None = None
    ) -> Answer:
        """Ask all heads about one image; those that learned from it only if no other is there.

        Parameters
        ----------
        path
            A local image file.
        mpp
            Micrometres per pixel of level 0; wins over the file's own.
        name
            What to call it; the file's own name where left out.

        Raises
        ------
        StorageError
            If there is no such file.
        ImageError
            If the image cannot be read, or lacks the scale that a grid needs.
        """
        with TemporaryDirectory(prefix="zoo-app-") as folder:
            store = open_store(folder, mode="a")
            made = embed(str(path), self.using, store, mpp=mpp)
            by_name = {one.features.name: one for one in made}
            twin = self._twin(path, by_name)
            with closing(open_image(str(path), mpp=mpp)) as reader:
                size, scale = (reader.width_px, reader.height_px), reader.mpp
            spoken = self._voices(by_name, scale, twin)
            return self._answer(
                spoken, made, twin, name=name or Path(path).name, size=size, mpp=scale
            )

    def _twin(self, path: str | os.PathLike[str], made: Mapping[str, Embedded]) -> Twin | None:
        for member in self._panel.members:
            name = member.features.name
            if name in self._known:
                runs = [one.run for one in self._panel.members]
                return find_twin(
                    path,
                    made[name].features,
                    self._known[name],
                    runs,
                    storage_options=self._storage_options,
                )
        return None

    def _novel_to(self, made: Sequence[Embedded]) -> int:
        """Count the images to which this one was compared, where it is unlike them."""
        novel = []
        for one in made:
            known = self._known_images.get(one.features.name)
            if known is not None:
                view = _view(self._panel, one.features.name)
                if known.is_novel(one.features.bag(UPLOAD, augmentation=view).embedding):
                    novel.append(known.n_images)
        return max(novel, default=0)

    def _voices(
        self, made: Mapping[str, Embedded], mpp: float | None, twin: Twin | None
    ) -> list[tuple[Voice, Member, Seat]]:
        """Put heads before the image: all, or those that have not seen it."""
        spoken, bags = [], {}
        for member, seats in zip(self._panel.members, self._seats, strict=True):
            features = made[member.features.name].features
            for view in member.views:
                if (features.name, view) not in bags:
                    bags[features.name, view] = Bags.unlabelled(
                        features, [UPLOAD], classes=self.run.classes, augmentation=view
                    )
            views = tuple(bags[features.name, view] for view in member.views)
            edge_px = features.spec.grid.edge_px(mpp)
            spoken += [
                (
                    Voice(head=seat.head, weight=seat.weight, views=views, edge_px=edge_px),
                    member,
                    seat,
                )
                for seat in seats
            ]
        if twin is None:
            return spoken
        return [
            one for one in spoken if not twin.is_seen_by(one[1].run, one[2].fold, one[2].seed)
        ] or spoken

    def _answer(
        self,
        spoken: Sequence[tuple[Voice, Member, Seat]],
        made: Sequence[Embedded],
        twin: Twin | None,
        *,
        name: str,
        size: tuple[int, int],
        mpp: float | None,
    ) -> Answer:
        voices = [voice for voice, _, _ in spoken]
        weights = np.array([voice.weight for voice in voices])
        weights = weights / weights.sum()
        every = np.array([voice.prob() for voice in voices])
        groups = np.array([seat.group for _, _, seat in spoken])
        prob = self._panel.pooled(every[:, None], weights, groups)[0]
        weighed, unweighed = _weighed(voices, int(prob.argmax()))
        return Answer(
            name=name,
            classes=self.run.classes,
            opinions=tuple(
                Opinion(
                    run_name=member.run.name,
                    fold=seat.fold,
                    seed=seat.seed,
                    weight=float(weight),
                    prob=one,
                )
                for (_, member, seat), weight, one in zip(spoken, weights, every, strict=True)
            ),
            n_heads=self.n_heads,
            prob=prob,
            sd=weighted_sd(every, weights),
            threshold=self.reliability.threshold,
            twin=twin,
            width_px=size[0],
            height_px=size[1],
            mpp=mpp,
            n_patches={
                one.features.name: (len(one.selection.kept), len(one.selection.placement))
                for one in made
            },
            flags=tuple(dict.fromkeys(flag for one in made for flag in one.selection.flags)),
            coords=weighed.coords if weighed else voices[0].views[0].coords,
            edge_px=weighed.edge_px if weighed else voices[0].edge_px,
            weighed=weighed,
            unweighed=unweighed,
            novel_to=self._novel_to(made),
            notes=self.notes,
        )


def _weighed(voices: Sequence[Voice], predicted: int) -> tuple[Weighed | None, str]:
    try:
        return weigh(voices, predicted), ""
    except (NotSupported, EmptyBag) as error:
        return None, str(error)


def _view(panel: Panel, name: str) -> str:
    """Give the first view that is read of a feature set."""
    return next(m.views[0] for m in panel.members if m.features.name == name)


def _known_images(panel: Panel, known: Mapping[str, FeatureSet]) -> dict[str, KnownImages]:
    found = {}
    for name, features in known.items():
        runs = [member.run for member in panel.members if member.features.name == name]
        images = sorted({str(image) for run in runs for image in run.predictions["image_id"]})
        known_images = KnownImages.of(features, images, _view(panel, name))
        if known_images is not None:
            found[name] = known_images
    return found


def _training_vectors(
    panel: Panel, store: str | None, storage_options: Mapping[str, Any] | None
) -> tuple[dict[str, FeatureSet], tuple[str, ...]]:
    """Find what the runs were trained on; note where it is gone, unless a store was given."""
    found: dict[str, FeatureSet] = {}
    lost: dict[str, None] = {}
    for member in panel.members:
        name = member.features.name
        url = store or (member.run.document.get("store") or {}).get("url")
        try:
            found[name] = open_store(str(url), storage_options=storage_options)[name]
        except HistostoreError:
            if store is not None:
                raise
            lost[public_url(str(url))] = None
    if found or not lost:
        return found, ()
    where = ", ".join(lost)
    note = (
        f"the store of the training is not at {where}: its images are not recognised, nor those "
        "that are unlike them"
    )
    return found, (note,)
